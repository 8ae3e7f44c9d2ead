"""What may be in an HDF5 group: data sets at any depth, and which of them are numbers of each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prismatic.vla.datasets.episodes import Trajectory
from prismatic.vla.datasets.rlds.oxe.trajectories import find_value, leaf_paths, select_steps

_WIDEST = 4096  # numbers per step; what is wider is no state and no action


def members(group: Any) -> Iterator[tuple[str, Any]]:
    """(name, group or data set) of what `group` holds; named types and data sets without values are left out.

    Raises:
        ValueError: one cannot be opened.
    """
    for name, item in group.items():
        if item is None or not isinstance(name, str):
            raise ValueError(unopened(group, name))
        if is_group(item) or getattr(item, "shape", None) is not None:
            yield name, item


def unopened(group: Any, name: str | bytes) -> str:
    """What is wrong with a member of `group` that h5py gives as None."""
    return f"{group.name.rstrip('/')}/{name!s} cannot be opened: it is damaged, or a link to what is not there; record or copy it again"


def data_sets(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path from `group`, data set) of all below it; raises what `members` raises."""
    for name, item in members(group):
        if is_group(item):
            yield from data_sets(item, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", item


def is_group(item: Any) -> bool:
    """Whether an item of an HDF5 file holds others."""
    return hasattr(item, "keys")


def is_column(item: Any) -> bool:
    """Whether a data set may be a state or an action: numbers, few of them per step."""
    return item.dtype.kind in "fiub" and item.ndim in (1, 2, 3) and item.size <= _WIDEST * max(len(item), 1)


def without_last_observation(trajectory: Trajectory) -> Trajectory | None:
    """The trajectory without what was seen behind its last action, as ManiSkill and gym's wrappers store it; None if nothing was."""
    observation = trajectory["observation"]
    lengths = {len(find_value(observation, path)) for path in leaf_paths(observation)}
    num_actions = next((len(values) for name, values in trajectory.items() if "action" in name and hasattr(values, "dtype")), 0)
    if not num_actions or lengths != {num_actions + 1}:
        return None
    texts = trajectory.get("language_instruction")
    cut = {} if texts is None or isinstance(texts, str) or len(texts) != num_actions + 1 else {"language_instruction": texts[:-1]}
    return {**trajectory, **cut, "observation": select_steps(observation, slice(num_actions))}
