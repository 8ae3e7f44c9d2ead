"""Map-style data set: sample number -> Sample, by random access into the recorded files.

Letters: M steps, H chunk, A action dim, P proprio dim, N cameras that the policy uses, S image side.

    RobotDataset     the samples of one data set: step -> frames, instruction, chunk of the H actions that follow, proprio
    VLADataset       the samples of a mixture, one data set behind the other; resized, augmented

By default every step of an episode is a sample: beyond its end, targets are repeated, motions and velocities are 0. The published
system leaves out the last H - 1 steps instead (`published_tail`).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.episode_weights import Weights
from prismatic.vla.datasets.episodes import FrameError
from prismatic.vla.datasets.frame_cache import CachedFrames
from prismatic.vla.datasets.paraphrases import choose_words
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.sampler import MixtureSampler, SampleKey
from prismatic.vla.datasets.statistics import DatasetStatistics, count_beyond
from prismatic.vla.images import AS_EVALUATED, AugmentationDraw, augment_cpu, draw_augmentation
from prismatic.vla.normalization import Bounds, normalize
from prismatic.vla.strong_augmentation import draw_strong, strengthen_cpu
from prismatic.vla.types import BadSample, Sample

_MOST_BAD_IN_A_ROW = 100  # samples; more, and the disk is at fault
_WORDS = 1  # keys the choice of words apart from the augmentation
_NUM_EPISODES_MEASURED = 32  # of each data set, for the size of their images


@dataclass(frozen=True)
class DatasetOptions:
    """What a sample consists of and how the recorded episodes are divided."""

    cameras: tuple[str, ...]  # in the policy's order
    image_size: int  # S, pixels
    use_proprio: bool = False
    augment: bool = False  # random crop and colour on the training samples
    augmentation: str = "standard"  # of AUGMENTATIONS; strong: other viewpoints, noise and masks, too
    paraphrases: Path | None = None  # JSON, instruction -> other ways to say it: each training sample has one of all of them
    seed: int = 7  # keys the augmentation, together with sample and pass
    val_fraction: float | None = None  # share of episodes split off where there is no val split; None: no validation set
    published_tail: bool = False  # leave out the steps of an episode that fewer than H actions follow, rather than repeat or still its end
    published_crop: bool = False  # the random crop's x and y offsets are equal
    published_statistics: bool = False  # over all splits, episodes without instruction included
    device_augmentation: bool = False  # leave augmentation, and resize where no frame cache keeps its result, to `images.prepare_on_device`
    default_instruction: str | None = None  # for episodes that have none; None: such episodes are left out
    frame_cache_dir: Path | None = None  # keep every frame there once it is decoded and resized
    frame_cache_bytes: int = 2**28  # without that folder: keep them in shared memory if all fit (small sets); 0: never
    cache_dir: Path | None = None  # for the index; None: with the data, or the user's cache folder
    exclude_episodes: Path | None = None  # a file that lists episodes to leave out (`exclusions`)
    episode_weights: str | None = None  # a file or a column that says how often episodes are shown (`episode_weights`)

    def __post_init__(self) -> None:
        if self.default_instruction is not None and not self.default_instruction.strip():
            raise ValueError("--default_instruction is empty; give the text of the task, or leave the flag out")


@dataclass(frozen=True)
class SampleOrigin:
    """Where a sample was recorded."""

    dataset: str
    split: str
    episode: int  # number within the split, in the order of the files
    recording: str  # the file, and which of its episodes
    step: int  # within the episode
    instruction: str

    def __str__(self) -> str:
        return f"{self.dataset}, {self.split} episode {self.episode} ({self.recording}), step {self.step}"


class RobotDataset:
    """The samples of one data set: those of `episodes`, in their order."""

    def __init__(
        self,
        spec: DatasetSpec,
        frames: CachedFrames,
        episodes: np.ndarray,
        statistics: DatasetStatistics,
        options: DatasetOptions,
        weights: Weights | None = None,
    ) -> None:
        """`weights`: how often the episodes of the index, and their steps, are shown in a pass; None: once."""
        index = frames.index
        self.spec, self.index, self.stored, self.options = spec, index, frames, options
        self.episodes = episodes
        self.chunk = spec.platform.num_actions_chunk
        self.action_bounds = Bounds.from_statistics(statistics["action"], spec.platform.normalization)
        self.proprio_bounds = Bounds.from_statistics(statistics["proprio"], spec.platform.normalization) if options.use_proprio else None
        self.is_target = np.array([kind is ActionKind.TARGET for kind in spec.platform.action_kinds])  # bool [A]
        lengths = index.lengths[episodes]
        samples = np.maximum(lengths - self.chunk + 1, 0) if options.published_tail else lengths
        self.episodes = episodes  # int64, numbers of the index
        self.sample_starts = np.concatenate(([0], np.cumsum(samples)))  # int64 [episodes + 1]
        self.first_steps = index.episode_starts[episodes]
        self.last_steps = self.first_steps + lengths - 1
        shares = None if weights is None else self._shares(weights, samples)
        self.shares = None if shares is None or bool((shares == 1).all()) else shares  # float64 [samples]; None: each once

    def _shares(self, weights: Weights, samples: np.ndarray) -> np.ndarray:
        """float64 [samples]: how often each sample is shown."""
        shares = np.repeat(weights.episodes[self.episodes], samples)
        if weights.steps is None:
            return shares
        within = np.arange(len(shares)) - np.repeat(self.sample_starts[:-1], samples)
        return shares * weights.steps[np.repeat(self.first_steps, samples) + within]

    def __len__(self) -> int:
        return int(self.sample_starts[-1])

    def locate(self, sample: int) -> tuple[int, int]:
        """(step of the index, last step of its episode)."""
        episode = int(np.searchsorted(self.sample_starts, sample, side="right")) - 1
        step = int(self.first_steps[episode]) + sample - int(self.sample_starts[episode])
        return step, int(self.last_steps[episode])

    def recorded_frames(self, sample: int) -> list[np.ndarray]:
        """uint8 [height, width, 3] of each camera: decoded, unless that raises FrameError."""
        return self.stored.recorded(self.locate(sample)[0])

    def frames(self, sample: int) -> np.ndarray:
        """uint8 [N, S, S, 3]: decoded and resized, unless that raises FrameError."""
        return self.stored.read(self.locate(sample)[0])

    def actions(self, sample: int) -> np.ndarray:
        """float32 [H, A], normalised: the action of the sample's step and of the H - 1 that follow."""
        step, last = self.locate(sample)
        chunk = self.index.actions[step : min(step + self.chunk, last + 1)]
        num_beyond = self.chunk - len(chunk)
        if num_beyond:
            chunk = np.concatenate((chunk, np.repeat(np.where(self.is_target, chunk[-1:], np.float32(0)), num_beyond, axis=0)))
        return normalize(chunk, self.action_bounds)

    def beyond(self) -> dict[str, np.ndarray]:
        """Quantity ("action", and "proprio" if the policy uses it) -> int64 [D]: steps whose values normalization cannot express."""
        steps = self.index.steps_of(self.episodes)
        found = {"action": count_beyond(self.index.actions, steps, self.action_bounds)}
        if self.proprio_bounds is not None:
            found["proprio"] = count_beyond(self.index.proprio, steps, self.proprio_bounds)
        return found

    def proprio(self, sample: int) -> np.ndarray | None:
        """float32 [P], normalised, if the policy uses it."""
        if self.proprio_bounds is None:
            return None
        return normalize(self.index.proprio[self.locate(sample)[0]], self.proprio_bounds)

    def instruction(self, sample: int) -> str:
        """What the robot was told, as recorded; else the default."""
        return self._text(int(self.index.instruction_ids[self.locate(sample)[0]]))

    def instructions(self) -> set[str]:
        """What the robot was told in any step, which may change within an episode."""
        return {self._text(number) for number in np.unique(self.index.instruction_ids[self.index.steps_of(self.episodes)]).tolist()}

    def _text(self, number: int) -> str:
        if number < 0:
            assert self.options.default_instruction is not None, "episodes without instruction are left out"
            return self.options.default_instruction.strip()
        return self.index.instructions[number]

    def origin(self, sample: int) -> SampleOrigin:
        """Where `sample` was recorded."""
        place = int(np.searchsorted(self.sample_starts, sample, side="right")) - 1
        episode, (step, _) = int(self.episodes[place]), self.locate(sample)
        split, number = self.index.place_of(episode)
        within = step - int(self.index.episode_starts[episode])
        return SampleOrigin(self.spec.name, split, number, self.index.names[episode], within, self.instruction(sample))

    def __getstate__(self) -> dict[str, Any]:
        # Samples no longer need the trajectory transform, and a user's may not be picklable.
        return {**self.__dict__, "spec": replace(self.spec, transform=dict)}


class VLADataset(Dataset[Sample]):
    """The samples of a mixture, one data set behind the other."""

    def __init__(
        self, parts: Sequence[RobotDataset], options: DatasetOptions, augment: bool, paraphrases: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.paraphrases = dict(paraphrases or {})
        self.parts, self.options, self.augment = list(parts), options, augment
        self.part_starts = np.concatenate(([0], np.cumsum([len(part) for part in parts])))
        is_cached = any(part.stored.caches for part in self.parts)
        self.recorded_shape = _common_shape(self.parts) if options.device_augmentation and not is_cached else None
        if self.recorded_shape is None:
            importlib.import_module("prismatic.vla.image_kernels")  # a second's work, once for all workers that are forked later
        self._order = self.sampler(options.seed)

    def __len__(self) -> int:
        return int(self.part_starts[-1])

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """The sample with that number; a SampleKey also says which of its augmentations. One that cannot be decoded is replaced.

        Raises:
            FrameError: many in a row cannot be decoded.
        """
        key = key if isinstance(key, SampleKey) else SampleKey(int(key), 0)
        number, images, bad = self._decodable(key)
        num_earlier_passes, (part, local) = key.num_earlier_passes, self._locate(number)
        draw = None
        if self.augment:
            images, draw = self._augmented(images, np.random.default_rng((self.options.seed, num_earlier_passes, number)))
        instruction = part.instruction(local)
        if self.paraphrases:
            rng = np.random.default_rng((self.options.seed, num_earlier_passes, number, _WORDS))
            instruction = choose_words(instruction, self.paraphrases, rng)
        return Sample(
            images=images,
            instruction=instruction,
            actions=part.actions(local),
            proprio=part.proprio(local),
            sample_id=number,
            draw=draw,
            in_place_of=bad,
        )

    def _augmented(self, images: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """(images, None), augmented here; or (images as they are, the row of numbers by which the device will do it)."""
        draw = draw_augmentation(rng, self.options.published_crop)
        row = np.zeros(0, np.float32)
        if self.options.augmentation == "strong":
            standard, row = draw_strong(draw.rows()[0], AS_EVALUATED.rows()[0], rng, self.options.cameras)
            draw = AugmentationDraw(*standard[:, None])
        if self.options.device_augmentation:
            return images, np.concatenate([draw.rows()[0], row])
        images = augment_cpu(images, draw, out=images)
        return (strengthen_cpu(images, row) if row.size else images), None

    def _decodable(self, key: SampleKey) -> tuple[int, np.ndarray, tuple[BadSample, ...]]:
        """(number, images, samples that cannot be decoded): of the key's sample, else of the next one in the order of training."""
        try:
            return key.sample, self._images(key.sample), ()
        except FrameError as error:
            bad = [self._bad(key.sample, error)]
        for number in islice(self._order.following(key), _MOST_BAD_IN_A_ROW):
            try:
                return number, self._images(number), tuple(bad)
            except FrameError as error:
                bad.append(self._bad(number, error))
        raise FrameError(f"{len(bad)} samples in a row cannot be decoded; the first is {bad[0].where}: {bad[0].reason}")

    def _bad(self, number: int, error: FrameError) -> BadSample:
        origin = self.origin(number)
        return BadSample(number, str(origin), f"{origin.dataset}: {origin.split} {origin.episode}", str(error))

    def _images(self, number: int) -> np.ndarray:
        """uint8 [N, S, S, 3], or as recorded for the device to resize."""
        part, local = self._locate(number)
        return part.frames(local) if self.recorded_shape is None else self._recorded_frames(part, local)

    def origin(self, number: int) -> SampleOrigin:
        """Where the sample with that number was recorded."""
        part, local = self._locate(number)
        return part.origin(local)

    def _locate(self, number: int) -> tuple[RobotDataset, int]:
        """(the data set of a sample, the sample's number in it)."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        which = int(np.searchsorted(self.part_starts, number, side="right")) - 1
        return self.parts[which], number - int(self.part_starts[which])

    def _recorded_frames(self, part: RobotDataset, local: int) -> np.ndarray:
        """uint8 [N, H, W, 3]: decoded, for the device to resize."""
        frames = part.recorded_frames(local)
        for camera, frame in zip(self.options.cameras, frames, strict=True):
            if frame.shape[:2] != self.recorded_shape:
                raise ValueError(
                    f"--device_augmentation True resizes frames of one size, {self.recorded_shape}; {part.origin(local)} has "
                    f"{frame.shape[:2]} (camera {camera}). Leave the flag out, or give --frame_cache_dir: then each frame is resized "
                    "by itself"
                )
        return np.stack(frames)

    def sampler(self, seed: int, rank: int = 0, world_size: int = 1) -> MixtureSampler:
        """The endless training order of one process; samples that cannot be decoded are replaced along it."""
        sizes, weights = [len(part) for part in self.parts], [part.spec.weight for part in self.parts]
        self._order = MixtureSampler(sizes, weights, seed, rank, world_size, [part.shares for part in self.parts])
        return self._order


def _common_shape(parts: Sequence[RobotDataset]) -> tuple[int, int] | None:
    """(height, width) of all cameras of all data sets; None if they differ: then workers resize, and the device only augments."""
    shapes = set()
    for part in parts:
        for episode in np.unique(np.linspace(0, len(part.first_steps) - 1, _NUM_EPISODES_MEASURED).astype(int)):
            with contextlib.suppress(FrameError):
                shapes |= {frame.shape[:2] for frame in part.stored.recorded(int(part.first_steps[episode]))}
    return shapes.pop() if len(shapes) == 1 else None
