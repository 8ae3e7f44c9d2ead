"""One thing that is stored in two ways, which a policy takes for two: either end of a turn, either sign of a quaternion, either unit.

Letters: M steps, E episodes, D dimensions of actions or of the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from prismatic.vla.datasets.inspection.ranges import is_radian
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.configs import TRANSFORMS_FILE
from prismatic.vla.diagnosis import Finding, Status, counted, listed

_TURN_RAD, _TURN_DEG = 5.0, 300.0  # a step that is larger is a jump from one end of the range to the other
_LARGEST_RAD = 10.0  # what is larger is in degrees, whatever its name says
# Where no unit is said: the largest value, and the smallest and the largest step, of angles in radians and in degrees.
_UNSAID_TURNS = ((3.0, 6.6, 5.5, 6.4), (150.0, 400.0, 300.0, 361.0))
_UNIT_NORM, _VARIES = 0.02, 1e-3  # of quaternions: how far from 1 their norm may be, and by how much two of their numbers vary
_OPPOSITE = -0.95  # product of two quaternions that are nearly the same rotation, with opposite signs
_MOST_COMPARED = 1000  # episodes
_GAP, _FACTORS = 10.0, (30.0, 3000.0)  # between episodes of two units: pi, 100 or 1000 times, and none in between
_MOVED, _OPENED, _LARGEST_OPENING = 0.2, 0.5, 1.1  # in the smaller unit: a range that is motion; of a gripper, and its largest value


def check_turns(view: DatasetView) -> list[Finding]:
    """Angles that jump from one end of their range to the other, and what looks like them where nobody says a unit."""
    findings = []
    for kind, rows, _, names in view.quantities():
        if len(rows) < 2:
            continue
        jumps, largest = np.abs(np.diff(rows, axis=0))[view.has_next], np.abs(rows).max(0)
        in_radians = np.array([is_radian(name) for name in names])
        said = np.where([name.endswith("[deg]") for name in names], _TURN_DEG, np.inf)
        said[in_radians & (largest <= _LARGEST_RAD)] = _TURN_RAD
        unsaid = ~in_radians & [_may_be_angle(view, kind, dim, name) for dim, name in enumerate(names)]
        for counts, what, when in (
            ((jumps > said).sum(0), "angles jump by a whole turn", "Unwrap"),
            (_unsaid_turns(jumps, largest) * unsaid, "values jump by 2 pi or by 360", "If these are angles, unwrap"),
        ):
            if len(turns := np.flatnonzero(counts)):
                shown = listed([f"{names[d]} {counted(int(counts[d]), 'time', 'times')}" for d in turns])
                remedy = f"{when} them in a trajectory transform in {TRANSFORMS_FILE} (numpy.unwrap)."
                findings.append(Finding(kind, Status.WARNING, f"{kind} {what}: {shown}", remedy))
    return findings


def _may_be_angle(view: DatasetView, kind: str, dim: int, name: str) -> bool:
    """Whether a dimension without a unit may be an angle: no gripper, and no motion or velocity."""
    return "[" not in name and "gripper" not in name and not (kind == "action" and (view.relative[dim] or dim in view.gripper_dims))


def _unsaid_turns(jumps: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """int64 [D]: steps in which a value jumps by what is a turn in radians or in degrees, of values that fit it."""
    counts = np.zeros(len(largest), np.int64)
    for least, most, low, high in _UNSAID_TURNS:
        counts += ((jumps >= low) & (jumps <= high)).sum(0) * ((largest >= least) & (largest <= most))
    return counts


def check_quaternion_signs(view: DatasetView) -> list[Finding]:
    """Quaternions that change their sign, which is the same rotation, within episodes or from one to another."""
    findings = []
    for kind, rows, _, names in view.quantities():
        for first in _quaternions(rows, names):
            values = rows[:, first : first + 4].astype(np.float64)
            num_flips = int(((values[:-1] * values[1:]).sum(1)[view.has_next] < _OPPOSITE).sum())
            num_others = _num_of_other_sign(values[view.starts])
            told = [f"{counted(num_flips, 'time', 'times')} from one step to the next"] if num_flips else []
            told += [f"{num_others} of {len(view.starts)} episodes begin with the other sign than the rest"] if num_others else []
            if told:
                found = f"The {kind}'s quaternion ({names[first]} .. {names[first + 3]}) changes its sign, and is the same rotation: "
                remedy = (
                    f"Of q and -q take the one that is nearer to one fixed orientation of the demonstrations, in a trajectory transform in "
                    f"{TRANSFORMS_FILE} and in the robot's driver; between the two a policy learns neither."
                )
                findings.append(Finding(kind, Status.WARNING, found + ", ".join(told), remedy))
    return findings


def _quaternions(rows: np.ndarray, names: tuple[str, ...]) -> Iterator[int]:
    """Where four numbers in a row are a quaternion, by their norm."""
    end = 0
    squares = rows.astype(np.float64) ** 2
    varies = rows.std(0) > _VARIES
    for first in range(rows.shape[1] - 3):
        block = slice(first, first + 4)
        if first < end or varies[block].sum() < 2 or any("gripper" in name for name in names[block]):
            continue
        if (np.abs(np.sqrt(squares[:, block].sum(1)) - 1) < _UNIT_NORM).all():
            end = first + 4
            yield first


def _num_of_other_sign(starts: np.ndarray) -> int:
    """How many of the quaternions [E, 4] have the rarer of the two signs, where some are opposite to others; 0 where none is."""
    some = starts[:: len(starts) // _MOST_COMPARED + 1]
    if not len(some) or (some @ some.T).min() >= _OPPOSITE:
        return 0
    along = starts @ np.linalg.svd(some, full_matrices=False)[2][0]  # the direction that they have in common, but for the sign
    return int(min((along > 0).sum(), (along < 0).sum()))


def check_mixed_units(view: DatasetView) -> list[Finding]:
    """Episodes whose values run over a range many times as wide as in the others: degrees among radians, percent among 0 .. 1."""
    findings = []
    for kind, rows, _, names in view.quantities():
        if len(view.starts) < 2:
            return []
        high, low = np.maximum.reduceat(rows, view.starts), np.minimum.reduceat(rows, view.starts)  # [E, D]
        largest, spans = np.maximum(np.abs(high), np.abs(low)), high - low
        apart = {dim: split for dim in range(len(names)) if (split := _two_units(largest[:, dim], spans[:, dim])) is not None}
        if kind == "action":
            apart = {dim: split for dim, split in apart.items() if not view.relative[dim]}
        grippers = {dim for dim, name in enumerate(names) if "gripper" in name or (kind == "action" and dim in view.gripper_dims)}
        others = [dim for dim in range(len(names)) if dim not in grippers and (spans[:, dim] > 0).any()]
        by_split = itertools.groupby(sorted(apart, key=lambda dim: apart[dim].tobytes()), key=lambda dim: apart[dim].tobytes())
        for _, group in by_split:
            dims = list(group)
            is_wide = apart[dims[0]]
            joints = [dim for dim in dims if dim not in grippers]
            opened = [dim for dim in dims if dim in grippers and _is_opening(largest[~is_wide, dim], spans[~is_wide, dim])]
            told = [*(joints if len(joints) >= max(2, len(others) / 2) else []), *opened]
            if told:
                findings.append(_of_two_units(view, kind, [names[dim] for dim in told], spans[:, told], is_wide))
    return findings


def _two_units(largest: np.ndarray, spans: np.ndarray) -> np.ndarray | None:
    """bool [E]: the episodes of the larger unit, where there are two; None where the values of one dimension do not fall apart."""
    ordered = np.sort(largest)
    gaps = ordered[1:] / np.maximum(ordered[:-1], 1e-9)
    place = int(gaps.argmax())
    if gaps[place] < _GAP:
        return None
    is_wide = largest > ordered[place]
    narrow_span, wide_span = float(np.median(spans[~is_wide])), float(np.median(spans[is_wide]))
    is_unit = narrow_span >= _MOVED and _FACTORS[0] <= wide_span / narrow_span <= _FACTORS[1]
    return is_wide if is_unit else None


def _is_opening(largest: np.ndarray, spans: np.ndarray) -> bool:
    """Whether a gripper, [E] in the smaller unit, opens or closes from 0 to 1."""
    return float(largest.max()) <= _LARGEST_OPENING and float(np.median(spans)) >= _OPENED


def _of_two_units(view: DatasetView, kind: str, names: list[str], spans: np.ndarray, is_wide: np.ndarray) -> Finding:
    factor = float(np.median(np.median(spans[is_wide], axis=0) / np.median(spans[~is_wide], axis=0)))
    rarer = view.episodes[is_wide if is_wide.sum() <= len(is_wide) / 2 else ~is_wide]
    found = (
        f"{kind} {listed(names)}: the range is {factor:.3g} times as wide in {is_wide.sum()} of {len(is_wide)} episodes as in the others, "
        f"as if they were in another unit (degrees, percent); the fewer are {listed(rarer)}"
    )
    return Finding(kind, Status.WARNING, found, "Bring all episodes to one unit, or make data sets of their own of them.")
