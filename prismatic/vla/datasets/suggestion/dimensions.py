"""What the dimensions of an action are: targets, motions or velocities, which are grippers, and what they are called.

Names decide where the recordings have them; only then values do (`inspection.encodings.kind_by_values`). What neither shows is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.description import Dimension, base_name
from prismatic.vla.datasets.inspection.encodings import correlation, kind_by_values
from prismatic.vla.datasets.rlds.oxe.configs import kinds_text
from prismatic.vla.datasets.suggestion.arms import Arms, find_arms
from prismatic.vla.datasets.suggestion.columns import Recorded
from prismatic.vla.diagnosis import counted

_POSE = re.compile(r"eef|ee_|tcp|pose|cartesian")
_SHOWN = 0.25  # share of the moving dimensions whose values have to show what they are
_PREVAILS = 4  # times as many dimensions of one kind as of the other
_CONSTANT = 1e-9  # standard deviation
_ONE_ARM = (4, 7, 8)  # usual widths with a gripper
_SMOOTH = 0.7  # correlation of a command with the one before it, from which it is rather a target
_UNIT, _LARGE = 1e-2, 10.0
_QUATERNION_ARM = ("x", "y", "z", *(f"quaternion_{number}" for number in range(1, 5)))
_R6_ARM = ("dx", "dy", "dz", *(f"delta_rotation_{number}" for number in range(1, 7)))


@dataclass(frozen=True)
class Recognition:
    """One item per action dimension."""

    kinds: tuple[ActionKind, ...]
    names: tuple[str, ...]  # with units where they are known
    arms: Arms
    is_quaternion: bool  # targets are positions and quaternions
    question: str  # "" if there is none
    notes: tuple[str, ...]

    @property
    def is_moved(self) -> bool:
        """Whether arms are commanded by motions alone, but for their grippers."""
        arm = [kind for dim, kind in enumerate(self.kinds) if dim not in (*self.arms.grippers, *self.arms.base)]
        return bool(arm) and all(kind is ActionKind.MOTION for kind in arm)


def recognise(recorded: Recorded, usual: ActionKind | None = None) -> Recognition:
    """The likeliest reading; `usual` is what recordings of this layout mostly hold."""
    shown = [_shown_kind(recorded, dim) for dim in range(len(recorded.action_dims))]
    arms = find_arms(recorded, [item.kind or kind for item, kind in zip(recorded.action_dims, shown, strict=True)])
    prevailing, notes = _prevailing(recorded, shown, arms)
    question = ""
    if prevailing is None:
        arms = arms if arms.grippers else replace(arms, grippers=_usual_grippers(recorded, arms))
        prevailing, question = _ask(recorded, arms, usual)
    kinds = tuple(_settle(recorded.action_dims[dim], shown[dim], dim, arms, prevailing) for dim in range(len(shown)))
    is_quaternion = prevailing is ActionKind.TARGET and _has_quaternions(recorded.actions, arms)
    if not question and arms.base and not arms.base_is_sure:
        question = _ask_base(recorded, arms, kinds)
    names = _names(recorded, arms, kinds, is_quaternion, is_certain=not question or not arms.base_is_sure)
    return Recognition(kinds, names, arms, is_quaternion, question, (*notes, *_remarks(recorded, arms)))


def _shown_kind(recorded: Recorded, dim: int) -> ActionKind | None:
    measured = recorded.measured[dim]
    if measured is None:
        return None
    return kind_by_values(recorded.actions[:, dim], recorded.states[:, measured], recorded.has_next)


def _prevailing(recorded: Recorded, shown: Sequence[ActionKind | None], arms: Arms) -> tuple[ActionKind | None, list[str]]:
    """The kind of the arms' dimensions whose names say none; None if values do not show it either."""
    arm_dims = [dim for dim in range(len(shown)) if dim not in (*arms.grippers, *arms.base)]
    open_dims = [dim for dim in arm_dims if recorded.action_dims[dim].kind is None]
    named = {recorded.action_dims[dim].kind for dim in arm_dims if dim not in open_dims}
    if not open_dims:
        return (named.pop() if len(named) == 1 else ActionKind.TARGET), _contradictions(recorded, shown)
    targets, motions = (sum(shown[dim] is kind for dim in open_dims) for kind in (ActionKind.TARGET, ActionKind.MOTION))
    moving = sum(float(np.std(recorded.actions[:, dim])) > _CONSTANT for dim in open_dims)
    if max(targets, motions) < _SHOWN * moving or not moving:  # chance shows a few of many dimensions something, too
        return None, []
    prevailing = ActionKind.TARGET if targets >= motions else ActionKind.MOTION
    fewer, more = sorted((targets, motions))
    if fewer and more < _PREVAILS * fewer:
        return prevailing, [f"{targets} dimensions follow as targets, {motions} move as motions; the entry says which, check it."]
    return prevailing, []


def _contradictions(recorded: Recorded, shown: Sequence[ActionKind | None]) -> list[str]:
    """Names that say another thing than the values."""
    odd = [
        f"{item.name} ({kind.value})"
        for item, kind in zip(recorded.action_dims, shown, strict=True)
        if kind is ActionKind.MOTION and item.kind is ActionKind.TARGET
    ]
    return [f"Named like targets, but the values look like motions: {', '.join(odd[:5])}; the names are believed."] if len(odd) > 1 else []


def _usual_grippers(recorded: Recorded, arms: Arms) -> tuple[int, ...]:
    """The last of a few dimensions is mostly one; which of many are, nobody can guess."""
    width = len(recorded.action_dims) - len(arms.base)
    return (width - 1,) if width in _ONE_ARM and not recorded.action_dims[width - 1].name else ()


def _settle(item: Dimension, shown: ActionKind | None, dim: int, arms: Arms, prevailing: ActionKind) -> ActionKind:
    if item.kind is not None:
        return item.kind
    if dim in arms.base:
        return ActionKind.VELOCITY
    if dim in arms.grippers:
        return ActionKind.TARGET
    return shown or prevailing


def _ask(recorded: Recorded, arms: Arms, usual: ActionKind | None) -> tuple[ActionKind, str]:
    """The likelier kind, and the question that decides it."""
    actions = recorded.actions
    moving = [dim for dim in range(actions.shape[1]) if np.std(actions[:, dim]) > _CONSTANT and dim not in arms.grippers]
    if not moving:
        why = f"no dimension of the actions changes in the first {counted(recorded.num_episodes, 'episode', 'episodes')}"
    elif not any(recorded.measured[dim] is not None for dim in moving):
        why = "no recorded state measures what they command"
    else:
        why = "the state neither follows them nor changes with them"
    before, after = actions[:-1][recorded.has_next], actions[1:][recorded.has_next]
    smooth = [correlation(before[:, dim].astype(np.float64), after[:, dim].astype(np.float64)) for dim in moving]
    kind = usual or (ActionKind.TARGET if not moving or np.median(smooth) > _SMOOTH else ActionKind.MOTION)
    other = ActionKind.MOTION if kind is ActionKind.TARGET else ActionKind.TARGET
    answer = kinds_text(_settle(item, None, dim, arms, other) for dim, item in enumerate(recorded.action_dims))
    return kind, (
        f"Cannot tell whether the actions are targets or motions, because {why}. Question: does an action say where to be (target), or how "
        f"far to go within its step (motion)? Taken for {kind.value}s; for {other.value}s write action_kinds={answer} into the entry."
    )


def _ask_base(recorded: Recorded, arms: Arms, kinds: tuple[ActionKind, ...]) -> str:
    dims = ", ".join(str(dim) for dim in arms.base)
    answer = kinds_text(ActionKind.TARGET if dim in arms.base else kind for dim, kind in enumerate(kinds))
    return (
        f"Dimensions {dims} (counted from 0) stand at 0 for a while, run at other times, and are not measured as joints are: taken for the "
        "velocities of a mobile base, which become 0 when the robot holds still. Question: do they drive a base? If they are joints, call "
        f"them joints in the platform and write action_kinds={answer} into the entry."
    )


def _has_quaternions(actions: np.ndarray, arms: Arms) -> bool:
    """Whether each arm's numbers 4 to 7 have length 1."""
    num_arms = max(1, arms.num_arms)
    width = arms.width(actions.shape[1])
    if width not in (7, 8):
        return False
    starts = [width * number + 3 for number in range(num_arms)]
    return all(np.allclose(np.linalg.norm(actions[:, start : start + 4], axis=1), 1, atol=_UNIT) for start in starts)


def _names(recorded: Recorded, arms: Arms, kinds: Sequence[ActionKind], is_quaternion: bool, is_certain: bool) -> tuple[str, ...]:
    """Recorded names with their units; else names that say no more than is known."""
    each, names = arms.width(len(kinds)), list[str]()
    target = "pose" if any(_POSE.search(key.lower()) for key in (*recorded.action_keys, *recorded.state_keys)) else "joint"
    for dim, (item, kind) in enumerate(zip(recorded.action_dims, kinds, strict=True)):
        side = ("left_", "right_")[min(dim // each, 1)] if arms.num_arms == 2 and dim not in arms.base else ""
        place = dim % each if arms.num_arms else dim
        if item.name:
            names.append(item.label)
        elif dim in arms.base:
            names.append(base_name(dim - arms.base[0], len(arms.base)))
        elif dim in arms.grippers:
            names.append(f"{side}gripper")
        elif is_quaternion and place < len(_QUATERNION_ARM):
            names.append(f"{side}{_QUATERNION_ARM[place]}")
        elif is_certain and kind is ActionKind.MOTION and each == len(_R6_ARM) + 1:
            names.append(f"{side}{_R6_ARM[place]}")
        else:
            word = "action" if not is_certain else "delta" if kind is ActionKind.MOTION else target
            names.append(f"{side}{word}_{place + 1}")
    return tuple(names)


def _remarks(recorded: Recorded, arms: Arms) -> list[str]:
    """Units, and grippers that nothing shows."""
    units = sorted({item.unit for item in recorded.action_dims if item.unit})
    remarks = []
    if units:
        remarks.append(f"Units: {', '.join(units)}. Any unit will do, every dimension is normalised by its own range.")
    bare = [dim for dim, item in enumerate(recorded.action_dims) if not item.unit and dim not in (*arms.grippers, *arms.base)]
    largest = float(np.abs(recorded.actions[:, bare]).max(initial=0))
    if largest > _LARGE:
        scales = "degrees, millimetres, or a scale such as -100 to 100? Any will do; write [deg] or [mm] behind the names if so."
        remarks.append(f"Values run up to {largest:.4g}: {scales}")
    if not arms.grippers and len(recorded.action_dims) > 1:
        remarks.append("No name and no value shows which dimension is a gripper: call it gripper in the platform, so that reports find it.")
    return remarks
