"""What a robot may be told: bounds on every dimension of an action, and on its change from one step to the next. Letters: A action dim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LIMIT_MODES = ("clip", "refuse")


@dataclass(frozen=True)
class ActionLimits:
    """Bounds of a robot, in the units of its actions; infinity where there is none."""

    low: np.ndarray  # float64 [A]
    high: np.ndarray  # float64 [A]
    max_change: np.ndarray  # float64 [A], of a target between two steps; a motion is a change itself
    mode: str = "clip"  # clip: the nearest action within the bounds; refuse: none at all

    def __post_init__(self) -> None:
        if self.mode not in LIMIT_MODES:
            raise ValueError(f"the limit mode is {self.mode!r}, expected one of {', '.join(LIMIT_MODES)}")
        shapes = [list(part.shape) for part in (self.low, self.high, self.max_change)]
        if self.low.ndim != 1 or shapes.count(shapes[0]) != 3:
            raise ValueError(f"limits need one number per dimension, found the shapes {shapes}")
        if not (self.low <= self.high).all() or not (self.max_change > 0).all():
            raise ValueError(f"limits need low <= high and max_change > 0, found {self.low}, {self.high} and {self.max_change}")

    @classmethod
    def unlimited(cls, action_dim: int) -> ActionLimits:
        """Bounds that change nothing."""
        endless = np.full(action_dim, np.inf)
        return cls(-endless, endless, endless)

    def check(self, action: np.ndarray, last: np.ndarray | None, is_relative: np.ndarray) -> LimitedAction:
        """What may be done of `action`, finite [A], after `last`, the targets commanded before (None: unknown).

        The change is bounded last, so a robot that stands outside its bounds returns to them at the speed that is allowed.
        """
        bounded = np.clip(action, self.low, self.high)
        before = np.where(is_relative, 0.0, bounded if last is None else last)
        change = np.clip(bounded - before, -self.max_change, self.max_change)
        too_fast = change != bounded - before
        allowed = np.where(too_fast, before + change, bounded)
        outside = bounded != action
        refused = self.mode == "refuse" and bool((outside | too_fast).any())
        return LimitedAction(None if refused else allowed, outside, too_fast)


@dataclass(frozen=True)
class LimitedAction:
    """An action within the limits, and which dimensions of the original were not."""

    action: np.ndarray | None  # float64 [A]; None: refused
    outside: np.ndarray  # bool [A], beyond low or high
    too_fast: np.ndarray  # bool [A], beyond max_change


def per_dimension(names: Sequence[str], mask_counts: np.ndarray) -> dict[str, int]:
    """Name -> count, of the dimensions that were counted at all."""
    return {name: int(count) for name, count in zip(names, mask_counts, strict=True) if count}
