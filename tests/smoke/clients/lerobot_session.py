"""Reads a set with LeRobotDataset of the unmodified lerobot 0.4.4, where asked one that its code writes first.

Arguments: FOLDER OUT STEP (every n-th pixel is kept) [FPS CODEC].
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERAS = {"observation.images.front": (96, 128, 3), "observation.images.wrist": (64, 64, 3)}
LENGTHS = (23, 31, 17, 26, 20)
NAMES = ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]


class Rate(float):
    """29.97 and the like, also as the fraction that PyAV wants: LeRobot hands the number on to it."""

    numerator = property(lambda self: round(self * 1001 / 1000) * 1000)
    denominator = 1001


def picture(number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Its number in grey squares on a moving ground: no two pictures of a set are alike."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ground = np.stack([np.sin((columns + phase * number) / 9 + phase) * 40 + 100 for phase in (1, 2, 3)], axis=2)
    for bit in range(8):
        left = 2 + bit * (shape[1] - 4) // 8
        ground[4:20, left : left + (shape[1] - 4) // 8] = 230 if number >> bit & 1 else 25
    return np.clip(ground + rows[..., None] * 0.2, 0, 255).astype(np.uint8)


def write(folder: Path, fps: float, codec: str) -> None:
    features = {name: {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]} for name, shape in CAMERAS.items()}
    for name in ("action", "observation.state"):
        features[name] = {"dtype": "float32", "shape": (3,), "names": NAMES}
    rate = int(fps) if fps == int(fps) else Rate(fps)
    data = LeRobotDataset.create("me/set", rate, features, root=folder, robot_type="so101_follower", use_videos=True, vcodec=codec)
    data.meta.update_chunk_settings(chunks_size=2, data_files_size_in_mb=1, video_files_size_in_mb=0.01)
    number, rng = 0, np.random.default_rng(0)
    for episode, length in enumerate(LENGTHS):
        for _ in range(length):
            values = {name: rng.normal(size=3).astype(np.float32) for name in ("action", "observation.state")}
            images = {name: picture(number, shape) for name, shape in CAMERAS.items()}
            data.add_frame({**values, **images, "task": f"task {episode % 2}"})
            number += 1
        data.save_episode()
    data.finalize()


def read(folder: Path, out: Path, step: int) -> None:
    data = LeRobotDataset("me/set", root=folder)
    assert data.video_backend == "torchcodec"
    columns = ("action", "observation.state", "episode_index")
    arrays: dict[str, list] = {name: [] for name in (*columns, "task", *data.meta.video_keys)}
    for item in map(data.__getitem__, range(len(data))):
        for name in columns:
            arrays[name].append(np.asarray(item[name]))
        for camera in data.meta.video_keys:  # float [3, height, width], 0 to 1
            arrays[camera].append((item[camera] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()[::step, ::step])
        arrays["task"].append(item["task"])
    np.savez(out, **{name: np.stack(values) for name, values in arrays.items()})


if __name__ == "__main__":
    if len(sys.argv) > 4:
        write(Path(sys.argv[1]), float(sys.argv[4]), sys.argv[5])
    read(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
