"""Episodes per hour of closed-loop evaluation on LIBERO, with one and with many simulator processes.

python benchmarks/rollout.py --num_envs "[1,2]" --json rollout.json
python benchmarks/rollout.py --num_envs "[1,8,16]" --num_episodes 48 --batch_size 8 --pretrained_checkpoint runs/my-run--10000_chkpt

The first line is the loop as published: one process, LIBERO's own environment loaded again for each episode, both cameras rendered at
every step, always with the slow default rendering. The other lines are `experiments/robot/evaluation/rollout.py`. All play the same
episodes of one task with the same number of steps; processes are started and the first episode of each is played before the clock runs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.controls import make_control
from experiments.robot.evaluation.rollout import ChunkPolicy, Rollout, RolloutOptions
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.run_libero_eval import EvalConfig, load_policy
from experiments.robot.libero.tasks import load_initial_states, prepare_libero, suite_tasks
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script
from prismatic.vla.types import Observation

ROOT = Path(__file__).parents[1]


@dataclass
class RolloutBenchmarkConfig:
    """Flags of the benchmark."""

    pretrained_checkpoint: str = ""  # folder of a LIBERO checkpoint; "": a tiny untrained one, made for the run
    num_envs: list[int] = field(default_factory=lambda: [1, 2])  # simulator processes; one line of the table each
    num_episodes: int = 8  # of each line, after one episode per process
    task_suite_name: str = "libero_spatial"
    max_steps: int = 220  # per episode; an untrained policy plays all of them
    fast_rendering: bool = False
    batch_size: int = 1  # observations per policy call
    engine: str = "auto"  # of the policy; "eager" starts at once
    published_loop: bool = True  # measure the loop as published, too
    json: Path | None = None  # where the table is written, too


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    episodes_per_hour: float
    cpu_s_per_episode: float  # of this process and its simulators
    steps_per_episode: float


def main(config: RolloutBenchmarkConfig) -> None:
    """Prints one line per number of processes."""
    backend = configure_rendering()
    prepare_libero()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = config.pretrained_checkpoint or _untrained(Path(folder))
        policy = load_policy(EvalConfig(pretrained_checkpoint=checkpoint, seed=7, engine=config.engine))
        if config.published_loop:
            rows.append(_measure_published(config, policy))
            _show(rows[-1])
        for count in config.num_envs:
            rows.append(_measure_rollout(config, policy, count))
            _show(rows[-1])
    base = rows[0]
    for row in rows[1:]:
        print(f"{row.name}: {row.episodes_per_hour / base.episodes_per_hour:.2f} x {base.name}")
    if config.json is not None:
        flags = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
        machine = {"cpu_count": os.cpu_count(), "load_average": os.getloadavg(), "rendering": backend}
        config.json.write_text(json.dumps({"flags": flags, "machine": machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def _show(row: Row) -> None:
    figures = f"{row.episodes_per_hour:8.0f} episodes/hour  {row.cpu_s_per_episode:7.1f} CPU s/episode"
    print(f"{row.name:16}{figures}  {row.steps_per_episode:6.1f} steps/episode", flush=True)


def _untrained(folder: Path) -> str:
    target = folder / "untrained"
    command = [sys.executable, "scripts/make_untrained_policy.py", "--output_dir", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return str(target)


def _simulator(config: RolloutBenchmarkConfig) -> LiberoSimulator:
    tasks = suite_tasks(config.task_suite_name)[:1]
    return LiberoSimulator(config.task_suite_name, tasks, fast_rendering=config.fast_rendering, max_steps=config.max_steps)


def _measure_rollout(config: RolloutBenchmarkConfig, policy: ChunkPolicy, num_envs: int) -> Row:
    simulator = _simulator(config)
    task = simulator.tasks[0].name
    controls = {"none": make_control("none", simulator, [task])}
    rollout = Rollout(simulator, policy, controls, RolloutOptions(num_envs=num_envs, batch_size=config.batch_size))
    episodes = [PlannedEpisode(EpisodeSpec(task, index % 50, 7), "none") for index in range(num_envs + config.num_episodes)]
    started, steps, counted = 0.0, 0, 0
    cpu_started = _cpu_s()
    for number, result in enumerate(rollout.run(episodes)):
        if number + 1 == num_envs:
            started = time.perf_counter()
        elif number + 1 > num_envs:
            steps, counted = steps + result.num_steps, counted + 1
    seconds = time.perf_counter() - started
    cpu_s = _cpu_s() - cpu_started  # of ended processes, so it holds their start, too
    return Row(f"{num_envs} processes", 3600 * counted / seconds, cpu_s / len(episodes), steps / counted)


def _measure_published(config: RolloutBenchmarkConfig, policy: ChunkPolicy) -> Row:
    """The loop as published, without its files."""
    from libero.libero.envs import OffScreenRenderEnv

    task = suite_tasks(config.task_suite_name)[0]
    states = load_initial_states(task)
    environment = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=256, camera_widths=256)
    environment.seed(0)
    num_episodes = max(1, config.num_episodes // 4)  # it is slow
    _published_episode(environment, states[0].state, task.language, policy, 20)
    cpu_started, started, steps = _cpu_s(), time.perf_counter(), 0
    for number in range(num_episodes):
        steps += _published_episode(environment, states[number].state, task.language, policy, config.max_steps)
    seconds = time.perf_counter() - started
    row = Row("published loop", 3600 * num_episodes / seconds, (_cpu_s() - cpu_started) / num_episodes, steps / num_episodes)
    environment.close()
    return row


def _published_episode(environment: Any, state: np.ndarray, instruction: str, policy: ChunkPolicy, max_steps: int) -> int:
    from experiments.robot.libero.replay import NO_OP, axis_angle

    environment.reset()
    sensed = environment.set_init_state(state)
    for _ in range(10):
        sensed, _, _, _ = environment.step(list(NO_OP))
    queue: list[np.ndarray] = []
    for step in range(max_steps):
        if not queue:
            images = {"primary": sensed["agentview_image"], "wrist": sensed["robot0_eye_in_hand_image"]}
            turned = {name: np.ascontiguousarray(image[::-1, ::-1]) for name, image in images.items()}
            pose = sensed["robot0_eef_pos"], axis_angle(sensed["robot0_eef_quat"]), sensed["robot0_gripper_qpos"]
            queue = list(policy.predict([Observation(turned, instruction, np.concatenate(pose))], [step])[0].actions)
        sensed, _, done, _ = environment.step(queue.pop(0).tolist())
        if done:
            return step + 1
    return max_steps


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    run_script(main, RolloutBenchmarkConfig)
