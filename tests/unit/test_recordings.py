"""HDF5 recordings: round trip, layout, bad files; recording of experts; the split into train and val."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from hdf5_files import write_aloha
from toy_simulator import ToySimulator

from experiments.robot.recording.record import RecordingOptions, correlated_noise, missing_episodes, record_demonstrations
from experiments.robot.recording.script import RecordFlags, record
from prismatic.conversion.noops import moving_steps
from prismatic.conversion.options import RldsFlags, guess_cameras
from prismatic.conversion.rlds_writer import RldsSpec, split_episodes, write_rlds
from prismatic.conversion.staging import StagedEpisode, only_writer
from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.hdf5.layout import find_files
from prismatic.vla.datasets.hdf5.recording import Recording, read_recording, write_recording
from prismatic.vla.datasets.hdf5.source import Hdf5Source


def make_recording(num_steps: int = 5, **changes) -> Recording:
    rng = np.random.default_rng(0)
    parts = {
        "actions": rng.normal(size=(num_steps, 4)).astype(np.float32),
        "proprio": rng.normal(size=(num_steps, 3)).astype(np.float32),
        "images": {name: rng.integers(0, 256, (num_steps, 8, 6, 3), dtype=np.uint8) for name in ("primary", "wrist")},
        "instruction": "open the door",
        "attributes": {"success": True, "seed": 3},
    }
    return Recording(**(parts | changes))


def test_round_trip_is_exact_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    written, path = make_recording(), tmp_path / "task" / "episode_000000.hdf5"
    write_recording(path, written)
    read = read_recording(path)
    np.testing.assert_array_equal(read.actions, written.actions)
    np.testing.assert_array_equal(read.proprio, written.proprio)
    assert read.images.keys() == written.images.keys()
    for name, images in written.images.items():
        np.testing.assert_array_equal(read.images[name], images)
    assert (read.instruction, read.attributes["seed"]) == ("open the door", 3)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    with h5py.File(path) as file:
        assert file["action"].dtype == np.float32
        assert file["observations/images/wrist"].shape == (5, 8, 6, 3)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    recording = make_recording(attributes={"seed": object()})  # HDF5 cannot store it
    with pytest.raises(TypeError):
        write_recording(tmp_path / "episode.hdf5", recording)
    assert list(tmp_path.iterdir()) == []


def test_aloha_camera_names_and_a_given_instruction(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    with h5py.File(path, "w") as file:
        file["action"], file["observations/qpos"] = np.zeros((2, 14)), np.zeros((2, 14))
        for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist"):
            file[f"observations/images/{camera}"] = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"episode_0.hdf5: attribute language_instruction is missing.*--instruction"):
        read_recording(path)
    recording = read_recording(path, "pick up the cube")
    assert list(recording.images) == ["primary", "left_wrist", "right_wrist"]
    assert recording.instruction == "pick up the cube"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proprio": np.zeros((4, 3), np.float32)}, r"same number of steps.*'action': 5, 'qpos': 4"),
        ({"actions": np.full((5, 4), np.nan, np.float32)}, "action must be finite"),
        ({"images": {}}, "at least the primary camera"),
        ({"images": {"primary": np.zeros((5, 8, 8, 4), np.uint8)}}, "camera 'primary': expected a uint8 RGB"),
        ({"instruction": "  "}, "instruction is empty"),
    ],
)
def test_bad_recordings_say_what_is_wrong(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recording(**changes)


def test_compressed_recordings_are_decoded(tmp_path: Path) -> None:
    raw = read_recording(write_aloha(tmp_path / "raw.hdf5", instruction="go"))
    decoded = read_recording(write_aloha(tmp_path / "jpeg.hdf5", compressed=True, instruction="go"))
    for name, images in raw.images.items():
        assert images.shape == decoded.images[name].shape
        assert 0 < np.abs(images.astype(int) - decoded.images[name]).mean() < 12


def test_bad_files_name_the_file_and_the_part(tmp_path: Path) -> None:
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"broken.hdf5: cannot be read as HDF5"):
        read_recording(broken)
    with h5py.File(tmp_path / "partial.hdf5", "w") as file:
        file["action"] = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"partial.hdf5: /observations is missing"):
        read_recording(tmp_path / "partial.hdf5", "go")
    write_recording(tmp_path / "camera.hdf5", make_recording(images={"gopro": np.zeros((5, 4, 4, 3), np.uint8)}))
    with pytest.raises(ValueError, match="camera 'gopro' is none of"):
        read_recording(tmp_path / "camera.hdf5")
    with pytest.raises(ValueError, match="does not exist"):
        find_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no"):
        find_files(tmp_path / "empty")


def test_experts_are_recorded_once_with_clean_labels(tmp_path: Path) -> None:
    options = RecordingOptions(tmp_path, num_episodes=3, seed=1, noise_scale=0.3, noise_dims=(0,), num_workers=1)
    paths = list(record_demonstrations(ToySimulator(), ["left"], options))
    assert sorted(paths) == find_files(tmp_path)
    recording = read_recording(paths[0])
    assert recording.attributes["success"]
    assert set(recording.actions[:, 0].tolist()) <= {-1.0, 1.0}  # what the expert wanted
    moved = np.diff(recording.proprio[:, 0])
    assert np.abs(np.abs(moved) - 1).max() > 0.05  # what was executed
    before = {path: path.stat().st_mtime_ns for path in paths}
    paths[1].unlink()
    assert missing_episodes(["left"], options) == [("left", [1])]
    assert list(record_demonstrations(ToySimulator(), ["left"], options)) == [paths[1]]
    assert all(path.stat().st_mtime_ns == before[path] for path in (paths[0], paths[2]))
    for changes in ({"seed": 2}, {"noise_scale": 0.1}, {"perturb": "camera:1@0"}):
        with pytest.raises(ValueError, match=rf"was recorded in another way \(--{next(iter(changes))} was .*choose another --output_dir"):
            list(record_demonstrations(ToySimulator(), ["left"], replace(options, num_episodes=4, **changes)))


def test_a_hopeless_expert_is_an_error(tmp_path: Path) -> None:
    options = RecordingOptions(tmp_path, num_episodes=1, noise_scale=0.0, noise_dims=(0,), num_workers=1)
    with pytest.raises(RuntimeError, match=r"failed 10 times in a row.*--noise_scale"):
        list(record_demonstrations(ToySimulator(lazy_expert=True), ["left"], options))


def staged(name: str, instruction: str = "go", split: str = "train") -> StagedEpisode:
    return StagedEpisode(Path(name), name, split, instruction, {}, 1, 1)


def test_split_is_deterministic_and_even_over_instructions() -> None:
    episodes = [staged(f"{task}/episode_{index:06d}.hdf5", task) for task in ("a", "b") for index in range(20)]
    splits = split_episodes(episodes, 0.1)
    backwards = split_episodes(episodes[::-1], 0.1)
    assert {item.name for item in splits["val"]} == {item.name for item in backwards["val"]}
    assert [sum(item.instruction == task for item in splits["val"]) for task in ("a", "b")] == [2, 2]
    assert sorted(item.name for part in splits.values() for item in part) == sorted(item.name for item in episodes)
    assert split_episodes(episodes, 0) == {"train": episodes}
    with pytest.raises(ValueError, match=r"one episode cannot be divided.*--val_fraction 0"):
        split_episodes(episodes[:1], 0.1)


def test_a_recorded_val_split_is_kept() -> None:
    episodes = [staged("a"), staged("b", split="val"), staged("c")]
    assert split_episodes(episodes, 0.5) == {"train": [episodes[0], episodes[2]], "val": [episodes[1]]}


def test_other_recorded_splits_are_neither_trained_on_nor_divided() -> None:
    episodes = [staged("a"), staged("b"), staged("c", split="test")]
    assert split_episodes(episodes, 0)["test"] == [episodes[2]]
    assert sorted(map(len, split_episodes(episodes, 0.5).values())) == [1, 1, 1]
    with pytest.raises(ValueError, match="no recording belongs to the split 'train', only to test"):
        split_episodes(episodes[2:], 0.5)


def test_idle_steps_of_motions_and_of_targets() -> None:
    still, move = [0.0, 0.0], [0.1, 0.0]
    actions = np.array([[*still, 0], [*move, 0], [*still, 0], [*still, 1], [*still, 1], [*move, 1]])  # two motions and a gripper
    kinds = (ActionKind.MOTION, ActionKind.VELOCITY, ActionKind.TARGET)
    assert moving_steps(actions, kinds).tolist() == [
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    joints = np.array([[0.0, 1], [0, 1], [0.2, 1], [0.2, 1], [0.2, 0]])
    assert moving_steps(joints, (ActionKind.TARGET,) * 2).tolist() == [True, False, True, False, True]


def test_cameras_by_their_usual_names() -> None:
    assert guess_cameras(("observation.images.cam_high", "observation.images.cam_left_wrist")) == {
        "primary": "observation.images.cam_high",
        "left_wrist": "observation.images.cam_left_wrist",
    }
    assert guess_cameras(("agentview_rgb", "eye_in_hand_rgb")) == {"primary": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
    assert guess_cameras(("gopro",)) == {"primary": "gopro"}
    with pytest.raises(ValueError, match=r"which camera is 'gopro'\? .*--cameras primary=cam_high"):
        guess_cameras(("cam_high", "gopro"))
    with pytest.raises(ValueError, match=r"which camera is the primary one"):
        guess_cameras(("wrist", "left_wrist"))
    flags = RldsFlags(Path("a"), "b", Path("c"), cameras="primary=gopro, wrist=hand")
    assert flags.entry(()).cameras == {"primary": "gopro", "wrist": "hand"}
    flags = RldsFlags(Path("a"), "b", Path("c"), cameras="primary=top,left_wrist=left, left_wrist=right")
    with pytest.raises(ValueError, match=r"--cameras is .*, which names left_wrist twice; slots: primary"):
        flags.entry(())
    with pytest.raises(ValueError, match=r"--cameras is 'top'"):
        RldsFlags(Path("a"), "b", Path("c"), cameras="top").entry(())
    with pytest.raises(ValueError, match=r"--action_encoding is 'JOINTPOS'; did you mean JOINT_POS"):
        RldsFlags(Path("a"), "b", Path("c"), action_encoding="JOINTPOS")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": "My-Data"}, "--dataset_name is 'My-Data'"),
        ({"val_fraction": 1.0}, "--val_fraction is 1.0"),
        ({"version": "1"}, "--version is '1'"),
        ({"image_size": 0}, "--image_size is 0"),
        ({"instructions_file": Path("nowhere.json")}, "--instructions_file nowhere.json does not exist"),
    ],
)
def test_bad_rlds_flags_name_the_flag(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RldsSpec(**({"dataset_name": "door", "data_root_dir": tmp_path} | changes))


def test_an_existing_data_set_is_kept(tmp_path: Path) -> None:
    (tmp_path / "door" / "1.0.0").mkdir(parents=True)
    write_aloha(tmp_path / "recorded" / "a.hdf5", instruction="go")
    source = Hdf5Source(tmp_path / "recorded")
    with pytest.raises(ValueError, match="exists already; pass --overwrite"):
        write_rlds(source, RldsFlags(tmp_path, "door", tmp_path).entry(source.cameras), RldsSpec("door", tmp_path))


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path / "stage"),
        pytest.raises(ValueError, match=r"process \d+ on .* writes the same data"),
        only_writer(tmp_path / "stage"),
    ):
        pass
    with only_writer(tmp_path / "stage"):  # the lock goes with its process or block
        pass


def test_correlated_noise_has_the_scale_at_every_step_and_lasts(tmp_path: Path) -> None:
    def draw(correlation: float) -> np.ndarray:
        options = RecordingOptions(tmp_path, noise_scale=0.3, noise_correlation=correlation, noise_dims=tuple(range(2000)))
        return np.stack(list(itertools.islice(correlated_noise(options, np.random.default_rng(0)), 12)))

    lasting, fresh = draw(0.9), draw(0.0)
    assert np.allclose(lasting.std(axis=1), 0.3, atol=0.02)  # at the first step as at the last
    assert np.allclose(fresh.std(axis=1), 0.3, atol=0.02)
    for step in (1, 11):
        assert abs(np.corrcoef(lasting[0], lasting[step])[0, 1] - 0.9**step) < 0.1
        assert abs(np.corrcoef(fresh[0], fresh[step])[0, 1]) < 0.1


def test_a_correlation_of_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--noise_correlation is 1.0, must be at least 0 and below 1"):
        RecordingOptions(tmp_path, noise_correlation=1.0)


def test_workers_end_with_a_killed_recording(tmp_path: Path) -> None:
    script = tmp_path / "record.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from toy_simulator import ToySimulator\n"
        "from experiments.robot.recording.record import RecordingOptions, record_demonstrations\n"
        "if __name__ == '__main__':\n"
        "    options = RecordingOptions(Path(sys.argv[1]), num_episodes=100_000, noise_dims=(0,), num_workers=2)\n"
        "    list(record_demonstrations(ToySimulator(), ['left'], options))\n"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    recording = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "data")], env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    )
    try:
        _wait_until(lambda: any(tmp_path.glob("data/left/*.hdf5")))
        workers = psutil.Process(recording.pid).children()
    finally:
        recording.kill()
        recording.wait()
    assert len(workers) >= 2
    _wait_until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))


def _wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fast_rendering": False}, "--fast_rendering was True, is False"),
        ({"image_size": 16}, "--image_size was 8, is 16"),
        ({"task_suite_name": "b"}, "--task_suite_name was a, is b"),
    ],
)
def test_a_folder_does_not_mix_pictures_of_other_flags(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """MetaWorld's at 64 and at 96 pixels, with and without shadows, lay in one folder."""
    flags = RecordFlags(tmp_path, num_episodes=1, noise_scale=0.0, num_workers=1)
    own = {"image_size": 8, "task_suite_name": "a"}
    record(flags, ToySimulator(), ["left"], (0,), own)
    record(flags, ToySimulator(), ["left"], (0,), own)
    assert read_recording(tmp_path / "left" / "episode_000000.hdf5").attributes["task_suite_name"] == "a"
    own |= {name: value for name, value in changes.items() if name in own}
    other = replace(flags, num_episodes=2, **{name: value for name, value in changes.items() if name not in own})
    with pytest.raises(ValueError, match=rf"was recorded in another way \({message}\)"):
        record(other, ToySimulator(), ["left"], (0,), own)


def test_recordings_of_earlier_versions_tell_their_size_alone(tmp_path: Path) -> None:
    flags = RecordFlags(tmp_path, num_episodes=1, noise_scale=0.0, num_workers=1)
    record(flags, ToySimulator(), ["left"], (0,), {"image_size": 8})
    with h5py.File(tmp_path / "left" / "episode_000000.hdf5", "a") as file:
        del file.attrs["image_size"], file.attrs["fast_rendering"]
    record(replace(flags, fast_rendering=False), ToySimulator(), ["left"], (0,), {"image_size": 8})
    with pytest.raises(ValueError, match="--image_size was 8, is 64"):
        record(flags, ToySimulator(), ["left"], (0,), {"image_size": 64})
