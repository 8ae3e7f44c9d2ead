"""Frame for frame, number for number what LeRobot's own reader gives, for sets that LeRobot's own code writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_environment import LeRobot

from prismatic.vla.datasets.lerobot.source import LeRobotSource
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

SESSION = Path(__file__).parent / "clients" / "lerobot_session.py"
CAMERAS = {"primary": "observation.images.front", "wrist": "observation.images.wrist"}
ENTRY = DatasetEntry(image_obs_keys=CAMERAS)


def write_and_read(lerobot: LeRobot, folder: Path, out: Path, fps: float, codec: str) -> dict[str, np.ndarray]:
    """The columns and frames of all steps of a new set, as LeRobotDataset gives them."""
    done = lerobot.run(SESSION, folder, out, "1", fps, codec, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as content:
        return dict(content)


@pytest.mark.clients
@pytest.mark.timeout(900, func_only=True)  # building the environment is not counted
@pytest.mark.parametrize(("codec", "fps"), [("h264", 30), ("hevc", 15), ("libsvtav1", 7), ("h264", 29.97), ("libsvtav1", 30)])
def test_frame_for_frame_as_lerobot_reads_it(lerobot: LeRobot, tmp_path: Path, codec: str, fps: float) -> None:
    folder = tmp_path / "set"
    expected = write_and_read(lerobot, folder, tmp_path / "read.npz", fps, codec)
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
