"""What the demonstrations of a data set did: what a robot keeps to where nobody states limits.

Letters: A action dim, P proprio dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Demonstrated:
    """One data set's training episodes, in raw units."""

    action_low: tuple[float, ...]  # [A], the smallest action
    action_high: tuple[float, ...]  # [A], the largest
    max_step: tuple[float | None, ...]  # [A], the largest change from one action to the next; None: not known
    max_gap: tuple[float | None, ...]  # [A], how far a target was from the state of the same name; None: no such state
    start_low: tuple[float, ...] = ()  # [P], the smallest first state of an episode; () where not known
    start_high: tuple[float, ...] = ()  # [P], the largest
    cameras: Mapping[str, str] = field(default_factory=dict)  # slot -> what the data set calls that camera

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Demonstrated:
        """Out of JSON.

        Raises:
            ValueError: unknown or missing fields.
        """
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ValueError(f"what was demonstrated has no field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        try:
            values: dict[str, Any] = {name: dict(value) if name == "cameras" else tuple(value) for name, value in content.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"what was demonstrated cannot be read: {error}") from error

    def check(self, action_dim: int, proprio_dim: int) -> None:
        """Accepts numbers for a robot of so many dimensions; a single one would count for all of them.

        Raises:
            ValueError: names the field, and what is wrong with it.
        """
        for item in fields(self):
            if item.name == "cameras":
                continue
            values, dim = getattr(self, item.name), proprio_dim if item.name.startswith("start") else action_dim
            if len(values) != dim and (values or item.default is MISSING):
                raise ValueError(f"what was demonstrated (policy.json): {item.name} has {len(values)} values for {dim} dimensions")
            if odd := [value for value in values if not isinstance(value, Real) and (value is not None or "max" not in item.name)]:
                raise ValueError(f"what was demonstrated (policy.json): {item.name} holds {odd[0]!r}, expected a number")
