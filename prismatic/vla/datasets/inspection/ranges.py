"""What looks wrong in the values of single dimensions: constant, squeezed, clipped, in odd units, still.

Letters: M steps, E episodes, A action dim, P proprio dim, D either.
"""

from __future__ import annotations

import re

import numpy as np

from prismatic.vla.constants import NormalizationType
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.configs import TRANSFORMS_FILE
from prismatic.vla.diagnosis import Finding, Status, counted, listed
from prismatic.vla.normalization import Bounds


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
    """More clipping than the percentiles explain, in any split."""
    findings, index = [], view.index
    for split in index.splits:
        episodes = index.episodes_of(split)
        steps = index.steps_of(episodes[index.is_labelled()[episodes]])
        if not len(steps):
            continue
        for kind, _, bounds, names in view.quantities():
            share = clipped_share((index.actions if kind == "action" else index.proprio)[steps], bounds)
            if (dims := np.flatnonzero(share > 0.05)).size:
                shown = listed([f"{names[d]} {share[d]:.0%}" for d in dims])
                findings.append(
                    Finding(
                        kind,
                        Status.WARNING,
                        f"A high share of {kind} values of split {split} is clipped: {shown}",
                        "This split moves elsewhere than the training episodes; divide the recordings at random, or record more.",
                    )
                )
    return findings


def check_units(view: DatasetView) -> list[Finding]:
    """Angles that look like degrees, lengths that look like millimetres, angles that jump by a turn."""
    findings = []
    for kind, rows, _, names in view.quantities():
        is_angle = np.array([_is_angle(name) for name in names])
        is_length = np.array([name.endswith("[m]") or re.search(r"\bd[xyz]$", name.replace("_", " ")) is not None for name in names])
        largest = np.abs(rows).max(0)
        for unit, dims, factor in (
            ("degrees", np.flatnonzero(is_angle & (largest > 10)), "radians"),
            ("millimetres", np.flatnonzero(is_length & (largest > 10)), "metres"),
        ):
            if len(dims):
                shown = listed([f"{names[d]} up to {largest[d]:.4g}" for d in dims])
                findings.append(
                    Finding(
                        kind,
                        Status.WARNING,
                        f"{kind} units look like {unit}: {shown}",
                        f"Convert to {factor} in a trajectory transform in {TRANSFORMS_FILE}.",
                    )
                )
        jumps = (np.abs(np.diff(rows, axis=0)) > 5)[view.has_next].sum(0) if len(rows) > 1 else np.zeros(rows.shape[1], int)
        turns = np.flatnonzero(is_angle & (largest <= 10) & (jumps > 0))
        if len(turns):
            shown = listed([f"{names[d]} {counted(int(jumps[d]), 'time', 'times')}" for d in turns])
            findings.append(
                Finding(
                    kind,
                    Status.WARNING,
                    f"{kind} angles jump by a whole turn: {shown}",
                    "Unwrap them in the trajectory transform (numpy.unwrap).",
                )
            )
    return findings


def check_idle_steps(view: DatasetView) -> list[Finding]:
    """Many steps of relative actions without any motion."""
    motion = view.relative & ~view.action_bounds.constant
    if not motion.any() or len(view.actions) < 2:
        return []
    size = np.abs(view.actions[:, motion]) / np.abs(view.actions[:, motion]).max(0)
    same_gripper = np.concatenate(([True], (np.diff(view.actions[:, view.gripper_dims], axis=0) == 0).all(1)))
    share = float(((size < 1e-3).all(1) & same_gripper).mean())
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


def _is_angle(name: str) -> bool:
    return name.endswith("[rad]") or re.search(r"(roll|pitch|yaw)$", name) is not None
