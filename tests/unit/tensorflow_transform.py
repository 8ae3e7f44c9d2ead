"""Run as a script in a process of its own: a transform in the familiar tf style on one recording, for test_transforms.py.

python tensorflow_transform.py FILE   reads the recording's action and state from FILE, an .npz, and writes the episode into it
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, standardize
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import NumpyTransform
from prismatic.vla.datasets.transform_key import transform_key


def with_tensorflow(trajectory: dict[str, Any]) -> dict[str, Any]:
    """Drops the first step, inverts the gripper, writes instructions in capitals."""
    trajectory["observation"] = {key: value[1:] for key, value in trajectory["observation"].items()}
    action = trajectory["action"][1:]
    trajectory["action"] = tf.concat([action[:, :6], 1 - tf.clip_by_value(action[:, -1:], 0, 1)], axis=-1)
    trajectory["language_instruction"] = tf.strings.upper(tf.constant(list(trajectory["language_instruction"][1:])))
    trajectory["observation"]["state"] = tf.cast(trajectory["observation"]["state"], tf.float32)
    return trajectory


def main(path: Path) -> None:
    stored = np.load(path)
    images = np.zeros(len(stored["action"]), IMAGE_REF)
    images["offset"] = np.arange(len(images))
    recording = {
        "action": stored["action"],
        "observation": {"state": stored["state"], "image": images, "wrist_image": images},
        "language_instruction": np.array(["do it"] * len(images), object),
    }
    transform = NumpyTransform(with_tensorflow)
    episode = standardize(RawEpisode("train", "episode", recording), DatasetEntry(), transform)
    np.savez(
        path,
        actions=episode.actions,
        proprio=episode.proprio,
        offsets=episode.images["offset"],
        instructions=episode.instructions,
        key=transform_key(transform),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
