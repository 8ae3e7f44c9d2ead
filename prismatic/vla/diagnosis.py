"""`Finding`: one thing that was looked at, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

MAX_LISTED = 5  # of several cases of one kind


class Status(str, Enum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"  # nothing to mend, but worth knowing
    WARNING = "warning"  # works, but probably not as wanted
    PROBLEM = "problem"  # does not work


@dataclass(frozen=True)
class Finding:
    """One line of a report, a log or a page."""

    subject: str  # a package, a file, a camera, a kind of value
    status: Status
    found: str  # without a full stop; figures that differ from case to case come after a colon
    remedy: str = ""  # whole sentences; empty where nothing is to be done

    def __post_init__(self) -> None:
        assert self.remedy or self.status in (Status.OK, Status.NOTE), f"{self.subject}: a {self.status.value} says what to do"

    @property
    def kind(self) -> str:
        """What was found without its figures, the same for every case of it."""
        return self.found.partition(": ")[0]

    @property
    def figures(self) -> str:
        """What comes after it; "" if nothing does."""
        return self.found.partition(": ")[2]

    def __str__(self) -> str:
        return f"{self.found}. {self.remedy}".rstrip()


def listed(items: Sequence[object] | np.ndarray) -> str:
    """ "a, b and 3 more": the first MAX_LISTED of them."""
    shown = ", ".join(str(item) for item in items[:MAX_LISTED])
    return shown + (f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else "")


def counted(number: int, one: str, many: str) -> str:
    """ "1 episode is", "2 episodes are"."""
    return f"{number} {one if number == 1 else many}"
