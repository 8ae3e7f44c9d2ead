"""Names of cameras: the slots of a policy, in their order, and what recorders and clients call them.

    slot          where it is                                  stored as (RLDS)     sent as (POST /act)
    primary       stands still, sees the whole scene           image                full_image
    wrist         rides on the gripper of a single arm         wrist_image          wrist_image
    left_wrist    rides on the left gripper                    left_wrist_image     left_wrist_image
    right_wrist   rides on the right gripper                   right_wrist_image    right_wrist_image
    secondary     stands still, another view                   secondary_image      secondary_image

A name is known only where the table says so: `image` is a camera for POST /act and vla-eval, not for openpi, whose LIBERO clients send
`observation/image`. The slots' own names are known everywhere. POST /act takes, beyond the table, every key with "wrist" in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple


class NamedBy(str, Enum):
    """Who calls cameras by such names."""

    ACT = "act"  # clients of POST /act (OpenVLA-OFT, OpenVLA), also scripts that call get_vla_action
    OPENPI = "openpi"  # clients of openpi's websocket
    VLA_EVAL = "vla-eval"  # benchmarks of the vla-eval harness
    ACT_FILE = "ACT recordings"  # HDF5 files of ALOHA's recorder and of ours
    ROBOMIMIC_FILE = "robomimic recordings"  # HDF5 files of LIBERO and robosuite


class _Slot(NamedTuple):
    stored: str  # key in the observations of RLDS data sets
    sent: str  # key in POST /act
    others: Mapping[str, tuple[NamedBy, ...]]  # name -> who uses it, beside the slot's own


_ACT, _OPENPI, _VLA_EVAL, _FILE, _ROBOMIMIC = NamedBy
_ALOHA = (_OPENPI, _VLA_EVAL, _FILE)  # who knows the names of ALOHA's cameras; POST /act knows those without "wrist"

_TABLE: dict[str, _Slot] = {  # slot -> its names, in the order in which a policy takes the cameras
    "primary": _Slot(
        stored="image",
        sent="full_image",
        others={
            "full_image": (_ACT,),
            "image": (_ACT, _VLA_EVAL),
            "cam_high": (_ACT, *_ALOHA),
            "observation/image": (_OPENPI,),
            "observation/exterior_image_1_left": (_OPENPI,),
            "base_0_rgb": (_OPENPI,),
            "base_rgb": (_OPENPI,),
            "agentview": (_VLA_EVAL,),
            "front": (_VLA_EVAL,),
            "head_camera": (_VLA_EVAL,),
            "rgb_static": (_VLA_EVAL,),
            "agentview_rgb": (_ROBOMIMIC,),
            "agentview_image": (_ROBOMIMIC,),
        },
    ),
    "wrist": _Slot(
        stored="wrist_image",
        sent="wrist_image",
        others={
            "wrist_image": (_ACT, _VLA_EVAL),
            "observation/wrist_image": (_OPENPI,),
            "observation/wrist_image_left": (_OPENPI,),
            "wrist_rgb": (_OPENPI,),
            "rgb_gripper": (_VLA_EVAL,),
            "eye_in_hand_rgb": (_ROBOMIMIC,),
            "robot0_eye_in_hand_image": (_ROBOMIMIC,),
        },
    ),
    "left_wrist": _Slot(
        stored="left_wrist_image",
        sent="left_wrist_image",
        others={
            "left_wrist_image": (_ACT,),
            "cam_left_wrist": _ALOHA,
            "left_wrist_0_rgb": (_OPENPI,),
            "left_camera": (_VLA_EVAL,),
        },
    ),
    "right_wrist": _Slot(
        stored="right_wrist_image",
        sent="right_wrist_image",
        others={
            "right_wrist_image": (_ACT,),
            "cam_right_wrist": _ALOHA,
            "right_wrist_0_rgb": (_OPENPI,),
            "right_camera": (_VLA_EVAL,),
        },
    ),
    "secondary": _Slot(
        stored="secondary_image",
        sent="secondary_image",
        others={
            "secondary_image": (_ACT,),
            "cam_low": (_ACT, _OPENPI, _FILE),
        },
    ),
}

CAMERA_ORDER = tuple(_TABLE)  # --num_images_in_input 2 means the first two of these that a data set has
STORED_KEYS = {name: slot.stored for name, slot in _TABLE.items()}
SENT_KEYS = {name: slot.sent for name, slot in _TABLE.items()}
ONE_ARM = ("primary", "wrist")  # the cameras of LIBERO and of most single arms
TWO_ARMS = ("primary", "left_wrist", "right_wrist")  # of ALOHA

_WRIST = re.compile(r"wrist|hand|gripper|in_hand")
_NO_COLOUR = re.compile(r"depth|normals?(?![a-z])|segm|(?<![a-z])(seg|ir)(?![a-z])|mask|disparity|semantic|infrared|optical_flow")
_COLOUR = re.compile(r"rgb|colou?r")
# Beginnings of words in the names of a camera that looks at the whole scene, the likeliest first; a laptop is no top.
_SCENE_WORDS = ("primary", "high", "top", "overhead", "front", "head", "agentview", "exterior", "third", "static", "main", "base", "ego")
_PRIMARY_WORDS = (*(re.compile(rf"(?<![a-z]){word}") for word in (*_SCENE_WORDS, "image", "rgb")), re.compile(""))


def slots_by_name(*users: NamedBy) -> dict[str, str]:
    """Name -> slot, of all names that one of `users` gives to cameras."""
    own = {name: name for name in CAMERA_ORDER}
    return own | {name: slot for slot, row in _TABLE.items() for name, known in row.others.items() if set(users) & set(known)}


def recorded_slot(name: str) -> str | None:
    """The slot of a camera that a recorder calls `name` ("observation.images.cam_high"), or that a conversion stored so; None: unknown."""
    return _RECORDED.get(name.rpartition(".")[2])


def stored_keys(slots: Iterable[str]) -> dict[str, str]:
    """Slot -> key in the observations of RLDS data sets."""
    return {slot: STORED_KEYS[slot] for slot in slots}


_RECORDED = slots_by_name(NamedBy.ACT_FILE, NamedBy.ROBOMIMIC_FILE) | {key: slot for slot, key in STORED_KEYS.items()}


def is_wrist(slot: str) -> bool:
    """True for a slot whose camera moves with an arm."""
    return slot.endswith("wrist")


def looks_from_wrist(name: str) -> bool:
    """True if a recorder's name says that the camera is on an arm."""
    return _WRIST.search(name.lower()) is not None


def looks_like_colour(name: str) -> bool:
    """False if a recorder's name says that the pictures are distances, normals or labels."""
    lowered = name.lower()
    return _NO_COLOUR.search(lowered) is None or _COLOUR.search(lowered) is not None


def assign_cameras(names: Sequence[str], two_arms: bool) -> tuple[dict[str, str], list[str]]:
    """{slot: name} in the order of the slots, by the words in the names, of which there is at least one; and those that find no place."""
    found: dict[str, str] = {}
    # Two arms often name their wrist cameras by the side alone; a scene may be seen from two sides, too.
    by_side = two_arms and len(names) > 2
    on_arms = [name for name in names if looks_from_wrist(name) or (by_side and _primary_rank(name) >= len(_SCENE_WORDS))]
    sides = {side: [name for name in on_arms if side in name.lower()] for side in ("left", "right")}
    if all(sides.values()):
        found = {f"{side}_wrist": max(matching, key=looks_from_wrist) for side, matching in sides.items()}
    wrists = [name for name in names if name not in found.values() and looks_from_wrist(name)]
    if wrists and "left_wrist" not in found:
        found["wrist"] = wrists[0]
    rest = [name for name in names if name not in found.values()]
    ranked = sorted(rest, key=lambda name: (looks_from_wrist(name), _primary_rank(name), _number(name)))
    if not ranked:
        ranked = [found.pop(next(iter(found)))]
    found["primary"] = ranked[0]
    if len(ranked) > 1:
        found["secondary"] = ranked[1]
    return {slot: found[slot] for slot in CAMERA_ORDER if slot in found}, ranked[2:]


def _primary_rank(name: str) -> int:
    return next(rank for rank, word in enumerate(_PRIMARY_WORDS) if word.search(name.lower()))


def _number(name: str) -> int:
    """Of numbered cameras the first is the main one: image_0 before image_1, image before both."""
    digits = re.search(r"\d+(?!.*\d)", name)
    return int(digits[0]) if digits else -1
