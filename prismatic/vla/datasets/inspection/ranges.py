"""What looks wrong in the values of single dimensions: constant, squeezed, clipped, in odd units, still, waiting.

Letters: M steps, E episodes, A action dim, P proprio dim, D either.
"""

from __future__ import annotations

import re

import numpy as np

from prismatic.vla.constants import NormalizationType
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.locations import platform_location
from prismatic.vla.datasets.stillness import idle_middles, still_steps
from prismatic.vla.diagnosis import Finding, Status, counted, listed
from prismatic.vla.normalization import Bounds

_IMPOSSIBLE = 10.0  # for an angle in radians and for a length in metres
_BEYOND_OWN = "They move elsewhere than the episodes that are trained on: record more, or divide the recordings at random."
_BEYOND_KEPT = (
    "They move beyond what the checkpoint was trained on, by whose statistics they are normalised; if the robot must go there, begin the "
    "run anew with --new_statistics True."
)
_PAUSING = 0.05  # of the episodes, beyond which pauses are told of


def check_constants(view: DatasetView) -> list[Finding]:
    """Dimensions that never change; padding columns (None in state_obs_keys) are meant to."""
    findings = []
    for kind, rows, bounds, names in view.quantities():
        constant = bounds.constant.copy()
        if kind == "state":
            constant &= rows[0] != 0 if None in view.spec.entry.state_obs_keys else True
        else:
            constant[view.gripper_dims] = False
        if constant.any():
            dims = np.flatnonzero(constant)
            shown = listed([f"{names[d]} = {rows[0, d]:.4g}" for d in dims])
            findings.append(
                Finding(
                    kind,
                    Status.WARNING,
                    f"{counted(len(dims), f'{kind} dimension never changes', f'{kind} dimensions never change')}: {shown}",
                    "Fine if the robot cannot move there; else the recorder did not fill it.",
                )
            )
    return findings


def check_spread(view: DatasetView) -> list[Finding]:
    """Dimensions whose bounds say nothing: nearly always still, or squeezed by outliers."""
    findings = []
    for kind, _, bounds, names in view.quantities():
        stats = view.statistics["action" if kind == "action" else "proprio"]
        inner = np.subtract(stats["q99"], stats["q01"])
        whole = np.subtract(stats["max"], stats["min"])
        usable = bounds.mask & ~bounds.constant
        is_q99 = view.platform.normalization == NormalizationType.BOUNDS_Q99
        still = np.flatnonzero(usable & (inner <= 1e-6 * whole))
        if is_q99 and len(still):
            findings.append(
                Finding(
                    kind,
                    Status.WARNING,
                    f"{kind} {listed([names[d] for d in still])}: 98 % of the values are equal (q01 = q99); the rest becomes +-1",
                    "Use NormalizationType.BOUNDS in the platform, or drop the dimension in the trajectory transform.",
                )
            )
        wild = np.flatnonzero(usable & (inner > 1e-6 * whole) & (inner < whole / 20))
        if len(wild):
            shown = listed([f"{names[d]} (98 % within {stats['q01'][d]:.3g} .. {stats['q99'][d]:.3g}, "
                            f"extremes {stats['min'][d]:.3g} .. {stats['max'][d]:.3g})" for d in wild])  # fmt: skip
            effect = "they are clipped" if is_q99 else "they squeeze all other values into a twentieth of the range"
            findings.append(
                Finding(
                    kind,
                    Status.WARNING,
                    f"{kind} has outliers in {shown}; {effect}",
                    "Look for glitches of the recorder; repair those steps.",
                )
            )
    return findings


def clipped_share(rows: np.ndarray, bounds: Bounds) -> np.ndarray:
    """float [D]: share of values beyond the bounds, 0 where nothing is normalised."""
    slack = 1e-6 * (bounds.high - bounds.low)
    outside = (rows < bounds.low - slack) | (rows > bounds.high + slack)
    return np.where(bounds.mask & ~bounds.constant, outside.mean(0), 0)


def check_clipping(view: DatasetView) -> list[Finding]:
    """More clipping than the percentiles explain, in any split, and in the episodes of one that training sets aside."""
    findings, index = [], view.index
    for split in index.splits:
        episodes = index.episodes_of(split)
        episodes = episodes[index.is_labelled()[episodes]]
        trained = np.isin(episodes, view.episodes)
        aside = f"split {split}, in the episodes that are not trained on," if trained.any() else f"split {split}"
        for name, chosen in ((f"split {split}", episodes[trained]), (aside, episodes[~trained])):
            findings += _clipping_of(view, name, chosen)
    return findings


def _clipping_of(view: DatasetView, name: str, episodes: np.ndarray) -> list[Finding]:
    """A finding for actions and for states where these episodes are clipped more than the percentiles explain."""
    findings, steps = [], view.index.steps_of(episodes)
    for kind, _, bounds, names in view.quantities() if len(steps) else ():
        share = clipped_share((view.index.actions if kind == "action" else view.index.proprio)[steps], bounds)
        if (dims := np.flatnonzero(share > 0.05)).size:
            shown = listed([f"{names[d]} {share[d]:.0%}" for d in dims])
            what = f"A high share of {kind} values of {name} is clipped: {shown}"
            remedy = _BEYOND_KEPT if view.has_kept_statistics else _BEYOND_OWN
            findings.append(Finding(kind, Status.WARNING, what, remedy))
    return findings


def check_units(view: DatasetView) -> list[Finding]:
    """Values that cannot be in the unit that the name of their dimension states.

    Any unit will do for training, degrees and 0-100 as well: each dimension is normalised by its own range. But a robot and a policy must
    mean the same, and what a policy is shown is compared with the unit of the name.
    """
    findings = []
    for kind, rows, _, names in view.quantities():
        largest = np.abs(rows).max(0)
        for is_stated, stated, likely, other in ((is_radian, "[rad]", "degrees", "[deg]"), (_is_metre, "[m]", "millimetres", "[mm]")):
            dims = [dim for dim, name in enumerate(names) if is_stated(name) and largest[dim] > _IMPOSSIBLE]
            if dims:
                found = f"{kind} units look like {likely}: {listed([f'{names[d]} up to {largest[d]:.4g}' for d in dims])}"
                remedy = (
                    f"If they are, write {other} instead of {stated} into the names in {platform_location(view.platform.name)}; "
                    "training needs no conversion."
                )
                findings.append(Finding(kind, Status.WARNING, found, remedy))
    return findings


def check_idle_steps(view: DatasetView) -> list[Finding]:
    """Many steps in which nothing is commanded to move: motions and velocities are 0, targets are those of the step before."""
    moving = view.relative & ~view.action_bounds.constant
    if not moving.any() or len(view.actions) < 2:
        return []
    counted = moving | ~view.relative
    share = float(still_steps(view.actions[:, counted], view.relative[counted], view.starts, 1e-3).mean())
    if share <= 0.2:
        return []
    return [
        Finding(
            "action",
            Status.WARNING,
            f"The robot stands still in {share:.0%} of the steps",
            "Filter such steps when converting: a policy that learns them may stop and never move again.",
        )
    ]


def check_pauses(view: DatasetView) -> list[Finding]:
    """Pauses within episodes, at least as long as a chunk: one moment does not tell how long the robot has waited."""
    chunk = view.platform.num_actions_chunk
    waits = idle_middles(view.index, view.kinds, chunk)
    pausing = np.array([rows.any() for rows in np.split(waits[view.steps], view.starts[1:])])
    if pausing.mean() <= _PAUSING:
        return []
    return [
        Finding(
            "action",
            Status.WARNING,
            "Within episodes nothing moves for a whole chunk, and later it goes on: "
            f"in {pausing.sum()} of {len(pausing)} (a chunk has {chunk} steps), {listed(view.episodes[pausing])}",
            'A policy sees one moment, so it may wait there for good; {"idle middle": 0} in --episode_weights leaves such steps out.',
        )
    ]


def is_radian(name: str) -> bool:
    """Whether the name of a dimension says so."""
    return name.endswith("[rad]") or re.fullmatch(r"(left_|right_)?d?(roll|pitch|yaw)", name) is not None


def _is_metre(name: str) -> bool:
    return name.endswith("[m]") or re.fullmatch(r"(left_|right_)?d[xyz]", name) is not None
