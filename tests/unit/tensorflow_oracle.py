"""Run as a script in a process of its own: TensorFlow's and tensorflow-datasets' answers, for test_rlds_oracle.py.

python tensorflow_oracle.py FOLDER   writes FOLDER/rlds (a data set) and FOLDER/*.npz, *.jpg
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from rlds_writer import make_episode, serialize_example, smooth_image
from tensorflow_inputs import RESIZES, SIDES, TOLD, draws, encoded_images, frames, single_draws

from prismatic.vla.images import AugmentationDraw


def _convert(pixels: tf.Tensor) -> np.ndarray:
    return tf.image.convert_image_dtype(pixels, tf.uint8, saturate=True).numpy()


def _crop(pixels: tf.Tensor, top: float, left: float) -> tf.Tensor:
    side = np.sqrt(0.9)
    count, size = pixels.shape[0], pixels.shape[1:3]
    return tf.clip_by_value(tf.image.crop_and_resize(pixels, [[top, left, top + side, left + side]] * count, range(count), size), 0, 1)


def _augment(images: np.ndarray, draw: AugmentationDraw) -> np.ndarray:
    def clip(pixels: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(pixels, 0, 1)

    pixels = _crop(tf.image.convert_image_dtype(images, tf.float32), float(draw.crop_y[0]), float(draw.crop_x[0]))
    pixels = clip(tf.image.adjust_brightness(pixels, draw.brightness[0]))
    pixels = clip(tf.image.adjust_contrast(pixels, draw.contrast[0]))
    pixels = clip(tf.image.adjust_saturation(pixels, draw.saturation[0]))
    return _convert(clip(tf.image.adjust_hue(pixels, draw.hue[0])))


class OracleSet(tfds.core.GeneratorBasedBuilder):
    """Every way in which tensorflow-datasets stores a step feature that our reader knows."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        observation = {
            "image": features.Image(shape=(48, 64, 3), encoding_format="jpeg"),
            "wrist_image": features.Image(shape=(31, 45, 3), encoding_format="png"),
            "state": features.Tensor(shape=(8,), dtype=np.float32),
            "zipped": features.Tensor(shape=(2, 3), dtype=np.float32, encoding="zlib"),
            "raw": features.Tensor(shape=(3,), dtype=np.float64, encoding="bytes"),
            "count": features.Scalar(dtype=np.int32),
            "big": features.Tensor(shape=(2,), dtype=np.int64),
            "note": features.Tensor(shape=(2,), dtype=np.str_),
        }
        step = {
            "observation": observation,
            "action": {"arm": features.Tensor(shape=(6,), dtype=np.float32), "gripper": features.Scalar(dtype=np.bool_)},
            "language_instruction": features.Text(),
            "kind": features.ClassLabel(names=["a", "b"]),
            "windows": features.Sequence(features.Tensor(shape=(2,), dtype=np.float32)),  # left out by our reader
        }
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict({"steps": features.Dataset(step), "episode": np.int32}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(0, 7), "val": self._generate_examples(7, 9)}

    def _generate_examples(self, first: int, last: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(first, last):
            rng = np.random.default_rng(number)
            yield str(number), {"steps": [self._step(rng, number, step) for step in range(2 + number)], "episode": number}

    def _step(self, rng: np.random.Generator, number: int, step: int) -> dict[str, Any]:
        observation = {
            "image": smooth_image(100 * number + step, 48, 64),
            "wrist_image": smooth_image(100 * number + step, 31, 45),
            "state": rng.normal(size=8).astype(np.float32),
            "zipped": rng.normal(size=(2, 3)).astype(np.float32),
            "raw": rng.normal(size=3),
            "count": -step,
            "big": np.array([2**60 + step, -(2**60)]),
            "note": ["ä" * step, "b"],
        }
        return {
            "observation": observation,
            "action": {"arm": rng.normal(size=6).astype(np.float32), "gripper": bool(step % 2)},
            "language_instruction": f"task {number}",
            "kind": step % 2,
            "windows": rng.normal(size=(step, 2)).astype(np.float32),
        }


class ToldSet(tfds.core.GeneratorBasedBuilder):
    """Lists of texts for each step, a list beside the steps, image files in a string tensor."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        step = {
            "observation": {"image": features.Tensor(shape=(), dtype=np.object_)},
            "action": features.Tensor(shape=(2,), dtype=np.float32),
            "language_instruction": features.Sequence(features.Text()),
        }
        metadata = {"lang": features.Sequence(features.Text())}
        whole = features.FeaturesDict({"steps": features.Dataset(step), "episode_metadata": metadata})
        return tfds.core.DatasetInfo(builder=self, features=whole)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, (lists, beside) in enumerate(TOLD):
            steps = [
                {
                    "observation": {"image": tf.io.encode_jpeg(smooth_image(step, 16, 16)).numpy()},
                    "action": np.full(2, number, np.float32),
                    "language_instruction": list(texts),
                }
                for step, texts in enumerate(lists)
            ]
            yield str(number), {"steps": steps, "episode_metadata": {"lang": list(beside)}}


def _write_dataset(folder: Path) -> None:
    ToldSet(data_dir=folder / "rlds").download_and_prepare()
    builder = OracleSet(data_dir=folder / "rlds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    for split in ("train", "val"):
        for number, episode in enumerate(builder.as_dataset(split=split)):
            steps = [dict(_flatten(step)) for step in tfds.as_numpy(episode["steps"])]
            arrays = {path: np.stack([step[path] for step in steps]) for path in steps[0] if path != "windows"}
            np.savez(folder / f"episode_{split}_{number}.npz", **{path: _as_text(values) for path, values in arrays.items()})


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}|")
        else:
            yield f"{prefix}{name}", value


def _as_text(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "OS":
        return values
    return np.array([text.decode() for text in values.ravel()]).reshape(values.shape)


def main(folder: Path) -> None:
    """Writes a data set to folder/rlds, and the answers to folder/*.npz and *.jpg."""
    _write_dataset(folder)
    np.savez(folder / "decoded.npz", **{name: tf.io.decode_image(data, channels=3).numpy() for name, data in encoded_images().items()})
    resized = {}
    for height, width, size in RESIZES:
        pixels = tf.image.resize(smooth_image(height, height, width), (size, size), "lanczos3", antialias=True)
        resized[f"{height}_{width}_{size}"] = tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8).numpy()
        (folder / f"{height}_{width}.jpg").write_bytes(tf.io.encode_jpeg(smooth_image(height, height, width), quality=95).numpy())
    np.savez(folder / "resized.npz", **resized)
    augmented = {}
    for side in SIDES:
        offset = (1 - np.sqrt(0.9)) / 2
        augmented[f"center_{side}"] = _convert(_crop(tf.image.convert_image_dtype(frames(side), tf.float32), offset, offset))
        for number, draw in enumerate(draws()):
            augmented[f"draw_{side}_{number}"] = _augment(frames(side), draw)
        for name, draw in single_draws().items():
            augmented[f"{name}_{side}"] = _augment(frames(side), draw)
    np.savez(folder / "augmented.npz", **augmented)
    example = tf.train.Example.FromString(serialize_example(make_episode(3)))
    np.savez(
        folder / "example.npz",
        state=np.array(example.features.feature["steps/observation/state"].float_list.value, np.float32),
        is_first=np.array(example.features.feature["steps/is_first"].int64_list.value),
        text=np.array([text.decode() for text in example.features.feature["steps/language_instruction"].bytes_list.value]),
    )
