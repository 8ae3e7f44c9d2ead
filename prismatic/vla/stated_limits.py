"""`StatedLimits`: what a robot's maker or owner allows. Letters: A action dim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class StatedLimits:
    """One value per action dimension, in its units; None: not stated."""

    low: tuple[float | None, ...]  # [A], the smallest action
    high: tuple[float | None, ...]  # [A], the largest
    max_speed: tuple[float | None, ...]  # [A], unit/s of a target; of a motion its unit times the steps per second
    max_acceleration: tuple[float | None, ...] = ()  # [A], unit/s^2, of speeding up; slowing down is always allowed
    max_gap: tuple[float | None, ...] = ()  # [A], how far the arm may be from its target before it counts as blocked

    def __post_init__(self) -> None:
        for item in fields(self):
            values = tuple(getattr(self, item.name)) or (None,) * len(self.low)
            object.__setattr__(self, item.name, values)
            if len(values) != len(self.low):
                raise ValueError(f"stated limits: {item.name} has {len(values)} values, low has {len(self.low)}")
            if odd := [value for value in values if value is not None and not isinstance(value, Real)]:
                raise ValueError(f"stated limits: {item.name} holds {odd[0]!r}, expected a number or None")

    @classmethod
    def parse(cls, content: Mapping[str, Any] | None) -> StatedLimits | None:
        """Out of JSON.

        Raises:
            ValueError: unknown or missing fields.
        """
        if content is None:
            return None
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"stated limits cannot be read: {error}") from error
