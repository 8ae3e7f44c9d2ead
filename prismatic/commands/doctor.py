"""Checks this machine, and a checkpoint and a data folder where they are named; every finding says what to do.

    python scripts/doctor.py
    python scripts/doctor.py --checkpoint runs/my_run--10000_chkpt --data data --dataset_name my_robot

With both, the data are compared with what the checkpoint was trained on: cameras, units of state and actions, gripper.

Exit status 0: nothing stands in the way; 1: problems were found; 2: a flag is wrong. Weights are not loaded.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from prismatic.cli import run_script

_PROBLEMS = 1  # exit status


@dataclass
class DoctorConfig:
    """What to look at, beside this machine."""

    checkpoint: Path | None = None  # a checkpoint folder
    data: Path | None = None  # a data set's folder, a manifest, or the folder that holds data sets (--data_root_dir of training)
    dataset_name: str | None = None  # with --data: this data set (or name:version) or mixture only
    robot_platform: str | None = None  # with --data: overrides the entry's; a name of prismatic/vla/constants.py
    machine: bool = True  # False: look at the checkpoint and the data only
    json: bool = False  # print JSON instead of the screen

    def __post_init__(self) -> None:
        if self.data is None and (self.dataset_name or self.robot_platform):
            raise ValueError("--dataset_name and --robot_platform need --data, the folder to look in")
        if not self.machine and self.checkpoint is None and self.data is None:
            raise ValueError("--machine False leaves nothing to look at; pass --checkpoint or --data")


def main(config: DoctorConfig) -> None:
    """Prints the findings; exits with status 1 if there are problems."""
    from prismatic.doctor.checkpoint import check_checkpoint
    from prismatic.doctor.data import check_data
    from prismatic.doctor.screen import MACHINE_CHECKS, count_problems, run_check, run_checks, to_json, to_text

    sections = {heading: run_checks(checks) for heading, checks in MACHINE_CHECKS.items()} if config.machine else {}
    if (checkpoint := config.checkpoint) is not None:
        sections[f"Checkpoint {checkpoint}"] = run_check("checkpoint", lambda: check_checkpoint(checkpoint.expanduser()))
    if (data := config.data) is not None:
        names = (config.dataset_name, config.robot_platform)
        sections[f"Data {data}"] = run_check("data", lambda: check_data(data.expanduser(), *names, checkpoint))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(to_json(sections) if config.json else to_text(sections, colour))
    if count_problems(sections):
        sys.exit(_PROBLEMS)


def run() -> None:
    """Entry point."""
    run_script(main, DoctorConfig)
