"""The data sets that benchmarks/data.py writes and reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from prismatic.vla.images import encode_jpeg

IMAGE_SIZE = 224  # S of OpenVLA-7B
INSTRUCTIONS = ("pick up the black bowl and place it on the plate", "put the red pepper into the pot", "fold the shorts")
_NUM_IMAGES = 64  # distinct images of a set


@dataclass(frozen=True)
class Kind:
    """One sort of data set."""

    dataset_name: str  # its entry in the registry
    image_keys: tuple[str, ...]
    image_shape: tuple[int, int]  # height, width
    state_dims: Mapping[str, int]
    action_dim: int
    chunk: int
    episode_length: int
    num_episodes: int  # of the set at 1x
    batch_size: int  # of the timing on a device


KINDS = {
    "libero": Kind("libero_spatial_no_noops", ("image", "wrist_image"), (256, 256), {"state": 8}, 7, 8, 100, 20, 8),
    "aloha": Kind(
        "aloha1_fold_shorts_20_demos", ("image", "left_wrist_image", "right_wrist_image"), (256, 256), {"state": 14}, 14, 25, 200, 8, 4
    ),
    "aloha_480x640": Kind(
        "aloha1_fold_shorts_20_demos", ("image", "left_wrist_image", "right_wrist_image"), (480, 640), {"state": 14}, 14, 25, 200, 2, 4
    ),
}


def make_jpegs(kind: Kind) -> list[bytes]:
    """Synthetic scenes with edges, gradients and sensor noise; at 256 px about as large as a camera's JPEG of quality 95."""
    rng = np.random.default_rng(0)
    height, width = kind.image_shape
    jpegs = []
    for _ in range(_NUM_IMAGES):
        coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        scene = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        scene[height // 4 : height // 2, width // 3 : width // 2] //= 2  # an object with sharp edges
        noisy = scene + rng.integers(-3, 4, scene.shape, dtype=np.int16)
        jpegs.append(encode_jpeg(np.clip(noisy, 0, 255).astype(np.uint8)))
    return jpegs
