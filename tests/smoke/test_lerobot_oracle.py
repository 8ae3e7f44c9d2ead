"""Frame for frame, number for number what LeRobot's own reader gives, for sets that LeRobot's own code writes.

lerobot 0.4.4 is the newest for Python 3.11. Its environment takes two liberties, so that it needs neither CUDA nor an FFmpeg of the
system: torch 2.13 instead of 2.10, with the torchcodec that fits it, and the FFmpeg libraries that PyAV ships, under the names by which
torchcodec asks for them. LeRobot's other decoder ("pyav") is torchvision's VideoReader, which that torchvision no longer has.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from client_environments import client_python

from prismatic.vla.datasets.lerobot.source import LeRobotSource
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

SESSION = Path(__file__).parent / "clients" / "lerobot_session.py"
PACKAGES = [
    "torch==2.13.0",
    "numpy",
    "av>=15,<16",
    "datasets>=4,<5",
    "huggingface-hub>=0.34.2,<0.36",
    *("draccus==0.10.0", "deepdiff<9", "gymnasium<2", "accelerate<2", "jsonlines", "packaging", "einops", "termcolor", "imageio"),
]
UNPINNED = ["lerobot==0.4.4", "torchvision==0.28.0", "torchcodec==0.11.1"]
CAMERAS = {"primary": "observation.images.front", "wrist": "observation.images.wrist"}
ENTRY = DatasetEntry(image_obs_keys=CAMERAS)


class LeRobot:
    """The environment."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        libraries = folder / "ffmpeg"
        libraries.mkdir()
        (bundled,) = python.parents[1].glob("lib/python*/site-packages/av.libs")
        for path in bundled.iterdir():
            name = re.sub(r"-[0-9a-f]{8}(\.so\.\d+).*", r"\1", path.name)
            if name.startswith(("libav", "libsw")):
                (libraries / name).symlink_to(path)
        self.environment = {
            "LD_LIBRARY_PATH": str(libraries),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hub"),
            "PATH": os.environ["PATH"],
        }

    def write_and_read(self, folder: Path, fps: float, codec: str) -> dict[str, np.ndarray]:
        """The columns and frames of all steps of a new set, as LeRobotDataset gives them."""
        out = self.folder / "read.npz"
        command = [str(self.python), str(SESSION), str(folder), str(out), "1", str(fps), codec]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(out) as content:
            return dict(content)


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> LeRobot:
    python = client_python("lerobot", PACKAGES, tmp_path_factory, UNPINNED)
    return LeRobot(python, tmp_path_factory.mktemp("lerobot"))


@pytest.mark.clients
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("codec", "fps"), [("h264", 30), ("hevc", 15), ("libsvtav1", 7), ("h264", 29.97), ("libsvtav1", 30)])
def test_frame_for_frame_as_lerobot_reads_it(lerobot: LeRobot, tmp_path: Path, codec: str, fps: float) -> None:
    folder = tmp_path / "set"
    expected = lerobot.write_and_read(folder, fps, codec)
    source = LeRobotSource(folder, ENTRY)
    episodes = [episode.trajectory for episode in source.episodes()]
    reader = source.frame_reader()
    assert len({path for path in source.files if path.suffix == ".mp4" and "front" in str(path)}) > 1
    assert list(source.repairs) == []
    np.testing.assert_array_equal(np.concatenate([episode["action"] for episode in episodes]), expected["action"])
    np.testing.assert_array_equal(np.concatenate([episode["observation"]["state"] for episode in episodes]), expected["observation.state"])
    assert np.concatenate([episode["language_instruction"] for episode in episodes]).tolist() == expected["task"].tolist()
    for camera in CAMERAS.values():
        references = np.concatenate([episode["observation"][camera] for episode in episodes])
        frames = np.stack([reader.read(reference) for reference in references])
        np.testing.assert_array_equal(frames, expected[camera])
        assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == len(frames)  # another frame would be seen
