"""Pictures whose red and blue were exchanged: read as the entry says, part of every key, noticed on the inspection page."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hdf5_files import ALOHA_CAMERAS, write_aloha
from rlds_writer import make_episode, smooth_image, write_dataset

from prismatic.vla.constants import get_robot_platform
from prismatic.vla.datasets.channel_order import frames_as_rgb
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.index import EpisodeIndex, index_key, load_index
from prismatic.vla.datasets.inspection.colours import check_channel_order, hue_shares, looks_exchanged
from prismatic.vla.datasets.inspection.frames import Strip
from prismatic.vla.datasets.inspection.page import inspect_dataset
from prismatic.vla.datasets.rlds.oxe.configs import ActionEncoding, DatasetEntry, as_entry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.sources import open_source
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.images import encode_jpeg

ENTRY = DatasetEntry(
    image_obs_keys=dict(zip(("primary", "left_wrist", "right_wrist"), ALOHA_CAMERAS, strict=True)),
    state_obs_keys=("qpos",),
    action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
)
EXCHANGED = replace(ENTRY, image_channel_order="bgr")
WOOD, SKIN, RED, BLUE, GREY, SKY = (176, 128, 74), (224, 172, 135), (200, 40, 30), (30, 60, 200), (150, 150, 150), (140, 180, 220)


def index_of(folder: Path, entry: DatasetEntry) -> EpisodeIndex:
    return load_index(open_source(folder, entry), entry, identity_dataset_transform)


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_are_what_the_entry_says_everywhere(tmp_path: Path, compressed: bool) -> None:
    write_aloha(tmp_path / "set" / "episode_0.hdf5", compressed=compressed, instruction="go", size=(32, 32))
    plain, exchanged = index_of(tmp_path / "set", ENTRY), index_of(tmp_path / "set", EXCHANGED)
    for reader in (exchanged.reader, pickle.loads(pickle.dumps(exchanged.reader))):
        frame = reader.read(exchanged.images[2, 1])
        np.testing.assert_array_equal(frame, plain.reader.read(plain.images[2, 1])[..., ::-1])
        assert frame.flags.c_contiguous
    assert exchanged.reader.is_sequential == plain.reader.is_sequential
    options = DatasetOptions(cameras=("primary",), image_size=32, val_fraction=None)
    pixels = {}
    for entry in (ENTRY, EXCHANGED):
        spec = DatasetSpec("set", entry, tmp_path / "set", get_robot_platform("ALOHA"), identity_dataset_transform)
        pixels[entry.image_channel_order] = load_training_data((spec,), options).train[3].images
    np.testing.assert_array_equal(pixels["bgr"], pixels["rgb"][..., ::-1])


def test_index_and_frame_caches_of_the_two_orders_are_never_mixed_up(tmp_path: Path) -> None:
    write_aloha(tmp_path / "set" / "episode_0.hdf5", instruction="go", size=(32, 32))
    source = open_source(tmp_path / "set", ENTRY)
    assert index_key(source, ENTRY, identity_dataset_transform) != index_key(source, EXCHANGED, identity_dataset_transform)
    plain, exchanged = index_of(tmp_path / "set", ENTRY), index_of(tmp_path / "set", EXCHANGED)
    assert not set(plain.frame_keys) & set(exchanged.frame_keys)
    for _ in range(2):  # with and without a filled cache
        for entry, flip in ((ENTRY, 1), (EXCHANGED, -1)):
            options = DatasetOptions(cameras=("primary",), image_size=32, val_fraction=None, frame_cache_dir=tmp_path / "frames")
            spec = DatasetSpec("set", entry, tmp_path / "set", get_robot_platform("ALOHA"), identity_dataset_transform)
            images = load_training_data((spec,), options).train[0].images
            np.testing.assert_array_equal(images[0], plain.reader.read(plain.images[0, 0])[..., ::flip])


def test_other_sources_obey_it_too(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "set", {"train": [make_episode(3)]})
    entry = DatasetEntry(action_encoding=ActionEncoding.JOINT_POS)
    plain, exchanged = index_of(folder, entry), index_of(folder, replace(entry, image_channel_order="bgr"))
    np.testing.assert_array_equal(exchanged.reader.read(exchanged.images[1, 0]), plain.reader.read(plain.images[1, 0])[..., ::-1])
    assert frames_as_rgb(plain.reader, "rgb") is plain.reader


def test_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"entry 'pot'.*image_channel_order is 'BGR'; did you mean bgr"):
        as_entry("pot", {"image_channel_order": "BGR"})


def scene(*patches: tuple[tuple[int, int, int], float], seed: int = 0) -> np.ndarray:
    """A grey picture [100, 100, 3] with noise, in which each colour fills its share."""
    picture, row = np.full((100, 100, 3), GREY, np.float64), 0
    for colour, share in patches:
        picture[row : row + round(100 * share)] = colour
        row += round(100 * share)
    return np.clip(picture + np.random.default_rng(seed).normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


ORDINARY = {
    "a red block before a blue wall": {"primary": scene((SKY, 0.6), (RED, 0.02)), "wrist": scene((RED, 0.05))},
    "a wooden table": {"primary": scene((WOOD, 0.7), (BLUE, 0.05))},
    "hands": {"primary": scene((SKIN, 0.1))},
    "blue and red things": {"primary": scene((RED, 0.02), (BLUE, 0.06))},
    "a blue thing under one camera, a red one under the other": {"left_wrist": scene((BLUE, 0.1)), "right_wrist": scene((RED, 0.03))},
    "hardly any colour": {"primary": scene((SKY, 0.3))},
    "no structure": {"primary": smooth_image(0, 100, 100), "wrist": smooth_image(1, 100, 100)},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_pictures_are_not_suspected(name: str) -> None:
    assert not looks_exchanged({camera: hue_shares([picture]) for camera, picture in ORDINARY[name].items()})


@pytest.mark.parametrize(
    "cameras",
    [
        {"primary": scene((WOOD, 0.7), (RED, 0.03)), "wrist": scene((WOOD, 0.4))},
        {"primary": scene((SKY, 0.6), (RED, 0.02)), "wrist": scene((RED, 0.05))},
        {"primary": scene((WOOD, 0.5))},
    ],
)
def test_the_same_pictures_exchanged_are_and_it_is_said_with_the_figures(cameras: dict[str, np.ndarray]) -> None:
    exchanged = {camera: [np.ascontiguousarray(picture[..., ::-1])] for camera, picture in cameras.items()}
    assert not check_channel_order([Strip(0, np.zeros(1), {camera: [picture] for camera, picture in cameras.items()})], "rgb")
    (finding,) = check_channel_order([Strip(0, np.zeros(1), exchanged)], "rgb")
    assert finding.kind == "The pictures look as if red and blue were exchanged (BGR)"
    assert "% of them blue to cyan, the rest red to yellow (primary " in finding.found
    assert 'write image_channel_order="bgr" into the entry' in finding.remedy
    assert "--image_channel_order bgr" in finding.remedy
    (finding,) = check_channel_order([Strip(0, np.zeros(1), exchanged)], "bgr")
    assert 'take image_channel_order="bgr" out of the entry' in finding.remedy


def test_shares_of_hues() -> None:
    hues = {(200, 40, 30): "warm", (220, 200, 40): "warm", (200, 30, 60): "warm", (30, 40, 200): "cool", (40, 200, 220): "cool"}
    hues |= {(30, 200, 40): "", (200, 30, 200): "", (150, 150, 150): "", (150, 110, 80): "", (120, 220, 40): ""}
    for colour, expected in hues.items():
        shares, back = (hue_shares([np.full((4, 4, 3), values, np.uint8)]) for values in (colour, colour[::-1]))
        assert (shares.warm, shares.cool) == (float(expected == "warm"), float(expected == "cool")), colour
        assert (back.warm, back.cool) == (shares.cool, shares.warm)


def test_the_page_says_it_until_the_entry_does(tmp_path: Path) -> None:
    def episode(seed: int) -> dict[str, object]:
        made = make_episode(6, seed=seed, action_dim=4, state_dim=4)
        for camera in ("image", "wrist_image"):
            pictures = [scene((WOOD, 0.5), (RED, 0.02 + 0.01 * step), seed=step)[..., ::-1] for step in range(6)]
            made[f"observation/{camera}"] = [encode_jpeg(np.ascontiguousarray(picture)) for picture in pictures]
        return made

    folder = write_dataset(tmp_path, "set", {"train": [episode(seed) for seed in range(2)]})

    def said(entry: DatasetEntry) -> str:
        spec = DatasetSpec("set", entry, folder, get_robot_platform("METAWORLD"), identity_dataset_transform)
        return "\n".join(map(str, inspect_dataset(spec).findings))

    assert "look as if red and blue were exchanged (BGR)" in said(DatasetEntry())
    assert "exchanged" not in said(DatasetEntry(image_channel_order="bgr"))
