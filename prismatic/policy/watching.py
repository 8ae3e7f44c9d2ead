"""Looks at what a policy is shown, and warns once of each thing that training saw differently."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prismatic.vla.diagnosis import Finding
from prismatic.vla.reference import ObservationCheck
from prismatic.vla.types import Observation

_MAX_INSTRUCTIONS = 256  # with more of them no further observation is looked at

logger = logging.getLogger(__name__)


class ObservationWatch:
    """Checks the first observation of each instruction: there a scene is as the demonstrations began."""

    def __init__(self, check: ObservationCheck) -> None:
        self._check = check
        self._instructions: set[str] = set()
        self._known: set[str] = set()
        self.warnings: list[str] = []  # since the start, as a client is shown them

    def look(self, observations: Sequence[Observation]) -> None:
        """Before the policy acts on `observations`."""
        for item in observations:
            if item.instruction not in self._instructions and len(self._instructions) < _MAX_INSTRUCTIONS:
                self._instructions.add(item.instruction)
                self._warn(self._check(item))

    def start_anew(self) -> None:
        """The next observation is looked at as if it were the first: another robot may send it."""
        self._instructions.clear()
        self._known.clear()
        self.warnings = []

    def _warn(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.kind not in self._known:  # figures differ from one observation to the next
                self._known.add(finding.kind)
                self.warnings.append(str(finding))
                logger.warning("%s", finding)
