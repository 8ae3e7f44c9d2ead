"""What is no longer meant and must not be lost gets another name."""

from __future__ import annotations

from pathlib import Path


def put_aside(path: Path) -> Path:
    """Renames `path` to its name with .left1 behind it, or .left2 where that is taken; returns the new place."""
    number = 1
    while (place := path.with_name(f"{path.name}.left{number}")).exists():
        number += 1
    return path.rename(place)
