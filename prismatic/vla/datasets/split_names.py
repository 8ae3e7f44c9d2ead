"""Under which names data sets keep their splits, and how much is held back where they have none for validation."""

from __future__ import annotations

from collections.abc import Iterable

VAL_FRACTION = 0.05  # of the episodes, where nothing else is said
_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_USUAL = {name: split for split, names in _NAMES.items() for name in names}


def usual_split(name: str) -> str | None:
    """ "train", "val" or "test", in whichever spelling; None for any other name."""
    return _USUAL.get(name.lower())


def validation_split(names: Iterable[str]) -> str | None:
    """Which of the recorded splits `names` is for validation: "val" itself, else the first in another spelling; None: none is."""
    found = [name for name in names if usual_split(name) == "val"]
    return "val" if "val" in found else next(iter(found), None)
