"""How recordings called their cameras and columns before they were converted, so that one entry serves both forms of a data set.

A conversion stores cameras by slot ("image", "wrist_image", ...), the state as "state" and the action as "action". recorded_names.json
beside features.json says what each was called, how columns were joined, what was corrected, and how fast stored steps follow each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.episodes import Trajectory
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.trajectories import find_value

FILE = "recorded_names.json"


@dataclass(frozen=True)
class RecordedColumn:
    """A part of the stored state or action."""

    names: tuple[str, ...]  # under which the recordings offer it; none for padding
    width: int


@dataclass(frozen=True)
class RecordedNames:
    """What the stored features were in the recordings."""

    cameras: Mapping[str, tuple[str, ...]]  # stored key -> names under which the recordings offer that camera
    state: tuple[RecordedColumn, ...]  # side by side
    action: tuple[RecordedColumn, ...]
    fps: float | None = None  # stored steps per second
    stride: int = 1  # recorded steps per stored one
    image_channel_order: str = "rgb"  # of the recordings; what is stored is RGB

    @classmethod
    def of(cls, trajectory: Trajectory, entry: DatasetEntry, stored_keys: Mapping[str, str], recorded_hz: float | None) -> RecordedNames:
        """What a conversion of `trajectory` stores; `stored_keys` says under which key each camera of `entry` lands."""
        observation = trajectory["observation"]
        return cls(
            cameras={stored_keys[slot]: _names(observation, key) for slot, key in entry.cameras.items()},
            state=tuple(_columns(observation, entry.state_obs_keys)),
            action=tuple(_columns(trajectory, entry.action_keys)),
            fps=None if recorded_hz is None else recorded_hz / entry.stride,
            stride=entry.stride,
            image_channel_order=entry.image_channel_order,
        )

    def save(self, folder: Path) -> None:
        """Writes the file."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

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
                content[part] = tuple(RecordedColumn(tuple(column["names"]), int(column["width"])) for column in content[part])
            return cls(**content)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); copy the data set again, or remove this file") from error

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


def _columns(group: Mapping[str, Any], keys: Sequence[str | None]) -> Iterator[RecordedColumn]:
    for key in keys:
        if key is None:
            yield RecordedColumn((), 1)
        else:
            values = np.asarray(find_value(group, key))
            yield RecordedColumn(_names(group, key), 1 if values.ndim == 1 else values.shape[1])


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
