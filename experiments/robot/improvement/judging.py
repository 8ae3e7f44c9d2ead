"""Whether a round has helped, and when it is time to stop.

All policies are evaluated on the same starts, so that they are compared in pairs (`evaluation.comparison`): a round has helped if it
solves more of them than the best policy before it. An improvement stops
    when every start is solved,
    after `patience` rounds in a row that have not helped,
    after a round that is surely worse than the best (the 95 % interval of the paired difference is below 0, and McNemar's exact p below
        0.05: of few pairs the interval alone is too sure, with three lost and none won p is 0.25),
    after `num_rounds` rounds.
The best policy was chosen by these starts, so its figure there is too good: what counts is said by fresh ones, where the first policy and
the best are played once more, with McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.robot.evaluation.comparison import PairedTable

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Round:
    """What a round has brought; number 0 is the policy at the start."""

    number: int
    checkpoint: str
    evaluation: Path  # folder of its journal
    num_successes: int
    num_trials: int
    against_best: PairedTable | None = None  # A: this policy, B: the best before it
    num_rollouts: int = 0
    num_rollout_successes: int = 0  # with the expert's help, where it helped
    seconds: float = 0.0
    num_crashed: int = 0  # of the trials, in the simulator; they count as failures

    @property
    def has_helped(self) -> bool:
        return self.against_best is None or self.against_best.difference > 0

    @property
    def is_surely_worse(self) -> bool:
        found = self.against_best
        return found is not None and found.interval[1] < 0 and found.p_value < _SIGNIFICANT


def best_of(rounds: Sequence[Round]) -> Round:
    """The one that solved most; the earliest of those that solved as many."""
    return max(rounds, key=lambda item: item.num_successes)


def reason_to_stop(rounds: Sequence[Round], num_rounds: int, patience: int) -> str | None:
    """Why no other round follows; None: one does."""
    latest = rounds[-1]
    if best_of(rounds).num_successes == latest.num_trials:
        return "every start is solved"
    if latest.is_surely_worse:
        return "the last round is surely worse than the best policy before it"
    lost = next((count for count, item in enumerate(reversed(rounds)) if item.has_helped), len(rounds))
    if lost >= patience:
        return f"{lost} round{'s' if lost > 1 else ''} in a row did not solve more than the best policy before"
    if latest.number >= num_rounds:
        return f"{num_rounds} round{'s were' if num_rounds > 1 else ' was'} wanted"
    return None
