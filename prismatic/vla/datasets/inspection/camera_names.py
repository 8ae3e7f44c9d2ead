"""Names that recorders gave to cameras -> the slots that they most likely fill."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prismatic.vla.datasets.rlds.oxe.configs import CAMERA_ORDER

_WRIST = re.compile(r"wrist|hand|gripper|in_hand")
# Names of a fixed camera that looks at the whole scene, the likeliest first.
_PRIMARY_WORDS = ("primary", "high", "top", "front", "head", "agentview", "exterior", "third", "static", "main", "base", "image", "rgb", "")


def assign_cameras(names: Sequence[str], two_arms: bool) -> tuple[dict[str, str], list[str]]:
    """{slot: name} in the order in which a policy takes them, and the names that find no place; there is at least one name."""
    found: dict[str, str] = {}
    for side in ("left", "right"):
        # Two arms often name their wrist cameras by the side alone.
        matching = [name for name in names if side in name.lower() and (looks_from_wrist(name) or (two_arms and len(names) > 2))]
        if matching and all(any(word in name.lower() for name in names) for word in ("left", "right")):
            found[f"{side}_wrist"] = matching[0]
    wrists = [name for name in names if name not in found.values() and looks_from_wrist(name)]
    if wrists and "left_wrist" not in found:
        found["wrist"] = wrists[0]
    rest = [name for name in names if name not in found.values()]
    ranked = sorted(rest, key=lambda name: (looks_from_wrist(name), _primary_rank(name)))
    if not ranked:
        ranked = [found.pop(next(iter(found)))]
    found["primary"] = ranked[0]
    if len(ranked) > 1:
        found["secondary"] = ranked[1]
    return {slot: found[slot] for slot in CAMERA_ORDER if slot in found}, ranked[2:]


def looks_from_wrist(name: str) -> bool:
    """True if the name says that the camera is on an arm."""
    return _WRIST.search(name.lower()) is not None


def _primary_rank(name: str) -> int:
    return next(rank for rank, word in enumerate(_PRIMARY_WORDS) if word in name.lower())
