"""HDF5 files as other people's recorders write them: what is read, what is mended with which words, what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import write_libero
from PIL import Image
from rlds_writer import encode_png, smooth_image
from rollout_files import write_rollout

from prismatic.conversion.staging import StagedEpisode
from prismatic.vla.datasets.episodes import RawEpisode, standardize
from prismatic.vla.datasets.hdf5.source import Hdf5Source
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import ActionEncoding, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.sources import describe_recordings
from prismatic.vla.datasets.suggestion.suggest import suggest_entry
from prismatic.vla.images import decode_image, encode_jpeg

LENGTH, SIZE = 5, (24, 32)
PICTURES = np.stack([smooth_image(step, *SIZE) for step in range(LENGTH)])
JPEGS = [encode_jpeg(picture) for picture in PICTURES]
DECODED = np.stack([decode_image(encoded) for encoded in JPEGS])
LONGEST = max(map(len, JPEGS))


def entry(**fields: Any) -> DatasetEntry:
    defaults = {"image_obs_keys": {"primary": "cam_high"}, "state_obs_keys": ("qpos",), "action_encoding": ActionEncoding.JOINT_POS}
    return DatasetEntry(**defaults | fields)


def write_act(path: Path, images: Any = PICTURES, *, attribute: str | None = "go", dtype: Any = None, **more: Any) -> Path:
    """An ACT file with one camera; `more` are further data sets ("__" for "/"), None leaves a usual one out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = {"action": rng.normal(size=(LENGTH, 14)), "observations/qpos": rng.normal(size=(LENGTH, 14))}
    parts |= {name.replace("__", "/"): values for name, values in more.items()}
    with h5py.File(path, "w") as file:
        file.create_dataset("observations/images/cam_high", data=images, dtype=dtype)
        for name, values in parts.items():
            if values is not None:
                file[name] = values
        if attribute is not None:
            file.attrs["language_instruction"] = attribute
    return path


def index_of(folder: Path, described: DatasetEntry | None = None) -> EpisodeIndex:
    described = described or entry()
    return load_index(Hdf5Source(folder, described), described, identity_dataset_transform)


def frames(index: EpisodeIndex) -> np.ndarray:
    return np.stack([index.reader.read(reference) for reference in index.images[:, 0]])


def said(index: EpisodeIndex) -> str:
    return "\n".join(map(str, index.repairs))


def read(folder: Path) -> list[RawEpisode]:
    return list(Hdf5Source(folder).episodes())


def padded(longest: int) -> np.ndarray:
    return np.stack([np.frombuffer(encoded.ljust(longest, b"\0"), np.uint8) for encoded in JPEGS])


def as_objects(rows: list[np.ndarray]) -> np.ndarray:
    values = np.empty(len(rows), object)
    values[:] = rows
    return values


ENCODED = {
    "fixed strings": lambda: (np.array(JPEGS, dtype=f"S{LONGEST + 9}"), None),
    "bytes of any length": lambda: (as_objects([np.frombuffer(jpeg, np.uint8) for jpeg in JPEGS]), h5py.vlen_dtype(np.uint8)),
    "signed bytes": lambda: (as_objects([np.frombuffer(jpeg, np.int8) for jpeg in JPEGS]), h5py.vlen_dtype(np.int8)),
    "opaque": lambda: (np.array([np.void(jpeg.ljust(LONGEST, b"\0")) for jpeg in JPEGS]), None),
    "padded": lambda: (padded(LONGEST), None),
    "padded far": lambda: (padded(LONGEST + 777), None),
}


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("with_lengths", [False, True])
def test_encoded_images_however_they_are_stored(tmp_path: Path, kind: str, with_lengths: bool) -> None:
    images, dtype = ENCODED[kind]()
    more = {"compress_len": np.array([[len(jpeg) for jpeg in JPEGS]], np.float64)} if with_lengths else {}
    write_act(tmp_path / "episode_0.hdf5", images, dtype=dtype, **more)
    index = index_of(tmp_path)
    np.testing.assert_array_equal(frames(index), DECODED)
    assert index.repairs == ()


@pytest.mark.parametrize(
    ("stored", "words", "expected"),
    [
        (np.concatenate([PICTURES, np.full((LENGTH, *SIZE, 1), 7, np.uint8)], axis=3), "the fourth is dropped", PICTURES),
        (PICTURES[..., :1], "grey images", np.repeat(PICTURES[..., :1], 3, axis=3)),
        (PICTURES[..., 0], "grey images", np.repeat(PICTURES[..., :1], 3, axis=3)),
        (PICTURES.transpose(0, 3, 1, 2), "channels first", PICTURES),
    ],
)
def test_raw_images_that_are_not_rgb_are_made_so_and_it_is_said(
    tmp_path: Path, stored: np.ndarray, words: str, expected: np.ndarray
) -> None:
    write_act(tmp_path / "episode_0.hdf5", stored)
    index = index_of(tmp_path)
    np.testing.assert_array_equal(frames(index), expected)
    assert words in said(index)
    assert f"cam_high {list(stored.shape)}" in said(index)


def test_other_image_files_and_what_cannot_be_one(tmp_path: Path) -> None:
    def webp(picture: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "WEBP", lossless=True)
        return buffer.getvalue()

    for number, encode in enumerate((encode_png, webp)):
        encoded = [np.frombuffer(encode(picture), np.uint8) for picture in PICTURES]
        write_act(tmp_path / str(number) / "episode_0.hdf5", as_objects(encoded), dtype=h5py.vlen_dtype(np.uint8))
        np.testing.assert_array_equal(frames(index_of(tmp_path / str(number))), PICTURES)
    floats = write_act(tmp_path / "floats" / "episode_0.hdf5", PICTURES.astype(np.float32) / 255)
    with pytest.raises(ValueError, match=rf"{floats}: /observations/images/cam_high holds float32 .*expected raw images uint8"):
        index_of(floats.parent)
    texts = [jpeg.replace(b"\0", b"\1") for jpeg in JPEGS]  # what is left of a JPEG file in an HDF5 text
    stored = write_act(tmp_path / "texts" / "episode_0.hdf5", texts, dtype=h5py.string_dtype())
    with pytest.raises(ValueError, match=r"row 0: .*stored as text, which cannot hold the zero bytes.*record it as bytes"):
        frames(index_of(stored.parent))


def test_an_episode_of_pictures_that_cannot_be_read_is_refused_before_a_model_loads(tmp_path: Path) -> None:
    """One of float32 among many cost a training each of its samples, until it stopped; an odd camera that nobody asks for costs nothing."""
    write_act(tmp_path / "episode_0.hdf5", observations__images__thermal=PICTURES.astype(np.float32))
    write_act(tmp_path / "episode_1.hdf5", PICTURES.astype(np.float32) / 255, observations__images__thermal=PICTURES)
    with pytest.raises(ValueError, match=r"cam_high holds float32 .*\(1 of 2 episodes cannot be used; .*one a line: train 1\)"):
        index_of(tmp_path)
    with pytest.raises(ValueError, match=r"thermal holds float32 .*one a line: train 0\)"):
        index_of(tmp_path, entry(image_obs_keys={"primary": "thermal"}))


def test_a_file_that_cannot_be_locked_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its owner told to copy it, or to record the episode anew, because a viewer or a recorder has it open."""
    for number in range(2):
        write_act(tmp_path / f"episode_{number}.hdf5")
    script = f"import h5py; file = h5py.File({str(tmp_path / 'episode_1.hdf5')!r}, 'a'); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(ValueError, match=r"episode_1.hdf5: is open for writing in another program: wait until .*one a line: train 1"):
            index_of(tmp_path)

    def fail(*arguments: Any, **more: Any) -> None:
        raise OSError("Unable to open file (unable to lock file, errno = 37, error message = 'No locks available')")

    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(ValueError, match=r"episode_0.hdf5: lies on a disk that cannot lock files .*set .*HDF5_USE_FILE_LOCKING=FALSE"):
        index_of(tmp_path)


def test_depth_is_no_camera_and_that_is_said(tmp_path: Path) -> None:
    depth = np.ones((LENGTH, *SIZE), np.uint16)
    write_act(tmp_path / "episode_0.hdf5", observations__images__cam_high_depth=depth)
    source = Hdf5Source(tmp_path)
    assert source.cameras == ("cam_high",)
    assert "depth images are not read (1, first: " in said(index_of(tmp_path))
    assert "/observations/images/cam_high_depth" in said(index_of(tmp_path))


def test_the_only_camera_is_not_taken_for_two(tmp_path: Path) -> None:
    """By the keys of a conversion: the wrist's camera is the primary one where the entry wants no other."""
    with h5py.File(write_act(tmp_path / "episode_0.hdf5"), "a") as file:
        file.move("observations/images/cam_high", "observations/images/wrist")
    assert index_of(tmp_path, entry(image_obs_keys={"primary": "image"})).cameras == ("primary",)
    with pytest.raises(ValueError, match=r"no key 'image'; correct image_obs_keys"):
        index_of(tmp_path, entry(image_obs_keys={"primary": "image", "wrist": "wrist_image"}))


def test_cameras_and_states_elsewhere_in_the_file(tmp_path: Path) -> None:
    more = {
        "observations__rgb_images__top": padded(LONGEST),
        "puppet__joint_position": np.ones((LENGTH, 7)),
        "master__joints": np.ones(LENGTH),
    }
    write_act(tmp_path / "episode_0.hdf5", action=None, observations__qpos=None, **more)
    described = entry(
        image_obs_keys={"primary": "rgb_images/top"}, state_obs_keys=("puppet/joint_position",), action_keys=("master/joints",)
    )
    index = index_of(tmp_path, described)
    np.testing.assert_array_equal(frames(index), DECODED)
    assert (index.actions.shape, index.proprio.shape) == ((LENGTH, 1), (LENGTH, 7))


WORDS = "hand over the block"
PLACES: dict[str, Any] = {
    "instruction": {"instruction": WORDS},
    "language_raw": {"language_raw": np.array([WORDS.encode()])},
    "fixed string": {"language_instruction": np.array(WORDS.encode(), "S40")},
    "in the observations": {"observations__language_instruction": WORDS},
    "one for each step": {"instruction": np.array([WORDS] * LENGTH, dtype=h5py.string_dtype())},
}


@pytest.mark.parametrize("place", PLACES)
def test_an_instruction_in_a_data_set(tmp_path: Path, place: str) -> None:
    write_act(tmp_path / "episode_0.hdf5", attribute=None, **PLACES[place])
    assert index_of(tmp_path).instructions == (WORDS,)


@pytest.mark.parametrize("name", ["language_instruction", "instruction", "task_description", "language", "lang", "prompt"])
def test_an_instruction_in_an_attribute(tmp_path: Path, name: str) -> None:
    path = write_act(tmp_path / "episode_0.hdf5", attribute=None)
    with h5py.File(path, "a") as file:
        file.attrs[name] = np.array([WORDS], dtype=h5py.string_dtype()) if name == "prompt" else WORDS
        file.attrs["task"] = "sim_transfer_cube"  # a name, not an instruction
    assert index_of(tmp_path).instructions == (WORDS,)


def test_texts_that_change_within_an_episode_stay_with_their_steps(tmp_path: Path) -> None:
    texts = ["reach", "reach", "grasp", "lift", "lift"]
    write_act(tmp_path / "episode_0.hdf5", attribute=None, language_raw=np.array(texts, dtype=h5py.string_dtype()))
    index = index_of(tmp_path)
    assert [index.instructions[number] for number in index.instruction_ids] == texts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"episode_0.hdf5": WORDS}, WORDS),
        ({"episode_0": WORDS}, WORDS),
        ({"train/episode_0.hdf5": WORDS, "*": "no"}, WORDS),
        ({"*": WORDS}, WORDS),
        ({"instruction": WORDS}, WORDS),
        ({"instructions": [WORDS]}, WORDS),
        ([WORDS], WORDS),
        ({"other": WORDS}, None),
    ],
)
def test_an_instruction_in_a_table_above_the_file(tmp_path: Path, content: Any, expected: str | None) -> None:
    write_act(tmp_path / "train" / "episode_0.hdf5", attribute=None)
    (tmp_path / "instructions.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert index_of(tmp_path).instructions == (() if expected is None else (expected,))


@pytest.mark.parametrize("name", ["instruction.txt", "instructions.json"])
def test_texts_in_the_encodings_of_editors(tmp_path: Path, name: str) -> None:
    """Windows saves UTF-16 as "Unicode", and Chinese in GB 18030 as "ANSI"; the latter has no mark by which to know it."""
    write_act(tmp_path / "episode_0.hdf5", attribute=None)
    text = "打开抽屉" if name == "instruction.txt" else '{"*": "打开抽屉"}'
    (tmp_path / name).write_text(text, encoding="utf-16")
    assert index_of(tmp_path).instructions == ("打开抽屉",)
    (tmp_path / name).write_text(text, encoding="gb18030")
    with pytest.raises(ValueError, match=rf"{name} is no UTF-8 text \(invalid start byte at byte \d+\): save it as UTF-8"):
        index_of(tmp_path)


def test_an_instruction_in_a_file_for_each_episode(tmp_path: Path) -> None:
    """RoboTwin's instructions/episode0.json, for data/episode0.hdf5."""
    write_act(tmp_path / "data" / "episode0.hdf5", attribute=None)
    (tmp_path / "instructions").mkdir()
    (tmp_path / "instructions" / "episode0.json").write_text(json.dumps({"seen": [WORDS], "unseen": ["no"]}))
    assert index_of(tmp_path).instructions == (WORDS,)


def test_of_several_texts_one_is_drawn_for_each_episode_always_the_same(tmp_path: Path) -> None:
    texts = ["pick it up", "lift it", "take it"]
    for number in range(12):  # the files of some recorders all have the same name
        write_act(tmp_path / f"episode_{number}" / "trajectory.HDF5", attribute=None)
    (tmp_path / "instructions.json").write_text(json.dumps({"instructions": texts}))
    first, second = read(tmp_path), read(tmp_path)
    drawn = [episode.trajectory["language_instruction"] for episode in first]
    assert set(drawn) == set(texts)
    assert drawn == [episode.trajectory["language_instruction"] for episode in second]
    assert all(episode.texts == tuple(texts) for episode in first)
    assert "of which one is drawn for each (12, first: " in said(index_of(tmp_path))


def test_without_qpos_the_entry_names_the_state(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5", observations__qpos=None, observations__ee_pose=np.ones((LENGTH, 7)))
    assert index_of(tmp_path, entry(state_obs_keys="ee_pose")).proprio.shape == (LENGTH, 7)
    with pytest.raises(ValueError, match=r"no key 'qpos'; correct state_obs_keys.*ee_pose"):
        index_of(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"action_keys": ("master/joint_position",)}, "no key 'master/joint_position'; correct action_keys"),
        ({"action_keys": ("action", "base_action")}, "no key 'base_action'; correct action_keys"),
        ({"state_obs_keys": ("eef_pose",)}, "no key 'eef_pose'; correct state_obs_keys"),
    ],
    ids=["another action", "a base", "another state"],
)
def test_a_column_that_is_not_there_is_never_replaced_by_the_usual_one(tmp_path: Path, wrong: dict[str, Any], field: str) -> None:
    """Only rollouts of ours have under the usual names what the entry's columns of demonstrations make when joined."""
    write_act(tmp_path / "demonstrations/episode_0.hdf5")
    with pytest.raises(ValueError, match=field):
        index_of(tmp_path / "demonstrations", entry(**wrong))
    write_rollout(tmp_path / "rollouts/episode_0.hdf5", value=3.0)
    index = index_of(tmp_path / "rollouts", entry(image_obs_keys={"primary": "primary"}, **wrong))
    np.testing.assert_array_equal(index.actions, np.full((3, 4), 3))
    np.testing.assert_array_equal(index.proprio, np.full((3, 4), 3))


def test_rollouts_that_lack_commands_are_told(tmp_path: Path) -> None:
    for number, lost in enumerate((0, 2, 5)):
        write_rollout(tmp_path / f"rollout_{number}.hdf5", value=3.0, num_left_out=lost)
    (repair,) = index_of(tmp_path, entry(image_obs_keys={"primary": "primary"})).repairs
    assert str(repair).startswith("rollouts lack commands for which no picture was there in time, and are read without a gap")
    assert str(repair).endswith("rollout_1.hdf5: 2 beside 3 steps)")
    assert repair.count == 2


def test_groups_are_joined_in_the_order_that_the_entry_states(tmp_path: Path) -> None:
    left, right, joint = (np.full((LENGTH, 7), value) for value in (1, 2, 3))
    write_act(
        tmp_path / "episode_0.hdf5",
        action=None,
        observations__qpos=None,
        observations__qpos__left=left,
        observations__qpos__right=right,
        action__left=left,
        action__right=right,
    )
    described = entry(state_obs_keys=("qpos/right", "qpos/left"), action_keys=("action/left", "action/right"))
    index = index_of(tmp_path, described)
    assert index.proprio[0].tolist() == [2] * 7 + [1] * 7
    assert index.actions[0].tolist() == [1] * 7 + [2] * 7
    with pytest.raises(ValueError, match=r"'action' is a group of \['left', 'right'\].*action_keys=\('action/left', 'action/right'\)"):
        index_of(tmp_path, entry(state_obs_keys=("qpos/left",)))
    with pytest.raises(ValueError, match=r"'qpos' is a group of \['left', 'right'\].*state_obs_keys=\('qpos/left', 'qpos/right'\)"):
        index_of(tmp_path, entry(action_keys=("action/left",)))
    write_act(tmp_path / "single" / "episode_0.hdf5", action=None, action__joint=joint)
    for keys in ("action", "action/joint"):  # a group of one column is that column
        assert index_of(tmp_path / "single", entry(action_keys=keys)).actions[0].tolist() == [3] * 7


def test_a_mobile_base_is_joined_on_request_and_never_dropped_without_a_word(tmp_path: Path) -> None:
    base = np.linspace(0, 0.5, 2 * LENGTH).reshape(LENGTH, 2)
    write_act(tmp_path / "moving" / "episode_0.hdf5", base_action=base)
    with_base = index_of(tmp_path / "moving", entry(action_keys=("action", "base_action")))
    assert with_base.actions.shape == (LENGTH, 16)
    np.testing.assert_allclose(with_base.actions[:, 14:], base, rtol=1e-6)
    assert with_base.repairs == ()
    without = index_of(tmp_path / "moving")
    assert without.actions.shape == (LENGTH, 14)
    assert "/base_action is recorded beside the actions and is not used (1, first: " in said(without)
    assert 'up to 0.5; action_keys=("action", "base_action") joins it, in a conversion --action action,base_action' in said(without)
    write_act(tmp_path / "still" / "episode_0.hdf5", base_action=np.zeros((LENGTH, 2)))
    assert "/base_action is recorded beside the actions and is always 0 and not used" in said(index_of(tmp_path / "still"))


def test_what_a_suggestion_says_of_the_recordings(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5", PICTURES[..., 0], attribute=None, base_action=np.ones((LENGTH, 2)))
    (tmp_path / "instructions.json").write_text(json.dumps(["drive", "go there"]))
    text = suggest_entry(tmp_path, "mobile").text()
    assert "# 'base_action' is joined: commands of a mobile base." in text
    assert "# Grey images are spread over three channels (1, first: " in text
    assert "# The texts of the first such episode: 'drive', 'go there'." in text


def test_nested_linked_and_hidden_files(tmp_path: Path) -> None:
    write_act(tmp_path / "elsewhere" / "a" / "b" / "episode_0.hdf5", attribute="deep")
    write_act(tmp_path / "elsewhere" / "episode_1.hdf5", attribute="held out")
    folder = tmp_path / "set"
    (folder / "val").mkdir(parents=True)
    (folder / "train").symlink_to(tmp_path / "elsewhere" / "a", target_is_directory=True)
    (folder / "val" / "episode_1.hdf5").symlink_to(tmp_path / "elsewhere" / "episode_1.hdf5")
    (folder / "all").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "all" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "val" / "gone.hdf5").symlink_to(tmp_path / "nowhere.hdf5")
    (folder / "val" / "itself.hdf5").symlink_to(folder / "val" / "itself.hdf5")
    for name in ("._episode_0.hdf5", ".episode_9.hdf5"):
        (folder / name).write_bytes(b"\0\5\26\7")
    index = index_of(folder)
    assert index.splits == {"train": (0, 1), "val": (1, 2)}
    assert index.instructions == ("deep", "held out")
    assert "hidden files are left out (2, first: " in said(index)
    assert "recordings that are linked several times are read once (" in said(index)
    assert f"links to files that are not there are left out (2, first: {folder}/val/gone.hdf5)" in said(index)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "valid"), {"train": 1, "val": 1}),
        (("", "evaluation"), {"train": 1, "val": 1}),
        (("train", "test"), {"train": 1, "test": 1}),
        (("test", "other"), {"train": 2}),  # without a folder called train it is a name like any other
        (("val_lights", "b"), {"train": 2}),
    ],
)
def test_folders_that_are_splits(tmp_path: Path, folders: tuple[str, str], splits: dict[str, int]) -> None:
    for number, name in enumerate(folders):
        write_act(tmp_path / name / f"episode_{number}.hdf5")
    found = index_of(tmp_path).splits
    assert {name: last - first for name, (first, last) in found.items()} == splits


def test_recordings_deeper_than_one_folder_are_found_by_the_name_of_the_data_set(tmp_path: Path) -> None:
    from prismatic.vla.datasets.sources import find_dataset_folder

    write_act(tmp_path / "pot" / "monday" / "morning" / "raw" / "episode_0.hdf5")
    assert find_dataset_folder(tmp_path, "pot") == tmp_path / "pot"


@pytest.mark.parametrize("texts", [None, np.array([b"a"] * LENGTH, object)])
def test_an_observation_behind_the_last_action_is_left_out(tmp_path: Path, texts: np.ndarray | None) -> None:
    more = {} if texts is None else {"language_instruction": texts}
    write_act(tmp_path / "a.hdf5", attribute="go" if texts is None else None, action=np.ones((LENGTH - 1, 14)), **more)
    index = index_of(tmp_path)
    assert (index.actions.shape, index.proprio.shape, index.images.shape) == ((LENGTH - 1, 14), (LENGTH - 1, 14), (LENGTH - 1, 1))
    assert "observations behind the last action are left out (1, first: " in said(index)
    write_act(tmp_path / "a.hdf5", action=np.ones((LENGTH - 2, 14)))
    with pytest.raises(ValueError, match="3 actions but 5 steps of state"):
        standardize(read(tmp_path)[0], entry(), identity_dataset_transform)


@pytest.mark.parametrize(
    ("attributes", "hz"),
    [
        ({"fps": 30}, 30),
        ({"env_args": json.dumps({"env_kwargs": {"control_freq": 20}})}, 20),
        ({"env_args": "no JSON", "hz": "15"}, 15),
        ({"frequency": 2.4e9, "fps": np.array([1, 2])}, None),
    ],
)
def test_the_rate_that_a_file_says(tmp_path: Path, attributes: dict[str, Any], hz: float | None) -> None:
    with h5py.File(write_act(tmp_path / "a.hdf5"), "a") as file:
        file.attrs.update(attributes)
    assert describe_recordings(tmp_path).hz == hz


def write_demos(path: Path, names: list[str], root: str = "data", **attributes: Any) -> Path:
    """robomimic's layout with one camera; `attributes` of every demonstration, texts formatted with its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        for number, name in enumerate(names):
            demo = group.create_group(name)
            demo["actions"] = np.full((LENGTH, 7), number, np.float32)
            demo["obs/robot0_eef_pos"] = np.ones((LENGTH, 3))
            demo["obs/front_image"] = PICTURES
            demo.attrs.update({key: value.replace("%", str(number)) for key, value in attributes.items()})
    return path


DEMO = {"image_obs_keys": {"primary": "front_image"}, "state_obs_keys": ("robot0_eef_pos",)}


@pytest.mark.parametrize(
    "attributes",
    [
        {"ep_meta": '{"lang": "task %", "layout_id": 3}'},
        {"task_description": "task %"},
        {"language_instruction": "task %"},
        {"lang": "task %", "ep_meta": "no JSON"},
    ],
)
def test_every_demonstration_has_its_own_text(tmp_path: Path, attributes: dict[str, str]) -> None:
    write_demos(tmp_path / "demo.hdf5", ["demo_0", "demo_1"], **attributes)
    assert index_of(tmp_path, entry(**DEMO)).instructions == ("task 0", "task 1")


def test_a_table_may_name_the_file_and_the_demonstration(tmp_path: Path) -> None:
    write_demos(tmp_path / "cups/a.hdf5", ["demo_0", "demo_1"])
    write_demos(tmp_path / "b.hdf5", ["demo_0"])
    texts = {"a.hdf5, demo_1": "second", "cups/a.hdf5": "others of a", "*": "the rest"}
    (tmp_path / "instructions.json").write_text(json.dumps(texts))
    index = index_of(tmp_path, entry(**DEMO))
    told = {name: index.instructions[number] for name, number in zip(index.names, index.instruction_ids[::LENGTH], strict=True)}
    assert told == {"b.hdf5, demo_0": "the rest", "cups/a.hdf5, demo_0": "others of a", "cups/a.hdf5, demo_1": "second"}


def test_a_text_as_a_data_set_of_the_demonstration_and_one_for_the_file(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "demo.hdf5", ["demo_0", "demo_1"])
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/language_instruction"] = "its own"
        file["data"].attrs["language_instruction"] = "for all"
    assert index_of(tmp_path, entry(**DEMO)).instructions == ("for all", "its own")


@pytest.mark.parametrize(
    ("names", "root", "order"),
    [
        (["demo_10", "demo_2", "demo_1"], "data", [2, 1, 0]),
        (["episode_0", "episode_1"], "data", [0, 1]),
        (["b", "a"], "data", [1, 0]),
        (["traj_1", "traj_0"], "", [1, 0]),
    ],
)
def test_demonstrations_of_any_name_come_in_their_order(tmp_path: Path, names: list[str], root: str, order: list[int]) -> None:
    write_demos(tmp_path / "demo.hdf5", names, root, language_instruction="go")
    index = index_of(tmp_path, entry(**DEMO))
    assert index.actions[::LENGTH, 0].tolist() == order
    np.testing.assert_array_equal(frames(index), np.concatenate([PICTURES] * len(names)))


def test_demonstrations_without_steps_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "demo.hdf5", ["demo_0", "demo_1"], language_instruction="go")
    with h5py.File(path, "a") as file:
        file["data/demo_2/actions"] = np.zeros((0, 7))
        file["data"].create_group("demo_3")
    index = index_of(tmp_path, entry(**DEMO))
    assert index.num_episodes == 2
    assert f"episodes without steps are left out (2, first: {path}, demo_2)" in said(index)
    write_act(tmp_path / "act" / "episode_0.hdf5", PICTURES[:0], action=np.zeros((0, 14)), observations__qpos=np.zeros((0, 14)))
    write_act(tmp_path / "act" / "episode_1.hdf5")
    index = index_of(tmp_path / "act")
    assert index.num_episodes == 1
    assert "episodes without steps are left out (1, first: " in said(index)


@pytest.mark.parametrize(
    ("masks", "splits"),
    [
        ({"train": [0, 2], "valid": [1]}, {"train": [0, 2], "val": [1]}),
        ({"valid": [0]}, {"train": [1, 2], "val": [0]}),
        ({"train": [1]}, {"train": [1]}),
        ({"train": [0], "validation": [1], "test": [2]}, {"train": [0], "val": [1], "test": [2]}),
        ({"20_percent": [0]}, {"train": [0, 1, 2]}),
    ],
)
def test_masks_are_splits(tmp_path: Path, masks: dict[str, list[int]], splits: dict[str, list[int]]) -> None:
    path = write_demos(tmp_path / "demo.hdf5", ["demo_0", "demo_1", "demo_2"], language_instruction="go")
    with h5py.File(path, "a") as file:
        for name, members in masks.items():
            file[f"mask/{name}"] = np.array([f"demo_{number}".encode() for number in members])
    index = index_of(tmp_path, entry(**DEMO))
    starts = index.actions[index.episode_starts[:-1], 0].astype(int).tolist()
    assert {name: starts[first:last] for name, (first, last) in index.splits.items()} == splits
    left_out = 3 - sum(map(len, splits.values()))
    assert (f"/mask names neither in train nor in valid are left out ({left_out}, " in said(index)) == (left_out > 0)


def test_nested_groups_of_numbers_are_counted_and_read_only_on_request(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "demo.hdf5", ["demo_0", "demo_1"], language_instruction="go")
    with h5py.File(path, "a") as file:
        for name in ("demo_0", "demo_1"):
            file[f"data/{name}/obs/datagen_info/eef_pose/franka"] = np.ones((LENGTH, 4, 4))
            file[f"data/{name}/obs/datagen_info/grasp"] = np.ones(LENGTH, bool)
    words = "groups of numbers within obs are not read (a path in state_obs_keys names one)"
    assert f"{words} (2, first: {path}, demo_0: obs/datagen_info)" in said(index_of(tmp_path, entry(**DEMO)))
    named = index_of(tmp_path, entry(**DEMO | {"state_obs_keys": ("robot0_eef_pos", "datagen_info/grasp")}))
    assert (named.proprio.shape[1], named.repairs) == (4, ())


def test_the_robot_in_a_group_of_the_observation(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "trajectory.h5", "w") as file:  # ManiSkill
        demo = file.create_group("traj_0")
        demo["actions"], demo["obs/agent/qpos"], demo["obs/extra/tcp_pose"] = np.ones((4, 8)), np.ones((5, 9)), np.ones((5, 7))
        demo["obs/sensor_data/base_camera/rgb"] = PICTURES
    index = index_of(tmp_path, entry(image_obs_keys={"primary": "sensor_data/base_camera/rgb"}, state_obs_keys=("agent/qpos",)))
    assert (index.actions.shape, index.proprio.shape) == ((4, 8), (4, 9))
    assert "first: " in said(index)
    assert "obs/extra" in said(index)
    assert "obs/agent" not in said(index)


def test_demonstrations_with_encoded_images_and_cameras_in_groups(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "demo.hdf5", ["demo_0"], language_instruction="go")
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/sensor_data/base_camera/rgb"] = np.array(JPEGS, f"S{LONGEST}")
        file["data/demo_0/obs/front_depth"] = np.ones((LENGTH, *SIZE, 1), np.float32)
    index = index_of(tmp_path, entry(**DEMO | {"image_obs_keys": {"primary": "sensor_data/base_camera/rgb"}}))
    np.testing.assert_array_equal(frames(index), DECODED)
    assert "depth images are not read (1, " in said(index)


def test_files_without_pictures_say_so_in_one_line(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/joint_pos"] = np.zeros((3, 7)), np.zeros((3, 9))
        file["data/demo_0/obs/datagen_info/pose"], file["data/demo_0/obs/table_cam"] = np.zeros((3, 4)), np.zeros((3, 9, 9, 3), np.float32)
    found = r"found datagen_info, joint_pos, table_cam \(float32 \[3, 9, 9, 3\]\)"
    with pytest.raises(ValueError, match=rf"no images in /data/demo_0/obs; {found}. Record or render .* \(uint8\)"):
        Hdf5Source(tmp_path)
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file["action"], file["observations/qpos"] = np.zeros((3, 7)), np.zeros((3, 9))
    with pytest.raises(ValueError, match=r"demo.hdf5: no images: /observations/images is missing or empty"):
        Hdf5Source(tmp_path)
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match="holds no demonstration with steps"):
        Hdf5Source(tmp_path)


def test_a_broken_file_is_refused_by_itself(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"
    for number in range(1, 5):
        write_act(tmp_path / f"episode_{number}.hdf5")
    (tmp_path / "episode_0.hdf5").write_bytes(pointer)
    (tmp_path / "episode_2.hdf5").write_bytes((tmp_path / "episode_2.hdf5").read_bytes()[:3000])
    (tmp_path / "episode_3.hdf5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"episode_0.hdf5: is a Git LFS pointer.*\(3 of 5 episodes cannot be used.*--exclude_episodes"):
        index_of(tmp_path)
    source = Hdf5Source(tmp_path, entry())
    index = load_index(source, entry(), identity_dataset_transform, is_lenient=True)
    assert index.lengths.tolist() == [0, LENGTH, 0, 0, LENGTH]
    assert "episode_2.hdf5: cannot be read as HDF5" in index.refused[2]
    assert "episode_3.hdf5: is empty" in index.refused[3]


@pytest.mark.parametrize("kind", ["a tree", "a header", "a link"])
def test_a_file_whose_structure_is_damaged_is_refused_by_itself(tmp_path: Path, kind: str) -> None:
    for number in range(3):
        write_act(tmp_path / f"episode_{number}.hdf5", observations__qvel=np.ones((LENGTH, 14)))
    path = tmp_path / "episode_1.hdf5"
    with h5py.File(path, "a") as file:
        place = h5py.h5o.get_info(file["observations/qvel"].id).addr
        if kind == "a link":
            file["observations/effort"] = h5py.ExternalLink("nowhere.hdf5", "/effort")
    content = bytearray(path.read_bytes())
    if kind == "a tree":
        content = content.replace(b"TREE", b"\xff" * 4)
    if kind == "a header":
        content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    index = load_index(Hdf5Source(tmp_path, entry()), entry(), identity_dataset_transform, is_lenient=True)
    assert index.lengths.tolist() == [LENGTH, 0, LENGTH]
    words = r"damaged \(.*\); copy it again" if kind == "a tree" else r"/observations/\w+ cannot be opened: it is damaged, or a link"
    assert re.match(rf"{re.escape(str(path))}: {words}", index.refused[1])


def test_a_demonstration_that_cannot_be_opened_is_refused_by_itself(tmp_path: Path) -> None:
    with h5py.File(write_demos(tmp_path / "a.hdf5", ["demo_0", "demo_2"], language_instruction="go %"), "a") as file:
        file["data/demo_1"] = h5py.SoftLink("/nowhere")
        file["data/demo_2/obs/front_image"][...] = PICTURES[::-1]
    write_demos(tmp_path / "b.hdf5", ["demo_0"], language_instruction="go")
    with h5py.File(tmp_path / "b.hdf5", "a") as file:
        file.create_group("mask/train/of_mine")
    described = entry(**DEMO)
    index = load_index(Hdf5Source(tmp_path, described), described, identity_dataset_transform, is_lenient=True)
    assert index.lengths.tolist() == [LENGTH, 0, LENGTH, 0]
    assert "a.hdf5: /data/demo_1 cannot be opened: it is damaged, or a link to what is not there" in index.refused[1]
    assert "b.hdf5: /mask/train is a group; names of demonstrations are expected" in index.refused[3]
    np.testing.assert_array_equal(frames(index), np.concatenate([PICTURES, PICTURES[::-1]]))


def test_a_broken_demonstration_is_refused_by_itself(tmp_path: Path) -> None:
    write_demos(tmp_path / "a.hdf5", ["demo_0", "demo_1"], language_instruction="go")
    write_demos(tmp_path / "b.hdf5", ["demo_0"], language_instruction="go")
    write_act(tmp_path / "c.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["data/demo_0/actions"]
    (tmp_path / "b.hdf5").write_bytes(b"cut off")
    described = entry(**DEMO)
    index = load_index(Hdf5Source(tmp_path, described), described, identity_dataset_transform, is_lenient=True)
    assert index.lengths.tolist() == [0, LENGTH, 0, 0]
    assert "a.hdf5: /data/demo_0/actions is missing" in index.refused[0]
    assert "b.hdf5: cannot be read as HDF5" in index.refused[2]
    assert "c.hdf5: its layout differs from that of" in index.refused[3]


def test_libero_files_keep_their_own_rules(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "x_demo.hdf5", (3, 3))
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array([b"demo_1"])
        file["mask/valid"] = np.array([b"demo_0"])
    described = DatasetEntry(state_obs_keys=("state",))
    index = index_of(tmp_path, described)
    assert index.splits == {"train": (0, 1), "val": (1, 2)}
    assert os.path.basename(index.names[0]) == "x_demo.hdf5, demo_1"
    assert index.instructions == ("put the bowl on the plate",)


def test_a_file_in_the_place_of_the_folder_is_called_one(tmp_path: Path) -> None:
    path = write_act(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match=r"a.hdf5 is a file, not a folder; .* pass the folder that holds them"):
        Hdf5Source(path)


def test_pictures_of_two_sizes_are_told_how_they_become_one(tmp_path: Path) -> None:
    first = StagedEpisode(tmp_path, "a", "train", "go", {"primary": (96, 128, 3)}, 7, 7)
    with pytest.raises(ValueError, match="one robot: bring the pictures to one size with --image_size"):
        first.check(replace(first, name="b", images={"primary": (64, 64, 3)}))
    with pytest.raises(ValueError, match="one robot: convert them separately"):
        first.check(replace(first, name="b", images={"wrist": (96, 128, 3)}))
    with pytest.raises(ValueError, match="one robot: convert them separately"):
        first.check(replace(first, name="b", action_dim=8))


def test_a_camera_that_the_first_episode_lacks_is_a_camera_of_the_others(tmp_path: Path) -> None:
    for number in range(4):
        write_act(tmp_path / f"episode_{number}.hdf5", **({"observations__images__top": PICTURES[::-1]} if number else {}))
    assert Hdf5Source(tmp_path).cameras == ("cam_high", "top")
    assert suggest_entry(tmp_path, "mine").entry.cameras == {"primary": "cam_high", "secondary": "top"}
    described = entry(image_obs_keys={"primary": "top"})
    index = load_index(Hdf5Source(tmp_path, described), described, identity_dataset_transform, is_lenient=True)
    assert index.lengths.tolist() == [0, LENGTH, LENGTH, LENGTH]
    assert "episode_0.hdf5: no key 'top'" in index.refused[0]
    np.testing.assert_array_equal(frames(index), np.concatenate([PICTURES[::-1]] * 3))
    np.testing.assert_array_equal(frames(index_of(tmp_path)), np.concatenate([PICTURES] * 4))


def test_a_camera_that_the_first_demonstration_lacks_is_a_camera_of_the_others(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.hdf5", ["demo_0", "demo_1"], language_instruction="go")
    with h5py.File(path, "a") as file:
        file.move("data/demo_0/obs/front_image", "data/demo_0/obs/top_image")
    described = entry(**DEMO)
    index = load_index(Hdf5Source(tmp_path, described), described, identity_dataset_transform, is_lenient=True)
    assert index.lengths.tolist() == [0, LENGTH]
    np.testing.assert_array_equal(frames(index), PICTURES)


def test_an_episode_without_pictures_is_refused_by_itself_wherever_it_stands(tmp_path: Path) -> None:
    for number in range(4):
        write_act(tmp_path / f"episode_{number}.hdf5")
    for number in (0, 2):
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "a") as file:
            del file["observations/images"]
    index = load_index(Hdf5Source(tmp_path, entry()), entry(), identity_dataset_transform, is_lenient=True)
    assert index.lengths.tolist() == [0, LENGTH, 0, LENGTH]
    assert all("no images: /observations/images is missing or empty" in index.refused[number] for number in (0, 2))
    assert index.repairs == ()
