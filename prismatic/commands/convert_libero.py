"""Converts HDF5 files of LIBERO or robomimic, one file per task, to an RLDS data set.

python scripts/convert/libero_hdf5_to_rlds.py --input_dir regenerated --dataset_name libero_spatial_no_noops --data_root_dir data

For the published recipe, first re-render the demonstrations with experiments/robot/libero/regenerate_libero_dataset.py. LIBERO's images,
stored upside down, are rotated by 180 degrees; its actions are written as recorded (gripper -1 open, +1 close), as in the published
RLDS sets. An interrupted conversion goes on when the same command is run again.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.cli import run_script
from prismatic.conversion.options import RldsFlags
from prismatic.conversion.rlds_writer import write_rlds
from prismatic.vla.datasets.hdf5.source import Hdf5Source


@dataclass
class ConvertConfig(RldsFlags):
    """HDF5 files of LIBERO or robomimic -> RLDS."""

    val_fraction: float = 0.0  # the published LIBERO sets have a train split only
    action_encoding: str = "EEF_POS"  # tells motions from targets, for --filter_noops and --stride only


def main(config: ConvertConfig) -> None:
    source = Hdf5Source(config.input_dir)
    if not source.robomimic:
        raise ValueError(f"{source.files[0]} holds one episode in the layout of ALOHA; use scripts/convert/aloha_hdf5_to_rlds.py")
    entry = config.entry(source.cameras)
    print(write_rlds(source.under(entry), entry, config.spec()))


def run() -> None:
    """Entry point."""
    run_script(main, ConvertConfig)
