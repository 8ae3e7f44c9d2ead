"""ALOHA and LIBERO HDF5 folders through the index and the data set: values, frames, splits, instructions, bad input."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import ALOHA_CAMERAS, camera_images, write_aloha, write_libero

from prismatic.doctor.data import check_data
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.hdf5.source import Hdf5Source
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, find_entry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.rlds.oxe.transforms import find_transform, identity_dataset_transform, libero_dataset_transform
from prismatic.vla.datasets.sources import find_dataset_folder, open_source
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.diagnosis import Status
from prismatic.vla.images import decode_image, encode_jpeg

ALOHA = find_entry("aloha1_put_X_into_pot_300_demos")
LIBERO = find_entry("libero_spatial_no_noops")


def index_of(folder: Path, entry: DatasetEntry = ALOHA) -> EpisodeIndex:
    return load_index(open_source(folder, entry), entry, find_transform("none", entry.transform))


@pytest.mark.parametrize("compressed", [False, True])
def test_aloha_values_and_frames_under_the_registry_entry(tmp_path: Path, compressed: bool) -> None:
    for number in range(3):
        write_aloha(tmp_path / "pot" / f"episode_{number}.hdf5", 4 + number, number, compressed=compressed, instruction=f"pot {number}")
    assert isinstance(open_source(find_dataset_folder(tmp_path, "pot"), ALOHA), Hdf5Source)
    index = index_of(tmp_path / "pot")
    assert index.instructions == ("pot 0", "pot 1", "pot 2")
    assert index.lengths.tolist() == [4, 5, 6]
    with h5py.File(tmp_path / "pot" / "episode_1.hdf5") as file:
        np.testing.assert_array_equal(index.actions[4:9], file["action"][()])
        np.testing.assert_array_equal(index.proprio[4:9], file["observations/qpos"][()].astype(np.float32))
    steps = [(episode, step) for episode in range(3) for step in range(4 + episode)]
    for camera in range(3):  # primary, left wrist, right wrist are cam_high, cam_left_wrist, cam_right_wrist
        for number in np.random.default_rng(0).permutation(len(steps)):
            episode, step = steps[number]
            expected = camera_images(10 * episode + camera, 4 + episode)[step]
            expected = decode_image(encode_jpeg(expected)) if compressed else expected
            np.testing.assert_array_equal(index.reader.read(index.images[number, camera]), expected)


def test_an_entry_with_the_names_in_the_file(tmp_path: Path) -> None:
    write_aloha(tmp_path / "episode_0.hdf5", instruction="go")
    cameras = dict(zip(("primary", "left_wrist", "right_wrist"), ALOHA_CAMERAS, strict=True))
    entry = DatasetEntry(image_obs_keys=cameras, state_obs_keys=("qpos", "effort"), action_encoding=2)
    index = index_of(tmp_path, entry)
    assert index.proprio.shape == (6, 28)
    np.testing.assert_array_equal(index.reader.read(index.images[2, 1]), camera_images(1, 6)[2])


def test_libero_is_what_its_rlds_set_is(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5", (5, 4))
    index = index_of(tmp_path, LIBERO)
    assert index.lengths.tolist() == [5, 4]
    assert index.instructions == ("put the bowl on the plate",)
    with h5py.File(path) as file:
        obs = file["data/demo_1/obs"]
        state = np.concatenate([obs["ee_states"], obs["gripper_states"]], axis=1).astype(np.float32)
        np.testing.assert_array_equal(index.proprio[5:], state)
        assert index.actions[5:, 6].tolist() == [1, 1, 0, 0]  # open, open, closed, closed
    for camera in range(2):
        for step in (8, 5, 0, 7, 4):
            demo, row = (1, step - 5) if step >= 5 else (0, step)
            stored = camera_images(10 * demo + camera, (5, 4)[demo], (32, 32))[row]
            np.testing.assert_array_equal(index.reader.read(index.images[step, camera]), stored[::-1, ::-1])  # turned by 180 degrees


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pick_up_the_bowl_demo.hdf5", "pick up the bowl"),
        ("LIVING_ROOM_SCENE2_put_the_box_in_the_basket_demo.hdf5", "put the box in the basket"),
    ],
)
def test_libero_without_problem_info_is_named_by_its_file(tmp_path: Path, name: str, text: str) -> None:
    write_libero(tmp_path / name, problem={})
    assert index_of(tmp_path, LIBERO).instructions == (text,)


def test_training_data_with_val_folder(tmp_path: Path) -> None:
    for number in range(3):
        write_aloha(tmp_path / "pot" / "train" / f"episode_{number}.hdf5", 5, number, instruction="go")
    write_aloha(tmp_path / "pot" / "val" / "episode_0.hdf5", 4, 9, instruction="go")
    spec = DatasetSpec("pot", ALOHA, find_dataset_folder(tmp_path, "pot"), ROBOT_PLATFORMS["ALOHA"], identity_dataset_transform)
    cameras = ("primary", "left_wrist", "right_wrist")
    data = load_training_data((spec,), DatasetOptions(cameras=cameras, image_size=16, use_proprio=True, val_fraction=0.1))
    assert (len(data.train), len(data.val)) == (15, 4)
    assert data.train[14].images.shape == (3, 16, 16, 3)
    assert data.train[14].actions.shape == (25, 14)


def test_where_an_instruction_may_stand(tmp_path: Path) -> None:
    for number in range(4):
        write_aloha(tmp_path / "pot" / f"episode_{number}.hdf5", 3, number)
    with h5py.File(tmp_path / "pot" / "episode_0.hdf5", "a") as file:
        file["language_raw"] = np.array([b"from language_raw"])
    assert index_of(tmp_path / "pot").instructions == ("from language_raw",)
    (tmp_path / "pot" / "instruction.txt").write_text("for the folder\n")
    assert index_of(tmp_path / "pot").instructions == ("from language_raw", "for the folder")  # a new index, though no recording changed
    table = {"episode_1": "by stem", "episode_2.hdf5": "by name", "*": "for the rest"}
    (tmp_path / "pot" / "instructions.json").write_text(json.dumps(table))
    assert index_of(tmp_path / "pot").instructions == ("from language_raw", "by stem", "by name", "for the rest")
    (tmp_path / "pot" / "instructions.json").write_text('{"episode_1": "open it", "*": "rest", "episode_1": "close it"}')
    with pytest.raises(ValueError, match=r"instructions.json: cannot be read \('episode_1' stands there twice; keep one, or write a list"):
        index_of(tmp_path / "pot")
    (tmp_path / "pot" / "instructions.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"instructions.json: expected a JSON object"):
        index_of(tmp_path / "pot")


def test_recordings_without_any_instruction_are_a_problem_and_where_to_write_it_is_said(tmp_path: Path) -> None:
    pot = "aloha1_put_X_into_pot_300_demos"
    write_aloha(tmp_path / pot / "episode_0.hdf5")
    (finding,) = (item for item in check_data(tmp_path, pot, None) if item.subject == "instructions")
    assert finding.status == Status.PROBLEM
    assert finding.found == "1 of 1 episodes have no instruction and training refuses them"
    assert f"into {tmp_path / pot / 'instruction.txt'}, or pass --default_instruction" in finding.remedy
    (tmp_path / pot / "instruction.txt").write_text("put it into the pot")
    assert all(item.subject != "instructions" for item in check_data(tmp_path, pot, None))


def test_a_reader_goes_through_pickle_and_fork(tmp_path: Path) -> None:
    write_libero(tmp_path / "stove_demo.hdf5", (20,))
    index = index_of(tmp_path, LIBERO)
    expected = camera_images(0, 20, (32, 32))[:, ::-1, ::-1]
    index.reader.read(index.images[3, 0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(index.reader)).read(index.images[7, 0]), expected[7])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    work = context.Process(target=lambda: queue.put([index.reader.read(index.images[step, 0]) for step in range(20)]), daemon=True)
    work.start()
    np.testing.assert_array_equal(np.stack(queue.get(timeout=20)), expected)


def test_bad_folders_say_what_is_wrong(tmp_path: Path) -> None:
    write_aloha(tmp_path / "a" / "episode_0.hdf5", instruction="go")
    with pytest.raises(ValueError, match=r"no key 'cam_hihg'; correct image_obs_keys.*did you mean cam_high"):
        index_of(tmp_path / "a", DatasetEntry(image_obs_keys={"primary": "cam_hihg"}))
    with h5py.File(tmp_path / "a" / "episode_1.hdf5", "w") as file:
        file["action"] = np.zeros((2, 14))
    with pytest.raises(ValueError, match=r"episode_1.hdf5: /observations is missing; found \['action'\]"):
        index_of(tmp_path / "a")
    (tmp_path / "a" / "episode_1.hdf5").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"episode_1.hdf5: cannot be read as HDF5"):
        index_of(tmp_path / "a")
    (tmp_path / "a" / "episode_1.hdf5").unlink()
    write_libero(tmp_path / "a" / "x_demo.hdf5")
    with pytest.raises(ValueError, match=r"x_demo.hdf5: its layout differs from that of .*episode_0.hdf5"):
        index_of(tmp_path / "a")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.mcap").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.mcap is an MCAP recording, which is not supported"):
        Hdf5Source(tmp_path / "m", ALOHA)


def test_a_damaged_image_names_file_and_row(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "episode_0.hdf5", compressed=True, instruction="go")
    with h5py.File(path, "a") as file:
        file["observations/images/cam_high"][3] = 0
    index = index_of(tmp_path)
    with pytest.raises(
        ValueError, match=r"episode_0.hdf5, /observations/images/cam_high, row 3: expected a JPEG or PNG image, found 0 bytes"
    ):
        index.reader.read(index.images[3, 0])


def test_the_libero_transform_is_what_the_entry_names() -> None:
    assert find_transform("x", LIBERO.transform) is libero_dataset_transform
