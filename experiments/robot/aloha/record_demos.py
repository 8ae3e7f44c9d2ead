"""Records demonstrations of the scripted experts in gym-aloha, one HDF5 file per episode; a second run continues where the first stopped.

python experiments/robot/aloha/record_demos.py --output_dir runs/aloha_sim/recordings --num_episodes 50

Successes only; the objects start where gym-aloha's own sampling puts them, elsewhere than in any evaluation. To RLDS: ALOHA.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from experiments.robot.aloha.simulation import ALOHA_TASKS, AlohaSimulator, get_aloha_task
from experiments.robot.recording.record import RecordingOptions, missing_episodes, record_demonstrations
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script

_JOINTS = (*range(6), *range(7, 13))  # of both arms; their grippers get no noise


@dataclass
class RecordConfig:
    """Flags of the recording."""

    output_dir: Path  # episodes land in output_dir/<task>/episode_<number>.hdf5
    task_names: list[str] = field(default_factory=lambda: list(ALOHA_TASKS))  # of gym-aloha
    num_episodes: int = 50  # per task
    image_size: int = 256  # pixels; images are rendered at this size
    fast_rendering: bool = True  # no anti-aliasing, shadows or reflections; evaluation must use the same setting
    noise_scale: float = 0.004  # rad, on executed joint angles; with 0.01 insertion fails mostly
    noise_correlation: float = 0.0  # of the noise from step to step, 0 to 1; 0.9 lasts for ten steps and moves the arms aside
    seed: int = 0  # of starts and noise
    num_workers: int = 2  # processes


def main(config: RecordConfig) -> None:
    configure_rendering()
    tasks = [get_aloha_task(name).name for name in config.task_names]
    options = RecordingOptions(
        output_dir=config.output_dir,
        num_episodes=config.num_episodes,
        seed=config.seed,
        noise_scale=config.noise_scale,
        noise_correlation=config.noise_correlation,
        noise_dims=_JOINTS,
        num_workers=config.num_workers,
    )
    simulator = AlohaSimulator(config.image_size, config.fast_rendering)
    num_missing = sum(len(indices) for _, indices in missing_episodes(tasks, options))
    for _ in tqdm(record_demonstrations(simulator, tasks, options), total=num_missing, desc="recording", unit="episode", mininterval=0.5):
        pass
    print(f"{config.output_dir}: {len(tasks)} tasks x {config.num_episodes} episodes, {num_missing} of them new")


if __name__ == "__main__":
    run_script(main, RecordConfig)
