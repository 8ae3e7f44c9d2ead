"""Writes small HDF5 recordings in the layouts of ALOHA (ACT) and of LIBERO."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from rlds_writer import smooth_image

from prismatic.vla.images import encode_jpeg

ALOHA_CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
PROBLEM = {"problem_name": "libero_tabletop_manipulation", "language_instruction": "put the bowl on the plate"}


def camera_images(seed: int, length: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    return np.stack([smooth_image(100 * seed + step, *size) for step in range(length)])


def write_aloha(
    path: Path,
    length: int = 6,
    seed: int = 0,
    *,
    compressed: bool = False,
    instruction: str | None = None,
    size: tuple[int, int] = (24, 32),
) -> Path:
    """One episode as ALOHA's recording script saves it, raw or compressed; no instruction unless one is given."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, compressed
        file["action"] = rng.normal(size=(length, 14)).astype(np.float32)
        for name in ("qpos", "qvel", "effort"):
            file[f"observations/{name}"] = rng.normal(size=(length, 14))
        encoded = {
            camera: [encode_jpeg(image) for image in camera_images(10 * seed + number, length, size)]
            for number, camera in enumerate(ALOHA_CAMERAS)
        }
        longest = max(len(image) for images in encoded.values() for image in images)
        for number, (camera, images) in enumerate(encoded.items()):
            if compressed:
                padded = np.stack([np.frombuffer(image.ljust(longest, b"\0"), np.uint8) for image in images])
                file.create_dataset(f"observations/images/{camera}", data=padded, chunks=(1, longest))
            else:
                file[f"observations/images/{camera}"] = camera_images(10 * seed + number, length, size)
        if compressed:
            file["compress_len"] = np.array([[len(image) for image in images] for images in encoded.values()])
        if instruction is not None:
            file.attrs["language_instruction"] = instruction
    return path


def write_libero(path: Path, lengths: tuple[int, ...] = (5, 4), seed: int = 0, *, problem: dict | None = None) -> Path:
    """One task with several demonstrations, images upside down; `problem` None: PROBLEM, {}: none."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    problem = PROBLEM if problem is None else problem
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if problem:
            data.attrs["problem_info"] = json.dumps(problem)
        data.attrs["env_args"] = json.dumps({"type": 1})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            actions = np.clip(rng.normal(size=(length, 7)), -1, 1)
            actions[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
            demo["actions"], demo["states"] = actions, rng.normal(size=(length, 92))
            demo["dones"], demo["rewards"] = np.arange(length) == length - 1, np.arange(length) == length - 1
            for name, width in (("ee_states", 6), ("joint_states", 7), ("gripper_states", 2)):
                demo[f"obs/{name}"] = rng.normal(size=(length, width))
            for camera, name in enumerate(("agentview_rgb", "eye_in_hand_rgb")):
                demo[f"obs/{name}"] = camera_images(100 * seed + 10 * number + camera, length, (32, 32))
    return path
