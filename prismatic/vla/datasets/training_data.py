"""Registered data sets -> what a run trains and validates on."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prismatic.vla.constants import near_names
from prismatic.vla.datasets.dataset import DatasetOptions, RobotDataset, VLADataset
from prismatic.vla.datasets.episode_weights import check_recorded, describe_weights, episode_weights
from prismatic.vla.datasets.exclusions import excluded_episodes
from prismatic.vla.datasets.frame_cache import CachedFrames, open_frame_caches
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.motions import describe_motions
from prismatic.vla.datasets.opening import open_index
from prismatic.vla.datasets.paraphrases import read_paraphrases
from prismatic.vla.datasets.repairs import Repair
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.splits import split_episodes
from prismatic.vla.datasets.statistics import DatasetStatistics, compute_statistics, published_episodes
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.rendering import rendered

# Names and numbers of glibc's malloc.h; sizes in bytes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK, _KEPT = 32 * 2**20, 64 * 2**20  # glibc allows no larger block


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and validates on."""

    train: VLADataset
    val: VLADataset | None  # never augmented
    statistics: dict[str, DatasetStatistics]  # data set -> what dataset_statistics.json says about it
    repairs: dict[str, tuple[Repair, ...]] = field(default_factory=dict)  # data set -> what its source left out or mended
    demonstrated: dict[str, Demonstrated] = field(default_factory=dict)  # data set -> ranges and steps of its actions
    rendered: dict[str, dict[str, list[Any]]] = field(default_factory=dict)  # data set -> how a simulator rendered it, where episodes say
    excluded: dict[str, tuple[str, ...]] = field(default_factory=dict)  # data set -> episodes that --exclude_episodes leaves out
    weights: dict[str, dict[str, int]] = field(default_factory=dict)  # data set -> weight -> its episodes, where they are not all 1
    step_weights: dict[str, dict[str, int]] = field(default_factory=dict)  # data set -> factor -> steps, where rules are about steps
    paraphrased: tuple[int, int] = (0, 0)  # instructions that have other words, of how many


def load_training_data(
    specs: Sequence[DatasetSpec], options: DatasetOptions, statistics: Mapping[str, DatasetStatistics] | None = None
) -> TrainingData:
    """The samples of all `specs`, indexed where necessary; `statistics` names data sets whose statistics are given, not computed.

    Raises:
        ValueError: the data contradict entry, platform or given statistics, are damaged, or leave nothing to train or validate on.
    """
    keep_freed_memory()
    train, val, known, demonstrated, rendering = [], [], dict(statistics or {}), {}, {}
    opened = _open_frames(specs, options)
    indexes = {spec.name: frames.index for spec, frames in zip(specs, opened, strict=True)}
    excluded = excluded_episodes(options.exclude_episodes, indexes)
    weights = episode_weights(specs, indexes, options.episode_weights)
    for spec, frames in zip(specs, opened, strict=True):
        index, left_out = frames.index, excluded[spec.name] | set(np.flatnonzero(weights[spec.name].episodes == 0).tolist())
        check_recorded(spec, index, left_out)
        train_episodes, val_episodes = split_episodes(spec, index, options.val_fraction, options.default_instruction, left_out)
        covered = published_episodes(index, left_out) if options.published_statistics else train_episodes
        mask = spec.normalization_mask(index.actions.shape[1])
        if spec.name in known:
            _check_statistics(spec, known[spec.name], mask, options)
        else:
            known[spec.name] = compute_statistics(index, covered, mask)
        cameras = {camera: spec.entry.cameras[camera] for camera in options.cameras}
        demonstrated[spec.name] = describe_motions(index, train_episodes, spec.platform, cameras)
        rendering[spec.name] = rendered(index.facts[episode] for episode in train_episodes)
        train.append(_not_empty(RobotDataset(spec, frames, train_episodes, known[spec.name], options, weights[spec.name]), spec.name))
        if options.val_fraction is not None:
            val.append(_not_empty(RobotDataset(spec, frames, val_episodes, known[spec.name], options), spec.name))
    told = _instructions(indexes.values(), options.default_instruction)
    words = read_paraphrases(options.paraphrases, told) if options.paraphrases else {}
    return TrainingData(
        train=VLADataset(train, options, augment=options.augment, paraphrases=words),
        val=VLADataset(val, options, augment=False) if val else None,
        statistics={spec.name: known[spec.name] for spec in specs},
        repairs={name: index.repairs for name, index in indexes.items()},
        demonstrated=demonstrated,
        rendered={name: found for name, found in rendering.items() if found},
        paraphrased=(len(words), len(told)),
        weights={name: describe_weights(found.episodes) for name, found in weights.items() if (found.episodes != 1).any()},
        step_weights={name: describe_weights(found.steps) for name, found in weights.items() if found.steps is not None},
        excluded={name: tuple(index.label_of(episode) for episode in sorted(excluded[name])) for name, index in indexes.items()},
    )


def _instructions(indexes: Collection[EpisodeIndex], default_instruction: str | None) -> set[str]:
    """What the robot is told in any episode, be it by default."""
    recorded = {text for index in indexes for text in index.instructions}
    is_whole = all(index.is_labelled()[index.all_episodes()].all() for index in indexes)
    return recorded if default_instruction is None or is_whole else recorded | {default_instruction.strip()}


def _check_statistics(spec: DatasetSpec, given: DatasetStatistics, mask: np.ndarray, options: DatasetOptions) -> None:
    """Accepts given statistics that describe the same numbers."""
    quantities = {"action": spec.platform.action_dim} | ({"proprio": spec.platform.proprio_dim} if options.use_proprio else {})
    for quantity, width in quantities.items():
        found = len(given.get(quantity, {}).get("mean", ()))
        if found != width:
            raise ValueError(
                f"data set {spec.name!r} has {quantity} of {width} dimensions, the checkpoint's statistics of it {found}; pass "
                "--fresh_heads True to begin with new heads and new statistics, or take the checkpoint of a policy for this robot"
            )
    given_mask = np.asarray(given["action"].get("mask", np.ones(len(mask))), bool)
    odd = [name for name, one, other in zip(spec.platform.action_names, given_mask, mask, strict=True) if one != other]
    if odd:
        raise ValueError(
            f"data set {spec.name!r}: its entry in {CONFIGS_FILE} and the checkpoint's statistics disagree whether {', '.join(odd)} is "
            "normalised. Correct action_encoding there, or pass --new_statistics True"
        )


def _open_frames(specs: Sequence[DatasetSpec], options: DatasetOptions) -> list[CachedFrames]:
    """The checked index and the frames of each data set."""
    indexes = []
    for spec in specs:
        index = open_index(spec, options.cache_dir)
        spec.check_widths(index.actions.shape[1], index.proprio.shape[1] if options.use_proprio else None)
        _check_cameras(spec, index, options)
        indexes.append(index)
    named = [(spec.name, index) for spec, index in zip(specs, indexes, strict=True)]
    caches = open_frame_caches(named, options.cameras, options.image_size, options.frame_cache_dir, options.frame_cache_bytes)
    return [CachedFrames(index, options.cameras, options.image_size, kept) for index, kept in zip(indexes, caches, strict=True)]


def _check_cameras(spec: DatasetSpec, index: EpisodeIndex, options: DatasetOptions) -> None:
    for camera in options.cameras:
        if camera not in index.cameras:
            raise ValueError(
                f"data set {spec.name!r} has no camera {camera!r}; add it to image_obs_keys of its entry in {CONFIGS_FILE}; "
                f"{near_names(camera, index.cameras)}"
            )


def _not_empty(part: RobotDataset, name: str) -> RobotDataset:
    if len(part) == 0:
        raise ValueError(
            f"data set {name!r}: no episode is as long as the chunk of {part.chunk} actions, and --published_tail needs that; "
            "leave it out, or take a platform with a shorter chunk"
        )
    return part


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep up to 64 MB of freed memory, in this process and those forked later; does nothing with other systems.

    Else the memory of a batch may go back to the system and come anew, page by page, for the next batch: 0.3 to 0.6 ms a sample.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
