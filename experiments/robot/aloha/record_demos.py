"""Records demonstrations of the scripted experts in gym-aloha, one HDF5 file per episode; a second run continues where the first stopped.

python experiments/robot/aloha/record_demos.py --output_dir runs/aloha_sim/recordings --num_episodes 50

Successes only; the objects start where gym-aloha's own sampling puts them, elsewhere than in any evaluation. To RLDS: ALOHA.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.aloha.tasks import ALOHA_TASKS, get_aloha_task
from experiments.robot.recording.script import RecordFlags, record
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script

_JOINTS = (*range(6), *range(7, 13))  # of both arms; their grippers get no noise


@dataclass
class RecordConfig(RecordFlags):
    """Flags of the recording."""

    task_names: list[str] = field(default_factory=lambda: list(ALOHA_TASKS))  # of gym-aloha
    image_size: int = 256  # pixels; images are rendered at this size
    noise_scale: float = 0.004  # rad, on executed joint angles; with 0.01 insertion fails mostly


def main(config: RecordConfig) -> None:
    configure_rendering()
    tasks = [get_aloha_task(name).name for name in config.task_names]
    record(config, AlohaSimulator(config.image_size, config.fast_rendering), tasks, _JOINTS, {"image_size": config.image_size})


if __name__ == "__main__":
    run_script(main, RecordConfig)
