"""A data set against what an earlier training saw: cameras exchanged or turned, a state in other units, actions of another size.

Judged by the first steps of a few episodes, as `prismatic.vla.reference` judges an observation before a policy acts on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismatic.vla.datasets.inspection.frames import Strip, read_strips
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.diagnosis import Finding, Status, listed
from prismatic.vla.reference import ObservationCheck, Reference, check_state

_NUM_EPISODES = 8
_OFTEN = 0.5  # of the episodes must look wrong in the same way
_OTHER_LIMITS = 0.3  # of a gripper's range by which its limits must differ
_OTHER_SIZE = 20.0  # times wider or narrower ranges of an action dimension count as other units


def check_against(view: DatasetView, reference: Reference | None, statistics: Mapping[str, Any]) -> list[Finding]:
    """What differs from training with `reference` and `statistics` (one data set's); sentences need not be the same."""
    strips, _ = read_strips(view, _NUM_EPISODES, 1)
    state = statistics.get("proprio") if view.use_proprio else None
    check = ObservationCheck(reference, None, ())
    seen = [finding for strip in strips for finding in _look(check, strip, view, state)]
    # Not the notes: another scene is what data are recorded for.
    kinds = Counter((finding.subject, finding.kind) for finding in seen if finding.status != Status.NOTE)
    remedy = "Make the data like those it was trained on."
    findings = [
        Finding(subject, Status.WARNING, f"Seen from the checkpoint, {kind} ({count} of {len(strips)} episodes)", remedy)
        for (subject, kind), count in kinds.items()
        if count >= _OFTEN * len(strips)
    ]
    return findings + _check_actions(view, statistics["action"])


def _look(check: ObservationCheck, strip: Strip, view: DatasetView, state: Mapping[str, Sequence[float]] | None) -> list[Finding]:
    found = check.check_images({camera: frames[0] for camera, frames in strip.frames.items()})
    if state is not None:
        found += check_state(view.index.proprio[view.index.episode_starts[strip.episode]], state, view.proprio_names)
    return found


def _check_actions(view: DatasetView, seen: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Action dimensions whose range is of another order, or a gripper that runs over other values."""
    own = view.statistics["action"]
    if len(seen["q01"]) != len(own["q01"]):
        return [
            Finding(
                "action",
                Status.WARNING,
                f"The actions have {len(own['q01'])} dimensions, the checkpoint's {len(seen['q01'])}",
                "Fine for a new robot: the action head is new then. Else take the data set that belongs to it.",
            )
        ]
    widths = [np.subtract(entry["q99"], entry["q01"]) for entry in (own, seen)]
    ratio = np.divide(widths[0], widths[1], out=np.ones(len(widths[0])), where=(widths[0] > 0) & (widths[1] > 0))
    other = np.flatnonzero((ratio > _OTHER_SIZE) | (ratio < 1 / _OTHER_SIZE))
    findings = []
    if len(other):
        shown = listed([f"{view.action_names[dim]} {ratio[dim]:.3g} times as wide" for dim in other])
        findings.append(
            Finding("action", Status.WARNING, f"Actions have other ranges than the checkpoint's: {shown}", "Check their units.")
        )
    for dim in view.gripper_dims:
        ours, theirs = ((entry["min"][dim], entry["max"][dim]) for entry in (own, seen))
        if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > _OTHER_LIMITS * (theirs[1] - theirs[0]) > 0:
            findings.append(
                Finding(
                    "gripper",
                    Status.WARNING,
                    f"The gripper command {view.action_names[dim]} runs from {ours[0]:.3g} to {ours[1]:.3g}, "
                    f"the checkpoint's from {theirs[0]:.3g} to {theirs[1]:.3g}",
                    "Bring it to the same convention in a trajectory transform.",
                )
            )
    return findings
