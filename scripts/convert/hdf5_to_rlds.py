"""Converts a folder of HDF5 recordings (one episode per file) to an RLDS data set with train and val splits.

python scripts/convert/hdf5_to_rlds.py --input_dir runs/demo/recordings --dataset_name metaworld_demo --data_root_dir runs/demo/rlds
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prismatic.cli import run_script
from prismatic.conversion.recordings import find_recordings
from prismatic.conversion.rlds_writer import RldsSpec, write_rlds


@dataclass
class ConvertConfig:
    """Flags of the conversion."""

    input_dir: Path  # searched for *.hdf5 at any depth
    dataset_name: str  # name in TFDS and in the registry
    data_root_dir: Path  # the data set lands in data_root_dir/dataset_name/version
    version: str = "1.0.0"
    val_fraction: float = 0.1  # share of the episodes of each folder that become the val split
    instruction: str | None = None  # for recordings that lack one
    overwrite: bool = False  # replace an existing data set of this name and version


def main(config: ConvertConfig) -> None:
    spec = RldsSpec(config.dataset_name, config.data_root_dir, config.version, config.val_fraction, config.instruction, config.overwrite)
    print(write_rlds(find_recordings(config.input_dir), spec))


if __name__ == "__main__":
    run_script(main, ConvertConfig)
