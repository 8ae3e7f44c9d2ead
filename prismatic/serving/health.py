"""Whether the policy can answer, in words: for /healthz, /readyz and the robots that ask."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


@dataclass
class PolicyHealth:
    """What is known of the policy and of the thread that calls it."""

    patience_s: float = 30.0  # a call that takes longer hangs
    is_warm: bool = False
    failure: str | None = None  # of the last prediction; None: it succeeded, or there was none
    fault: str | None = None  # the device is lost: only a new process helps
    busy_since: float | None = None  # monotonic time at which the running call began
    waiting_since: float | None = None  # of the oldest request in the queue
    thread: threading.Thread | None = field(default=None, repr=False)

    def alive_problem(self) -> str | None:
        """Why a supervisor should start the server anew; None: it need not."""
        if self.fault is not None:
            return f"the device failed ({self.fault})"
        if self.thread is not None and not self.thread.is_alive():
            return "the thread that calls the policy has ended"
        return self._hanging(2 * self.patience_s)

    def ready_problem(self) -> str | None:
        """Why a request would not be answered now; None: it would."""
        if problem := self.alive_problem():
            return problem
        if not self.is_warm:
            return "the policy is not warmed up yet"
        if problem := self._hanging(self.patience_s):
            return problem
        waits = _age(self.waiting_since)
        if waits > self.patience_s:
            return f"the queue does not move: a request has waited for {waits:.0f} s"
        return f"the last prediction failed ({self.failure})" if self.failure is not None else None

    def _hanging(self, limit_s: float) -> str | None:
        seconds = _age(self.busy_since)
        return f"a call of the policy has lasted {seconds:.0f} s" if seconds > limit_s else None


def _age(since: float | None) -> float:
    return 0.0 if since is None else time.monotonic() - since
