"""What a robot may be told: bounds on where and how fast it goes, and on how far it may be from its target. Letters: A action dim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prismatic.vla.constants import ActionKind

LIMIT_MODES = ("clip", "refuse")
_RESTING = 0.25  # of the allowed gap
WALKING = 0.25  # of the speed limit, at which a robot approaches the first target of a plan


@dataclass(frozen=True)
class ActionLimits:
    """Bounds of a robot, in the units of its actions; infinity where there is none."""

    kinds: tuple[ActionKind, ...]  # [A]
    low: np.ndarray  # float64 [A], of targets, of motions within a step, of velocities
    high: np.ndarray  # float64 [A]
    max_speed: np.ndarray  # float64 [A], unit/s; of a motion its unit times the steps per second
    max_acceleration: np.ndarray  # float64 [A], unit/s^2, of speeding up; slowing down is always allowed
    max_gap: np.ndarray  # float64 [A], how far the robot may be from its target before it counts as blocked
    usual_gap: np.ndarray | None = None  # float64 [A], of the demonstrations, by delay and load; NaN where not known
    mode: str = "clip"  # clip: the nearest action within the bounds; refuse: none at all

    def __post_init__(self) -> None:
        if self.mode not in LIMIT_MODES:
            raise ValueError(f"the limit mode is {self.mode!r}, expected one of {', '.join(LIMIT_MODES)}")
        parts = (self.low, self.high, self.max_speed, self.max_acceleration, self.max_gap)
        if any(part.shape != (len(self.kinds),) for part in parts):
            raise ValueError(f"limits need {len(self.kinds)} numbers each, found the shapes {[list(part.shape) for part in parts]}")
        if np.isnan(parts).any():
            raise ValueError("limits must be numbers, found NaN")
        if not (self.low <= self.high).all() or any((part < 0).any() for part in parts[2:]):
            raise ValueError(f"limits need low <= high and the others not below 0, found {self.low}, {self.high} and {parts[2:]}")
        moving = ~self.is_target
        if (self.low[moving] > 0).any() or (self.high[moving] < 0).any():
            raise ValueError("limits of motions and velocities must allow 0, by which a robot is held still")

    @property
    def is_target(self) -> np.ndarray:
        """bool [A]."""
        return np.array([kind is ActionKind.TARGET for kind in self.kinds], bool)

    @property
    def resting_gap(self) -> np.ndarray:
        """float64 [A], from which on a robot that is held is told to be where it is.

        A quarter of `max_gap`, so that it does not jump when it is let go, but no less than what load explains: an arm that sinks by more
        than that below each new target would be led to the ground.
        """
        usual = np.full(len(self.kinds), np.nan) if self.usual_gap is None else self.usual_gap
        return np.minimum(self.max_gap, np.fmax(_RESTING * self.max_gap, usual))

    def check(self, action: np.ndarray, before: Motion, dt: float, speed: float = 1.0) -> LimitedAction:
        """What may be done of `action`, finite [A], within a step of `dt` seconds after `before`; at that part of the allowed `speed`.

        Speed is bounded last, so a robot that stands outside its bounds returns to them at the speed that is allowed.
        """
        bounded = np.clip(action, self.low, self.high)
        is_velocity = np.array([kind is ActionKind.VELOCITY for kind in self.kinds], bool)
        base = np.where(self.is_target, before.command, 0.0)
        wanted = np.where(is_velocity, bounded, (bounded - base) / dt)  # unit/s
        faster, slower = np.maximum(before.rate, 0) + self.max_acceleration * dt, np.minimum(before.rate, 0) - self.max_acceleration * dt
        top = speed * self.max_speed
        rate = np.clip(np.clip(wanted, slower, faster), -top, top)
        too_fast = rate != wanted
        allowed = np.where(too_fast, np.where(is_velocity, rate, base + rate * dt), bounded)
        outside = bounded != action
        is_refused = self.mode == "refuse" and bool((outside | (too_fast & (speed == 1.0))).any())
        return LimitedAction(None if is_refused else Motion(allowed, rate), outside, too_fast)


@dataclass(frozen=True)
class Motion:
    """A command, and how fast it makes the robot go."""

    command: np.ndarray  # float64 [A]
    rate: np.ndarray  # float64 [A], unit/s


@dataclass(frozen=True)
class LimitedAction:
    """An action within the limits, and which dimensions of the original were not."""

    motion: Motion | None  # None: refused
    outside: np.ndarray  # bool [A], beyond low or high
    too_fast: np.ndarray  # bool [A], beyond speed or acceleration


def per_dimension(names: Sequence[str], mask_counts: np.ndarray) -> dict[str, int]:
    """Name -> count, of the dimensions that were counted at all."""
    return {name: int(count) for name, count in zip(names, mask_counts, strict=True) if count}
