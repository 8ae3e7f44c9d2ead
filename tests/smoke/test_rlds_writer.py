"""RLDS written by tensorflow-datasets, and read back by it, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prismatic.conversion.recordings import Recording, write_recording

REPOSITORY = Path(__file__).parents[2]

# Any attempt to reach the network fails the conversion.
OFFLINE = """
import runpy, socket, sys
def refuse(*arguments):
    raise AssertionError(f"network access: {arguments}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
READ = """
import sys
import numpy as np
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
found = {name: info.num_examples for name, info in builder.info.splits.items()}
episodes = {}
for name in found:
    for episode in builder.as_dataset(name):
        steps = [step for step in episode["steps"].as_numpy_iterator()]
        path = episode["episode_metadata"]["file_path"].numpy().decode()
        flat = {key: np.stack([step[key] for step in steps]) for key in steps[0] if key != "observation"}
        flat |= {key: np.stack([step["observation"][key] for step in steps]) for key in steps[0]["observation"]}
        episodes[path] = {"split": name, **flat}
np.savez(sys.argv[2], episodes=episodes, name=builder.info.name, splits=found)
"""


def convert(folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "scripts" / "convert" / "hdf5_to_rlds.py")
    flags = ["--input_dir", str(folder / "recordings"), "--dataset_name", "toy_robot", "--data_root_dir", str(folder / "rlds"), *extra]
    return subprocess.run([sys.executable, "-c", OFFLINE, script, *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)


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
    done = convert(tmp_path, "--val_fraction", "0.2")
    assert done.returncode == 0, done.stderr
    target = tmp_path / "rlds" / "toy_robot" / "1.0.0"
    assert [item.name for item in (tmp_path / "rlds").iterdir()] == ["toy_robot"]  # no temporary folder is left
    output = tmp_path / "read.npz"
    subprocess.run([sys.executable, "-c", READ, str(target), str(output)], check=True, capture_output=True, timeout=200)
    read = np.load(output, allow_pickle=True)
    assert read["name"] == "toy_robot"
    assert read["splits"].item() == {"train": 8, "val": 2}
    episodes = read["episodes"].item()
    assert episodes.keys() == written.keys()
    assert {path.split("/")[0] for path, episode in episodes.items() if episode["split"] == "val"} == {"task_0", "task_1"}
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
def test_contradicting_recordings_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    record(tmp_path / "recordings" / "a.hdf5", 0)
    record(tmp_path / "recordings" / "b.hdf5", 1, actions=np.zeros((6, 7), np.float32))
    done = convert(tmp_path, "--val_fraction", "0")
    assert done.returncode == 2
    assert "b.hdf5 has action_dim 7" in done.stderr
    assert "a.hdf5 has 4" in done.stderr
    assert list((tmp_path / "rlds").iterdir()) == []
