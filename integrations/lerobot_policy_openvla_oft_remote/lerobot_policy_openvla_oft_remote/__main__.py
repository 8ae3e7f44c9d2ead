"""Writes a folder for --policy.path of LeRobot's commands; those that take --policy.type=openvla_oft_remote need none.

python -m lerobot_policy_openvla_oft_remote --server ws://192.168.1.20:8777 --output_dir remote_policy
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lerobot_policy_openvla_oft_remote.configuration_openvla_oft_remote import OpenVLAOFTRemoteConfig
from lerobot_policy_openvla_oft_remote.processor_openvla_oft_remote import make_openvla_oft_remote_pre_post_processors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lerobot_policy_openvla_oft_remote", description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    flags = parser.parse_args()
    if flags.output_dir.exists():
        sys.exit(f"error: --output_dir {flags.output_dir} exists already")
    config = OpenVLAOFTRemoteConfig(server=flags.server)
    flags.output_dir.mkdir(parents=True)
    config._save_pretrained(flags.output_dir)
    for pipeline in make_openvla_oft_remote_pre_post_processors(config):
        pipeline.save_pretrained(flags.output_dir)
    print(flags.output_dir)


if __name__ == "__main__":
    main()
