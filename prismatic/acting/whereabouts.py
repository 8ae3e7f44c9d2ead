"""Whether it is known where a robot stands. Letters: A action dim."""

from __future__ import annotations

import numpy as np

from prismatic.acting.limits import ActionLimits
from prismatic.acting.robot import Sensed

_FUTURE_S = 0.1  # a measurement may be so much newer than the step that uses it


class Whereabouts:
    """Judges measurements, each by itself and against the one before.

    An arm whose power was off, or whose bus was silent, may lie anywhere by the time that it is heard of again. Where it lies, two readings
    say that follow each other and agree, as at the start of a rollout; a target of before would make it jump.
    """

    def __init__(self, limits: ActionLimits, names: tuple[str, ...], max_age_s: float, long_s: float, apart_s: float) -> None:
        """`names` [A] are for messages; a robot of which nothing was known for more than `long_s` may stand elsewhere.

        `apart_s`: so much later is a reading another one; the tick after one that was late follows at once.
        """
        self._is_target, self._resting_gap, self._names = limits.is_target, limits.resting_gap, names
        self._max_age_s, self._long_s, self._apart_s = max_age_s, long_s, apart_s
        self.reset(-np.inf)

    def reset(self, now: float) -> None:
        """The robot is known to stand somewhere."""
        self._known_at = now
        self._found: Sensed | None = None  # the first sound measurement after a long time without one

    def is_lost(self, now: float) -> bool:
        """Whether nothing has said for long where the robot stands, and there are targets alone, which it keeps by itself."""
        return self._is_long(now) and bool(self._is_target.all())

    def _is_long(self, now: float) -> bool:
        return now - self._known_at > self._long_s

    def look(self, sensed: Sensed, now: float) -> tuple[str, bool]:
        """Why it is not known where the robot stands, "" if it is; and whether it was found just now, after a long time."""
        is_long = self._is_long(now)
        trouble = self.find_trouble(sensed, now)
        if is_long and not trouble:  # in memory of our own: a driver may use its own again
            sensed = Sensed(np.array(sensed.position), sensed.time)
        if trouble:
            self._found = None
        elif is_long and (self._found is None or sensed.time < self._found.time + self._apart_s):
            self._found, trouble = self._found or sensed, "a second reading must confirm where the robot stands now"
        elif is_long and self._found is not None and (trouble := self.find_motion(self._found, sensed)):
            self._found = sensed
        else:
            self._known_at, self._found = now, None
        return trouble, is_long and not trouble

    def find_trouble(self, sensed: Sensed, now: float) -> str:
        """Why nothing may move on this measurement; "" if it may."""
        age = now - sensed.time
        if not age <= self._max_age_s:
            return "stale observation"
        if age < -_FUTURE_S:
            return "observation from the future: its time must be that of time.monotonic()"
        position = np.asarray(sensed.position)
        if position.shape != self._is_target.shape:
            found = f"{len(position)}" if position.ndim == 1 else f"shape {list(position.shape)}"
            wanted = f"{len(self._is_target)} numbers, one for each action (any number for a velocity)"
            return f"the robot's position must be {wanted}, found {found}"
        is_bad = self._is_target & ~np.isfinite(position)
        if is_bad.any():
            return f"the position of {', '.join(name for name, bad in zip(self._names, is_bad, strict=True) if bad)} is not finite"
        return ""

    def find_motion(self, before: Sensed, sensed: Sensed) -> str:
        """Why a rollout cannot begin between these two sound measurements, one right after the other; "" if it can.

        Its first command is where the robot stands, which a single wrong reading must not decide.
        """
        gap = np.where(self._is_target, np.abs(np.asarray(sensed.position) - before.position), 0.0)
        moved = [f"{self._names[dim]} by {gap[dim]:.3g}" for dim in np.flatnonzero(self._is_target & (gap > self._resting_gap))]
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        return f"two readings of the position differ ({', '.join(moved[:3])}{more}): it moves, or one of them is wrong" if moved else ""
