"""Records demonstrations of the scripted LIBERO experts, one HDF5 file per episode; a second run continues where the first stopped.

python experiments/robot/libero/record_demos.py --task_suite_name libero_object --output_dir runs/libero_object_scripted/recordings

Objects start where LIBERO's own reset puts them at random, never in one of the 50 initial states of the benchmark. Only successes are
kept. scripts/convert/aloha_hdf5_to_rlds.py makes an RLDS data set in the published layout of the recordings (see LIBERO.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.experts import EXPERT_SUITES
from experiments.robot.libero.tasks import choose_tasks, prepare_libero, suite_tasks
from experiments.robot.recording.script import MOTION_DIMS, RecordFlags, record
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script
from prismatic.vla.constants import near_names


@dataclass
class RecordConfig(RecordFlags):
    """Flags of the recording."""

    task_suite_name: str = "libero_object"  # libero_object or libero_spatial
    task_names: list[str] = field(default_factory=list)  # names or numbers of tasks; all of the suite by default
    env_img_res: int = 256  # pixels; images are rendered at this size
    noise_scale: float = 0.2  # noise on executed motions, whose range is [-1, 1]; what is stored is the expert's action
    allow_newer_mujoco: bool = False  # record with a MuJoCo in which LIBERO looks and acts differently

    def __post_init__(self) -> None:
        if self.task_suite_name not in EXPERT_SUITES:
            raise ValueError(f"--task_suite_name is {self.task_suite_name!r}; {near_names(self.task_suite_name, EXPERT_SUITES)}")


def main(config: RecordConfig) -> None:
    configure_rendering()
    prepare_libero(config.allow_newer_mujoco)
    tasks = choose_tasks("--task_names", suite_tasks(config.task_suite_name), config.task_names)
    simulator = LiberoSimulator(
        suite=config.task_suite_name,
        tasks=tasks,
        image_size=config.env_img_res,
        fast_rendering=config.fast_rendering,
        allow_newer_mujoco=config.allow_newer_mujoco,
    )
    pictures = {"env_img_res": config.env_img_res, "task_suite_name": config.task_suite_name}
    record(config, simulator, [task.name for task in tasks], MOTION_DIMS, pictures)


if __name__ == "__main__":
    run_script(main, RecordConfig)
