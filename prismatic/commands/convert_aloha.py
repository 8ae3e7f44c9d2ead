"""Converts a folder of HDF5 recordings in the layout of ALOHA (ACT), one episode per file, to an RLDS data set.

python scripts/convert/aloha_hdf5_to_rlds.py --input_dir runs/demo/recordings --dataset_name metaworld_demo --data_root_dir runs/demo/rlds

Images may be raw or JPEG-compressed. Files below a folder called val become the val split; without one, --val_fraction is split off.
An interrupted conversion goes on when the same command is run again. MCAP recordings are not supported.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.cli import run_script
from prismatic.conversion.options import RldsFlags
from prismatic.conversion.rlds_writer import write_rlds
from prismatic.vla.datasets.hdf5.source import Hdf5Source


@dataclass
class ConvertConfig(RldsFlags):
    """HDF5 recordings in the layout of ALOHA (ACT) -> RLDS."""

    state: str = "qpos"  # recorded columns of /observations that make up the state, joined in this order, separated by commas


def main(config: ConvertConfig) -> None:
    source = Hdf5Source(config.input_dir)
    if source.robomimic:
        raise ValueError(f"{source.files[0]} holds one task with many demonstrations; use scripts/convert/libero_hdf5_to_rlds.py")
    entry = config.entry(source.cameras)
    print(write_rlds(source.under(entry), entry, config.spec()))


def run() -> None:
    """Entry point."""
    run_script(main, ConvertConfig)
