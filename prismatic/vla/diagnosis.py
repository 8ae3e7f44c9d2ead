"""`Diagnosis`: one thing that was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(str, Enum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"  # something optional is not there
    WARNING = "warning"  # works, but probably not as wanted
    PROBLEM = "problem"  # does not work


@dataclass(frozen=True)
class Diagnosis:
    """One line of a report."""

    subject: str
    status: Status
    found: str
    remedy: str = ""  # empty where nothing is to be done

    def __post_init__(self) -> None:
        assert self.remedy or self.status in (Status.OK, Status.NOTE), f"{self.subject}: a {self.status.value} says what to do"
