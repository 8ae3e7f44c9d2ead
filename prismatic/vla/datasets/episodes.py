"""What every source delivers, and its one standard form: low-dimensional arrays in memory, images as references into files.

Letters: T steps of an episode, A action dim, P proprio dim, C cameras of an entry.

    RawEpisode  --trajectory transform of the entry, selection of keys, checks-->  Episode

A source (`sources.open_source` finds out which) numbers its files and yields raw episodes. A trajectory is a nested dictionary in
RLDS naming ("action", "observation" -> {...}, "language_instruction", ...) of arrays whose first axis is time; a recorded image is an
`IMAGE_REF`, so that a transform that slices or reorders steps treats images like every other array. Only the source's own frame reader
knows what a reference means.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prismatic.vla.cameras import STORED_KEYS, recorded_slot
from prismatic.vla.constants import ActionKind, near_names
from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.trajectories import find_value, leaf_paths
from prismatic.vla.datasets.striding import combine_actions
from prismatic.vla.rollout_record import COMMANDED_BY

# Where one image lies: number of the source's file, byte offset and byte length in it. A video source may put a frame number into
# "offset", an array file a row.
IMAGE_REF = np.dtype([("file", "<i4"), ("offset", "<i8"), ("length", "<i4")])

# Field of an entry -> the flag of conversions that says the same.
_FLAGS = {"image_obs_keys": "--cameras", "state_obs_keys": "--state", "action_keys": "--action"}

Trajectory = dict[str, Any]
TrajectoryTransform = Callable[[Trajectory], Trajectory]


@dataclass(frozen=True)
class RawEpisode:
    """One recorded episode as it is stored in the source."""

    split: str
    name: str  # says where the episode is, for messages
    trajectory: Trajectory
    texts: tuple[str, ...] = ()  # where the recording has several instructions that say the same: all of them, one is in the trajectory
    problem: str = ""  # why the source cannot deliver it; the trajectory is empty then
    facts: Mapping[str, Any] = field(default_factory=dict)  # what is said of the episode as a whole (success, seed, ...), as JSON has it


class FrameError(ValueError):
    """An image cannot be decoded; the message names the file and the place in it."""


class FrameReader(Protocol):
    """Decodes single frames of a source; opens files lazily in each process, so that it may be pickled or forked at any time."""

    is_sequential: bool  # frames in a row cost much less than the same frames in any order (videos)

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 RGB [height, width, 3] of one IMAGE_REF.

        Raises:
            ValueError: the frame is damaged; the message names the file and the place in it.
        """
        ...


class EpisodeSource(Protocol):
    """A folder of recorded episodes."""

    folder: Path  # holds the files; the index is cached in it if it is writable
    files: tuple[Path, ...]  # the files that IMAGE_REFs number, in order
    layout: str  # describes the stored features; part of the index's key
    frame_layout: str  # what, beside its file and place, decides the pixels of an image; part of a frame cache's key
    num_episodes: int  # over all splits, for progress
    repairs: Repairs  # what was left out or mended; complete once `episodes` has run to its end

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split, in the order of the files."""
        ...

    def frame_reader(self) -> FrameReader:
        """What decodes this source's images."""
        ...


@dataclass(frozen=True)
class Episode:
    """One episode in standard form."""

    actions: np.ndarray  # float32 [T, A], raw units
    proprio: np.ndarray  # float32 [T, P], raw units; P = 0 without state_obs_keys
    images: np.ndarray  # IMAGE_REF [T, C], in the order of the entry's cameras
    instructions: list[str]  # one per step, a step without takes the episode's first; all "" if the episode has none
    commanders: np.ndarray  # int8 [T]: whose action it is, by `rollout_record.COMMANDERS` from 1; 0: nobody says


def readable(episodes: Iterable[RawEpisode]) -> list[RawEpisode]:
    """Those that their source can deliver.

    Raises:
        ValueError: it cannot deliver any; the message is about the first.
    """
    found = list(episodes)
    sound = [raw for raw in found if not raw.problem]
    if found and not sound:
        raise ValueError(found[0].problem)
    return sound


def standardize(raw: RawEpisode, entry: DatasetEntry, transform: TrajectoryTransform) -> Episode:
    """The episode after the entry's transform, with the entry's cameras and state, checked; every n-th step, as the entry's stride says.

    Raises:
        ValueError: a key is absent, lengths differ, a value is not a finite number, or the source cannot deliver the episode; the message
            names the episode and the remedy.
    """
    if raw.problem:
        raise ValueError(raw.problem)
    trajectory = _transformed(raw, transform)
    observation = trajectory.get("observation", {})
    entry = _for_rollout(entry, trajectory)
    joined = [_rows(trajectory, key, "action_keys", raw) for key in entry.action_keys]
    _check_lengths(raw, joined[0], {"actions": joined[1:]})
    actions = np.concatenate(joined, axis=1)
    columns = [
        np.zeros((len(actions), 1), np.float32) if key is None else _rows(observation, key, "state_obs_keys", raw)
        for key in entry.state_obs_keys
    ]
    images = [_as_references(_camera(observation, slot, entry, raw), key, raw) for slot, key in entry.cameras.items()]
    _check_lengths(raw, actions, {"state": columns, "image": images})
    kept = slice(None, None, entry.stride)
    proprio = np.concatenate(columns, axis=1) if columns else np.zeros((len(actions), 0), np.float32)
    references = np.stack(images, axis=1) if images else np.zeros((len(actions), 0), IMAGE_REF)
    return Episode(
        actions=actions if entry.stride == 1 else combine_actions(actions, entry.stride, _kinds(entry, actions.shape[1], raw)),
        proprio=proprio[kept],
        images=references[kept],
        instructions=_instructions(trajectory, len(actions), raw)[kept],
        commanders=_commanders(trajectory, len(actions))[kept],
    )


def _for_rollout(entry: DatasetEntry, trajectory: Trajectory) -> DatasetEntry:
    """The entry for an episode of ours, whose "action" and "qpos" are what the entry's columns of demonstrations make when joined."""
    if COMMANDED_BY not in trajectory:
        return entry
    observation = trajectory.get("observation", {})
    if "action" in trajectory and not all(_is_there(trajectory, key) for key in entry.action_keys):
        entry = replace(entry, action_keys=("action",))
    if "qpos" in observation and not all(key is None or _is_there(observation, key) for key in entry.state_obs_keys):
        entry = replace(entry, state_obs_keys=("qpos",))
    return entry


def _is_there(group: Mapping[str, Any], key: str) -> bool:
    try:
        find_value(group, key)
    except KeyError:
        return False
    return True


def _commanders(trajectory: Trajectory, length: int) -> np.ndarray:
    """int8 [T]; a transform that changes the steps and not this column leaves nobody."""
    found = np.asarray(trajectory.get(COMMANDED_BY, ()), np.int8)
    return found if found.shape == (length,) else np.zeros(length, np.int8)


def _kinds(entry: DatasetEntry, action_dim: int, raw: RawEpisode) -> tuple[ActionKind, ...]:
    try:
        return entry.kinds(action_dim)
    except ValueError as error:
        raise ValueError(f"{raw.name}: {error}") from error


def _transformed(raw: RawEpisode, transform: TrajectoryTransform) -> Trajectory:
    try:
        return transform(raw.trajectory)
    except KeyError as error:
        known = [*raw.trajectory, *raw.trajectory.get("observation", {})]
        raise ValueError(
            f"{raw.name}: the transform {_title(transform)} needs the key {error}; "
            f"give the entry in {CONFIGS_FILE} another transform, or correct it in transforms.py beside it; "
            f"{near_names(str(error.args[0]), known)}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{raw.name}: the transform {_title(transform)} refuses the episode: {error}") from error


def _title(transform: Callable[..., Any]) -> str:
    """What to call a function, a functools.partial or an object."""
    inner = inspect.unwrap(transform)
    return str(getattr(inner, "__name__", None) or (inner if isinstance(inner, functools.partial) else type(inner).__name__))


def _get(values: Mapping[str, Any], key: str, field: str, raw: RawEpisode) -> Any:
    """The value at a key, or at a path through groups such as "images/cam_high"."""
    try:
        return find_value(values, key)
    except KeyError as error:
        raise ValueError(
            f"{raw.name}: no key {key!r}; correct {field} of the data set's entry in {CONFIGS_FILE} (in a conversion: {_FLAGS[field]}), "
            f"or its transform in transforms.py beside it; {near_names(key, leaf_paths(values))}"
        ) from error


def _rows(group: Mapping[str, Any], key: str, field: str, raw: RawEpisode) -> np.ndarray:
    """float32 [T, D]: the numbers at `key`; a plain column [T] becomes [T, 1]."""
    values = _get(group, key, field, raw)
    if isinstance(values, Mapping):
        paths = leaf_paths(values, f"{key}/")
        raise ValueError(
            f"{raw.name}: {key!r} is a group of {sorted(values)}; name its columns that are to be joined in the entry in {CONFIGS_FILE}: "
            f"{field}={tuple(paths)} (in a conversion: {_FLAGS[field]} {','.join(paths)})"
        )
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2):
        raise ValueError(f"{raw.name}: {key!r} should be numbers [steps, dimensions], found {values.dtype} {list(values.shape)}")
    rows = values.astype(np.float32)
    rows = rows[:, None] if rows.ndim == 1 else rows
    bad = ~np.isfinite(rows)
    if bad.any():
        step, dimension = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{raw.name}: {key!r} is {rows[step, dimension]} at step {step}, dimension {dimension} "
            f"({int(bad.sum())} such values); repair the recording or leave the episode out"
        )
    return rows


def _camera(observation: Mapping[str, Any], slot: str, entry: DatasetEntry, raw: RawEpisode) -> Any:
    """The camera at the entry's key; of a key under which a conversion stores that slot, also the only camera that a recorder calls so.

    An entry that was written for a converted data set thus reads the recordings, too. A camera that is the only one is the primary one,
    unless it is called like another that the entry wants beside it.
    """
    key = entry.cameras[slot]
    if key == STORED_KEYS[slot] and key not in observation:
        cameras = {id(value): name for name, value in observation.items() if getattr(value, "dtype", None) == IMAGE_REF}
        is_only = len(cameras) == 1 and slot == "primary"
        meant = [name for name in cameras.values() if recorded_slot(name) == slot or (is_only and recorded_slot(name) not in entry.cameras)]
        key = meant[0] if len(meant) == 1 else key
    return _get(observation, key, "image_obs_keys", raw)


def _as_references(values: Any, key: str, raw: RawEpisode) -> np.ndarray:
    if getattr(values, "dtype", None) != IMAGE_REF:
        found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(
            f"{raw.name}: camera key {key!r} should hold encoded images, found {found}. Store it as an Image feature (JPEG or PNG), "
            f"or correct image_obs_keys of the entry in {CONFIGS_FILE}"
        )
    return values


def _check_lengths(raw: RawEpisode, actions: np.ndarray, others: Mapping[str, list[np.ndarray]]) -> None:
    for what, arrays in others.items():
        for array in arrays:
            if len(array) != len(actions):
                raise ValueError(f"{raw.name}: {len(actions)} actions but {len(array)} steps of {what}; the recording is inconsistent")


def _instructions(trajectory: Trajectory, length: int, raw: RawEpisode) -> list[str]:
    texts = np.asarray(trajectory.get("language_instruction", ""), dtype=object)
    if texts.ndim == 0:
        texts = np.full(length, texts.item(), dtype=object)
    if texts.shape != (length,):
        raise ValueError(f"{raw.name}: language_instruction has shape {list(texts.shape)}, expected one text per step, [{length}]")
    stripped = [(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).strip() for text in texts]
    first = next((text for text in stripped if text), "")
    return [sys.intern(text or first) for text in stripped]  # one string for all steps: millions of copies would not fit
