"""Our reader and image operations against TensorFlow and tensorflow-datasets themselves, which run in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rlds_writer import make_episode, smooth_image
from tensorflow_inputs import RESIZES, SIDES, TOLD, draws, encoded_images, frames, single_draws

from prismatic.vla.datasets.episodes import IMAGE_REF
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.sources import find_dataset_folder
from prismatic.vla.images import (
    augment_batch,
    augment_cpu,
    center_crop,
    decode_image,
    encode_jpeg,
    resize_lanczos3,
    resize_lanczos3_batch,
    stack_draws,
)

pytestmark = pytest.mark.rlds

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the answers of tensorflow_oracle.py."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        pytest.skip("needs the extra [rlds]")
    folder = tmp_path_factory.mktemp("oracle")
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    script = "import sys, pathlib, tensorflow_oracle; tensorflow_oracle.main(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_decoding_is_bit_identical(oracle: Path) -> None:
    inputs = encoded_images()
    decoded = np.load(oracle / "decoded.npz")
    assert len(inputs) == len(decoded.files) > 60
    for name, encoded in inputs.items():
        np.testing.assert_array_equal(decode_image(encoded), decoded[name], err_msg=name)


@pytest.mark.parametrize(("height", "width", "size"), RESIZES)
def test_encoding_gives_the_same_bytes(oracle: Path, height: int, width: int, size: int) -> None:
    assert encode_jpeg(smooth_image(height, height, width)) == (oracle / f"{height}_{width}.jpg").read_bytes()


@pytest.mark.parametrize(("height", "width", "size"), RESIZES)
def test_lanczos3_within_a_hundredth_of_a_level(oracle: Path, height: int, width: int, size: int) -> None:
    expected = np.load(oracle / "resized.npz")[f"{height}_{width}_{size}"].astype(int)
    image = smooth_image(height, height, width)
    for resized in (resize_lanczos3(image, size), resize_lanczos3_batch(torch.tensor(image), size).numpy()):
        assert np.abs(resized - expected).mean() < 0.01
        assert np.abs(resized - expected).max() <= 1


@pytest.mark.parametrize("side", SIDES)
def test_center_crop_within_one_level(oracle: Path, side: int) -> None:
    expected = np.load(oracle / "augmented.npz")[f"center_{side}"].astype(int)
    difference = np.abs(np.stack([center_crop(frame) for frame in frames(side)]) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("side", SIDES)
def test_augmentation_within_one_level(oracle: Path, side: int) -> None:
    expected = np.load(oracle / "augmented.npz")
    batch = augment_batch(torch.tensor(frames(side)).repeat(len(draws()), 1, 1, 1, 1), stack_draws(draws())).numpy()
    for number, draw in enumerate(draws()):
        for augmented in (augment_cpu(frames(side), draw), batch[number]):
            difference = np.abs(augmented - expected[f"draw_{side}_{number}"].astype(int))
            assert difference.max() <= 1, draw
            assert difference.mean() < 0.01, draw


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", list(single_draws()))
def test_each_operation_within_one_level(oracle: Path, side: int, name: str) -> None:
    expected, draw = np.load(oracle / "augmented.npz")[f"{name}_{side}"].astype(int), single_draws()[name]
    on_cpu, on_device = augment_cpu(frames(side), draw), augment_batch(torch.tensor(frames(side))[None], draw)[0].numpy()
    for augmented in (on_cpu, on_device):
        difference = np.abs(augmented - expected)
        assert difference.max() <= 1
        assert difference.mean() < 0.01


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_feature_is_read_as_tensorflow_datasets_reads_it(oracle: Path, split: str) -> None:
    source = RldsSource(find_dataset_folder(oracle / "rlds", "oracle_set"))
    assert source.folder.name == "1.2.0"
    assert len(source.files) == 4
    episodes = [episode for episode in source.episodes() if episode.split == split]
    assert len(episodes) == len(list(oracle.glob(f"episode_{split}_*.npz")))
    matched = {_matching_episode(oracle, split, episode.trajectory["language_instruction"][0]) for episode in episodes}
    assert len(matched) == len(episodes)
    for episode in episodes:
        expected = np.load(_matching_episode(oracle, split, episode.trajectory["language_instruction"][0]))
        for path in expected.files:
            values = episode.trajectory
            for key in path.split("|"):
                values = values[key]
            if values.dtype == IMAGE_REF:
                values = np.stack([_decode(source, reference) for reference in values])
            elif values.dtype != object:
                assert values.dtype == expected[path].dtype, path
            np.testing.assert_array_equal(values, expected[path], err_msg=path)
        assert "windows" not in episode.trajectory


def test_lists_of_texts_and_image_files_in_strings_are_what_tensorflow_datasets_wrote(oracle: Path) -> None:
    source = RldsSource(find_dataset_folder(oracle / "rlds", "told_set"))
    found = {int(episode.trajectory["action"][0, 0]): episode for episode in source.episodes()}
    for number, (lists, beside) in enumerate(TOLD):
        texts = tuple(dict.fromkeys(text for step in lists for text in step)) or beside
        assert found[number].texts == texts
        told = found[number].trajectory["language_instruction"]
        for step, choice in enumerate(lists):
            assert (told if isinstance(told, str) else told[step]) in (choice or ("", *beside))
        for step, reference in enumerate(found[number].trajectory["observation"]["image"]):
            assert np.abs(_decode(source, reference).astype(int) - smooth_image(step, 16, 16)).mean() < 12


def _matching_episode(oracle: Path, split: str, instruction: str) -> Path:
    for path in oracle.glob(f"episode_{split}_*.npz"):
        if np.load(path)["language_instruction"][0] == instruction:
            return path
    raise AssertionError(instruction)


def _decode(source: RldsSource, reference: np.void) -> np.ndarray:
    with source.files[reference["file"]].open("rb") as file:
        file.seek(reference["offset"])
        return decode_image(file.read(reference["length"]))


def test_the_writer_of_these_tests_writes_what_tensorflow_reads(oracle: Path) -> None:
    example, episode = np.load(oracle / "example.npz"), make_episode(3)
    np.testing.assert_array_equal(example["state"], episode["observation/state"].ravel())
    np.testing.assert_array_equal(example["is_first"], episode["is_first"])
    assert example["text"].tolist() == episode["language_instruction"]
