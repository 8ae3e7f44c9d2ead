"""Recordings -> an RLDS data set, written by tensorflow-datasets itself. Letters: H, W image size, P proprio dim, A action dim.

    steps:  observation {image, wrist_image, ... (JPEG), state float32 [P]}, action float32 [A], language_instruction,
            is_first, is_last, is_terminal, reward (1 at the end), discount
    episode_metadata:  file_path

TensorFlow is imported here only, when a data set is written. It must never share a process with a software renderer.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.conversion.recordings import Recording, read_recording
from prismatic.vla.constants import near_names

logger = logging.getLogger(__name__)

# Camera slot -> key of the observation; the keys that the registry's ALOHA and LIBERO entries use, too.
IMAGE_KEYS = {
    "primary": "image",
    "secondary": "secondary_image",
    "wrist": "wrist_image",
    "left_wrist": "left_wrist_image",
    "right_wrist": "right_wrist_image",
}


@dataclass(frozen=True)
class RldsSpec:
    """What the data set is called and how its episodes are split."""

    dataset_name: str  # folder and TFDS name: lower case, digits, underscores
    data_root_dir: Path  # the data set lands in data_root_dir/dataset_name/version
    version: str = "1.0.0"
    val_fraction: float = 0.1  # of the episodes of each instruction; 0 writes no val split
    instruction: str | None = None  # replaces what the files say
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.dataset_name):
            raise ValueError(f"--dataset_name is {self.dataset_name!r}; use lower-case letters, digits and underscores, a letter first")
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version):
            raise ValueError(f"--version is {self.version!r}, expected three numbers such as 1.0.0")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val_fraction is {self.val_fraction}; use a share of at least 0 and less than 1")

    @property
    def target(self) -> Path:
        return self.data_root_dir / self.dataset_name / self.version


def split_paths(paths: list[Path], val_fraction: float) -> dict[str, list[Path]]:
    """{"train": ..., "val": ...}: per folder, the episodes whose names hash lowest go to val.

    The same files give the same split on every machine; every folder (one task, as a rule) keeps its share in both.
    """
    if val_fraction == 0:
        return {"train": list(paths)}
    val: set[Path] = set()
    for folder in sorted({path.parent for path in paths}):
        members = [path for path in paths if path.parent == folder]
        members.sort(key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
        count = round(len(members) * val_fraction) or (1 if len(members) > 1 else 0)
        val.update(members[: min(count, len(members) - 1)])
    if not val:
        raise ValueError(
            f"--val_fraction {val_fraction} leaves no validation episode of {len(paths)}; record more, or pass --val_fraction 0"
        )
    return {"train": [path for path in paths if path not in val], "val": [path for path in paths if path in val]}


def write_rlds(paths: list[Path], spec: RldsSpec) -> Path:
    """The folder of the new data set, complete or absent: everything is written beside it first and renamed at the end.

    Raises:
        ValueError: the data set exists already, or recordings contradict each other (names both files).
    """
    if spec.target.exists() and not spec.overwrite:
        raise ValueError(f"{spec.target} exists already; pass --overwrite True, another --version or another --dataset_name")
    splits = split_paths(paths, spec.val_fraction)
    shapes = _Shapes.of(read_recording(paths[0], spec.instruction), paths[0])
    temporary = spec.data_root_dir / f".{spec.dataset_name}.{os.getpid()}.tmp"
    try:
        _download_and_prepare(spec, splits, shapes, temporary)
        if spec.target.exists():
            shutil.rmtree(spec.target)
        spec.target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / spec.dataset_name / spec.version, spec.target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("wrote %s: %s", spec.target, {name: f"{len(members)} episodes" for name, members in splits.items()})
    return spec.target


@dataclass(frozen=True)
class _Shapes:
    """What every episode of one data set must agree on."""

    images: dict[str, tuple[int, ...]]  # camera slot -> [H, W, 3]
    proprio_dim: int
    action_dim: int
    source: Path

    @classmethod
    def of(cls, recording: Recording, path: Path) -> _Shapes:
        images = {name: images.shape[1:] for name, images in sorted(recording.images.items())}
        return cls(images, recording.proprio.shape[1], recording.actions.shape[1], path)

    def check(self, other: _Shapes) -> None:
        for name in ("images", "proprio_dim", "action_dim"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"{other.source} has {name} {getattr(other, name)}, but {self.source} has {getattr(self, name)}; "
                    "one data set holds one robot: convert them separately"
                )


def _download_and_prepare(spec: RldsSpec, splits: dict[str, list[Path]], shapes: _Shapes, data_dir: Path) -> None:
    """Runs a TFDS builder, made for this data set, that writes into `data_dir`."""
    tfds = _import_tfds()
    features = _features(tfds, shapes)

    def info(self: Any) -> Any:
        return self.dataset_info_from_configs(features=features, description=f"{spec.dataset_name}: recorded demonstrations")

    def generators(self: Any, download_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {name: _examples(members, shapes, spec.instruction) for name, members in splits.items()}

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
    builder_class(data_dir=data_dir).download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False, compute_stats="skip", register_checksums=False)
    )


def _import_tfds() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # writing files needs no GPU memory
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f"writing RLDS needs TensorFlow ({error}); install the extra: pip install -e '.[rlds]'") from error
    tfds.core.utils.gcs_utils._is_gcs_disabled = True  # a new data set is on no server; do not ask one
    tfds.display_progress_bar(True)
    return tfds


def _features(tfds: Any, shapes: _Shapes) -> Any:
    unknown = [name for name in shapes.images if name not in IMAGE_KEYS]
    if unknown:
        raise ValueError(f"{shapes.source}: camera {unknown[0]!r} has no RLDS key; {near_names(unknown[0], IMAGE_KEYS)}")
    image = {IMAGE_KEYS[name]: tfds.features.Image(shape=shape, encoding_format="jpeg") for name, shape in shapes.images.items()}
    state = {"state": tfds.features.Tensor(shape=(shapes.proprio_dim,), dtype=np.float32)}
    step = {
        "observation": image | state,
        "action": tfds.features.Tensor(shape=(shapes.action_dim,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
        **{name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
        **{name: tfds.features.Scalar(dtype=np.float32) for name in ("reward", "discount")},
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": {"file_path": tfds.features.Text()}})


def _examples(paths: list[Path], shapes: _Shapes, instruction: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, path in enumerate(paths):
        recording = read_recording(path, instruction)
        shapes.check(_Shapes.of(recording, path))
        name = f"{path.parent.name}/{path.name}"
        yield f"{number:06d}", {"steps": list(_steps(recording)), "episode_metadata": {"file_path": name}}


def _steps(recording: Recording) -> Iterator[dict[str, Any]]:
    last = recording.num_steps - 1
    for step in range(recording.num_steps):
        images = {IMAGE_KEYS[name]: images[step] for name, images in recording.images.items()}
        yield {
            "observation": images | {"state": recording.proprio[step].astype(np.float32)},
            "action": recording.actions[step].astype(np.float32),
            "language_instruction": recording.instruction,
            "is_first": step == 0,
            "is_last": step == last,
            "is_terminal": step == last,
            "reward": float(step == last),
            "discount": 1.0,
        }
