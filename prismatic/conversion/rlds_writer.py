"""Any recording that is read for training -> an RLDS data set, written by tensorflow-datasets itself.

Letters: T steps, H, W image size, P proprio dim, A action dim.

    steps:  observation {image, wrist_image, ... (JPEG), state float32 [P]}, action float32 [A], language_instruction,
            is_first, is_last, is_terminal, reward (1 at the end), discount
    episode_metadata:  file_path

    source --standardize--> Episode --decode, resize, encode--> staged episode file --tensorflow-datasets--> data_root_dir/name/version

Each finished episode is kept in a hidden stage folder until the data set is complete, under a name that changes with everything it was
made from. An interrupted conversion therefore goes on where it stopped, and the data set itself is complete or absent.

TensorFlow is imported here only, when a data set is written. It must never share a process with a software renderer.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prismatic.conversion.noops import moving_steps
from prismatic.conversion.staging import StagedEpisode, encode_episode, is_disk_full, load_staged, only_writer, write_staged
from prismatic.interrupts import StopRequest
from prismatic.vla.cameras import STORED_KEYS
from prismatic.vla.constants import near_names
from prismatic.vla.datasets.channel_order import frames_as_rgb
from prismatic.vla.datasets.episodes import Episode, EpisodeSource, FrameError, standardize
from prismatic.vla.datasets.hdf5.instructions import instruction_from_table
from prismatic.vla.datasets.hdf5.layout import SUFFIXES
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.recorded_names import RecordedNames
from prismatic.vla.datasets.sources import describe_recordings
from prismatic.vla.datasets.split_names import VAL_FRACTION, usual_split
from prismatic.vla.datasets.splits import choose_validation
from prismatic.vla.datasets.texts import draw_text
from prismatic.vla.rendering import agreed_rendering
from prismatic.vla.types import check_side

logger = logging.getLogger(__name__)

_DAMAGED = "episodes with damaged images are left out"
_NOT_LISTED = "episodes that --instructions_file does not name keep the text that was recorded"


@dataclass(frozen=True)
class RldsSpec:
    """What the data set is called, how its episodes are split, and what is done to them."""

    dataset_name: str  # folder and TFDS name: lower case, digits, underscores
    data_root_dir: Path  # the data set lands in data_root_dir/dataset_name/version
    version: str = "1.0.0"
    val_fraction: float = VAL_FRACTION  # share of the episodes that become the val split, where the source has none; 0 writes none
    instruction: str | None = None  # replaces what the recordings say
    instructions_file: Path | None = None  # JSON {file name, stem, "file, episode" or "*": instruction}; replaces what the recordings say
    image_size: int | None = None  # pixels; images become squares of this side; None keeps their size
    filter_noops: bool = False  # leave out steps in which nothing moves
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.dataset_name):
            raise ValueError(f"--dataset_name is {self.dataset_name!r}; use lower-case letters, digits and underscores, a letter first")
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version):
            raise ValueError(f"--version is {self.version!r}, expected three numbers such as 1.0.0")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val_fraction is {self.val_fraction}; use a share of at least 0 and less than 1")
        check_side("--image_size", self.image_size)
        if self.instructions_file is not None and not self.instructions_file.is_file():
            raise ValueError(f"--instructions_file {self.instructions_file} does not exist")

    @property
    def target(self) -> Path:
        return self.data_root_dir / self.dataset_name / self.version

    @property
    def stage(self) -> Path:
        return self.data_root_dir / f".{self.dataset_name}.{self.version}.partial"


def write_rlds(source: EpisodeSource, entry: DatasetEntry, spec: RldsSpec) -> Path:
    """The folder of the new data set, complete or absent; `entry` says which cameras and state of `source` are written.

    Raises:
        ValueError: the data set exists already, an episode has no instruction, episodes contradict each other (names both), or another
            process writes the same data set, or no space is left.
    """
    if spec.target.exists() and not spec.overwrite:
        raise ValueError(f"{spec.target} exists already; pass --overwrite True, another --version or another --dataset_name")
    _check_cameras(entry)
    stop = StopRequest(meanwhile="ending this episode", answers_sigterm=False)
    with only_writer(spec.stage), stop:
        try:
            episodes = _stage_episodes(source, entry, spec, stop)
            splits = split_episodes(episodes, spec.val_fraction)
            written = spec.stage / "tfds"
            shutil.rmtree(written, ignore_errors=True)  # left by a process that was killed
            _download_and_prepare(spec, splits, written, stop)
            stop.check()  # whatever the library made of it
            _recorded_names(source, entry, spec, episodes).save(written / spec.dataset_name / spec.version)
            _publish(written / spec.dataset_name / spec.version, spec)
        except KeyboardInterrupt:
            logger.info("interrupted; the same command goes on from here (finished episodes are kept in %s)", spec.stage)
            raise
        except Exception as error:
            if not is_disk_full(error):
                raise
            shutil.rmtree(spec.stage / "tfds", ignore_errors=True)
            raise ValueError(
                f"no space is left in {spec.data_root_dir}; free some and give the same command again: it goes on from the episodes that "
                f"are finished, in {spec.stage}"
            ) from error
        shutil.rmtree(spec.stage)
    logger.info("wrote %s: %s", spec.target, ", ".join(f"{len(members)} episodes in {name}" for name, members in splits.items()))
    if spec.dataset_name not in OXE_DATASET_CONFIGS:
        logger.info("next, for its registry entry: python scripts/inspect_dataset.py --suggest %s", spec.target.parent)
    return spec.target


def _recorded_names(source: EpisodeSource, entry: DatasetEntry, spec: RldsSpec, episodes: Sequence[StagedEpisode]) -> RecordedNames:
    first = next(iter(source.episodes()))
    rendering = agreed_rendering(item.facts for item in episodes)
    if spec.image_size is not None:  # pictures are not stored as large as they were rendered
        rendering = {flag: value for flag, value in rendering.items() if flag == "fast_rendering"}
    return RecordedNames.of(first.trajectory, entry, STORED_KEYS, describe_recordings(source.folder), rendering)


def split_episodes(episodes: Sequence[StagedEpisode], val_fraction: float) -> dict[str, list[StagedEpisode]]:
    """{"train": ..., "val": ...}: the source's own val split, else the division that training would make; other splits stay as they are.

    Raises:
        ValueError: there is one episode, which cannot be divided, or none for training.
    """
    recorded: dict[str, list[StagedEpisode]] = {}
    for item in episodes:
        recorded.setdefault("val" if usual_split(item.split) == "val" else item.split, []).append(item)
    if "train" not in recorded:
        raise ValueError(f"no recording belongs to the split 'train', only to {', '.join(recorded)}; rename the folder or the split")
    if "val" in recorded or val_fraction == 0:
        return recorded
    train = recorded["train"]
    try:
        is_val = choose_validation([item.name for item in train], [item.instruction for item in train], val_fraction)
    except ValueError as error:
        raise ValueError(f"{error}; record more, or pass --val_fraction 0") from error
    divided = {name: [item for item, flag in zip(train, is_val, strict=True) if flag == (name == "val")] for name in ("train", "val")}
    return recorded | divided


def _check_cameras(entry: DatasetEntry) -> None:
    for name in entry.cameras:
        if name not in STORED_KEYS:
            raise ValueError(f"camera {name!r} has no RLDS key; {near_names(name, STORED_KEYS)}")


def _stage_episodes(source: EpisodeSource, entry: DatasetEntry, spec: RldsSpec, stop: StopRequest) -> list[StagedEpisode]:
    """Every episode with its images encoded, from the stage folder where it is there already."""
    reader = frames_as_rgb(source.frame_reader(), entry.image_channel_order)
    staged: list[StagedEpisode] = []
    num_steps, num_idle = 0, 0
    with tqdm(total=source.num_episodes, desc=f"reading {source.folder}", unit="episode") as progress:
        for raw in source.episodes():
            stop.check()
            name = raw.name.removeprefix(f"{source.folder}{os.sep}")
            text = _given_text(name, spec)
            if spec.instructions_file is not None and not text:
                source.repairs.note(_NOT_LISTED, name)
            episode = _relabel(standardize(raw, entry, identity_dataset_transform), name, text or spec.instruction or "")
            num_steps += len(episode.actions)
            if spec.filter_noops:
                moving = moving_steps(episode.actions, entry.kinds(episode.actions.shape[1]))
                num_idle += int((~moving).sum())
                episode = _select(episode, moving, name)
            path = spec.stage / f"{_episode_key(episode, name, raw.split, source, entry, spec)}.npz"
            progress.update()
            try:
                if not path.is_file():
                    write_staged(path, encode_episode(episode, tuple(entry.cameras), reader, spec.image_size), name, raw.split)
            except FrameError as error:
                source.repairs.note(_DAMAGED, str(error))
                continue
            staged.append(replace(load_staged(path), facts=raw.facts))
            staged[0].check(staged[-1])
    for repair in source.repairs:
        logger.warning("%s: %s", source.folder, repair)
    if not staged:
        raise ValueError(f"{source.folder} holds no {'sound ' if list(source.repairs) else ''}episodes; record some first")
    if spec.filter_noops:
        logger.info("left out %d of %d steps in which nothing moves", num_idle, num_steps)
    return staged


def _given_text(name: str, spec: RldsSpec) -> str:
    """What --instructions_file says of the episode called `name`; "" if nothing."""
    if spec.instructions_file is None:
        return ""
    file, _, episode = name.rpartition(", ")
    is_whole_file = not file or name.lower().endswith(SUFFIXES)
    path, label = (name, "") if is_whole_file else (file, episode)
    return draw_text(instruction_from_table(spec.instructions_file, Path(path), label), name)


def _relabel(episode: Episode, name: str, text: str) -> Episode:
    """The episode with the instruction `text` that the flags give it; "": as recorded.

    Raises:
        ValueError: there is none.
    """
    texts = [text] * len(episode.actions) if text.strip() else episode.instructions
    if not all(item.strip() for item in texts):
        raise ValueError(
            f"{name}: no language instruction (attribute language_instruction, /language_raw, instructions.json, tasks); "
            "record it, or pass --instruction for the whole folder or --instructions_file"
        )
    return replace(episode, instructions=texts)


def _select(episode: Episode, steps: np.ndarray, name: str) -> Episode:
    if not steps.any():
        raise ValueError(f"{name}: nothing moves in any step; leave the episode out, or pass --filter_noops False")
    texts = [text for text, kept in zip(episode.instructions, steps, strict=True) if kept]
    return Episode(episode.actions[steps], episode.proprio[steps], episode.images[steps], texts, episode.commanders[steps])


def _episode_key(episode: Episode, name: str, split: str, source: EpisodeSource, entry: DatasetEntry, spec: RldsSpec) -> str:
    """Changes with everything that the staged episode is made from."""
    files = [source.files[number] for number in np.unique(episode.images["file"])]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    pictures = [spec.image_size, entry.image_channel_order, list(entry.cameras.items()), source.frame_layout]
    described = [name, split, *pictures, episode.instructions, stats]
    digest = hashlib.sha256(json.dumps(described).encode())
    for array in (episode.actions, episode.proprio, episode.images):
        digest.update(str(array.shape).encode() + array.tobytes())
    return digest.hexdigest()[:32]


def _publish(written: Path, spec: RldsSpec) -> None:
    """Moves the finished data set to its place."""
    spec.target.parent.mkdir(parents=True, exist_ok=True)
    if spec.target.exists():
        shutil.rmtree(spec.stage / "replaced", ignore_errors=True)  # left by a process that was killed here
        os.replace(spec.target, spec.stage / "replaced")
    os.replace(written, spec.target)


def _download_and_prepare(spec: RldsSpec, splits: Mapping[str, Sequence[StagedEpisode]], data_dir: Path, stop: StopRequest) -> None:
    """Runs a TFDS builder, made for this data set, that writes into `data_dir`."""
    tfds = _import_tfds()
    features = _features(tfds, next(iter(splits.values()))[0])

    def info(self: Any) -> Any:
        return self.dataset_info_from_configs(features=features, description=f"{spec.dataset_name}: recorded demonstrations")

    def generators(self: Any, download_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {name: _examples(name, members, stop) for name, members in splits.items()}

    class_name = "".join(word.capitalize() for word in spec.dataset_name.split("_"))
    members = {
        "VERSION": tfds.core.Version(spec.version),
        "name": spec.dataset_name,
        "pkg_dir_path": Path(__file__).parent,  # TFDS looks for citations and tags beside the builder
        "_info": info,
        "_split_generators": generators,
        "_generate_examples": lambda self: iter(()),
        "__module__": __name__,
    }
    with tfds.core.registered.skip_registration():
        builder_class = type(class_name, (tfds.core.GeneratorBasedBuilder,), members)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of downloads, of which there are none
        builder_class(data_dir=data_dir).download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False, compute_stats="skip", register_checksums=False)
        )


def _import_tfds() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and announced at every start
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # writing files needs no GPU memory
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f"writing RLDS needs TensorFlow ({error}); install the extra: pip install -e '.[rlds]'") from error
    tfds.core.utils.gcs_utils._is_gcs_disabled = True  # a new data set is on no server; do not ask one
    tfds.disable_progress_bar()  # of its three, one within the other; _examples shows one
    return tfds


def _features(tfds: Any, first: StagedEpisode) -> Any:
    images = {STORED_KEYS[name]: tfds.features.Image(shape=shape, encoding_format="jpeg") for name, shape in first.images.items()}
    state = {"state": tfds.features.Tensor(shape=(first.proprio_dim,), dtype=np.float32)}
    step = {
        "observation": images | state,
        "action": tfds.features.Tensor(shape=(first.action_dim,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
        **{name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
        **{name: tfds.features.Scalar(dtype=np.float32) for name in ("reward", "discount")},
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": {"file_path": tfds.features.Text()}})


def _examples(split: str, episodes: Sequence[StagedEpisode], stop: StopRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, episode in enumerate(tqdm(episodes, desc=f"writing {split}", unit="episode")):
        stop.check()
        yield f"{number:06d}", {"steps": list(_steps(episode)), "episode_metadata": {"file_path": episode.name}}


def _steps(staged: StagedEpisode) -> Iterator[dict[str, Any]]:
    content = staged.read()
    last = len(content.actions) - 1
    for step in range(last + 1):
        images = {STORED_KEYS[name]: encoded[step] for name, encoded in content.images.items()}
        yield {
            "observation": images | {"state": content.proprio[step]},
            "action": content.actions[step],
            "language_instruction": content.instructions[step],
            "is_first": step == 0,
            "is_last": step == last,
            "is_terminal": step == last,
            "reward": float(step == last),
            "discount": 1.0,
        }
