"""How fast HDF5 recordings were made, where they say it.

attributes of the file or of /data                              fps, control_freq, ... [Hz]
attribute env_args (robosuite, robomimic, LIBERO)               JSON with env_kwargs.control_freq
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.description import SAME_HZ, Description
from prismatic.vla.datasets.hdf5.layout import SUFFIXES, demo_root, files_below, open_file
from prismatic.vla.datasets.texts import as_text
from prismatic.vla.rollout_record import GROUP

_NAMES = ("fps", "hz", "control_hz", "control_freq", "control_frequency", "record_hz", "frequency")
_MOST_OPENED = 50  # files of a folder that are asked before an episode is read; when they are read, each is
_SLOWEST, _FASTEST = 0.5, 1000.0  # Hz; anything else is another quantity of that name


def describe_hdf5(folder: Path, only: str = "") -> Description:
    """Steps per second and whether they are rollouts: what most of the files say, of many some; `only`: the file that is meant."""
    paths = [folder / only] if only else _some_files(folder)
    said: list[Description] = []
    for path in paths:
        with contextlib.suppress(ValueError), open_file(path) as file:  # what is wrong with it is reported when it is read
            said.append(describe_file(file))
    knowing = [item for item in said if item.hz is not None] or said
    return max(knowing, key=knowing.count) if knowing else Description()


def _some_files(folder: Path) -> list[Path]:
    every = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return every[:: len(every) // _MOST_OPENED + 1]


def describe_file(file: Any) -> Description:
    """What one open file says."""
    root = demo_root(file)
    groups = [file, *([file[root]] if root else [])]
    hz = next((hz for group in groups if (hz := _rate_of(group.attrs)) is not None), None)
    return Description(hz, is_rollout=GROUP in file and "checkpoint" in file.attrs)


def check_rate(said: Description, others: Description, fps: float | None) -> None:
    """Accepts a file whose steps are as long as those of the others in its folder, as far as anybody says: all are read at one rate.

    `fps`: what the entry says of demonstrations.

    Raises:
        ValueError: they are longer or shorter.
    """
    own, usual = ((item.hz if item.is_rollout else fps or item.hz) for item in (said, others))
    if own and usual and abs(own / usual - 1) > SAME_HZ:
        kind, other = ("a rollout" if item.is_rollout else "a demonstration" for item in (said, others))
        raise ValueError(
            f"{kind} of {own:g} Hz in a folder that is read at {usual:g} Hz, as most of its files say ({other}); steps would be taken for "
            "longer or shorter ones: keep recordings of each rate in a folder of their own"
        )


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
