"""How fast HDF5 recordings were made, where they say it.

attributes of the file or of /data                              fps, control_freq, ... [Hz]
attribute env_args (robosuite, robomimic, LIBERO)               JSON with env_kwargs.control_freq
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.description import Description
from prismatic.vla.datasets.hdf5.layout import SUFFIXES, demo_root, files_below, open_file
from prismatic.vla.datasets.texts import as_text
from prismatic.vla.rollout_record import GROUP

_NAMES = ("fps", "hz", "control_hz", "control_freq", "control_frequency", "record_hz", "frequency")
_SLOWEST, _FASTEST = 0.5, 1000.0  # Hz; anything else is another quantity of that name


def describe_hdf5(folder: Path, only: Sequence[str] = ()) -> Description:
    """Steps per second and whether it is a rollout, of the first file that can be opened; `only`: those that are meant."""
    for path in [folder / name for name in only] or files_below(folder):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        try:
            with open_file(path) as file:
                root = demo_root(file)
                groups = [file, *([file[root]] if root else [])]
                hz = next((hz for group in groups if (hz := _rate_of(group.attrs)) is not None), None)
                return Description(hz, is_rollout=GROUP in file and "checkpoint" in file.attrs)
        except ValueError:  # reported when it is read
            continue
    return Description()


def _rate_of(attributes: Mapping[str, Any]) -> float | None:
    said = [attributes[name] for name in _NAMES if name in attributes]
    if "env_args" in attributes:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said.append(json.loads(as_text(attributes["env_args"]))["env_kwargs"]["control_freq"])
    for value in said:
        try:
            hz = float(value)
        except (TypeError, ValueError):
            continue
        if _SLOWEST <= hz <= _FASTEST:
            return hz
    return None
