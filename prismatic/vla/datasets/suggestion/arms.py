"""Which dimensions of an action belong to which arm, which are grippers and which drive a base: by their names, else by their values.

Letters: M steps, A action dim.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.suggestion.columns import GRIPPER, Recorded, side_of

# A base drives along x, y or around; "base" alone, "base_joint" and "base_yaw" are the first joint of an arm (UR, Dobot, PiPER).
_BASE = re.compile(r"(^|[._])(wheel|chassis|(mobile_?)?base[._]?(x|y|theta|[vw][xyz]?|lin(ear)?|ang(ular)?|forward|turn)(?![a-z]))")
_NUMBERED_BASE = re.compile(r"(^|[._])(mobile_?)?base[._]?\d+$")
_NARROWEST, _WIDEST = 4, 10  # dimensions of one arm: three positions and a gripper; position, 6-D rotation and gripper
_NARROWEST_OF_TWO = 5
_AT_ENDS, _NEAR_END = 0.8, 0.03  # a gripper's command spends this share of the steps within this share of its range from either end
_AT_REST, _NEAR_REST = 0.15, 0.06  # a base stands still for this share of the steps; so near 0 is still, of its largest speed
_DELAYED = 0.95  # a command whose error shrinks to less than this share within its step
_RECOGNISED = 2.0  # points of a layout from which it is believed


@dataclass(frozen=True)
class Arms:
    """How an action is laid out."""

    num_arms: int  # 0: not known
    grippers: tuple[int, ...] = ()  # dimensions; () if none is recognised
    base: tuple[int, ...] = ()  # dimensions that drive
    base_is_sure: bool = True  # named, or recorded in a column of its own

    def width(self, action_dim: int) -> int:
        """Dimensions of one arm, gripper included."""
        return (action_dim - len(self.base)) // max(1, self.num_arms)


def find_arms(recorded: Recorded, kinds: Sequence[ActionKind | None]) -> Arms:
    """The layout; `kinds` says per dimension what names and values show."""
    names = [dimension.name.lower() for dimension in recorded.action_dims]
    numbered = [dim for dim, name in enumerate(names) if _NUMBERED_BASE.search(name)]
    driving = tuple(
        dim
        for dim, item in enumerate(recorded.action_dims)
        if item.kind is ActionKind.VELOCITY or (item.kind is None and (_BASE.search(names[dim]) or (dim in numbered and len(numbered) > 1)))
    )
    named = [name for dim, name in enumerate(names) if dim not in driving]
    if named and all(named):
        sides = {side_of(item.name) for dim, item in enumerate(recorded.action_dims) if dim not in driving}
        grippers = tuple(dim for dim, name in enumerate(names) if GRIPPER.search(name) and dim not in driving)
        return Arms(2 if {"left", "right"} <= sides else 1, grippers, driving)
    width = len(names) - len(driving)
    layouts = [_score(recorded, kinds, layout) for layout in _layouts(width, has_base=bool(driving))]
    best = max(layouts, key=lambda pair: pair[0], default=(0.0, Arms(0)))
    if best[0] < _RECOGNISED:
        return Arms(0, (), driving)
    arms = best[1]
    grippers = tuple(dim for dim in arms.grippers if _may_be_gripper(recorded, kinds, dim))
    return Arms(arms.num_arms, grippers, driving or arms.base, bool(driving) or not arms.base)


def _layouts(width: int, has_base: bool) -> Iterator[Arms]:
    """One or two arms, each of which ends in a gripper, and a base of two or three dimensions behind them or none."""
    for num_arms, num_driving in itertools.product((1, 2), (0,) if has_base else (0, 2, 3)):
        each, rest = divmod(width - num_driving, num_arms)
        narrowest = _NARROWEST if num_arms == 1 and not num_driving else _NARROWEST_OF_TWO
        if rest == 0 and narrowest <= each <= _WIDEST:
            ends = tuple(each * number + each - 1 for number in range(num_arms))
            yield Arms(num_arms, ends, tuple(range(width - num_driving, width)))


def _score(recorded: Recorded, kinds: Sequence[ActionKind | None], layout: Arms) -> tuple[float, Arms]:
    """Points for what fits the layout, and minus points for what contradicts it."""
    width = len(kinds)
    moved = [kind for kind in kinds if kind is not None]
    num_motions = moved.count(ActionKind.MOTION)
    motions_prevail = num_motions > len(moved) / 2
    like_gripper = {dim for dim in range(width) if _is_two_valued(recorded.actions[:, dim])}
    if motions_prevail:  # what is no motion among motions
        like_gripper |= {dim for dim in range(width) if kinds[dim] is not ActionKind.MOTION}
    rest = like_gripper - set(layout.grippers) - set(layout.base)
    points = 2.0 * len(like_gripper & set(layout.grippers)) - 2.0 * len(rest)
    if layout.base:
        points += 2.0 if all(_looks_driven(recorded, kinds, dim, layout) for dim in layout.base) else -3.0
    return points, layout


def _may_be_gripper(recorded: Recorded, kinds: Sequence[ActionKind | None], dim: int) -> bool:
    values = recorded.actions[:, dim]
    return _is_two_valued(values) or (kinds[dim] is not ActionKind.MOTION and ActionKind.MOTION in kinds)


def _is_two_valued(values: np.ndarray) -> bool:
    """Open or closed for nearly all of the time, and each of them at times."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return False
    near = (_NEAR_END * (high - low) > values - low).mean(), (_NEAR_END * (high - low) > high - values).mean()
    return bool(sum(near) >= _AT_ENDS and min(near) >= 0.02)


def _looks_driven(recorded: Recorded, kinds: Sequence[ActionKind | None], dim: int, layout: Arms) -> bool:
    """Stands at 0 at times and moves at others, and is no joint: without state, without a joint's speed, or measured without a delay."""
    values, width = recorded.actions[:, dim], len(kinds)
    largest = float(np.abs(values).max())
    still = float((np.abs(values) < _NEAR_REST * largest).mean()) if largest > 1e-6 else 1.0
    if kinds[dim] is ActionKind.MOTION or not _AT_REST <= still < 0.98:
        return False
    if recorded.measured[dim] is None or recorded.num_velocities == width - len(layout.base):
        return True
    joints = [_is_delayed(recorded, other) for other in range(width) if other not in (*layout.base, *layout.grippers)]
    return not _is_delayed(recorded, dim) and sum(joints) > len(joints) / 2


def _is_delayed(recorded: Recorded, dim: int) -> bool:
    """Whether the state is nearer to a command after the step than before it."""
    place = recorded.measured[dim]
    if place is None or not recorded.has_next.any():
        return False
    command, state = recorded.actions[:, dim], recorded.states[:, place]
    before, after = (np.abs(command[:-1] - other)[recorded.has_next].mean() for other in (state[:-1], state[1:]))
    return bool(after < _DELAYED * before)
