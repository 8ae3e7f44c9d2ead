"""What the three record_demos.py scripts share: flags, and the recording of what is missing, with a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.robot.recording.record import RecordingOptions, missing_episodes, record_demonstrations
from experiments.robot.simulators.changed import perturbed
from experiments.robot.simulators.interfaces import Simulator
from experiments.robot.simulators.perturbations import parse_perturbations

MOTION_DIMS = (0, 1, 2)  # dx, dy, dz of an arm whose actions are motions of its hand


@dataclass
class RecordFlags:
    """Flags of every recording of scripted experts."""

    output_dir: Path  # episodes land in output_dir/<task>/episode_<number>.hdf5
    num_episodes: int = 50  # per task
    fast_rendering: bool = True  # no anti-aliasing, shadows or reflections; evaluation must use the same setting
    noise_scale: float = 0.4  # standard deviation of the noise on executed actions, in action units; what is stored is the expert's action
    noise_correlation: float = 0.0  # of the noise from step to step, 0 to 1; 0.9 lasts for ten steps and moves an arm aside
    seed: int = 0  # of starts and noise
    num_workers: int = 2  # processes
    perturb: str = ""  # a changed scene, such as camera:2@1 for a camera that has moved for good; as of the evaluation scripts


def record(
    flags: RecordFlags, simulator: Simulator, tasks: list[str], noise_dims: tuple[int, ...], pictures: Mapping[str, Any] | None = None
) -> None:
    """Records what `flags.output_dir` lacks; `noise_dims` are the action dimensions that get noise.

    `pictures`: the script's own flags that decide how an episode looks, such as its size [pixels] and its suite, and their values.

    Raises:
        ValueError: there is no task, `flags.perturb` asks for what is unknown, or what the simulator cannot change; or the folder holds
            episodes of other flags.
    """
    if not tasks:
        raise ValueError("--task_names is empty; pass at least one task, or leave the flag out")
    tasks = list(dict.fromkeys(tasks))
    simulator = perturbed(simulator, parse_perturbations(flags.perturb), tasks)
    options = RecordingOptions(
        output_dir=flags.output_dir,
        num_episodes=flags.num_episodes,
        seed=flags.seed,
        noise_scale=flags.noise_scale,
        noise_correlation=flags.noise_correlation,
        noise_dims=noise_dims,
        num_workers=flags.num_workers,
        perturb=flags.perturb,
        pictures={"fast_rendering": flags.fast_rendering, **(pictures or {})},
    )
    num_missing = sum(len(indices) for _, indices in missing_episodes(tasks, options))
    for _ in tqdm(record_demonstrations(simulator, tasks, options), total=num_missing, desc="recording", unit="episode", mininterval=0.5):
        pass
    print(f"{flags.output_dir}: {len(tasks)} tasks x {flags.num_episodes} episodes, {num_missing} of them new")
