"""Preprocessing of raw ALOHA recordings: resized images, everything else kept, split, going on after an interrupt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import camera_images, write_aloha

from prismatic.conversion.aloha_preprocessing import divide, preprocess_recording
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.hdf5.source import Hdf5Source
from prismatic.vla.datasets.index import load_index
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.sources import open_source
from prismatic.vla.datasets.splits import split_episodes
from prismatic.vla.images import decode_image, encode_jpeg, resize_lanczos3

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("compressed", [False, True])
def test_images_are_resized_and_the_rest_is_kept(tmp_path: Path, compressed: bool) -> None:
    path = write_aloha(tmp_path / "episode_0.hdf5", compressed=compressed)
    preprocess_recording(path, tmp_path / "out" / path.name, 16, "fold")
    with h5py.File(path) as before, h5py.File(tmp_path / "out" / path.name) as after:
        for name in ("action", "observations/qpos", "observations/qvel", "observations/effort"):
            np.testing.assert_array_equal(after[name][()], before[name][()])
            assert after[name].dtype == before[name].dtype
        assert (after.attrs["language_instruction"], bool(after.attrs["compress"])) == ("fold", False)
        assert "compress_len" not in after
        image = camera_images(1, 6)[4]
        image = decode_image(encode_jpeg(image)) if compressed else image
        np.testing.assert_array_equal(after["observations/images/cam_left_wrist"][4], resize_lanczos3(image, 16))
    assert [item.name for item in (tmp_path / "out").iterdir()] == [path.name]


def test_a_text_in_a_folder_above_goes_into_the_new_file(tmp_path: Path) -> None:
    """The new file lies in train/ or val/ of another folder, where no text is."""
    paths = [write_aloha(tmp_path / f"raw/{day}/episode_{day}{number}.hdf5") for day in "ab" for number in range(2)]
    texts = {"a/episode_a0.hdf5": "fold", "episode_a1": "unfold", "*": "unfold", "episode_b1.hdf5": "fold"}
    (tmp_path / "raw/instructions.json").write_text(json.dumps(texts))
    for path in paths:
        preprocess_recording(path, tmp_path / "out" / path.name, 16, root=tmp_path / "raw")
    index = load_index(Hdf5Source(tmp_path / "out"), DatasetEntry(image_obs_keys={"primary": "cam_high"}), identity_dataset_transform)
    told = [index.instructions[number] for number in index.instruction_ids[index.episode_starts[:-1]]]
    assert told == ["fold", "unfold", "unfold", "fold"]
    splits = divide(paths, 0.5, root=tmp_path / "raw")
    assert {text for path, text in zip(paths, told, strict=True) if splits[path] == "val"} == {"fold", "unfold"}


def test_recordings_of_other_software_are_made_into_plain_ones(tmp_path: Path) -> None:
    pictures, texts = camera_images(0, 4), ["fold it", "fold the shirt"]
    path = tmp_path / "raw" / "episode_0.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["action"], file["base_action"], file["observations/qpos/left"] = np.zeros((4, 14)), np.ones((4, 2)), np.ones((4, 7))
        file["observations/images/cam_high"] = np.array([encode_jpeg(picture) for picture in pictures])  # fixed strings
        file["observations/images/cam_low"] = pictures[..., :1]
    (path.parent / "instructions.json").write_text(json.dumps({"instructions": texts}))
    preprocess_recording(path, tmp_path / "out" / path.name, 16)
    with h5py.File(tmp_path / "out" / path.name) as after:
        assert after["observations/qpos/left"].shape == (4, 7)
        assert after["base_action"][()].tolist() == [[1, 1]] * 4
        assert {item.shape for item in after["observations/images"].values()} == {(4, 16, 16, 3)}
        decoded = resize_lanczos3(decode_image(encode_jpeg(pictures[2])), 16)
        np.testing.assert_array_equal(after["observations/images/cam_high"][2], decoded)
    (episode,) = Hdf5Source(tmp_path / "out").episodes()
    assert episode.texts == tuple(texts)


def test_a_damaged_recording_leaves_nothing(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "episode_0.hdf5", compressed=True)
    with h5py.File(path, "a") as file:
        file["observations/images/cam_high"][2] = 7
    with pytest.raises(ValueError, match=r"episode_0.hdf5: expected a JPEG or PNG image"):
        preprocess_recording(path, tmp_path / "out" / path.name, 16)
    assert list((tmp_path / "out").iterdir()) == []


def test_division_is_the_same_every_time_and_the_one_of_training(tmp_path: Path) -> None:
    paths = [write_aloha(tmp_path / "raw" / f"episode_{number}.hdf5", 2, instruction=f"task {number % 4}") for number in range(20)]
    splits = divide(paths, 0.1)
    assert sorted(splits.values()).count("val") == 2
    assert splits == divide(paths[::-1], 0.1)
    spec = DatasetSpec(
        "fold", DatasetEntry(image_obs_keys={"primary": "cam_high"}), tmp_path / "raw", ROBOT_PLATFORMS["ALOHA"], identity_dataset_transform
    )
    index = load_index(open_source(spec.folder, spec.entry), spec.entry, spec.transform)
    assert {index.names[episode] for episode in split_episodes(spec, index, 0.1)[1]} == {p.name for p in paths if splits[p] == "val"}
    assert set(divide(paths, 0).values()) == {"train"}
    assert set(divide(paths[:1], 0.5).values()) == {"train"}
    with pytest.raises(ValueError, match=r"episode_3.hdf5 occurs more than once"):
        divide([*paths, Path("other/episode_3.hdf5")], 0.1)


def test_the_script_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for number in range(4):
        write_aloha(tmp_path / "raw/monday" / f"episode_{number}.hdf5", 3, number)
    (tmp_path / "raw/instruction.txt").write_text("fold the towel")
    script = str(ROOT / "experiments/robot/aloha/preprocess_split_aloha_data.py")
    words = [sys.executable, script, "--dataset_path", str(tmp_path / "raw"), "--out_base_dir", str(tmp_path / "out")]
    words += ["--img_resize_size", "16", "--percent_val"]
    done = subprocess.run([*words, "0.25"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "3 train, 1 val episodes" in done.stdout, done.stderr
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.hdf5")}
    for path in written:
        with h5py.File(path) as file:
            assert file.attrs["language_instruction"] == "fold the towel"
    lost = sorted(written)[0]
    lost.unlink()
    subprocess.run([*words, "0.25"], cwd=ROOT, check=True, capture_output=True, timeout=60)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.hdf5")}
    assert {path for path in written if written[path] != again[path]} == {lost}
    done = subprocess.run([*words, "0"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is there from a run with another --percent_val" in done.stderr
    words[words.index("16")] = "32"  # pixels; those of before were kept beside them
    done = subprocess.run([*words, "0.25"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--img_resize_size was 16, is 32" in done.stderr
