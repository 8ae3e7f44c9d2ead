"""How recordings called their cameras and columns before they were converted, so that one entry serves both forms of a data set.

A conversion stores cameras by slot ("image", "wrist_image", ...), the state as "state" and the action as "action". recorded_names.json
beside features.json says what each was called, how columns were joined, what was corrected, and how fast stored steps follow each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.description import Column, Description, Dimension, said_by_column
from prismatic.vla.datasets.episodes import Trajectory
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.trajectories import find_value

FILE = "recorded_names.json"


@dataclass(frozen=True)
class RecordedColumn:
    """A part of the stored state or action."""

    names: tuple[str, ...]  # under which the recordings offer it; none for padding
    width: int
    dimensions: tuple[Dimension, ...] = ()  # as the recordings call them, one per number; none where they say nothing

    def described(self) -> tuple[Dimension, ...]:
        """One per number: as recorded, else what the column's name says."""
        return self.dimensions or said_by_column(self.names[0] if self.names else "", self.width)


@dataclass(frozen=True)
class RecordedNames:
    """What the stored features were in the recordings."""

    cameras: Mapping[str, tuple[str, ...]]  # stored key -> names under which the recordings offer that camera
    state: tuple[RecordedColumn, ...]  # side by side
    action: tuple[RecordedColumn, ...]
    fps: float | None = None  # stored steps per second
    stride: int = 1  # recorded steps per stored one
    is_rollout: bool = False  # recorded while a policy acted, at its rate
    image_channel_order: str = "rgb"  # of the recordings; what is stored is RGB
    # How a simulator rendered all pictures (`vla.rendering`). Not in the repr, which is in the key of indexes that are there already.
    rendering: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        trajectory: Trajectory,
        entry: DatasetEntry,
        stored_keys: Mapping[str, str],
        said: Description,
        rendering: Mapping[str, Any] | None = None,
    ) -> RecordedNames:
        """What a conversion of `trajectory` stores, of recordings that say `said`; `stored_keys` says under which key each camera of
        `entry` lands, `rendering` how all stored pictures were rendered."""
        observation = trajectory["observation"]
        return cls(
            cameras={stored_keys[slot]: _names(observation, key) for slot, key in entry.cameras.items()},
            state=tuple(_columns(observation, entry.state_obs_keys, said)),
            action=tuple(_columns(trajectory, entry.action_keys, said)),
            fps=None if said.hz is None else said.hz / entry.stride,
            stride=entry.stride,
            is_rollout=said.is_rollout,
            image_channel_order=entry.image_channel_order,
            rendering=rendering or {},
        )

    def save(self, folder: Path) -> None:
        """Writes the file."""
        content = asdict(self)
        if not self.rendering:  # a field that earlier versions do not know
            del content["rendering"]
        (folder / FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> RecordedNames | None:
        """What `folder` says; None where it was not written by a conversion of ours.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            content["cameras"] = {key: tuple(names) for key, names in content["cameras"].items()}
            for part in ("state", "action"):
                content[part] = tuple(_parse_column(column) for column in content[part])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); copy the data set again, or remove this file") from error

    def description(self) -> Description:
        """What the stored set says of itself; columns of which nothing is known are left out."""
        parts = {"action": self.action, "state": self.state}
        joined = {key: tuple(item for column in columns for item in column.described()) for key, columns in parts.items()}
        known = {key: dims for key, dims in joined.items() if any(item.name or item.kind for item in dims)}
        stored = tuple(Column(key, len(dims), dims) for key, dims in known.items())
        return Description(
            self.fps, columns=stored, stride=self.stride, is_rollout=self.is_rollout, corrected_order=self.image_channel_order
        )

    def restore(self, trajectory: Trajectory, entry: DatasetEntry) -> Trajectory:
        """The trajectory with the recorded names beside the stored ones.

        A name that means one thing in the recordings and another as stored means what it does in the form that the entry was written for:
        the recorded one, if the entry's cameras (or the columns that it joins) are those of the recordings and not all stored names.
        """
        stored = trajectory.get("observation", {})
        cameras = {name: stored[key] for key, names in self.cameras.items() if key in stored for name in names}
        is_recorded = not set(entry.cameras.values()) <= stored.keys() and set(entry.cameras.values()) <= cameras.keys()
        observation = stored | cameras if is_recorded else cameras | stored
        observation = _restored(observation, "state", self.state, entry.state_obs_keys)
        return _restored({**trajectory, "observation": observation}, "action", self.action, entry.action_keys)


def _names(group: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """`key`, and the other names that the source offers for the same array."""
    wanted = find_value(group, key)
    return (key, *(name for name, value in group.items() if value is wanted and name != key))


def _parse_column(content: Mapping[str, Any]) -> RecordedColumn:
    """Earlier versions wrote no dimensions."""
    dims = tuple(Dimension(**{**item, "kind": item["kind"] and ActionKind(item["kind"])}) for item in content.get("dimensions", ()))
    return RecordedColumn(tuple(content["names"]), int(content["width"]), dims)


def _columns(group: Mapping[str, Any], keys: Sequence[str | None], said: Description) -> Iterator[RecordedColumn]:
    for key in keys:
        if key is None:
            yield RecordedColumn((), 1)
        else:
            values = np.asarray(find_value(group, key))
            width = 1 if values.ndim == 1 else values.shape[1]
            named = said.dimensions((key,))
            yield RecordedColumn(_names(group, key), width, named if len(named) == width else ())


def _restored(group: Mapping[str, Any], stored_key: str, columns: Sequence[RecordedColumn], keys: Sequence[str | None]) -> dict[str, Any]:
    """The group with every recorded column beside the stored one, or in its place where `keys` join the columns as the conversion did."""
    whole = group.get(stored_key)
    if not isinstance(whole, np.ndarray) or whole.ndim != 2 or whole.shape[1] != sum(column.width for column in columns):
        return dict(group)
    ends = np.cumsum([column.width for column in columns]).tolist()
    parts = {name: whole[:, end - column.width : end] for column, end in zip(columns, ends, strict=True) for name in column.names}
    is_recorded = [key for key in keys if key is not None] == [
        next((name for name in column.names if name in keys), None) for column in columns if column.names
    ]
    return {**group, **parts} if is_recorded else {**parts, **group}
