"""What an HDF5 recording says of an episode as a whole: its scalar attributes, such as success, seed and checkpoint of a rollout."""

from __future__ import annotations

from typing import Any

import numpy as np

from prismatic.vla.datasets.texts import TEXT_NAMES
from prismatic.vla.rollout_record import COMMANDED_BY, COMMANDERS, GROUP

_LONGEST = 1000  # letters of a text; what is longer is no fact but a file


def episode_facts(group: Any) -> dict[str, bool | int | float | str]:
    """Name -> value of the attributes of a file or a demonstration; lists of names as one text, instructions left out."""
    found = {name: _plain(value) for name, value in group.attrs.items() if isinstance(name, str) and name not in TEXT_NAMES}
    return {name: value for name, value in found.items() if value is not None}


def step_commanders(file: Any) -> np.ndarray | None:
    """int8 [T]: whose action each step has, by `COMMANDERS` from 1, 0 where the name is another; None: a file that does not say."""
    path = f"{GROUP}/{COMMANDED_BY}"
    if path not in file:
        return None
    names = file[path][()]
    found = np.zeros(len(names), np.int8)
    for number, by in enumerate(COMMANDERS, start=1):
        found[names == by.value.encode()] = number
    return found


def _plain(value: Any) -> bool | int | float | str | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU" and value.ndim == 1:
        value = ", ".join(item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.item() if value.size == 1 else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else None
    return value if isinstance(value, bool | int) or (isinstance(value, float) and np.isfinite(value)) else None
