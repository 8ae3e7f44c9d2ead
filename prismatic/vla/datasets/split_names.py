"""Under which names data sets keep their splits."""

from __future__ import annotations

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_USUAL = {name: split for split, names in _NAMES.items() for name in names}


def usual_split(name: str) -> str | None:
    """ "train", "val" or "test", in whichever spelling; None for any other name."""
    return _USUAL.get(name.lower())
