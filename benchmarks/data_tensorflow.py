"""The TensorFlow side of benchmarks/data.py, in processes of its own: writes the data sets, and reads them with tf.data.

    python data_tensorflow.py write FOLDER KIND NUM_EPISODES     writes FOLDER/<name>/1.0.0 with tensorflow-datasets
    python data_tensorflow.py read FOLDER KIND                   answers "measure SECONDS" lines on stdin with JSON lines

The pipeline does what fine-tuning with tf.data does: TFDS reader, trajectory with action chunks, shuffle buffer, JPEG decode,
lanczos3 to 224, crop and colour, uint8; then numpy and, where asked for, Pillow and the image processor of the model.
Every thread pool has one thread.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from data_kinds import IMAGE_SIZE, INSTRUCTIONS, KINDS, Kind, make_jpegs

_SHUFFLE_BUFFER = 256  # small, so that filling it is no part of the comparison


def write(folder: Path, kind: Kind, num_episodes: int) -> None:
    """An RLDS data set of `num_episodes` episodes, JPEG images."""
    features = tfds.features
    height, width = kind.image_shape
    observation: dict[str, Any] = {key: features.Image(shape=(height, width, 3), encoding_format="jpeg") for key in kind.image_keys}
    observation |= {key: features.Tensor(shape=(dim,), dtype=np.float32) for key, dim in kind.state_dims.items()}
    step = {
        "observation": observation,
        "action": features.Tensor(shape=(kind.action_dim,), dtype=np.float32),
        "language_instruction": features.Text(),
        "is_first": features.Scalar(dtype=np.bool_),
        "is_last": features.Scalar(dtype=np.bool_),
    }

    class Builder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = kind.dataset_name

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict({"steps": features.Dataset(step)}))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
            for number, steps in enumerate(_episodes(kind, num_episodes)):
                yield str(number), {"steps": steps}

    Builder(data_dir=folder).download_and_prepare()


def _episodes(kind: Kind, num_episodes: int) -> Iterator[list[dict[str, Any]]]:
    jpegs = make_jpegs(kind)
    rng = np.random.default_rng(0)
    for number in range(num_episodes):
        yield [
            {
                "observation": {key: io.BytesIO(jpegs[rng.integers(len(jpegs))]) for key in kind.image_keys}
                | {key: rng.normal(size=dim).astype(np.float32) for key, dim in kind.state_dims.items()},
                "action": rng.uniform(-1, 1, kind.action_dim).astype(np.float32),
                "language_instruction": INSTRUCTIONS[number % len(INSTRUCTIONS)],
                "is_first": step == 0,
                "is_last": step == kind.episode_length - 1,
            }
            for step in range(kind.episode_length)
        ]


def pipeline(folder: Path, kind: Kind) -> tf.data.Dataset:
    """Endless samples: uint8 images [S, S, 3] of each camera, a chunk of actions, the state and the instruction."""
    builder = tfds.builder_from_directory(str(folder / kind.dataset_name / "1.0.0"))
    episodes = builder.as_dataset(split="train", shuffle_files=True, decoders={"steps": tfds.decode.SkipDecoding()})
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.deterministic = False

    def trajectory(episode: dict[str, Any]) -> dict[str, Any]:
        steps = episode["steps"]
        length = tf.shape(steps["action"])[0]
        window = tf.minimum(tf.range(length)[:, None] + tf.range(kind.chunk)[None, :], length - 1)
        state = tf.concat([steps["observation"][key] for key in kind.state_dims], -1)
        return {
            "images": {key: steps["observation"][key] for key in kind.image_keys},
            "actions": tf.clip_by_value(tf.gather(steps["action"], window), -1.0, 1.0),
            "proprio": tf.clip_by_value(state, -1.0, 1.0),
            "instruction": steps["language_instruction"],
        }

    def frames(sample: dict[str, Any]) -> dict[str, Any]:
        images = tuple(_resize(tf.io.decode_jpeg(encoded, channels=3)) for encoded in sample["images"].values())
        return {**sample, "images": images}

    def augment(sample: dict[str, Any]) -> dict[str, Any]:
        seed = tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
        return {**sample, "images": tuple(_augment(image, seed) for image in sample["images"])}

    samples = episodes.repeat().map(trajectory).flat_map(tf.data.Dataset.from_tensor_slices)
    return samples.shuffle(_SHUFFLE_BUFFER).map(frames).map(augment).with_options(options)


def _resize(image: tf.Tensor) -> tf.Tensor:
    resized = tf.image.resize(image, (IMAGE_SIZE, IMAGE_SIZE), method="lanczos3", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _augment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    def clip(pixels: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(pixels, 0.0, 1.0)

    pixels = tf.image.convert_image_dtype(image, tf.float32)
    side = tf.sqrt(tf.constant([0.9]))
    top = tf.random.stateless_uniform([1], seed, 0, 1 - side)
    left = tf.random.stateless_uniform([1], seed + 1, 0, 1 - side)
    boxes = tf.stack([top, left, top + side, left + side], -1)
    pixels = clip(tf.image.crop_and_resize(pixels[None], boxes, [0], (IMAGE_SIZE, IMAGE_SIZE))[0])
    pixels = clip(tf.image.stateless_random_brightness(pixels, 0.2, seed))
    pixels = clip(tf.image.stateless_random_contrast(pixels, 0.8, 1.2, seed))
    pixels = clip(tf.image.stateless_random_saturation(pixels, 0.8, 1.2, seed))
    pixels = clip(tf.image.stateless_random_hue(pixels, 0.05, seed))
    return tf.image.convert_image_dtype(pixels, tf.uint8, saturate=True)


def read(folder: Path, kind: Kind) -> None:
    """Answers every line {"seconds": s, "normalize": bool} with {"samples": n, "cpu_seconds": c}."""
    import torch
    from PIL import Image

    from prismatic.models.processor import PrismaticImageProcessor

    torch.set_num_threads(1)
    processor = PrismaticImageProcessor(IMAGE_SIZE)
    samples = pipeline(folder, kind).as_numpy_iterator()
    next(samples)
    for line in sys.stdin:
        request = json.loads(line)
        count, start, cpu = 0, time.monotonic(), time.process_time()
        while time.monotonic() - start < request["seconds"]:
            images = next(samples)["images"]
            if request["normalize"]:
                processor([Image.fromarray(image) for image in images])
            count += 1
        print(json.dumps({"samples": count, "cpu_seconds": time.process_time() - cpu}), flush=True)


def main(action: str, folder: Path, kind: Kind, num_episodes: int) -> None:
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if action == "write":
        write(folder, kind, num_episodes)
    else:
        read(folder, kind)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), KINDS[sys.argv[3]], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
