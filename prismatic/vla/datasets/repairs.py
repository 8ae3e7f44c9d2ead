"""What a source left out or mended while it read untidy recordings: counted, with the first case, so that it can be said once.

A source goes on only where the meaning of the recordings is certain; where going on would change what an action, a state or an
instruction means, it raises ValueError instead. The repairs of an index are shown in the log, on the inspection page and in policy.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# What several sources do.
NO_STEPS = "episodes without steps are left out"
DRAWN = "episodes have several instructions, of which one is drawn for each"


@dataclass(frozen=True)
class Repair:
    """One kind of untidiness, and how often it was met."""

    what: str  # plural and what was done about it: "episodes without steps are left out"
    count: int
    first: str  # where it was met first: file or episode, with what was found there

    def __str__(self) -> str:
        return f"{self.what} ({self.count}, first: {self.first})"


class Repairs:
    """The repairs of one source, in the order in which each kind was met first."""

    def __init__(self) -> None:
        self._found: dict[str, Repair] = {}

    def note(self, what: str, where: str, count: int = 1) -> None:
        """Counts `count` more cases of `what`; `where` is kept of the first."""
        known = self._found.get(what)
        self._found[what] = Repair(what, count, where) if known is None else Repair(what, known.count + count, known.first)

    def __iter__(self) -> Iterator[Repair]:
        return iter(self._found.values())

    def as_json(self) -> list[dict[str, Any]]:
        """Plain values, for `repairs_from_json`."""
        return [asdict(repair) for repair in self]


def repairs_from_json(content: list[dict[str, Any]]) -> tuple[Repair, ...]:
    """The inverse of `Repairs.as_json`."""
    return tuple(Repair(**fields) for fields in content)
