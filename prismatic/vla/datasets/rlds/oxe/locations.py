"""Where a name stands in the files that users edit, for messages: "prismatic/vla/datasets/rlds/oxe/configs.py:123"."""

from __future__ import annotations

import re
from pathlib import Path

from prismatic.vla import constants
from prismatic.vla.datasets.rlds.oxe import configs

CONSTANTS_FILE = "prismatic/vla/constants.py"


def entry_location(dataset_name: str) -> str:
    """File and line of the entry called `dataset_name`; the file alone if the name does not stand in it literally."""
    return _locate(configs.__file__, configs.CONFIGS_FILE, rf"""^\s*["']{re.escape(dataset_name)}["']\s*:""")


def platform_location(platform_name: str) -> str:
    """File and line of the robot platform called `platform_name`; the file alone if the name does not stand in it literally."""
    return _locate(constants.__file__, CONSTANTS_FILE, rf"""name\s*=\s*["']{re.escape(platform_name)}["']""")


def _locate(source: str, shown: str, pattern: str) -> str:
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except OSError:  # installed without sources: the message is still right without a line
        return shown
    return next((f"{shown}:{number}" for number, line in enumerate(lines, start=1) if re.search(pattern, line)), shown)
