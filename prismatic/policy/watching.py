"""Looks at what a policy is shown, and warns once of each thing that training saw differently."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from prismatic.vla.diagnosis import Finding
from prismatic.vla.reference import ObservationCheck
from prismatic.vla.types import Observation

_MAX_INSTRUCTIONS = 256  # with more of them no further observation is looked at

logger = logging.getLogger(__name__)


class ObservationWatch:
    """Checks the first observation of each instruction, of one robot or of several: there a scene is as the demonstrations began."""

    def __init__(self, check: ObservationCheck) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._instructions: set[str] = set()
        self._known: set[str] = set()
        self._num_taken = 0
        self.warnings: list[str] = []  # since the start, as a client is shown them

    def look(self, observations: Sequence[Observation]) -> None:
        """Before the policy acts on `observations`."""
        with self._lock:
            for item in observations:
                if item.instruction not in self._instructions and len(self._instructions) < _MAX_INSTRUCTIONS:
                    self._instructions.add(item.instruction)
                    self._take_in(self._check(item))

    def begin(self) -> None:
        """A rollout begins: its first observation is looked at, whatever the instruction; what was warned of is not warned of again."""
        with self._lock:
            self._instructions.clear()

    def take(self) -> list[str]:
        """The warnings since the last call."""
        with self._lock:
            fresh = self.warnings[self._num_taken :]
            self._num_taken = len(self.warnings)
            return fresh

    def warn(self, findings: Sequence[Finding]) -> None:
        """Of what is known without an observation."""
        with self._lock:
            self._take_in(findings)

    def _take_in(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.kind not in self._known:  # figures differ from one observation to the next
                self._known.add(finding.kind)
                self.warnings.append(str(finding))
                logger.warning("%s", finding)
