"""Rollouts on a robot in real time, and what they leave behind: `SessionOptions` and a robot -> a folder of results.

rollouts.jsonl              a line per rollout: success, why it ended, timing, what was held, clipped or failed, and why
rollout_001.steps.jsonl     a line per control step
rollout_001_success.mp4     the video, written as it is filmed
recordings/rollout_001.hdf5 the recording (prismatic/acting/recorder.py), where wanted
summary.json                successes with their interval, settings, the policy, the limits and where they come from
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robot.evaluation.statistics import wilson_interval
from experiments.robot.evaluation.video import BackgroundFilm, VideoWriter
from prismatic.acting.actor import ChunkSource, RemoteActor
from prismatic.acting.execution import ChunkExecutor, ExecutionOptions
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.leader import Leader, check_leader
from prismatic.acting.limit_sources import ChosenLimits
from prismatic.acting.limits import per_dimension
from prismatic.acting.loop import CONTINUE, FAILURE, KEY_HELP, QUIT, SUCCESS, RealTimeRollout, RolloutOutcome, RolloutPlan
from prismatic.acting.recorder import RECORDINGS, BackgroundRecorder, EpisodeRecorder, RecordingError
from prismatic.acting.robot import Robot, RobotError
from prismatic.acting.signals import undisturbed
from prismatic.acting.start_check import check_observation, check_range, check_start
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import PolicyInfo

_LOOKS, _LOOK_AGAIN_S = 5, 0.2  # before a rollout: a camera that misses one picture must not cost the look at the start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionOptions:
    """How many rollouts of what, and where their traces go."""

    folder: Path  # made anew; with a number behind its name where there is one already
    num_rollouts: int
    control_hz: float
    instruction: str = ""  # "": the robot's own, or a person is asked
    max_steps: int | None = None  # executed actions per rollout; None: the robot's own
    video_hz: float = 0.0  # 0: no videos
    is_attended: bool = True  # a person prepares each rollout and says whether it succeeded
    settings: Mapping[str, Any] = field(default_factory=dict)  # for the summary
    waits_for_person: bool = True  # before the first motion, where the policy sees something that training did not
    leader: Leader | None = None  # what a person takes over with; None: what the robot brings along
    records: bool = False  # every rollout becomes a recording
    seed: int | None = None  # of the starts, for the recordings


@dataclass(frozen=True)
class Driver:
    """What drives the robot, and within which limits."""

    source: ChunkSource
    info: PolicyInfo
    execution: ExecutionOptions
    limits: ChosenLimits


def drive(robot: Robot, driver: Driver, options: SessionOptions, keyboard: Keyboard) -> Path:
    """Connects the robot, plays the rollouts and lets go of it, whatever happens; the folder with the results.

    Raises:
        ValueError: the robot cannot be connected or brought to its start, the policy does not fit what it sees, the leader not the
            robot, or a rollout cannot be recorded.
    """
    leader = options.leader or robot.leader
    if leader is not None:
        check_leader(leader, robot.action_names)
    logger.info("policy: %s", driver.info.checkpoint or options.settings.get("pretrained_checkpoint") or "it does not say which")
    for note in driver.limits.notes:
        logger.info("%s", note)
    executor = ChunkExecutor(driver.execution, driver.limits.limits, options.control_hz, driver.info.action_names)
    actor = RemoteActor(driver.source, executor, options.waits_for_person and keyboard.is_terminal)
    try:
        try:
            robot.connect()
            if leader is not None:
                leader.connect()
            session = Session(options, robot, actor, driver, keyboard)
            with keyboard:
                session.run()
        finally:
            try:
                robot.disconnect()
            finally:
                if leader is not None:
                    leader.disconnect()
    finally:
        actor.close()
    return session.folder


class Session:
    """The rollouts of one run."""

    def __init__(self, options: SessionOptions, robot: Robot, actor: RemoteActor, driver: Driver, keyboard: Keyboard) -> None:
        self.folder = _make_folder(options.folder)
        self._options = dataclasses.replace(options, folder=self.folder)
        self._robot, self._actor, self._driver, self._keyboard = robot, actor, driver, keyboard
        self._label = options.instruction or robot.instruction
        self._rows: list[dict[str, Any]] = []
        self._known: set[str] = set()  # dimensions whose first state a person has been told of
        self._trouble: ValueError | None = None  # ends the session once its rollout is reported

    def run(self) -> None:
        """Plays the planned rollouts, or fewer when a person quits.

        Raises:
            ValueError: the robot cannot be brought to its start, and there is nobody to help it; the server refuses what it is sent; or a
                rollout could not be recorded.
        """
        try:
            for number in range(self._options.num_rollouts):
                if not (self._reset(number) and self._prepare(number) and self._looks_right()):
                    break
                outcome, video = self._play(number)
                if outcome.ending != "quit":
                    self._report(number, outcome, video)
                if self._trouble is not None:
                    raise self._trouble
                if outcome.ending == "quit":
                    break
        finally:
            self._write_summary()

    def _reset(self, number: int) -> bool:
        """Brings the robot to its start; False: quit."""
        while True:
            try:
                self._bring_to_start(number)
                self._label = self._options.instruction or self._robot.instruction or self._label
                return True
            except RobotError as error:
                if not self._keyboard.is_terminal:
                    raise ValueError(f"the robot did not reach its start: {error}") from error
                question = f"The robot did not reach its start: {error}\nPress c to try again, q to quit"
                if self._ask(question, CONTINUE + QUIT) == QUIT:
                    return False

    def _bring_to_start(self, number: int) -> None:
        """Resets the robot; where that is broken off, by Ctrl-C or an error, the motion that its driver has begun is ended, too."""
        try:
            self._robot.reset(number)
        except BaseException:
            with undisturbed():
                try:
                    self._robot.stop()
                except Exception as error:  # of any driver; what broke the reset off is said all the same
                    logger.error("the robot could not be stopped (%s: %s); use its emergency stop", type(error).__name__, error)
            raise

    def _prepare(self, number: int) -> bool:
        """Asks for the instruction and for a sign that the scene is ready; False: quit."""
        if not self._options.is_attended:
            return True
        if not self._options.instruction and not self._robot.instruction:
            while not (typed := self._keyboard.line(f"instruction [{self._label}]: ") or self._label):
                pass
            self._label = typed
        question = f"rollout {number + 1}: {self._label!r}. Prepare the scene, then press c to begin, q to quit; {KEY_HELP}"
        return self._ask(question, CONTINUE + QUIT) == CONTINUE

    def _looks_right(self) -> bool:
        """Shows what is not as in the demonstrations, before anything moves; False: quit.

        Raises:
            ValueError: the observation lacks what the policy needs.
        """
        is_asked = self._options.waits_for_person and self._keyboard.is_terminal
        while (seen := self._look()) is None:
            if not is_asked:  # the loop holds the robot for it, and says so
                return True
            question = "Whether the robot stands as in the demonstrations cannot be seen. Press c to look again, q to quit"
            if self._ask(question, CONTINUE + QUIT) == QUIT:
                return False
        observation, position = seen
        check_observation(observation, self._driver.info)
        info = self._driver.info
        found = check_start(observation.proprio, info) + check_range(position, self._driver.limits.limits, info.action_names)
        warnings = [told for told in found if told.partition(" ")[0] not in self._known]
        self._known |= {told.partition(" ")[0] for told in warnings}
        for told in warnings:
            logger.warning("%s", told)
        if not warnings or not is_asked:
            return True
        return self._ask("Nothing has moved. Press c to go on all the same, q to quit", CONTINUE + QUIT) == CONTINUE

    def _look(self) -> tuple[Observation, np.ndarray] | None:
        """What the robot sees, and where it is [A]; None: it does not say, which is logged."""
        for attempt in range(_LOOKS):
            try:
                return self._robot.observe(self._label), np.array(self._robot.position(), np.float64)
            except Exception as error:
                if attempt == _LOOKS - 1:
                    logger.warning("no observation before the start: %s: %s", type(error).__name__, error)
                else:
                    time.sleep(_LOOK_AGAIN_S)
        return None

    def _play(self, number: int) -> tuple[RolloutOutcome, Path | None]:
        options, film = self._options, None
        name = f"rollout_{number + 1:03d}"
        if options.video_hz:
            film = BackgroundFilm(VideoWriter(options.folder / f"{name}.mp4", options.video_hz))
        recorder = self._make_recorder(number, name) if options.records else None
        plan = RolloutPlan(
            number=number,
            instruction=self._label,
            max_steps=options.max_steps or self._robot.max_steps,
            control_hz=options.control_hz,
            step_log=options.folder / f"{name}.steps.jsonl",
            film=film,
            video_hz=options.video_hz,
            leader=options.leader or self._robot.leader,
            recorder=recorder,
            policy=self._driver.info,
        )
        outcome, video = None, None
        try:
            rollout = RealTimeRollout(self._robot, self._actor, self._keyboard, plan)
            outcome = rollout.run()
            self._trouble = rollout.refusal
            if self._robot.is_rehearsal or self._trouble is not None:
                outcome.success = None
            elif outcome.success is None and options.is_attended:
                outcome.success = self._ask_success()
            elif outcome.success is None and self._robot.can_tell_success:
                outcome.success = False
        finally:
            if recorder is not None:
                self._close_recording(recorder, outcome)
            if film is not None:
                ending = "interrupted" if outcome is None else self._result(outcome).replace(" ", "_")
                try:
                    video = film.close(options.folder / f"{name}_{ending}.mp4")
                except Exception as error:  # of the pictures, of PyAV, or of a full disk; the rollout counts without its video
                    logger.warning("no video of this rollout: %s: %s", type(error).__name__, error)
        return outcome, video

    def _make_recorder(self, number: int, name: str) -> BackgroundRecorder:
        """The recording of a rollout, with the cameras called as in the demonstrations, whose registry entry then fits it, too."""
        info = self._driver.info
        facts = {
            "episode": number,
            "seed": self._options.seed,
            "checkpoint": info.checkpoint or str(self._options.settings.get("pretrained_checkpoint") or ""),
            "robot": type(self._robot).__name__,
            "robot_platform": info.platform,
            "action_names": tuple(info.action_names),  # of the commands, which may be changes of what the robot calls targets
            "state_names": tuple(self._robot.state_names or info.proprio_names),
            "control_hz": self._options.control_hz,
        }
        path = self._options.folder / RECORDINGS / f"{name}.hdf5"
        return BackgroundRecorder(EpisodeRecorder(path, self._label, facts, info.demonstrated.cameras))

    def _close_recording(self, recorder: BackgroundRecorder, outcome: RolloutOutcome | None) -> None:
        """Completes the file; a rollout that was ended before anybody could judge it is no success, one that nobody judges says nothing."""
        num_left_out = recorder.num_left_out + (outcome.num_unseen_steps if outcome is not None else 0)
        if num_left_out:
            logger.warning("%d steps are not in the recording: no picture could be taken or written in time", num_left_out)
        ending = "interrupted" if outcome is None else outcome.ending
        nobody_judges = self._robot.is_rehearsal or not self._options.is_attended
        success = None if outcome is not None and outcome.success is None and nobody_judges else bool(outcome and outcome.success)
        try:
            recorder.close({"success": success, "ending": ending, "num_left_out": num_left_out})
        except RecordingError as error:
            logger.error("this rollout is not recorded: %s", error)  # at once: what ends the session may be another error, or Ctrl-C
            self._trouble = self._trouble or error

    def _ask_success(self) -> bool:
        return self._ask(f"Was it a success? {SUCCESS} or {FAILURE}", SUCCESS + FAILURE) == SUCCESS

    def _ask(self, question: str, keys: str) -> str:
        """The key that answers; one that was pressed before the question is none."""
        self._keyboard.forget()
        print(question, flush=True)
        return self._keyboard.wait(keys)

    def _report(self, number: int, outcome: RolloutOutcome, video: Path | None) -> None:
        """One line in rollouts.jsonl and on the screen."""
        counts, names = self._actor.executor.counts, self._driver.info.action_names
        row: dict[str, Any] = {"rollout": number + 1, "instruction": self._label, **dataclasses.asdict(outcome)}
        row |= {"beyond_value_limits": per_dimension(names, counts.outside), "beyond_rate_limits": per_dimension(names, counts.too_fast)}
        plain = ("executed", "approached", "chunks", "failed_requests", "not_finite_chunks", "dropped_actions", "refused_actions")
        row |= {"held_ticks": dict(counts.held), **{name: getattr(counts, name) for name in (*plain, "longest_hold_s")}}
        row |= {"failed_observations": self._actor.num_failed_observations, "warnings": self._actor.warnings}
        if video is not None:
            row["video"] = video.name
        self._rows.append(row)
        with _written(self._options.folder / "rollouts.jsonl") as path, path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        timing = outcome.timing
        print(
            f"rollout {number + 1}: {self._result(outcome)} ({outcome.ending}), {outcome.num_steps} steps in "
            f"{outcome.seconds:.1f} s, period {timing.get('period_ms_mean', 0):.1f} ms, p99 {timing.get('period_ms_p99', 0):.1f} ms, "
            f"{timing['late_ticks']} of {timing['ticks']} ticks late, query {timing.get('latency_ms_mean', float('nan')):.0f} ms"
            + (f"; so far {sum(self._judged)} of {len(self._judged)}" if self._judged else "")
        )

    @property
    def _judged(self) -> list[bool]:
        """Whether each rollout of which somebody said so, or the robot, was a success."""
        return [row["success"] for row in self._rows if row["success"] is not None]

    def _result(self, outcome: RolloutOutcome) -> str:
        if outcome.success is None:
            return "rehearsed" if self._robot.is_rehearsal else "not judged"
        return "success" if outcome.success else "failure"

    def _write_summary(self) -> None:
        num_successes, num_judged = sum(self._judged), len(self._judged)
        low, high = wilson_interval(num_successes, num_judged)
        content = {
            "is_rehearsal": self._robot.is_rehearsal,
            "num_rollouts": len(self._rows),
            "num_judged": num_judged,
            "num_successes": num_successes,
            "interval_95": [low, high],
            "settings": dict(self._options.settings),
            "limits": list(self._driver.limits.notes),
            "policy": self._driver.info.content(),
            "command": sys.argv,
        }
        with _written(self._options.folder / "summary.json") as path:
            path.write_text(json.dumps(content, indent=1, default=str) + "\n")
        if self._robot.is_rehearsal:
            print(f"{len(self._rows)} rollouts rehearsed, none counts as a success or a failure: {self._options.folder}")
            return
        if not self._rows:
            print(f"no rollout was played: {self._options.folder}")
            return
        told = [f"{num_successes} of {num_judged} rollouts succeeded (95 % interval {100 * low:.0f}-{100 * high:.0f} %)"] * (num_judged > 0)
        if num_unjudged := len(self._rows) - num_judged:
            told.append(f"{num_unjudged} played and not judged")
        print(f"{'; '.join(told)}: {self._options.folder}")


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Raises ValueError where the disk does not take it."""
    try:
        yield path
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}") from error


def _make_folder(wanted: Path) -> Path:
    """A new folder: two robots whose runs begin in the same second get one each."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def session_folder(parent: Path, family: str, note: str | None) -> Path:
    """EVAL-<family>-<time>[--<note>] in `parent`."""
    return parent / f"EVAL-{family}-{time.strftime('%Y_%m_%d-%H_%M_%S')}{f'--{note}' if note else ''}"
