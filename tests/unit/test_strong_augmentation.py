"""The strong augmentation: what each part does, that both ways of augmenting agree, and that the standard one is what it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rlds_writer import make_episode, write_dataset

from prismatic.training.config import FinetuneConfig
from prismatic.training.resumed_data import describe_episodes
from prismatic.vla.datasets.dataset import DatasetOptions, VLADataset
from prismatic.vla.datasets.paraphrases import read_paraphrases
from prismatic.vla.datasets.reference_frames import make_reference
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.sampler import SampleKey
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.images import AS_EVALUATED, augment_cpu, center_crop, draw_augmentation, prepare_batch_on_device
from prismatic.vla.strong_augmentation import draw_strong, homographies, strengthen, strengthen_cpu

NOTHING = np.array([*[0.0] * 6, -1.0, *[0.0] * 16], np.float32)  # a row that changes nothing, of two cameras
CAMERAS = ("primary", "wrist")
SEEN = AS_EVALUATED.rows()[0]
OPTIONS = DatasetOptions(cameras=CAMERAS, image_size=24, augment=True)


def pictures(num_cameras: int = 2, size: int = 32) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] * (255 // size)
    one = np.stack([rows, columns, 255 - rows], axis=2).astype(np.uint8)
    return np.stack([one] * num_cameras)


def row(**changes: float) -> np.ndarray:
    changed = NOTHING.copy()
    names = ["noise", "seed", "top", "left", "height", "width", "blind"]
    for name, value in changes.items():
        changed[names.index(name)] = value
    return changed


def test_a_row_that_changes_nothing_changes_nothing() -> None:
    images = pictures()
    assert np.abs(strengthen_cpu(images, NOTHING).astype(int) - images).max() <= 1
    assert strengthen_cpu(images, NOTHING).dtype == np.uint8


def test_the_corners_of_the_new_picture_show_what_lay_where_they_came_from() -> None:
    corners = np.random.default_rng(0).uniform(-0.12, 0.12, (1, 8))
    moved = homographies(corners)[0] @ np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]).T
    expected = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + 2 * corners.reshape(4, 2)
    np.testing.assert_allclose((moved[:2] / moved[2]).T, expected, atol=1e-5)
    images = pictures(2, 64)
    shifted = NOTHING.copy()
    shifted[7:15] = [0.1, 0] * 4  # everything comes from a tenth further right, in the first picture
    seen = strengthen_cpu(images, shifted).astype(int)
    np.testing.assert_allclose(seen[0, :, :50], images[0, :, 6:56], atol=3)
    assert np.abs(seen[1] - images[1]).max() <= 1


def test_noise_has_its_strength_and_follows_from_its_seed_alone() -> None:
    images = np.full((2, 64, 64, 3), 128, np.uint8)
    first, other = strengthen_cpu(images, row(noise=10, seed=1)), strengthen_cpu(images, row(noise=10, seed=2))
    assert first.astype(float).std() == pytest.approx(10, rel=0.03)
    assert first.mean() == pytest.approx(128, abs=0.3)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.03  # each camera has its own
    assert abs(np.corrcoef(first[0, :, :-1].ravel(), first[0, :, 1:].ravel())[0, 1]) < 0.03
    assert np.array_equal(first, strengthen_cpu(images, row(noise=10, seed=1)))
    alone = strengthen(
        torch.from_numpy(np.stack([images, images])), torch.from_numpy(np.stack([row(noise=10, seed=2), row(noise=10, seed=1)]))
    )
    assert np.array_equal(alone[1].numpy(), first)  # whatever else is in the batch


def test_boxes_and_blind_cameras_are_grey_and_the_rest_is_as_it_was() -> None:
    images = pictures()
    boxed = strengthen_cpu(images, row(top=0.25, left=0.5, height=0.25, width=0.125))
    assert (boxed[:, 8:16, 16:20] == 128).all()
    assert np.abs(np.delete(boxed, np.s_[8:16], axis=1).astype(int) - np.delete(images, np.s_[8:16], axis=1)).max() <= 1
    blind = strengthen_cpu(images, row(blind=1))
    assert (blind[1] == 128).all()
    assert np.abs(blind[0].astype(int) - images[0]).max() <= 1


def test_draws_cover_what_they_should() -> None:
    plain = np.concatenate([draw_augmentation(np.random.default_rng(seed)).rows() for seed in range(1200)])
    drawn = [draw_strong(row, SEEN, np.random.default_rng(seed), CAMERAS) for seed, row in enumerate(plain)]
    wide, rows = (np.stack(part) for part in zip(*drawn, strict=True))
    assert rows.shape == (1200, 23)
    is_plain = (rows == NOTHING).all(axis=1)
    assert 0.45 < is_plain.mean() < 0.55
    assert (wide[is_plain] == SEEN).all()
    wide, rows = wide[~is_plain], rows[~is_plain]
    assert 0.11 < np.abs(rows[:, 7:15]).max() <= 0.12
    assert not rows[:, 15:].any()  # a camera on the wrist keeps its place at the hand
    assert 0.4 < (rows[:, 4] > 0).mean() < 0.6
    assert (rows[:, 2] + rows[:, 4]).max() <= 1
    assert set(rows[:, 6]) == {-1.0, 0.0, 1.0}
    assert 0.05 < (rows[:, 6] >= 0).mean() < 0.15
    assert np.array_equal(wide[:, :2], plain[~is_plain, :2])  # the crop
    for column, (low, high) in {2: (-0.4, 0.4), 3: (0.5, 1.5), 4: (0.5, 1.5), 5: (-0.1, 0.1)}.items():
        assert low - 1e-6 <= wide[:, column].min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < wide[:, column].max() <= high + 1e-6


def test_two_scene_cameras_move_each_by_itself_and_the_only_camera_is_never_blind() -> None:
    standard = draw_augmentation(np.random.default_rng(0)).rows()[0]
    rows = np.stack([draw_strong(standard, SEEN, np.random.default_rng(seed), ("primary", "secondary"))[1] for seed in range(100)])
    moved = rows[rows[:, 0] > 0]
    assert (moved[:, 7:15] != moved[:, 15:]).all()
    assert {draw_strong(standard, SEEN, np.random.default_rng(seed), ("primary",))[1][6] for seed in range(100)} == {-1.0}


def load(root: Path, **changes) -> VLADataset:
    if not (root / "metaworld_demo").exists():
        write_dataset(root, "metaworld_demo", {"train": [make_episode(20, instruction="open the window")]})
    return load_training_data(resolve_datasets("metaworld_demo", root), dataclasses.replace(OPTIONS, **changes)).train


def test_the_device_does_what_the_loader_would_have_done(tmp_path: Path) -> None:
    here, there = (
        load(tmp_path, augmentation="strong"),
        load(tmp_path, augmentation="strong", device_augmentation=True, frame_cache_bytes=0),
    )
    for number in range(6):
        mine, theirs = here[number], there[number]
        assert mine.draw is None
        assert theirs.draw is not None
        assert theirs.draw.shape == (6 + 23,)
        draws = torch.from_numpy(theirs.draw)[None]
        done = prepare_batch_on_device(torch.from_numpy(theirs.images)[None], draws, 24)[0].numpy()
        difference = np.abs(mine.images.astype(int) - done)
        assert np.quantile(difference, 0.99) <= 1  # rounding of the standard part, seen through another perspective
        assert difference.max() <= 3


def test_the_standard_augmentation_is_what_it_was(tmp_path: Path) -> None:
    plain, standard = load(tmp_path, augment=False), load(tmp_path)
    for key in (SampleKey(3, 0), SampleKey(3, 1)):
        rng = np.random.default_rng((OPTIONS.seed, key.num_earlier_passes, 3))
        expected = augment_cpu(plain[3].images.copy(), draw_augmentation(rng))  # as in earlier versions
        np.testing.assert_array_equal(standard[key].images, expected)


def test_half_of_the_strong_samples_are_what_an_evaluation_sees(tmp_path: Path) -> None:
    plain, strong = load(tmp_path, augment=False), load(tmp_path, augmentation="strong")
    seen = np.stack([center_crop(image) for image in plain[3].images]).astype(int)
    keys = [SampleKey(3, number) for number in range(40)]
    differences = np.array([np.abs(strong[key].images - seen).mean() for key in keys])
    assert 10 <= (differences < 0.5).sum() <= 30
    assert (differences[differences >= 0.5] > 2).all()
    np.testing.assert_array_equal(strong[keys[0]].images, strong[keys[0]].images)
    changed = [strong[key].images for key, difference in zip(keys, differences, strict=True) if difference >= 0.5]
    assert not np.array_equal(changed[0], changed[1])


def test_other_words_are_drawn_for_training_samples_alone(tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"open the window": ["slide the window open", "let air in"], "sing": ["hum"]}))
    write_dataset(
        tmp_path, "metaworld_demo", {"train": [make_episode(60, instruction="open the window")], "val": [make_episode(9, seed=3)]}
    )
    options = dataclasses.replace(OPTIONS, paraphrases=words, val_fraction=0.1)
    data, plain = load_training_data(resolve_datasets("metaworld_demo", tmp_path), options), load(tmp_path)
    told = [data.train[number].instruction for number in range(60)]
    assert set(told) == {"open the window", "slide the window open", "let air in"}
    assert told == [data.train[number].instruction for number in range(60)]
    assert told != [data.train[SampleKey(number, 1)].instruction for number in range(60)]
    np.testing.assert_array_equal(data.train[5].images, plain[5].images)  # the augmentation's draws are what they were
    assert data.paraphrased[0] == 1
    assert data.val is not None
    assert len({data.val[number].instruction for number in range(9)}) == 1


def test_the_default_instruction_is_said_in_other_words_too(tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"open the window": ["let air in"]}), encoding="utf-8-sig")  # as editors on Windows save it
    write_dataset(tmp_path, "metaworld_demo", {"train": [make_episode(60, instruction="")]})
    specs, options = resolve_datasets("metaworld_demo", tmp_path), dataclasses.replace(OPTIONS, paraphrases=words)
    data = load_training_data(specs, dataclasses.replace(options, default_instruction="open the window "))
    assert {data.train[number].instruction for number in range(60)} == {"open the window", "let air in"}
    assert make_reference(data.train).instructions == ("let air in", "open the window")
    other = load_training_data(specs, dataclasses.replace(OPTIONS, default_instruction="open the window"))
    assert describe_episodes(data) != describe_episodes(other)  # a run that is resumed is told other words
    with pytest.raises(ValueError, match="has none of the data's instructions, such as 'sing'"):
        load_training_data(specs, dataclasses.replace(options, default_instruction="sing"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read"),
        ("[]", "holds no object"),
        ('{"open the window": "air"}', "what stands at 'open the window' is no list"),
        ('{"open the window": ["a"], "open the window": ["b"]}', "'open the window' stands there twice; put all texts into one list"),
        ('{"open the window": [" "]}', "is no list of texts that say something"),
        ('{"open the windw": ["air"]}', "has none of the data's instructions, such as 'open the window'.*open the windw"),
    ],
)
def test_a_file_of_other_words_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_paraphrases(tmp_path / "words.json", ["open the window"])


def test_flags_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="--augmentation strong and --image_aug False contradict"):
        FinetuneConfig.from_flags(augmentation="strong", image_aug=False)
    with pytest.raises(ValueError, match="--augmentation is 'heavy'"):
        FinetuneConfig.from_flags(augmentation="heavy")
    with pytest.raises(ValueError, match="--freeze_heads and --fresh_heads are both True"):
        FinetuneConfig.from_flags(freeze_heads=True, fresh_heads=True)
    frozen = {"freeze_vision_backbone": True, "freeze_projector": True, "freeze_language_model": True, "freeze_heads": True}
    with pytest.raises(ValueError, match="--freeze_heads too: nothing is left to train"):
        FinetuneConfig.from_flags(**frozen)
    assert FinetuneConfig.from_flags(**frozen, use_film=True).model.freeze_heads  # FiLM alone
