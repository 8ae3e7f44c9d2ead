"""What kept or renewed normalization statistics mean for new data and for the heads that were taken over; in words and in figures.

Letters: D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from prismatic.training.origin import Origin
from prismatic.vla.constants import NormalizationType, RobotPlatform
from prismatic.vla.datasets.dataset import RobotDataset
from prismatic.vla.datasets.training_data import TrainingData
from prismatic.vla.normalization import Bounds

_USUAL_SHARE = {NormalizationType.BOUNDS: 0.0, NormalizationType.BOUNDS_Q99: 0.02}  # of its own data that a policy's bounds leave out
_NOTICEABLE = 0.02  # share of a dimension's values, above the usual one, that is warned of
_FEW = 2  # values of a small data set that are no share yet
_HOPELESS = 0.5  # share of an action dimension's values beyond the bounds from which actions would mean something else
_SHIFT = 0.01  # of a range; smaller differences of new statistics are not worth a word

logger = logging.getLogger(__name__)


def account_for_statistics(data: TrainingData, origin: Origin) -> dict[str, Any]:
    """What policy.json records beside `origin.record`; reported in the log. {} where a run begins with a base model.

    Raises:
        ValueError: most values of an action dimension cannot be expressed in the statistics of the checkpoint.
    """
    parts = {part.spec.name: part for part in data.train.parts}
    beyond = {name: _beyond(parts[name]) for name in origin.statistics}
    changes = {}
    for name, earlier in origin.earlier_statistics.items():
        for source, known in earlier.items():
            if found := _changes(parts[name], source, known):
                changes[name if len(earlier) == 1 else f"{name}, learnt as {source}"] = found
    return ({"beyond_statistics": beyond} if beyond else {}) | ({"changed_statistics": changes} if changes else {})


def _beyond(part: RobotDataset) -> dict[str, Any]:
    """{"num_steps", quantity: {dimension: steps beyond}} of a data set whose statistics are a checkpoint's."""
    num_steps = len(part.index.steps_of(part.episodes))
    found = {quantity: _named(part.spec.platform, quantity, counts) for quantity, counts in part.beyond().items()}
    for quantity, numbers in found.items():
        _judge(part.spec.name, quantity, numbers, num_steps, _USUAL_SHARE[part.spec.platform.normalization])
    return {"num_steps": num_steps, **found}


def _judge(name: str, quantity: str, numbers: dict[str, int], num_steps: int, usual: float) -> None:
    """Tells how many values of each dimension are beyond, of `num_steps`; refuses actions that would mean something else."""
    total, all_values = sum(numbers.values()), num_steps * len(numbers)
    own = f" (bounds leave out {100 * usual:.0f} % of the data that they were computed from)" if usual else ""
    logger.info("data set %s: %s of %s %s values are beyond the checkpoint's statistics%s", name, total, all_values, quantity, own)
    shares = {dimension: number / num_steps for dimension, number in numbers.items()}
    lost = {dimension: share for dimension, share in shares.items() if share > _HOPELESS}
    if lost and quantity == "action":
        raise ValueError(
            f"data set {name!r}: {_percentages(lost)} of the actions are beyond the checkpoint's statistics and would be clipped: other "
            "units, another robot, or motions that were never trained. Pass --new_statistics True to compute them anew, or --fresh_heads "
            "True to begin with new heads as well"
        )
    much = {name: share for name, share in shares.items() if share > usual + _NOTICEABLE + _FEW / num_steps}
    if much:
        logger.warning(
            "data set %s: %s of the %s values are beyond the checkpoint's statistics and are clipped; if the robot must go there, pass "
            "--new_statistics True",
            *(name, _percentages(much), quantity),
        )


def _named(platform: RobotPlatform, quantity: str, counts: np.ndarray) -> dict[str, int]:
    names = platform.action_names if quantity == "action" else platform.proprio_names
    return dict(zip(names, counts.tolist(), strict=True))


def _percentages(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())


def _changes(part: RobotDataset, source: str, known: Any) -> dict[str, Any]:
    """{quantity: {dimension: "[low, high] -> [low, high]"}} where new bounds differ from those that the heads were trained in.

    These are `known`, of the checkpoint's data set `source`.
    """
    platform = part.spec.platform
    found = {}
    for quantity, now, names in (
        ("action", part.action_bounds, platform.action_names),
        ("proprio", part.proprio_bounds, platform.proprio_names),
    ):
        if now is None:
            continue
        before = Bounds.from_statistics(known[quantity], platform.normalization)
        found[quantity] = _changed_bounds(before, now, names)
        if found[quantity]:
            listed = "; ".join(f"{name} {change}" for name, change in found[quantity].items())
            name = part.spec.name if source == part.spec.name else f"{part.spec.name} (learnt as {source})"
            logger.warning("data set %s: %s", name, _MEANING[quantity] % listed)
    return {quantity: changed for quantity, changed in found.items() if changed}


_MEANING = {
    "action": "--new_statistics True changes what the heads say until they have learnt it anew: the range that they were trained to "
    "command, and what the same output commands now: %s",
    "proprio": "--new_statistics True changes what the policy is told of its state: the range that it was trained on, and what it is told "
    "in the same words now: %s",
}


def _changed_bounds(before: Bounds, now: Bounds, names: Sequence[str]) -> dict[str, str]:
    changed = {}
    for number, name in enumerate(names):
        old, new = ((bounds.low[number], bounds.high[number]) for bounds in (before, now))
        if max(abs(a - b) for a, b in zip(old, new, strict=True)) > _SHIFT * max(old[1] - old[0], 1e-6):
            changed[name] = " -> ".join(f"[{low:.4g}, {high:.4g}]" for low, high in (old, new))
    return changed
