"""Records demonstrations of MetaWorld's scripted experts, one HDF5 file per episode; a second run continues where the first stopped.

python experiments/robot/metaworld/record_demos.py --output_dir runs/demo/recordings --num_episodes 50
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from experiments.robot.metaworld.environment import MetaWorldSimulator
from experiments.robot.metaworld.tasks import DEMO_TASKS, get_metaworld_task
from experiments.robot.recording.record import RecordingOptions, missing_episodes, record_demonstrations
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script


@dataclass
class RecordConfig:
    """Flags of the recording."""

    output_dir: Path  # episodes land in output_dir/<task>/episode_<number>.hdf5
    task_names: list[str] = field(default_factory=lambda: list(DEMO_TASKS))  # see experiments/robot/metaworld/tasks.py
    num_episodes: int = 50  # per task
    image_size: int = 64  # pixels; images are rendered at this size
    fast_rendering: bool = True  # no anti-aliasing, shadows or reflections; evaluation must use the same setting
    noise_scale: float = 0.4  # noise on executed actions, whose range is [-1, 1]
    seed: int = 0  # of starts and noise
    num_workers: int = 2  # processes


def main(config: RecordConfig) -> None:
    configure_rendering()
    tasks = [get_metaworld_task(name).name for name in config.task_names]
    options = RecordingOptions(config.output_dir, config.num_episodes, config.seed, config.noise_scale, num_workers=config.num_workers)
    simulator = MetaWorldSimulator(config.image_size, config.fast_rendering)
    num_missing = sum(len(indices) for _, indices in missing_episodes(tasks, options))
    recorded = record_demonstrations(simulator, tasks, options)
    for _ in tqdm(recorded, total=num_missing, desc="recording", unit="episode", mininterval=0.5):
        pass
    print(f"{config.output_dir}: {len(tasks)} tasks x {config.num_episodes} episodes, {num_missing} of them new")


if __name__ == "__main__":
    run_script(main, RecordConfig)
