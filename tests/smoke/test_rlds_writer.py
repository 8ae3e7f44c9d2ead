"""RLDS written by tensorflow-datasets out of our own recordings, and read back by it, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conversion_process import convert, read_with_tfds

from prismatic.vla.datasets.hdf5.recording import Recording, write_recording

SCRIPT = "aloha_hdf5_to_rlds.py"


def record(path: Path, seed: int, **changes) -> Recording:
    rng = np.random.default_rng(seed)
    image = np.broadcast_to(rng.integers(40, 200, (6, 1, 1, 3), dtype=np.uint8), (6, 16, 24, 3))  # flat colours survive JPEG
    parts = {
        "actions": rng.normal(size=(6, 4)).astype(np.float32),
        "proprio": rng.normal(size=(6, 3)).astype(np.float32),
        "images": {"primary": image, "wrist": image[::-1]},
        "instruction": f"push {seed % 2}",
    }
    recording = Recording(**(parts | changes))
    write_recording(path, recording)
    return recording


@pytest.mark.rlds
def test_what_was_recorded_is_what_tfds_reads(tmp_path: Path) -> None:
    names = [f"task_{task}/episode_{index:06d}.hdf5" for task in range(2) for index in range(5)]
    written = {name: record(tmp_path / "recordings" / name, seed) for seed, name in enumerate(names)}
    done = convert(SCRIPT, tmp_path, "--val_fraction", "0.2")
    assert done.returncode == 0, done.stderr
    target = tmp_path / "rlds" / "toy_robot" / "1.0.0"
    assert [item.name for item in (tmp_path / "rlds").iterdir()] == ["toy_robot"]  # no temporary folder is left
    read = read_with_tfds(target, tmp_path / "read.npz")
    assert read["name"] == "toy_robot"
    assert read["splits"] == {"train": 8, "val": 2}
    episodes = read["episodes"]
    assert episodes.keys() == written.keys()
    assert {str(episode["language_instruction"][0]) for episode in episodes.values() if episode["split"] == "val"} == {
        "b'push 0'",
        "b'push 1'",
    }
    for path, recording in written.items():
        episode = episodes[path]
        np.testing.assert_array_equal(episode["action"], recording.actions)
        np.testing.assert_array_equal(episode["state"], recording.proprio)
        for key, camera in (("image", "primary"), ("wrist_image", "wrist")):
            np.testing.assert_allclose(episode[key].astype(int), recording.images[camera].astype(int), atol=4)  # JPEG quality 95
        assert {text.decode() for text in episode["language_instruction"]} == {recording.instruction}
        assert episode["is_first"].tolist() == [True] + [False] * 5
        assert episode["is_last"].tolist() == episode["is_terminal"].tolist() == [False] * 5 + [True]
        assert episode["reward"].tolist() == [0.0] * 5 + [1.0]
        assert episode["discount"].tolist() == [1.0] * 6


@pytest.mark.rlds
def test_contradicting_recordings_are_refused(tmp_path: Path) -> None:
    record(tmp_path / "recordings" / "a.hdf5", 0)
    record(tmp_path / "recordings" / "b.hdf5", 1, actions=np.zeros((6, 7), np.float32))
    done = convert(SCRIPT, tmp_path, "--val_fraction", "0")
    assert done.returncode == 2
    assert "b.hdf5 has action_dim 7" in done.stderr
    assert "a.hdf5 has 4" in done.stderr
    assert not (tmp_path / "rlds" / "toy_robot").exists()
