"""Converts a LeRobot data set (v2.0, v2.1, v3.0; videos or images) to an RLDS data set.

python scripts/convert/lerobot_to_rlds.py --input_dir pusht --dataset_name pusht --data_root_dir data --cameras primary=image

A split of meta/info.json that is called val becomes the val split; without one, --val_fraction is split off. Training also reads LeRobot
folders as they are; converted ones are read faster, because a frame of a video can be decoded only from the key frame before it.
An interrupted conversion goes on when the same command is run again.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.cli import run_script
from prismatic.conversion.options import RldsFlags
from prismatic.conversion.rlds_writer import write_rlds
from prismatic.vla.datasets.lerobot.source import LeRobotSource
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.sources import describe_recordings


@dataclass
class ConvertConfig(RldsFlags):
    """A LeRobot data set -> RLDS."""


def main(config: ConvertConfig) -> None:
    LeRobotSource(config.input_dir, DatasetEntry())  # tells what is absent before cameras are asked for
    entry = config.entry(describe_recordings(config.input_dir).complete_cameras(config.input_dir))
    print(write_rlds(LeRobotSource(config.input_dir, entry), entry, config.spec()))


def run() -> None:
    """Entry point."""
    run_script(main, ConvertConfig)
