"""An unregistered folder -> a registry entry and a platform to paste, guessed from names and values of its first episodes.

What is proposed is tried before it is printed: the entry reads the episodes, and entry and platform agree. Where names and values leave
open what an action means, the text says so and asks the one question that decides it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prismatic.vla.constants import ActionKind, RobotPlatform, get_robot_platform
from prismatic.vla.datasets.episodes import Episode, FrameReader, RawEpisode, readable, standardize
from prismatic.vla.datasets.hdf5.layout import find_files
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE, ActionEncoding, DatasetEntry, StateEncoding, encoded_kinds, find_entry
from prismatic.vla.datasets.rlds.oxe.locations import CONSTANTS_FILE, entry_location
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, make_spec
from prismatic.vla.datasets.sources import describe_recordings, instruction_remedy, open_source, source_kind
from prismatic.vla.datasets.split_names import usual_split
from prismatic.vla.datasets.striding import whole_factor
from prismatic.vla.datasets.suggestion.columns import MIN_WIDTH_OF_TWO_ARMS, Recorded, choose_cameras, num_pictures, read_columns
from prismatic.vla.datasets.suggestion.dimensions import Recognition, recognise
from prismatic.vla.datasets.suggestion.pasted import entry_text, platform_text
from prismatic.vla.datasets.suggestion.platforms import is_same_rate, known_platform, new_platform, recorder_of, units_unsaid
from prismatic.vla.diagnosis import counted, listed

_NUM_PEEKED_EPISODES = 5
_PLURAL = {"target": "targets", "motion": "motions", "velocity": "velocities"}
_R6_WIDTH, _EULER_WIDTH = 10, 7  # motions of one end effector and its gripper
_POSITION = re.compile(r"(.*[._])?[xyz]")
_RAW_LIMIT, _RAW_RANGE = 1.1, 0.5  # a gripper's command within this and at least so wide may stay as it is recorded


@dataclass(frozen=True)
class _Rate:
    """Steps per second [Hz]; None where nobody says it."""

    stored: float | None
    wanted: float | None  # --control_hz

    @property
    def hz(self) -> float | None:
        """At which the robot will be commanded."""
        return self.wanted or self.stored

    @property
    def stride(self) -> int:
        """Recorded steps per command."""
        return (whole_factor(self.stored, self.wanted) if self.stored and self.wanted else None) or 1


@dataclass(frozen=True)
class Suggestion:
    """What to paste."""

    name: str
    entry: DatasetEntry
    platform: RobotPlatform
    platform_is_new: bool
    is_registered: bool = False  # the registry has the entry already
    question: str = ""  # what must be known and is not; "" if nothing
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Everything that is printed: valid Python with comments that say where it belongs."""
        parts = [f"# {line}" for line in (self.question, *self.notes) if line]
        if self.is_registered:
            parts += [f"# {entry_location(self.name)} has this entry, which reads the recordings; nothing is to be pasted:"]
            return "\n".join([*parts, entry_text(self.name, self.entry)])
        parts += ["", f"# Paste into OXE_DATASET_CONFIGS of {CONFIGS_FILE}, then look at the data with scripts/inspect_dataset.py:"]
        parts += [entry_text(self.name, self.entry)]
        if self.platform_is_new:
            parts += [
                "",
                f"# Paste into ROBOT_PLATFORMS of {CONSTANTS_FILE}; name the dimensions as your robot does, with units:",
            ]
            parts += [platform_text(self.platform)]
        return "\n".join(parts)


def suggest_entry(folder: Path, name: str, control_hz: float | None = None) -> Suggestion:
    """The guess for the data set in `folder`; `control_hz` is actions per second, None: as stored, else 25.

    Raises:
        ValueError: nothing that can be a camera or an action is found; the message lists the keys that are there.
    """
    episodes, _, _ = _peek(folder, DatasetEntry())
    if not episodes:
        raise ValueError(f"{folder} holds no episodes; record some")
    registered = _registered(folder, name, control_hz)
    if registered is not None:
        return registered
    trajectories, said, notes = [raw.trajectory for raw in episodes], describe_recordings(folder), list[str]()
    observation = max((item.get("observation", {}) for item in trajectories), key=num_pictures)  # any episode may lack a camera
    recorded = read_columns(folder, episodes, said, notes)
    recorder, rate = recorder_of(source_kind(folder), observation), _Rate(said.hz, control_hz)
    recognised = recognise(recorded, ActionKind.MOTION if recorder == "robosuite" else None)
    two_arms = recognised.arms.num_arms == 2 or (recognised.arms.num_arms == 0 and len(recorded.action_dims) >= MIN_WIDTH_OF_TWO_ARMS)
    cameras = choose_cameras(folder, observation, said, two_arms, notes)
    notes += _told_of_folders(folder)
    if "language_instruction" not in trajectories[0]:
        notes.append(f"The recordings do not say what the robot was told. {instruction_remedy(folder)}.")
    if recorder == "LIBERO":
        suggestion = _of_libero(name, cameras, notes)
    else:
        suggestion = _assemble(name, recorded, recognised, cameras, rate, recorder, notes)
    try:
        repairs = _try(make_spec(name, suggestion.entry, folder, suggestion.platform))
    except ValueError as error:
        raise ValueError(f"{folder}: no entry can be proposed, {error}") from error
    if texts := next((raw.texts for raw in episodes if len(raw.texts) > 1), ()):
        repairs.append(f"The texts of the first such episode: {', '.join(map(repr, texts))}.")
    return replace(suggestion, notes=(*suggestion.notes, *repairs))


def _told_of_folders(folder: Path) -> list[str]:
    """What to know where HDF5 files lie in several folders, which are tasks of one robot, or data sets of their own."""
    if source_kind(folder) != "hdf5":
        return []
    inside = dict.fromkeys(path.relative_to(folder).parts[0] for path in find_files(folder) if path.parent != folder)
    several = [name for name in inside if usual_split(name) is None]
    if len(several) < 2:
        return []
    return [f"The recordings of {len(several)} folders are one data set: {listed(several)}. If they are several, pass one of them."]


def _peek(folder: Path, entry: DatasetEntry) -> tuple[list[RawEpisode], list[str], FrameReader]:
    """The first episodes, what the source left out or mended in them, and what decodes their images."""
    source = open_source(folder, entry)
    episodes = readable(itertools.islice(source.episodes(), _NUM_PEEKED_EPISODES))
    return episodes, [f"{str(repair)[:1].upper()}{str(repair)[1:]}." for repair in source.repairs], source.frame_reader()


def _try(spec: DatasetSpec) -> list[str]:
    """Reads the first episodes as training does; what was left out or mended, and which of them training would refuse.

    Raises:
        ValueError: it would refuse most of them.
    """
    raw_episodes, repairs, reader = _peek(spec.folder, spec.entry)
    episodes, problems = list[Episode](), list[str]()
    for raw in raw_episodes:
        try:
            episodes.append(standardize(raw, spec.entry, spec.transform))
        except ValueError as error:
            problems.append(str(error))
    if len(problems) > len(episodes):
        raise ValueError(problems[0])
    if problems:
        repairs.append(
            f"{len(problems)} of the first {len(raw_episodes)} episodes cannot be used, and training refuses the data set unless "
            f"--exclude_episodes leaves out what is not repaired. First: {problems[0]}."
        )
    for episode in episodes:
        spec.check_widths(episode.actions.shape[1], episode.proprio.shape[1])
        spec.normalization_mask(episode.actions.shape[1])
    for camera in range(len(spec.entry.cameras)):
        _try_frames(reader, [episode.images[0, camera] for episode in episodes if len(episode.images)])
    return repairs


def _try_frames(reader: FrameReader, references: Sequence[np.void]) -> None:
    """Decodes one of them.

    Raises:
        ValueError: none can be.
    """
    problem: ValueError | None = None
    for reference in references:
        try:
            reader.read(reference)
            return
        except ValueError as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _registered(folder: Path, name: str, hz: float | None) -> Suggestion | None:
    """The entry of that name, if the registry has one that reads the recordings and says which robot, of that rate, they are of."""
    try:
        entry = find_entry(name)
        spec = make_spec(name, entry, folder, get_robot_platform(entry.robot_platform or ""))
        repairs = _try(spec)
    except ValueError:
        return None
    if hz is not None and not is_same_rate(spec.platform.control_hz, hz):
        return None
    return Suggestion(name, entry, spec.platform, platform_is_new=False, is_registered=True, notes=tuple(repairs))


def _of_libero(name: str, cameras: dict[str, str], notes: list[str]) -> Suggestion:
    """LIBERO's own demonstrations: the gripper is converted, the state divided, as for its RLDS sets."""
    entry = DatasetEntry(
        image_obs_keys=cameras,
        state_obs_keys=("EEF_state", "gripper_state"),
        state_encoding=StateEncoding.POS_EULER,
        robot_platform="LIBERO",
        transform="libero",
    )
    known = "Recorded by LIBERO: known by the names of its columns."
    return Suggestion(name, entry, get_robot_platform("LIBERO"), platform_is_new=False, notes=(known, *notes))


def _assemble(
    name: str, recorded: Recorded, recognised: Recognition, cameras: dict[str, str], rate: _Rate, recorder: str, notes: list[str]
) -> Suggestion:
    known = known_platform(recorded, recognised, rate.hz, recorder)
    encoding, is_whole = _encoding(recorded, recognised)
    platform = new_platform(name, recorded, recognised, rate.hz, states_kinds=is_whole) if known is None else known[0]
    entry = DatasetEntry(
        image_obs_keys=cameras,
        state_obs_keys=recorded.state_keys,
        action_keys=recorded.action_keys,
        action_encoding=encoding,
        action_kinds=() if is_whole else recognised.kinds,
        state_encoding=_state_encoding(recorded, recognised),
        robot_platform=platform.name,
        stride=rate.stride,
    )
    if known is not None:
        notes.append(f"{platform.name} is known by {known[1]}. Another robot needs a platform of its own under another name.")
        if unsaid := units_unsaid(platform, recorded):
            notes.append(
                f"The recordings do not say their units, {platform.name} states {unsaid}. Are they the same? If not, it is another robot."
            )
    if rate.stride > 1:
        notes.append(f"Recorded at {rate.stored:g} Hz: one step in {rate.stride} is used.")
    if rate.hz is None:
        notes.append(f"No rate is stored; {platform.control_hz:g} Hz is taken. If your robot acts at another rate, pass --control_hz.")
    elif rate.stored is None:
        twice = f"If they were recorded at {2 * rate.hz:g} Hz, add fps={2 * rate.hz:g}, stride=2 to the entry."
        notes.append(f"The recordings do not say their rate: each step is taken for a command at {rate.hz:g} Hz. {twice}")
    chunk = f"The chunk is {counted(platform.num_actions_chunk, 'action', 'actions')} at {platform.control_hz:g} Hz."
    counts = Counter(kind.value for kind in recognised.kinds)
    actions = ", ".join(counted(count, kind, _PLURAL[kind]) for kind, count in counts.items())
    summary = f"Actions: {actions}. State: {', '.join(recorded.state_keys) or 'none'}."
    return Suggestion(
        name=name,
        entry=entry,
        platform=platform,
        platform_is_new=known is None,
        question=recognised.question,
        notes=(
            summary,
            *recognised.notes,
            *notes,
            chunk,
        ),
    )


def _encoding(recorded: Recorded, recognised: Recognition) -> tuple[ActionEncoding, bool]:
    """The short form, and whether it says all; where it does not, `action_kinds` are added, and every dimension is normalised."""
    arms, width = recognised.arms, len(recognised.kinds)
    joints = ActionEncoding.JOINT_POS_BIMANUAL if arms.num_arms == 2 else ActionEncoding.JOINT_POS
    if all(kind is ActionKind.TARGET for kind in recognised.kinds):
        return joints, True
    end = ActionEncoding.EEF_R6 if width == _R6_WIDTH else ActionEncoding.EEF_POS
    end = ActionEncoding.DUAL_EEF_POS if arms.num_arms == 2 else end
    is_end = arms.num_arms == 2 or width == _R6_WIDTH or width <= _EULER_WIDTH  # one arm with more: its joints
    if recognised.question or not is_end or not all(_may_stay_raw(recorded.actions[:, dim]) for dim in arms.grippers):
        return joints, False
    try:
        return (end, True) if encoded_kinds(end, width) == recognised.kinds else (joints, False)
    except ValueError:
        return joints, False


def _may_stay_raw(command: np.ndarray) -> bool:
    """Whether a gripper's command [M] weighs about as much as the other dimensions without being normalised."""
    span = float(np.ptp(command))
    return float(np.abs(command).max()) <= _RAW_LIMIT and (span == 0 or span >= _RAW_RANGE)


def _state_encoding(recorded: Recorded, recognised: Recognition) -> StateEncoding:
    """What is known of the state."""
    if recognised.is_quaternion:
        return StateEncoding.POS_QUAT
    is_pose = any(_POSITION.fullmatch(item.name.lower()) for item in recorded.state_dims)
    if not recorded.state_keys or recognised.is_moved or recognised.question or is_pose:
        return StateEncoding.NONE
    return StateEncoding.JOINT_BIMANUAL if recognised.arms.num_arms == 2 else StateEncoding.JOINT
