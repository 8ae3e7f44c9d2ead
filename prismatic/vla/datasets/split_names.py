"""Under which names data sets keep their splits, and how much is held back where they have none for validation."""

from __future__ import annotations

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
