"""name of a data set or mixture -> checked, resolved specs: entry, folder, robot platform, transform and weight of each data set."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, RobotPlatform, get_robot_platform, near_names
from prismatic.vla.datasets.episodes import Trajectory, TrajectoryTransform, standardize
from prismatic.vla.datasets.manifest import is_manifest, read_manifest
from prismatic.vla.datasets.rlds.oxe.configs import (
    CONFIGS_FILE,
    ENDS_OF_ARMS,
    OXE_DATASET_CONFIGS,
    DatasetEntry,
    action_normalization_mask,
    find_entry,
    is_pasted,
    is_shipped,
    kinds_text,
    registered_name,
)
from prismatic.vla.datasets.rlds.oxe.locations import check_entry_stands_once, entry_location, platform_location
from prismatic.vla.datasets.rlds.oxe.mixtures import OXE_NAMED_MIXTURES
from prismatic.vla.datasets.rlds.oxe.platforms import RecordedWidths, entry_line, explain_choice, infer_platform, padded_state_keys
from prismatic.vla.datasets.rlds.oxe.rates import (
    AUTO,
    check_stride,
    for_form,
    recorded_hz,
    tell_rates,
    with_automatic_stride,
    with_stride,
)
from prismatic.vla.datasets.rlds.oxe.transforms import find_transform, identity_dataset_transform
from prismatic.vla.datasets.sources import describe_recordings, find_dataset_folder, open_source

_MOST_TRIED = 10  # episodes that may be unusable before one that tells the widths

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSpec:
    """One data set, ready to be indexed."""

    name: str  # its key in dataset_statistics.json
    entry: DatasetEntry
    folder: Path  # of the version that is used
    platform: RobotPlatform
    transform: TrajectoryTransform
    weight: float = 1.0  # passes over the data set per epoch of the mixture

    def check_widths(self, action_dim: int, proprio_dim: int | None) -> None:
        """Accepts data of these widths; `proprio_dim` None: the policy does not use the state.

        Raises:
            ValueError: a width contradicts the robot platform, or the encoding; the message names the file and line to edit.
        """
        self._check_width("actions", action_dim, "action_dim")
        if proprio_dim is not None:
            self._check_width("states", proprio_dim, "proprio_dim")
        self._check_kinds(action_dim)

    def normalization_mask(self, action_dim: int) -> np.ndarray:
        """bool [A]: True where the action is mapped to [-1, 1]; the grippers of end-effector actions keep their command.

        Where the entry lists `action_kinds`, these are the targets whose names say gripper.

        Raises:
            ValueError: `action_dim` does not fit the entry.
        """
        encoding, kinds = self.entry.action_encoding, self.entry.kinds(action_dim)
        if not self.entry.action_kinds or encoding not in ENDS_OF_ARMS:
            return action_normalization_mask(encoding, action_dim)
        named = zip(self.platform.action_names, kinds, strict=True)
        return np.array([kind is not ActionKind.TARGET or "gripper" not in name for name, kind in named], bool)

    def _check_kinds(self, action_dim: int) -> None:
        """Entry and platform must agree: a robot is held still by repeating targets and commanding 0 to motions and velocities."""
        said, called = self.entry.kinds(action_dim), self.platform.action_kinds
        if said == called:
            return
        odd = [name for name, one, other in zip(self.platform.action_names, said, called, strict=True) if one is not other]
        raise ValueError(
            f"data set {self.name!r} has action_encoding {self.entry.action_encoding.name}, which contradicts the names of "
            f"{', '.join(odd)} in {platform_location(self.platform.name)}: a motion is called dx, dyaw, delta_..., a velocity x.vel or "
            f"x [m/s], a target anything else. Correct the names or the encoding; or, if the names are right, add "
            f"action_kinds={kinds_text(called)} to the entry in {entry_location(self.name)}"
        )

    def _check_width(self, what: str, found: int, field: str) -> None:
        expected = getattr(self.platform, field)
        if found == expected:
            return
        fitting = [other.name for other in ROBOT_PLATFORMS.values() if getattr(other, field) == found]
        keys = "robot_platform" if what == "actions" else "robot_platform or state_obs_keys"
        padding = ""
        if what == "states" and found < expected and (joined := padded_state_keys(self.entry, found, expected)):
            padding = f" To pad {found} to {expected} with zeros: {entry_line('state_obs_keys', joined, is_pasted(self.name))}"
        raise ValueError(
            f"data set {self.name!r} has {what} of {found} dimensions, robot platform {self.platform.name} expects {expected}. "
            f"Correct {keys} of its entry in {entry_location(self.name)}, or {field} of the platform in "
            f"{platform_location(self.platform.name)}, or pass --robot_platform; platforms with {field} {found}: "
            f"{', '.join(fitting) or 'none'}.{padding}"
        )


@dataclass(frozen=True)
class _Wanted:
    """What the flags say of every data set."""

    robot_platform: str | None
    use_proprio: bool
    stride: str | None


def resolve_datasets(
    dataset_name: str,
    data_root_dir: Path,
    robot_platform: str | None = None,
    use_proprio: bool = True,
    stride: str | None = None,
) -> tuple[DatasetSpec, ...]:
    """The specs of `dataset_name`, a data set (`name`, `name:version`, the path of a manifest) or a mixture; all of one robot platform.

    `robot_platform` (--robot_platform) overrides the entries'. An entry of one's own without platform means the only one that its encodings
    and the widths of its first episode fit; the state counts where the policy uses it (`use_proprio`). `stride` (--stride) overrides the
    entries', too; "auto" is the recorded rate over the platform's.

    Raises:
        ValueError: unknown name (near names are listed), missing folder, platform not clear or not the same for all, or several sets
            under the name of one entry.
    """
    if stride is not None:
        check_stride(stride)
    wanted = _Wanted(robot_platform, use_proprio, stride)
    mixtures = {name.lower(): parts for name, parts in OXE_NAMED_MIXTURES.items()}
    parts = _without_repetitions(dataset_name, mixtures.get(dataset_name.lower(), ((dataset_name, 1.0),)))
    specs = _one_set_per_name(dataset_name, [_resolve(name, weight, Path(data_root_dir), wanted) for name, weight in parts])
    if len({spec.platform for spec in specs}) > 1:
        platforms = {spec.name: f"{spec.platform.name} {kinds_text(spec.entry.action_kinds)}".removesuffix(" ()") for spec in specs}
        raise ValueError(f"mixture {dataset_name!r} joins different robot platforms: {platforms}; one policy drives one platform")
    return specs


def _without_repetitions(mixture: str, parts: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Each data set as it is listed first, as the published reader takes it."""
    kept: dict[str, tuple[str, float]] = {}
    for name, weight in parts:
        if name.lower() in kept:
            logger.warning("mixture %s lists %s twice; it counts once, with the weight %g", mixture, name, kept[name.lower()][1])
        kept.setdefault(name.lower(), (name, weight))
    return list(kept.values())


def _one_set_per_name(mixture: str, specs: Iterable[DatasetSpec]) -> tuple[DatasetSpec, ...]:
    """The specs, each set once however it was spelt; statistics, weights and exclusions are kept by the names of their entries.

    Raises:
        ValueError: two sets of recordings have one entry, so that one would be normalized by the other's statistics.
    """
    kept: dict[str, DatasetSpec] = {}
    for spec in specs:
        known = kept.setdefault(spec.name, spec)
        if known.folder.resolve() != spec.folder.resolve():
            raise ValueError(
                f"mixture {mixture!r} takes {known.folder} and {spec.folder} by one entry, {spec.name!r}, the name of their statistics. "
                "List both in a manifest, which computes common ones (docs/rollouts.md), or give one of them an entry of its own in "
                f"{CONFIGS_FILE}"
            )
        if known is not spec:
            logger.warning("mixture %s lists %s twice; it counts once, with the weight %g", mixture, spec.name, known.weight)
    return tuple(kept.values())


def _locate(name: str, data_root_dir: Path) -> tuple[str, Path]:
    """(name of the entry, folder or manifest) of a data set.

    Raises:
        ValueError: unknown name, missing folder or file, or a manifest of an unknown data set.
    """
    path = Path(name).expanduser()
    if is_manifest(name):
        path = path if path.exists() or path.is_absolute() else data_root_dir / path
        bare_name, version = read_manifest(path).dataset, ""
    else:
        bare_name, _, version = name.partition(":")
    registry_name = registered_name(bare_name)
    if registry_name is None:
        known = (*OXE_DATASET_CONFIGS, *OXE_NAMED_MIXTURES)
        raise ValueError(
            f"--dataset_name {bare_name!r} is neither an entry of {CONFIGS_FILE} nor a mixture of mixtures.py beside it "
            f"({near_names(bare_name, known)}). For a data set of your own, "
            f"python scripts/inspect_dataset.py --suggest {data_root_dir / bare_name} prints an entry to paste"
        )
    if is_manifest(name):
        return registry_name, path
    recorded = find_entry(registry_name).version
    return registry_name, find_dataset_folder(data_root_dir, name if version or recorded is None else f"{bare_name}:{recorded}")


def _resolve(name: str, weight: float, data_root_dir: Path, wanted: _Wanted) -> DatasetSpec:
    registry_name, folder = _locate(name, data_root_dir)
    check_entry_stands_once(registry_name)
    entry = find_entry(registry_name)
    transform = NumpyTransform(find_transform(registry_name, entry.transform))
    said = describe_recordings(folder)
    hz = recorded_hz(entry, said)
    entry = with_stride(for_form(registry_name, entry, said), wanted.stride)
    platform_name = wanted.robot_platform or entry.robot_platform
    if platform_name is not None:
        platform = get_robot_platform(platform_name)
    else:
        used_hz = None if hz is None or wanted.stride == AUTO else hz / entry.stride
        is_as_recorded = transform.__wrapped__ is identity_dataset_transform
        kinds = tuple(item.kind for item in said.dimensions(entry.action_keys)) if is_as_recorded else ()
        platform = _follow(
            registry_name, entry, lambda: replace(_recorded_widths(folder, entry, transform, wanted.use_proprio, used_hz), kinds=kinds)
        )
    platform = _with_kinds(platform, entry, registry_name)
    if wanted.stride == AUTO:
        entry = with_automatic_stride(registry_name, entry, platform, hz)
    tell_rates(registry_name, entry, platform, hz)
    return DatasetSpec(registry_name, entry, folder, platform, transform, weight)


def make_spec(name: str, entry: DatasetEntry, folder: Path, platform: RobotPlatform) -> DatasetSpec:
    """The spec of a data set whose entry and platform need not be in the registry.

    Raises:
        ValueError: entry and platform contradict each other, or there is no such transform.
    """
    return DatasetSpec(name, entry, folder, _with_kinds(platform, entry, name), NumpyTransform(find_transform(name, entry.transform)))


def _follow(name: str, entry: DatasetEntry, read_widths: Callable[[], RecordedWidths]) -> RobotPlatform:
    """The only platform that fits `entry`, which names none.

    Raises:
        ValueError: no platform does, or several; the message gives the line to add to the entry.
    """
    reason, line = "", "robot_platform"
    if not is_shipped(name):  # published sets were recorded at many rates: one has to say what the policy will drive
        try:
            widths = read_widths()
        except ValueError as error:
            raise ValueError(f"data set {name!r} does not say which robot it is, and its first episode cannot be read: {error}") from error
        if (platform := infer_platform(entry, widths)) is not None:
            logger.info("data set %s: robot platform %s follows from its entry and %s", name, platform.name, widths)
            return platform
        reason, line = explain_choice(entry, widths, is_pasted(name))
    advice = f"write {line} into" if line else "write a platform of its own into constants.py (inspect_dataset.py --suggest prints one) for"
    raise ValueError(
        f"data set {name!r} does not say which robot it is{reason and ', and '}{reason}. Either {advice} its entry in "
        f"{entry_location(name)}, or pass --robot_platform; platforms: {', '.join(ROBOT_PLATFORMS)}"
    )


def _recorded_widths(
    folder: Path, entry: DatasetEntry, transform: TrajectoryTransform, use_proprio: bool, hz: float | None
) -> RecordedWidths:
    """Those of the first episode with steps that can be used, at that rate; --exclude_episodes may leave out others before it.

    Raises:
        ValueError: none of the first can be.
    """
    problem: ValueError | None = None
    for raw in itertools.islice(open_source(folder, entry).episodes(), _MOST_TRIED):
        try:
            episode = standardize(raw, entry, transform)
        except ValueError as error:
            problem = problem or error
            continue
        if len(episode.actions):
            has_state = use_proprio and any(entry.state_obs_keys)
            return RecordedWidths(episode.actions.shape[1], episode.proprio.shape[1] if has_state else None, hz)
    raise problem or ValueError(f"{folder} holds no episode with steps")


def _with_kinds(platform: RobotPlatform, entry: DatasetEntry, name: str) -> RobotPlatform:
    """The platform with the entry's `action_kinds`, for dimensions whose names say nothing.

    Raises:
        ValueError: the entry contradicts a name that says motion or velocity, or lists another number of dimensions.
    """
    if not entry.action_kinds:
        return platform
    if len(entry.action_kinds) != platform.action_dim:
        raise ValueError(
            f"data set {name!r}: action_kinds of its entry in {entry_location(name)} lists {len(entry.action_kinds)} dimensions, "
            f"robot platform {platform.name} has {platform.action_dim}; correct action_kinds, or robot_platform"
        )
    for number, (kind, called) in enumerate(zip(entry.action_kinds, platform.action_kinds, strict=True)):
        if called is not ActionKind.TARGET and kind is not called:
            raise ValueError(
                f"data set {name!r}: action_kinds of its entry in {entry_location(name)} calls dimension {number} a {kind.value}, but "
                f"{platform.action_names[number]} of {platform_location(platform.name)} is a {called.value}; correct either"
            )
    return replace(platform, action_kinds=entry.action_kinds)


class NumpyTransform:
    """A trajectory transform whose result is numpy arrays, also if it is written with tf.* operations, and that alters nothing.

    `__wrapped__` is the transform itself. A class, not a closure, so that specs can be sent to worker processes.
    """

    __wrapped__: TrajectoryTransform

    def __init__(self, transform: TrajectoryTransform) -> None:
        functools.update_wrapper(self, transform)
        self._transform = transform

    def __call__(self, trajectory: Trajectory) -> Trajectory:
        # The familiar style assigns into the dictionaries that it is given, so it gets its own.
        return _as_numpy(self._transform(_copied_groups(trajectory)))


def _copied_groups(trajectory: Mapping[str, Any]) -> Trajectory:
    return {key: _copied_groups(value) if isinstance(value, Mapping) else value for key, value in trajectory.items()}


def _as_numpy(value: Any) -> Any:
    """Groups, and in them arrays for tensors; tensors of strings become objects."""
    if isinstance(value, Mapping):
        return {key: _as_numpy(item) for key, item in value.items()}
    return np.asarray(value.numpy()) if hasattr(value, "numpy") else value


def select_policy_cameras(specs: tuple[DatasetSpec, ...], num_images_in_input: int) -> tuple[str, ...]:
    """The first `num_images_in_input` cameras that every data set has: primary first, then the wrists.

    Raises:
        ValueError: a data set has fewer cameras, or the data sets differ in theirs.
    """
    choices: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        cameras = tuple(spec.entry.cameras)
        if num_images_in_input > len(cameras):
            raise ValueError(
                f"--num_images_in_input is {num_images_in_input}, data set {spec.name!r} has {len(cameras)} cameras: {', '.join(cameras)}. "
                f"Lower the flag, or add the camera to image_obs_keys of the entry in {CONFIGS_FILE}"
            )
        choices[spec.name] = cameras[:num_images_in_input]
    if len(set(choices.values())) > 1:
        common = Counter(choices.values()).most_common(1)[0][0]
        odd = {name: ", ".join(cameras) for name, cameras in choices.items() if cameras != common}
        raise ValueError(
            f"the data sets of the mixture have different cameras: most have {', '.join(common)}, but {odd}; "
            "leave these out of the mixture, or lower --num_images_in_input"
        )
    return choices[specs[0].name]
