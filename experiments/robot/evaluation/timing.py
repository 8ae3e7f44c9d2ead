"""When episodes succeed and how evenly the robot moves: time to success, held steps, jumps between chunks.

The time of a failed episode is not known, only that it is longer than the episode was allowed to last. Its curve ends there, and the
restricted mean (the area above the curve up to that step) counts it with that length. Source: Royston and Parmar, BMC Medical Research
Methodology 13 (2013) 152.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.robot.evaluation.rollout import EpisodeResult

_NUM_CURVE_POINTS = 20


@dataclass(frozen=True)
class Timing:
    """Of some episodes, in control steps."""

    mean_steps: float  # restricted mean of the time to success
    curve: tuple[tuple[int, float], ...]  # (step, share of the episodes that have succeeded by then)
    held_share: float  # of all steps: without a command of the policy
    seam_p99: float | None  # 99th percentile of the change of the command where a chunk begins or holding begins or ends
    inner_p99: float | None  # of the change within a chunk

    @classmethod
    def of(cls, results: Sequence[EpisodeResult]) -> Timing:
        """Of at least one episode."""
        horizon = max(result.num_steps for result in results)
        ends = np.array([result.num_steps if result.success else np.inf for result in results])
        steps = np.unique(np.linspace(0, horizon, _NUM_CURVE_POINTS + 1).round().astype(int))
        num_steps = sum(result.num_steps for result in results)
        return cls(
            mean_steps=restricted_mean([(result.num_steps, result.error) for result in results], horizon),
            curve=tuple((int(step), float((ends <= step).mean())) for step in steps),
            held_share=sum(result.num_held_steps for result in results) / num_steps if num_steps else 0.0,
            seam_p99=_p99([change for result in results for change in result.seam_changes]),
            inner_p99=_p99([change for result in results for change in result.inner_changes]),
        )

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "restricted_mean_steps": self.mean_steps,
            "success_curve": [list(point) for point in self.curve],
            "held_share": self.held_share,
            "seam_change_p99": self.seam_p99,
            "inner_change_p99": self.inner_p99,
        }

    def line(self) -> str:
        """For people."""
        text = f"mean time to success {self.mean_steps:.1f} steps (failures count with their length)"
        text += f", held {100 * self.held_share:.1f} % of the steps"
        if self.seam_p99 is not None and self.inner_p99 is not None:
            text += f"; changes of the command, p99: {self.seam_p99:.3g} between chunks, {self.inner_p99:.3g} within"
        return text


def restricted_mean(ends: Sequence[tuple[int, str | None]], horizon: int) -> float:
    """Of episodes by (steps, what they crashed with or None): failed ones lasted up to their limit, crashed ones count with `horizon`."""
    return float(np.mean([horizon if error else num_steps for num_steps, error in ends]))


def _p99(changes: Sequence[float]) -> float | None:
    return float(np.percentile(changes, 99)) if changes else None
