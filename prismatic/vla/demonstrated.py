"""What the demonstrations of a data set did: what a robot keeps to where nobody states limits.

Letters: A action dim, P proprio dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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
