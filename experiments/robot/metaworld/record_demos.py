"""Records demonstrations of MetaWorld's scripted experts, one HDF5 file per episode; a second run continues where the first stopped.

python experiments/robot/metaworld/record_demos.py --output_dir runs/demo/recordings --num_episodes 50
"""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.robot.metaworld.environment import MetaWorldSimulator
from experiments.robot.metaworld.tasks import DEMO_TASKS, get_metaworld_task
from experiments.robot.recording.script import MOTION_DIMS, RecordFlags, record
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script


@dataclass
class RecordConfig(RecordFlags):
    """Flags of the recording."""

    task_names: list[str] = field(default_factory=lambda: list(DEMO_TASKS))  # see experiments/robot/metaworld/tasks.py
    image_size: int = 64  # pixels; images are rendered at this size
    noise_scale: float = 0.4  # noise on executed actions, whose range is [-1, 1]


def main(config: RecordConfig) -> None:
    configure_rendering()
    tasks = [get_metaworld_task(name).name for name in config.task_names]
    simulator = MetaWorldSimulator(config.image_size, config.fast_rendering)
    record(config, simulator, tasks, MOTION_DIMS, {"image_size": config.image_size})


if __name__ == "__main__":
    run_script(main, RecordConfig)
