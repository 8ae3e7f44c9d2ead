"""Raw ALOHA recordings -> smaller ones with raw square images, divided into train/ and val/. Letters: T steps, S image side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.hdf5.act import act_images, act_instruction
from prismatic.vla.datasets.hdf5.columns import data_sets
from prismatic.vla.datasets.hdf5.images import read_frame
from prismatic.vla.datasets.hdf5.layout import is_robomimic, open_file
from prismatic.vla.datasets.splits import choose_validation
from prismatic.vla.datasets.texts import distinct_texts, draw_text
from prismatic.vla.images import resize_lanczos3


def divide(paths: list[Path], percent_val: float, instruction: str | None = None, root: Path | None = None) -> dict[Path, str]:
    """path -> "train" or "val": the division that training would make, the tasks being what the recordings say, or `instruction`.

    `root`: the folder of the data set, in which a table of instructions may lie; None: the recording's own.

    Raises:
        ValueError: two recordings have the same name, or one is damaged.
    """
    names = [path.name for path in paths]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{double} occurs more than once under --dataset_path; preprocess each folder of episodes by itself")
    if percent_val == 0 or len(paths) == 1:
        return dict.fromkeys(paths, "train")
    tasks = [instruction or _instruction(path, root or path.parent) for path in paths]
    return {path: "val" if flag else "train" for path, flag in zip(paths, choose_validation(names, tasks, percent_val), strict=True)}


def _instruction(path: Path, root: Path) -> str:
    with open_file(path) as file:
        return "" if is_robomimic(file) else draw_text(distinct_texts(act_instruction(file, path, root)), path.name)


def preprocess_recording(path: Path, target: Path, image_size: int, instruction: str | None = None, root: Path | None = None) -> None:
    """Writes `target` like `path` with images uint8 [T, S, S, 3], decoded and resized (lanczos3); complete or absent.

    The text of a table beside `path`, or in a folder above it up to `root`, is written into `target`, which will lie elsewhere.

    Raises:
        ValueError: `path` is damaged or not one episode in the layout of ACT; the message names it.
    """
    import h5py

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open_file(path) as source, h5py.File(temporary, "w") as file:
            if is_robomimic(source):
                raise ValueError("holds many demonstrations (/data); this script takes one episode per file, as ALOHA records them")
            for name, value in source.attrs.items():
                file.attrs[name] = value
            file.attrs["compress"] = False
            images = act_images(source)
            texts = (instruction,) if instruction else act_instruction(source, path, root or path.parent)
            if isinstance(texts, tuple) and texts:  # a text of every step is copied with the other arrays
                file.attrs["language_instruction"] = texts[0] if len(texts) == 1 else texts
            for name in _arrays(source, {stored.name for stored in images.values()}):
                file.create_dataset(name, data=source[name][()])
            for camera, stored in images.items():
                _write_images(file, camera, stored, image_size)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _arrays(file: Any, images: set[str]) -> Iterator[str]:
    """The names of all data sets but the images and the lengths of their compressed files."""
    return (name for name, stored in data_sets(file) if stored.name not in images and name != "compress_len")


def _write_images(file: Any, camera: str, stored: Any, image_size: int) -> None:
    shape = (len(stored), image_size, image_size, 3)
    images = file.create_dataset(f"observations/images/{camera}", shape, np.uint8, chunks=(1, *shape[1:]))
    for row in range(len(stored)):
        images[row] = resize_lanczos3(read_frame(stored, row), image_size)
