"""Evaluates a policy server on ALOHA, the real one or gym-aloha's simulation, at 25 Hz.

python experiments/robot/aloha/run_aloha_eval.py --vla_server_url 192.168.1.20 --num_rollouts_planned 20 --task_label "fold the shirt"
python experiments/robot/aloha/run_aloha_eval.py --vla_server_url 127.0.0.1 --robot transfer_cube --num_rollouts_planned 20

Runs on the robot's computer, which needs no torch. Start vla-scripts/deploy.py on the machine with the GPU first. Each rollout leaves
a line in rollouts.jsonl, a log of every control step and a video; summary.json counts the successes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robot.aloha.environment import CAMERAS, AlohaSimulator
from experiments.robot.aloha.robots import ACTION_DIM, HIGH, LOW, RelativeTargets, Robot, SimulatedRobot
from experiments.robot.aloha.tasks import ALOHA_TASKS, CONTROL_HZ
from experiments.robot.evaluation.statistics import wilson_interval
from experiments.robot.evaluation.video import write_mp4
from prismatic.acting.actor import RemoteActor
from prismatic.acting.client import ConnectionOptions, PolicyClient, PolicyInfo, ServerUnavailableError
from prismatic.acting.execution import ChunkExecutor, ExecutionOptions
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.limits import ActionLimits, per_dimension
from prismatic.acting.loop import CONTINUE, FAILURE, KEY_HELP, QUIT, SUCCESS, RealTimeRollout, RolloutOutcome, RolloutPlan
from prismatic.cli import run_script
from prismatic.vla.constants import ActionKind

HARDWARE = "hardware"

logger = logging.getLogger(__name__)


@dataclass
class AlohaEvalConfig:
    """Flags of the evaluation."""

    # As in the published script
    model_family: str = "openvla"  # part of the run's name
    center_crop: bool | None = None  # the checkpoint knows it; a value that contradicts it is refused
    num_open_loop_steps: int = 25  # actions executed per query
    use_vla_server: bool = True  # there is no other way
    vla_server_url: str = ""  # host, ws://host:port, or http://host:port for POST /act
    num_rollouts_planned: int = 50  # after which the run ends
    max_steps: int | None = None  # executed actions per rollout; 1500 on the robot, what the task allows in simulation
    use_relative_actions: bool = False  # the policy's actions are changes of the joint angles
    run_id_note: str | None = None  # added to the name of the run
    local_log_dir: Path = Path("runs/aloha_eval")  # receives a folder per run
    seed: int = 7  # of the simulated starts

    # Robot and task
    robot: str = HARDWARE  # hardware, or a task of gym-aloha: transfer_cube, insertion
    task_label: str = ""  # the instruction; "": asked for before each rollout, in simulation the task's own
    control_hz: float = 25  # as the demonstrations
    image_size: int = 256  # simulation: pixels of the rendered images, as in the demonstrations
    fast_rendering: bool = True  # simulation: no anti-aliasing, shadows or reflections, as in the demonstrations
    video_hz: float = 12.5  # frames per second of the videos; 0: none

    # Between chunks
    prefetch_steps: int = 0  # ask for the next chunk so many steps before the actions run out, so that the robot need not wait
    num_blend_steps: int = 0  # pass from one chunk to the next over so many steps
    ensemble_decay: float | None = None  # ACT's temporal ensembling, for instance 0.01; ask often then: --num_open_loop_steps 5

    # Safety
    max_joint_change: float = 0.2  # rad per step that a joint's target may change
    limit_mode: str = "clip"  # clip or refuse what goes beyond the limits
    max_observation_age_s: float = 0.5  # with older messages from cameras or joints the robot holds its position
    stop_after_s: float = 5.0  # a rollout ends after holding for so long

    # Server
    reply_timeout_s: float = 2.0  # a request unanswered for so long is given up and repeated
    connect_wait_s: float = 60.0  # how long to wait for the server at the start
    api_key: str | None = None  # of the server; the environment variable PRISMATIC_API_KEY does not show in the process list

    def __post_init__(self) -> None:
        if not self.use_vla_server:
            raise ValueError("--use_vla_server False is not possible: start vla-scripts/deploy.py and pass --vla_server_url")
        if not self.vla_server_url:
            raise ValueError("--vla_server_url is missing; pass the address of the machine that runs vla-scripts/deploy.py")
        if self.robot != HARDWARE and self.robot not in ALOHA_TASKS:
            raise ValueError(f"--robot is {self.robot!r}, expected {HARDWARE} or a simulated task: {', '.join(ALOHA_TASKS)}")
        for name in ("num_rollouts_planned", "max_steps", "control_hz", "max_joint_change"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} is {value}, must be more than 0")
        if self.robot != HARDWARE and self.control_hz != CONTROL_HZ:
            raise ValueError(f"--control_hz is {self.control_hz:g}; the simulation executes {CONTROL_HZ:g} actions per second")
        if self.video_hz < 0:
            raise ValueError(f"--video_hz is {self.video_hz}, must not be negative")
        self.execution  # noqa: B018  (checks the flags that make it up)

    @property
    def execution(self) -> ExecutionOptions:
        return ExecutionOptions(
            num_open_loop_steps=self.num_open_loop_steps,
            prefetch_steps=self.prefetch_steps,
            ensemble_decay=self.ensemble_decay,
            num_blend_steps=self.num_blend_steps,
            max_observation_age_s=self.max_observation_age_s,
            stop_after_s=self.stop_after_s,
        )


def check_policy(config: AlohaEvalConfig, info: PolicyInfo) -> None:
    """Accepts a policy that can drive ALOHA with these flags.

    Raises:
        ValueError: it cannot; the message says what differs.
    """
    if info.action_dim != ACTION_DIM or any(kind is not ActionKind.TARGET for kind in info.action_kinds):
        raise ValueError(
            f"the server's policy is made for {info.platform} ({', '.join(info.action_names)}); ALOHA needs {ACTION_DIM} joint targets"
        )
    if not set(info.cameras) <= set(CAMERAS):
        raise ValueError(f"the server's policy wants the cameras {', '.join(info.cameras)}; ALOHA has {', '.join(CAMERAS)}")
    if config.center_crop not in (None, info.center_crop):
        raise ValueError(f"--center_crop {config.center_crop} contradicts the checkpoint ({info.center_crop}); leave the flag out")
    if config.num_open_loop_steps > info.num_actions_chunk:
        raise ValueError(f"--num_open_loop_steps is {config.num_open_loop_steps}, but the policy predicts {info.num_actions_chunk} actions")
    if config.control_hz != info.control_hz:
        raise ValueError(f"--control_hz is {config.control_hz:g}, but the policy was trained on {info.control_hz:g} Hz")


def make_limits(config: AlohaEvalConfig) -> ActionLimits:
    """Joint ranges of the arms, and how far a joint's target may move in a step; grippers may move at once."""
    change = np.full(ACTION_DIM, config.max_joint_change)
    change[6::7] = np.inf
    if config.use_relative_actions:  # then the targets are kept in range by RelativeTargets
        return ActionLimits(np.full(ACTION_DIM, -np.inf), np.full(ACTION_DIM, np.inf), change, config.limit_mode)
    return ActionLimits(LOW, HIGH, change, config.limit_mode)


def make_robot(config: AlohaEvalConfig) -> Robot:
    """The robot of --robot."""
    robot: Robot
    if config.robot == HARDWARE:
        from experiments.robot.aloha.hardware import AlohaHardware

        robot = AlohaHardware()
    else:
        robot = SimulatedRobot(AlohaSimulator(config.image_size, config.fast_rendering), config.robot, config.seed)
    return RelativeTargets(robot) if config.use_relative_actions else robot


class Evaluation:
    """The rollouts of one run and what they leave behind."""

    def __init__(self, config: AlohaEvalConfig, robot: Robot, actor: RemoteActor, info: PolicyInfo, keyboard: Keyboard) -> None:
        self._config, self._robot, self._actor, self._info, self._keyboard = config, robot, actor, info, keyboard
        note = f"--{config.run_id_note}" if config.run_id_note else ""
        self.folder = config.local_log_dir / f"EVAL-{config.model_family}-{time.strftime('%Y_%m_%d-%H_%M_%S')}{note}"
        self.folder.mkdir(parents=True)
        self._label = config.task_label or robot.instruction
        self._rows: list[dict[str, Any]] = []

    def run(self) -> None:
        """Plays the planned rollouts, or fewer when a person quits."""
        try:
            for number in range(self._config.num_rollouts_planned):
                self._robot.reset(number)
                if not self._prepare(number):
                    break
                outcome = self._play(number)
                if outcome.ending == "quit":
                    break
                self._record(number, outcome)
        finally:
            self._write_summary()

    def _prepare(self, number: int) -> bool:
        """Asks for the instruction and for a sign that the scene is ready; False: quit."""
        if self._config.robot != HARDWARE:
            return True
        if not self._config.task_label:
            while not (typed := self._keyboard.line(f"instruction [{self._label}]: ") or self._label):
                pass
            self._label = typed
        print(f"rollout {number + 1}: {self._label!r}. Prepare the scene, then press c to begin, q to quit; {KEY_HELP}")
        return self._keyboard.wait(CONTINUE + QUIT) == CONTINUE

    def _play(self, number: int) -> RolloutOutcome:
        config = self._config
        plan = RolloutPlan(
            number=number,
            instruction=self._label,
            max_steps=config.max_steps or self._robot.max_steps,
            control_hz=config.control_hz,
            video_hz=config.video_hz,
            step_log=self.folder / f"rollout_{number + 1:03d}.steps.jsonl",
        )
        outcome = RealTimeRollout(self._robot, self._actor, self._keyboard, plan).run()
        if outcome.success is None:
            outcome.success = self._ask_success() if config.robot == HARDWARE else False
        return outcome

    def _ask_success(self) -> bool:
        print(f"Was it a success? {SUCCESS} or {FAILURE}")
        return self._keyboard.wait(SUCCESS + FAILURE) == SUCCESS

    def _record(self, number: int, outcome: RolloutOutcome) -> None:
        """One line in rollouts.jsonl and on the screen, and the video."""
        counts, names = self._actor.executor.counts, self._info.action_names
        row: dict[str, Any] = {"rollout": number + 1, "instruction": self._label}
        row |= {key: getattr(outcome, key) for key in ("success", "ending", "num_steps", "seconds", "timing")}
        row |= {"beyond_value_limits": per_dimension(names, counts.outside), "beyond_rate_limits": per_dimension(names, counts.too_fast)}
        plain = ("executed", "chunks", "failed_requests", "not_finite_chunks", "dropped_actions", "refused_actions", "longest_hold_s")
        row |= {"held_ticks": dict(counts.held), **{name: getattr(counts, name) for name in plain}}
        if outcome.frames:
            video = self.folder / f"rollout_{number + 1:03d}_{'success' if outcome.success else 'failure'}.mp4"
            write_mp4(video, outcome.frames, outcome.frames_per_second)
            row["video"] = video.name
        self._rows.append(row)
        with (self.folder / "rollouts.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        timing = outcome.timing
        print(
            f"rollout {number + 1}: {'success' if outcome.success else 'failure'} ({outcome.ending}), {outcome.num_steps} steps in "
            f"{outcome.seconds:.1f} s, period {timing.get('period_ms_mean', 0):.1f} ms, p99 {timing.get('period_ms_p99', 0):.1f} ms, "
            f"{timing['late_ticks']} of {timing['ticks']} ticks late, query {timing.get('latency_ms_mean', float('nan')):.0f} ms; "
            f"so far {self._num_successes} of {len(self._rows)}"
        )

    @property
    def _num_successes(self) -> int:
        return sum(bool(row["success"]) for row in self._rows)

    def _write_summary(self) -> None:
        low, high = wilson_interval(self._num_successes, len(self._rows))
        settings = {item.name: getattr(self._config, item.name) for item in dataclasses.fields(self._config) if item.name != "api_key"}
        content = {
            "num_rollouts": len(self._rows),
            "num_successes": self._num_successes,
            "interval_95": [low, high],
            "settings": settings,
            "policy": dataclasses.asdict(self._info),
            "command": sys.argv,
        }
        (self.folder / "summary.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
        interval = f"95 % interval {100 * low:.0f}-{100 * high:.0f} %"
        print(f"{self._num_successes} of {len(self._rows)} rollouts succeeded ({interval}): {self.folder}")


def evaluate(config: AlohaEvalConfig) -> Path:
    """Runs the evaluation; returns the folder with its results.

    Raises:
        ValueError: no server, or one whose policy cannot drive this robot.
    """
    keyboard = Keyboard()
    if config.robot == HARDWARE and not keyboard.is_terminal:
        raise ValueError("--robot hardware needs a terminal: a person at the keys must be able to pause and stop the robot")
    options = ConnectionOptions(reply_timeout_s=config.reply_timeout_s, api_key=config.api_key)
    client = PolicyClient(config.vla_server_url, options)
    try:
        info = client.connect(wait_s=config.connect_wait_s)
    except ServerUnavailableError as error:
        raise ValueError(f"--vla_server_url {config.vla_server_url}: no server within {config.connect_wait_s:g} s ({error})") from error
    check_policy(config, info)
    is_relative = [config.use_relative_actions] * ACTION_DIM
    actor = RemoteActor(client, ChunkExecutor(config.execution, is_relative, make_limits(config)))
    try:
        robot = make_robot(config)
        try:
            with keyboard:
                evaluation = Evaluation(config, robot, actor, info, keyboard)
                evaluation.run()
        finally:
            robot.close()
    finally:
        actor.close()
    return evaluation.folder


def main(config: AlohaEvalConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves as Ctrl-C does: robot held, terminal restored
    evaluate(config)


if __name__ == "__main__":
    run_script(main, AlohaEvalConfig)
