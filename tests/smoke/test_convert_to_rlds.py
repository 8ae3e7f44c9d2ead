"""The conversion scripts as processes: what tensorflow-datasets and RldsSource read back, language, no-ops, interrupts."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversion_process import REPOSITORY, command, convert, read_with_tfds

sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))
from hdf5_files import camera_images, write_aloha, write_libero
from lerobot_writer import change_column, decode_video, make_episode, write_v3

from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, find_entry
from prismatic.vla.datasets.rlds.oxe.transforms import find_transform
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.sources import open_source
from prismatic.vla.images import decode_image, encode_jpeg, resize_lanczos3

ALOHA = find_entry("aloha1_put_X_into_pot_300_demos")
LIBERO = find_entry("libero_spatial_no_noops")
NUM_EPISODES = 8  # of the conversion that is interrupted


def index_of(folder: Path, entry: DatasetEntry) -> EpisodeIndex:
    return load_index(open_source(folder, entry), entry, find_transform("none", entry.transform))


def target_of(folder: Path) -> Path:
    return folder / "rlds" / "toy_robot" / "1.0.0"


@pytest.mark.rlds
def test_aloha_compressed_resized_with_a_file_of_instructions(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "recordings" / ("val" if number == 3 else "train") / f"episode_{number}.hdf5"
        with h5py.File(write_aloha(path, 5, number, compressed=True), "a") as file:
            file.attrs["fast_rendering"], file.attrs["image_size"] = True, 48
    with h5py.File(write_aloha(tmp_path / "recordings/train/episode_7.hdf5", 5, 7, compressed=True), "a") as file:  # is left out
        file["observations/images/cam_high"][2, 30:] = 0
    (tmp_path / "texts.json").write_text(json.dumps({"episode_1": "fold the shirt", "*": "open the pot"}))
    done = convert("aloha_hdf5_to_rlds.py", tmp_path, "--image_size", "16")
    assert done.returncode == 2
    assert "train/episode_0.hdf5: no language instruction" in done.stderr
    done = convert("aloha_hdf5_to_rlds.py", tmp_path, "--image_size", "16", "--instructions_file", str(tmp_path / "texts.json"))
    assert done.returncode == 0, done.stderr
    assert "episodes with damaged images are left out (1, first: " in done.stderr
    assert "train/episode_7.hdf5, /observations/images/cam_high, row 2: " in done.stderr
    assert os.listdir(tmp_path / "rlds") == ["toy_robot"]
    read = read_with_tfds(target_of(tmp_path), tmp_path / "read.npz")
    assert read["splits"] == {"train": 3, "val": 1}
    episodes = read["episodes"]
    assert episodes["train/episode_1.hdf5"]["language_instruction"][0] == b"fold the shirt"
    assert episodes["val/episode_3.hdf5"]["split"] == "val"
    index = index_of(target_of(tmp_path), ALOHA)  # our reader sees the same pixels as tensorflow-datasets
    assert isinstance(open_source(target_of(tmp_path), ALOHA), RldsSource)
    assert {name: last - first for name, (first, last) in index.splits.items()} == {"train": 3, "val": 1}
    assert list(index.facts) == [{"fast_rendering": True}] * 4  # the size is not theirs any more
    for number in range(4):
        episode = episodes[f"{'val' if number == 3 else 'train'}/episode_{number}.hdf5"]
        step = int(np.flatnonzero((index.actions == episode["action"][0]).all(axis=1))[0])
        np.testing.assert_array_equal(index.proprio[step : step + 5], episode["state"])
        for camera, key in enumerate(("image", "left_wrist_image", "right_wrist_image")):
            recorded = camera_images(10 * number + camera, 5)[2]
            expected = decode_image(encode_jpeg(resize_lanczos3(decode_image(encode_jpeg(recorded)), 16)))
            np.testing.assert_array_equal(index.reader.read(index.images[step + 2, camera]), expected)
            np.testing.assert_array_equal(episode[key][2], expected)


@pytest.mark.rlds
def test_a_mobile_base_is_joined_on_request_and_mentioned_otherwise(tmp_path: Path) -> None:
    for number in range(2):
        path = write_aloha(tmp_path / "recordings" / f"episode_{number}.hdf5", 5, number, instruction="drive")
        with h5py.File(path, "a") as file:
            file["base_action"] = np.full((5, 2), 0.25 + number)
            for name in ("left", "right"):
                file[f"observations/arms/{name}"] = np.full((5, 7), number)
    without = ("--state", "qvel", "--val_fraction", "0")
    done = convert("aloha_hdf5_to_rlds.py", tmp_path, *without)
    assert done.returncode == 0, done.stderr
    assert "/base_action is recorded beside the actions and is not used (2, first: " in done.stderr
    assert "in a conversion --action action,base_action" in done.stderr
    done = convert("aloha_hdf5_to_rlds.py", tmp_path, "--state", "arms", "--overwrite", "True")
    assert done.returncode == 2
    assert "'arms' is a group of ['left', 'right']" in done.stderr
    assert "(in a conversion: --state arms/left,arms/right)" in done.stderr
    wanted = ("--action", "action,base_action", "--state", "arms/right,qpos", "--val_fraction", "0", "--overwrite", "True")
    wanted += ("--image_channel_order", "bgr")
    done = convert("aloha_hdf5_to_rlds.py", tmp_path, *wanted)
    assert done.returncode == 0, done.stderr
    assert "base_action is" not in done.stderr
    episodes = read_with_tfds(target_of(tmp_path), tmp_path / "read.npz")["episodes"]
    assert episodes["episode_1.hdf5"]["action"].shape == (5, 16)
    assert episodes["episode_1.hdf5"]["action"][:, 14:].tolist() == [[1.25, 1.25]] * 5
    assert episodes["episode_1.hdf5"]["state"].shape == (5, 21)
    assert set(episodes["episode_1.hdf5"]["state"][:, :7].ravel().tolist()) == {1.0}
    exchanged = camera_images(10, 5)[2][..., ::-1]
    assert np.abs(episodes["episode_1.hdf5"]["image"][2].astype(int) - exchanged).mean() < 12  # JPEG


@pytest.mark.rlds
def test_libero_without_idle_steps_is_what_the_source_reads(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "recordings" / "pick_up_the_bowl_demo.hdf5", (6, 5))
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"][4, :6] = 0  # after the gripper has closed
    done = convert("libero_hdf5_to_rlds.py", tmp_path, "--filter_noops", "True")
    assert done.returncode == 0, done.stderr
    assert "left out 1 of 11 steps" in done.stderr
    converted, recorded = index_of(target_of(tmp_path), LIBERO), index_of(tmp_path / "recordings", LIBERO)
    assert converted.instructions == recorded.instructions == ("put the bowl on the plate",)
    kept = np.delete(np.arange(11), 4)
    order = [int(np.flatnonzero((converted.actions == recorded.actions[step]).all(axis=1))[0]) for step in kept]
    assert sorted(order) == list(range(10))
    np.testing.assert_array_equal(converted.proprio[order], recorded.proprio[kept])
    for camera in range(2):
        expected = decode_image(encode_jpeg(recorded.reader.read(recorded.images[8, camera])))
        np.testing.assert_array_equal(converted.reader.read(converted.images[order[7], camera]), expected)


@pytest.mark.rlds
def test_lerobot_videos(tmp_path: Path) -> None:
    episodes = [make_episode(6, seed, f"task {seed % 2}") for seed in range(4)]
    folder = write_v3(tmp_path / "recordings", episodes, splits={"train": "0:3", "val": "3:4"})
    done = convert("lerobot_to_rlds.py", tmp_path)
    assert done.returncode == 2
    assert "which camera is 'top'? Say it for each" in done.stderr
    (tmp_path / "texts.json").write_text(json.dumps({"data/chunk-000/file-000.parquet, episode 1": "pull"}))
    given = ("--instructions_file", str(tmp_path / "texts.json"))
    done = convert("lerobot_to_rlds.py", tmp_path, "--cameras", "primary=top,wrist=wrist", *given)
    assert done.returncode == 0, done.stderr
    assert "does not name keep the text that was recorded (3, first: data/chunk-000/file-000.parquet, episode 0)" in done.stderr
    index = index_of(target_of(tmp_path), DatasetEntry(state_obs_keys=("state",)))
    assert {name: last - first for name, (first, last) in index.splits.items()} == {"train": 3, "val": 1}
    assert sorted(index.instructions) == ["pull", "task 0", "task 1"]
    frames = decode_video(folder / "videos/observation.images.wrist/chunk-000/file-000.mp4")
    step = int(np.flatnonzero((index.actions == episodes[2].actions[4]).all(axis=1))[0])
    np.testing.assert_array_equal(index.reader.read(index.images[step, 1]), decode_image(encode_jpeg(frames[2 * 6 + 4])))


@pytest.mark.rlds
def test_lerobot_columns_are_joined_and_absent_videos_are_reported(tmp_path: Path) -> None:
    episodes = [make_episode(6, seed) for seed in range(2)]
    folder = write_v3(tmp_path / "recordings", episodes)
    data = folder / "data/chunk-000/file-000.parquet"
    for column, parts in (("action", ("action.arm", "action.gripper")), ("observation.state", ("state.arm", "state.gripper"))):
        rows = np.array(pq.read_table(data)[column].to_pylist(), np.float32)
        for name, values in zip(parts, (rows[:, :3], rows[:, 3:]), strict=True):
            change_column(data, name, pa.array(values.tolist(), pa.list_(pa.float32())))
        change_column(data, column, None)
    columns = ("--action", "action.arm,action.gripper", "--state", "state.gripper,state.arm")
    done = convert("lerobot_to_rlds.py", tmp_path, "--cameras", "primary=top", *columns)
    assert done.returncode == 0, done.stderr
    index = index_of(target_of(tmp_path), DatasetEntry(image_obs_keys={"primary": "image"}))
    order = [int(np.flatnonzero((index.actions == row).all(axis=1))[0]) for row in episodes[1].actions]
    np.testing.assert_array_equal(index.proprio[order], episodes[1].state[:, [3, 0, 1, 2]])
    for path in (folder / "videos").rglob("*.mp4"):
        path.unlink()
    done = convert("lerobot_to_rlds.py", tmp_path, *columns, "--overwrite", "True")
    assert done.returncode == 2
    assert "no camera has all its videos here: top (0 of 1 files), wrist (0 of 1 files); download them" in done.stderr


# The process sends itself a signal once it has called the writer's function FUNCTION so often.
STRIKE = """
import os, signal
import prismatic.conversion.rlds_writer as writer
original, calls = writer.FUNCTION, 0
class CleanUp:
    def __del__(self):  # whatever is raised here is lost
        signal.raise_signal(signal.SIGINT)
def strike(*arguments):
    global calls
    result = original(*arguments)
    calls += 1
    if calls == NUMBER:
        ACTION
    return result
writer.FUNCTION = strike
"""
SWALLOWED_CTRL_C, KILL = "CleanUp()", "os.kill(os.getpid(), signal.SIGKILL)"


def strike(folder: Path, function: str, number: int, action: str) -> subprocess.CompletedProcess[str]:
    """The conversion that is struck behind call `number` of `function`."""
    prelude = STRIKE.replace("FUNCTION", function).replace("NUMBER", str(number)).replace("ACTION", action)
    words = command("aloha_hdf5_to_rlds.py", folder, "--val_fraction", "0.25", prelude=prelude)
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.rlds
def test_interrupted_anywhere_it_leaves_no_data_set_and_goes_on(tmp_path: Path) -> None:
    first = write_aloha(tmp_path / "recordings" / "episode_0.hdf5", 8, compressed=True, instruction="go", size=(48, 64))
    for number in range(1, NUM_EPISODES):
        shutil.copy(first, first.with_name(f"episode_{number}.hdf5"))
    stage = tmp_path / "rlds" / ".toy_robot.1.0.0.partial"

    def finished() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in stage.glob("[!.]*.npz")}

    known: dict[str, int] = {}
    for function, number, action, status, num_finished in (
        ("write_staged", 2, SWALLOWED_CTRL_C, 130, 2),
        ("write_staged", 3, KILL, -signal.SIGKILL, 5),
        ("load_staged", NUM_EPISODES, SWALLOWED_CTRL_C, 130, NUM_EPISODES),  # behind the last episode, before TensorFlow begins
        ("_steps", 2, SWALLOWED_CTRL_C, 130, NUM_EPISODES),  # while TensorFlow writes
        ("_steps", NUM_EPISODES, SWALLOWED_CTRL_C, 130, NUM_EPISODES),  # its last episode
        ("_steps", 4, KILL, -signal.SIGKILL, NUM_EPISODES),
    ):
        done = strike(tmp_path, function, number, action)
        assert done.returncode == status, (function, number, done.stderr)
        assert ("the same command goes on from here" in done.stderr) == (action == SWALLOWED_CTRL_C)
        assert "Traceback" not in done.stderr
        assert len(finished()) == num_finished
        assert known.items() <= finished().items(), "something was done twice"
        assert not target_of(tmp_path).parent.exists()
        known = finished()
    done = convert("aloha_hdf5_to_rlds.py", tmp_path, "--val_fraction", "0.25")
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "rlds") == ["toy_robot"]
    index = index_of(target_of(tmp_path), ALOHA)
    assert {name: last - first for name, (first, last) in index.splits.items()} == {
        "train": NUM_EPISODES * 3 // 4,
        "val": NUM_EPISODES // 4,
    }
    assert len(index.actions) == 8 * NUM_EPISODES
    with h5py.File(first) as file:
        expected = decode_image(encode_jpeg(decode_image(file["observations/images/cam_high"][5].tobytes().rstrip(b"\0"))))
    for episode in range(NUM_EPISODES):
        np.testing.assert_array_equal(index.reader.read(index.images[8 * episode + 5, 0]), expected)


@pytest.mark.rlds
def test_a_full_disk_is_one_line_and_whole_episodes_stay(tmp_path: Path) -> None:
    for number in range(3):
        write_aloha(tmp_path / "recordings" / f"episode_{number}.hdf5", 5, number, instruction="fold", size=(96, 128))
    words, stage = command("aloha_hdf5_to_rlds.py", tmp_path), tmp_path / "rlds" / ".toy_robot.1.0.0.partial"
    for limit, num_finished in ((50_000, 0), (110_000, 3)):  # bytes of a file: while an episode is kept, while TensorFlow writes the set
        done = subprocess.run(
            words,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=200,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),  # writing beyond it fails as on a full disk
        )
        assert done.returncode == 2, done.stderr
        assert f"error: no space is left in {tmp_path / 'rlds'}; free some" in done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(path.suffix for path in stage.iterdir()) == ["", *[".npz"] * num_finished]  # the lock and whole episodes
        assert not target_of(tmp_path).exists()


def test_mcap_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "run.mcap").write_bytes(b"\x89MCAP0\r\n")
    done = convert("aloha_hdf5_to_rlds.py", tmp_path)
    assert done.returncode == 2
    assert "run.mcap is an MCAP recording, which is not supported" in done.stderr


@pytest.mark.rlds
def test_one_entry_reads_recordings_and_what_becomes_of_them(tmp_path: Path) -> None:
    cameras = ("observation.images.top", "observation.images.gripper_view")
    write_v3(tmp_path / "recordings", [make_episode(7, seed, cameras=cameras) for seed in range(3)])
    entry = DatasetEntry(image_obs_keys={"primary": "top", "wrist": "gripper_view"}, state_obs_keys=("observation.state",))
    done = convert("lerobot_to_rlds.py", tmp_path, "--cameras", "primary=top,wrist=gripper_view", "--val_fraction", "0")
    assert done.returncode == 0, done.stderr
    direct, converted = (index_of(folder, entry) for folder in (tmp_path / "recordings", target_of(tmp_path)))
    np.testing.assert_array_equal(converted.actions, direct.actions)
    np.testing.assert_array_equal(converted.proprio, direct.proprio)
    assert [converted.instructions[i] for i in converted.instruction_ids] == [direct.instructions[i] for i in direct.instruction_ids]
    for step in (0, 8):
        for camera in (0, 1):
            recorded, stored = (index.reader.read(index.images[step, camera]) for index in (direct, converted))
            np.testing.assert_array_equal(stored, decode_image(encode_jpeg(recorded)))
    assert json.loads((target_of(tmp_path) / "recorded_names.json").read_text())["fps"] == 10
