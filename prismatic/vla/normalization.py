"""The one bounds formula and its inverse, for data sets, policies and servers alike.

    x in [low, high]  ->  2 * (x - low) / (high - low + 1e-8) - 1   in [-1, 1]

`low` and `high` are min/max (BOUNDS) or the 1st/99th percentile (BOUNDS_Q99) of the training split. Dimensions whose
mask is False pass unchanged (an absolute gripper command, say). Source: OpenVLA-OFT's data pipeline and inference code,
pinned by tests/golden (groups d_unnormalize and data).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismatic.vla.constants import NormalizationType

_EPSILON = 1e-8
_ORDER = ("min", "q01", "q99", "max")
_TAKE = "one for each dimension; take dataset_statistics.json as training wrote it"
_BOUND_KEYS = {NormalizationType.BOUNDS: ("min", "max"), NormalizationType.BOUNDS_Q99: ("q01", "q99")}


@dataclass(frozen=True)
class Bounds:
    """Per-dimension limits of one quantity (actions or proprio) of D dimensions."""

    low: np.ndarray  # float64 [D]
    high: np.ndarray  # float64 [D]
    mask: np.ndarray  # bool [D]; False: the dimension is not normalised
    constant: np.ndarray  # bool [D]; True: min == max in the training data

    @property
    def dim(self) -> int:
        return len(self.low)

    @classmethod
    def from_statistics(cls, statistics: dict[str, Sequence[float]], normalization: NormalizationType) -> Bounds:
        """The limits that `normalization` uses, out of one entry of dataset_statistics.json ({"min": [...], ...}).

        Raises:
            ValueError: the entry lacks a key, its lists differ in length or hold no numbers, or percentiles lie outside of the extremes.
        """
        low_key, high_key = _BOUND_KEYS[normalization]
        missing = [key for key in (low_key, high_key) if key not in statistics]
        if missing:
            raise ValueError(f"data-set statistics lack {missing}, needed for {normalization.value}; found {sorted(statistics)}")
        rows = {name: _numbers(statistics, name) for name in _ORDER if name in statistics}
        low, high = rows[low_key], rows[high_key]
        _check_order(rows)
        mask = _mask(statistics["mask"]) if "mask" in statistics else np.ones(len(low), bool)
        smallest, largest = rows.get("min", low), rows.get("max", high)
        if not len(low) == len(high) == len(mask) == len(smallest) == len(largest):
            raise ValueError(f"data-set statistics differ in length: {low_key} {len(low)}, {high_key} {len(high)}, mask {len(mask)}")
        return cls(low, high, mask, constant=smallest == largest)


def _numbers(statistics: dict[str, Sequence[float]], name: str) -> np.ndarray:
    """float64 [D]: the list `name`, whose numbers are finite."""
    try:
        row = np.asarray(statistics[name], np.float64)
    except (TypeError, ValueError):
        row = np.zeros(())
    if row.ndim != 1:
        raise ValueError(f"data-set statistics: {name} is {str(statistics[name])[:80]}, expected a list of numbers, {_TAKE}")
    for dim in np.flatnonzero(~np.isfinite(row)).tolist():
        found = f"{statistics[name][dim]} in dimension {dim}"
        raise ValueError(f"data-set statistics: {name} is {found}, expected a finite number, {_TAKE}")
    return row


def _mask(said: object) -> np.ndarray:
    """bool [D]: which dimensions are normalised."""
    if not isinstance(said, (list, tuple, np.ndarray)) or not all(value in (True, False) for value in said):
        raise ValueError(f"data-set statistics: mask is {str(said)[:80]}, expected a list of true and false, {_TAKE}")
    return np.asarray(said, bool)


def _check_order(rows: dict[str, np.ndarray]) -> None:
    """Accepts min <= q01 <= q99 <= max, as far as they are there; rounding may hide in a millionth."""
    for low, high in itertools.pairwise(name for name in _ORDER if name in rows):
        below, above = rows[low], rows[high]
        if len(below) == len(above) and (wrong := np.flatnonzero(below > above + 1e-6 * np.maximum(1, np.abs(above)))).size:
            dim = int(wrong[0])
            raise ValueError(
                f"data-set statistics: {low} {below[dim]:.6g} is above {high} {above[dim]:.6g} in dimension {dim}; expected min <= q01 <= "
                "q99 <= max. Were the keys exchanged? Take dataset_statistics.json as training wrote it"
            )


def normalize(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Values [..., D] in raw units -> [-1, 1], clipped; unmasked dimensions unchanged; constant dimensions 0.

    The same in training and in inference. Computes in the dtype of `values`, so that float32 data give the published numbers.
    """
    _check_dim(values, bounds)
    low, high = bounds.low.astype(values.dtype), bounds.high.astype(values.dtype)
    scaled = 2 * (values - low) / (high - low + values.dtype.type(_EPSILON)) - 1
    scaled = np.minimum(np.maximum(scaled, -1), 1)  # np.clip takes three times as long for a chunk, and every sample has one
    return np.where(bounds.constant, values.dtype.type(0), np.where(bounds.mask, scaled, values))


def normalize_proprio_published(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """As the published inference code does it: constant dimensions become -1, unmasked dimensions are clipped too."""
    _check_dim(values, bounds)
    scaled = 2 * (values - bounds.low) / (bounds.high - bounds.low + _EPSILON) - 1
    return np.clip(np.where(bounds.mask, scaled, values), -1, 1)


def unnormalize(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Inverse of `normalize`, float64 [..., D] in raw units; values beyond [-1, 1] are extrapolated, not clipped.

    A dimension that was constant in the training data keeps its constant, also where it is not normalised: training saw 0 there,
    and a gripper that was always commanded 1 must not be commanded 0.
    """
    _check_dim(values, bounds)
    values = values.astype(np.float64)
    scaled = 0.5 * (values + 1) * (bounds.high - bounds.low + _EPSILON) + bounds.low
    return np.where(bounds.constant, bounds.low, np.where(bounds.mask, scaled, values))


def raw_units(bounds: Bounds) -> np.ndarray:
    """float64 [D]: what a step of 1 in normalised units is in raw ones, the slope of `unnormalize`; constant dimensions 0."""
    return np.where(bounds.constant, 0.0, np.where(bounds.mask, 0.5 * (bounds.high - bounds.low + _EPSILON), 1.0))


def _check_dim(values: np.ndarray, bounds: Bounds) -> None:
    if values.shape[-1:] != (bounds.dim,):
        raise ValueError(f"expected {bounds.dim} values, as in the data-set statistics, found shape {list(values.shape)}")


def bounds_from_statistics(norm_stats: dict[str, Any], unnorm_key: str, quantity: str, normalization: NormalizationType) -> Bounds:
    """Bounds of `quantity` ("action" or "proprio") of the data set `unnorm_key` in a dataset_statistics.json dictionary.

    Raises:
        ValueError: an unknown key, or statistics without that quantity.
    """
    if unnorm_key not in norm_stats:
        raise ValueError(f"unnorm_key {unnorm_key!r} is not in the checkpoint's dataset_statistics.json; it has {sorted(norm_stats)}")
    entry = norm_stats[unnorm_key]
    if not isinstance(entry, dict) or not isinstance(entry.get(quantity), dict):
        found = sorted(entry) if isinstance(entry, dict) else str(entry)[:80]
        raise ValueError(f"statistics of {unnorm_key!r} lack {quantity!r}; found {found}")
    return Bounds.from_statistics(norm_stats[unnorm_key][quantity], normalization)
