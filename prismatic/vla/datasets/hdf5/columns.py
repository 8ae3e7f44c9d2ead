"""What may be in an HDF5 group: data sets at any depth, and which of them are numbers of each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_WIDEST = 4096  # numbers per step; what is wider is no state and no action


def data_sets(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path from `group`, data set) of all below it."""
    for name, item in group.items():
        if is_group(item):
            yield from data_sets(item, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", item


def is_group(item: Any) -> bool:
    """Whether an item of an HDF5 file holds others."""
    return hasattr(item, "keys")


def is_column(item: Any) -> bool:
    """Whether a data set may be a state or an action: numbers, few of them per step."""
    return item.dtype.kind in "fiub" and item.ndim in (1, 2, 3) and item.size <= _WIDEST * max(len(item), 1)
