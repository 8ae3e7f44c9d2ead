"""RLDS data sets as other people's builders write them: where the text stands, how images are stored, splits, empty episodes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rlds_writer import Episode, StringTensor, make_episode, smooth_image, write_dataset

from prismatic.vla.cameras import assign_cameras
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import ActionEncoding, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.splits import split_episodes
from prismatic.vla.images import decode_image, encode_jpeg

ENTRY = DatasetEntry(action_encoding=ActionEncoding.JOINT_POS)
WORDS = "put the cup down"


def episode(seed: int = 0, length: int = 4, **more: object) -> Episode:
    """Without an instruction; `more` are further features, "__" for "/"."""
    made = make_episode(length, seed=seed)
    del made["language_instruction"]
    return made | {name.replace("__", "/"): values for name, values in more.items()}


def index_of(folder: Path) -> EpisodeIndex:
    return load_index(RldsSource(folder), ENTRY, identity_dataset_transform)


def said(index: EpisodeIndex) -> str:
    return "\n".join(map(str, index.repairs))


@pytest.mark.parametrize(
    "place",
    [
        {"observation__natural_language_instruction": [WORDS] * 4},
        {"observation__language_instruction": [WORDS] * 4},
        {"task__language_instruction": [WORDS] * 4},
        {"instruction": [WORDS] * 4},
        {"language_instruction": [""] * 4, "episode_metadata__language_instruction": WORDS},
        {"episode_metadata__language_instruction": WORDS},
        {"episode_metadata__lang": (WORDS,)},
        {"episode_metadata__file_path": "/data/1.hdf5", "episode_metadata__language_embedding_model": "USE", "instruction": [WORDS] * 4},
        {"language_instruction": np.array([[WORDS, ""]] * 4, dtype=object)},
        {"language_instruction": [WORDS] * 4, "observation__instruction": ["not this"] * 4},
    ],
)
def test_the_instruction_is_found_where_it_stands(tmp_path: Path, place: dict[str, object]) -> None:
    index = index_of(write_dataset(tmp_path, "told", {"train": [episode(**place)]}))
    assert index.instructions == (WORDS,)
    assert index.repairs == ()


@pytest.mark.parametrize("per_step", [True, False])
def test_of_a_list_of_texts_one_is_drawn_for_each_episode_always_the_same(tmp_path: Path, per_step: bool) -> None:
    texts = ("put a", "put b", "put c")
    place = {"language_instruction": [texts] * 4} if per_step else {"episode_metadata__language_instruction": texts}
    folder = write_dataset(tmp_path, "lists", {"train": [episode(seed, **place) for seed in range(12)]})
    index = index_of(folder)
    drawn = [index.instructions[number] for number in index.instruction_ids[index.episode_starts[:-1]]]
    assert set(drawn) == set(texts)
    assert (index.instruction_ids.reshape(12, 4) == index.instruction_ids[::4, None]).all()
    folder.parent.rename(tmp_path / "moved")  # elsewhere, the same
    again = index_of(tmp_path / "moved" / "1.0.0")
    assert [again.instructions[number] for number in again.instruction_ids[again.episode_starts[:-1]]] == drawn
    assert all(raw.texts == texts for raw in RldsSource(tmp_path / "moved" / "1.0.0").episodes())
    assert "of which one is drawn for each (12, first: " in said(index)


def test_lists_of_other_lengths_belong_to_their_steps(tmp_path: Path) -> None:
    lists = [("reach",), ("reach", "go there"), (), ("lift",)]
    index = index_of(write_dataset(tmp_path, "odd", {"train": [episode(language_instruction=lists)]}))
    texts = [index.instructions[number] for number in index.instruction_ids]
    assert (texts[0], texts[3]) == ("reach", "lift")
    assert texts[1] in ("reach", "go there")
    assert texts[2] == "reach"  # a step without takes the episode's first


def encoded(form: str, mode: str = "RGB") -> Callable[[np.ndarray], bytes]:
    def encode(picture: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).convert(mode).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
        return buffer.getvalue()

    return encode


@pytest.mark.parametrize(
    "encode", [encode_jpeg, encoded("PNG"), encoded("PNG", "RGBA"), encoded("PNG", "LA"), encoded("WEBP"), encoded("BMP"), encoded("GIF")]
)
@pytest.mark.parametrize("as_strings", [False, True])
def test_images_of_every_kind_that_can_be_read(tmp_path: Path, encode: Callable[[np.ndarray], bytes], as_strings: bool) -> None:
    pictures = [smooth_image(step, 16, 24) for step in range(4)]
    files = [encode(picture) for picture in pictures]
    stored = StringTensor(files) if as_strings else files
    index = index_of(write_dataset(tmp_path, "pictures", {"train": [episode(language_instruction=[WORDS] * 4, observation__image=stored)]}))
    for step, file in enumerate(files):
        frame = index.reader.read(index.images[step, 0])
        assert frame.shape == (16, 24, 3)
        np.testing.assert_array_equal(frame, decode_image(file))
    if encode is not encode_jpeg:
        with Image.open(io.BytesIO(files[0])) as picture:
            np.testing.assert_array_equal(decode_image(files[0]), np.asarray(picture.convert("RGB")))


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    frames = [Image.fromarray(smooth_image(step, 16, 24)) for step in range(2)]
    animation, tiff = io.BytesIO(), io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    frames[0].save(tiff, "TIFF")
    for number, (file, words) in enumerate(((animation, "found a GIF animation of 2"), (tiff, "found a file of the kind TIFF"))):
        made = episode(language_instruction=[WORDS] * 4, observation__image=[file.getvalue()] * 4)
        folder = write_dataset(tmp_path / str(number), "odd", {"train": [made]})
        index = index_of(folder)
        with pytest.raises(ValueError, match=rf"odd-train.*image at byte \d+ .*{words}"):
            index.reader.read(index.images[0, 0])


@pytest.mark.parametrize(
    ("names", "train", "others", "words"),
    [
        (("all",), 1, {}, "the split 'all' is taken for 'train', which is absent (1, first: "),
        (("full", "val"), 1, {"val": 1}, "the split 'full' is taken for 'train'"),
        (("demos", "test"), 1, {"test": 1}, "the split 'demos' is taken for 'train'"),
        (("train", "all"), 1, {"all": 1}, ""),
        (("training", "validation"), 1, {"val": 1}, ""),
    ],
)
def test_a_split_of_another_name(tmp_path: Path, names: tuple[str, ...], train: int, others: dict[str, int], words: str) -> None:
    splits = {name: [episode(seed, language_instruction=[WORDS] * 4)] for seed, name in enumerate(names)}
    index = index_of(write_dataset(tmp_path, "splits", splits))
    assert {name: last - first for name, (first, last) in index.splits.items()} == {"train": train} | others
    assert words in said(index)
    assert bool(index.repairs) == bool(words)


def test_without_anything_to_train_on_the_splits_are_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "held_out", {"val": [episode(language_instruction=[WORDS] * 4)]})
    spec = DatasetSpec("held_out", ENTRY, folder, ROBOT_PLATFORMS["ALOHA"], identity_dataset_transform)
    with pytest.raises(ValueError, match="no split 'train'; found: val"):
        split_episodes(spec, index_of(folder), None)


def test_episodes_without_steps_are_skipped_and_counted(tmp_path: Path) -> None:
    told = {"language_instruction": [WORDS] * 4}
    empty = {path: values[:0] for path, values in episode(**told).items()}
    folder = write_dataset(tmp_path, "gaps", {"train": [episode(1, **told), empty, episode(2, **told), empty]})
    index = index_of(folder)
    assert index.lengths.tolist() == [4, 4]
    assert "episodes without steps are left out (2, first: " in said(index)
    assert "train.tfrecord-00000-of-00001, episode 1)" in said(index)


@pytest.mark.parametrize(
    ("names", "primary"),
    [
        (("image_1", "image_0", "image_2"), "image_0"),
        (("image_1", "image"), "image"),
        (("cam10", "cam9"), "cam9"),
        (("rgb_2", "image_3"), "image_3"),  # a better name before a smaller number
        (("observation.images.image_1", "observation.images.image_0"), "observation.images.image_0"),
    ],
)
def test_of_numbered_cameras_the_first_is_the_primary_one(names: tuple[str, ...], primary: str) -> None:
    assert assign_cameras(names, two_arms=False)[0]["primary"] == primary


def test_pointers_are_named_as_such(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"
    folder = write_dataset(tmp_path, "set", {"train": [episode(language_instruction=[WORDS] * 4)]})
    next(folder.glob("*tfrecord*")).write_bytes(pointer)
    with pytest.raises(ValueError, match=r"train.tfrecord-00000-of-00001 is a Git LFS pointer of 64 bytes.*run git lfs pull"):
        index_of(folder)
    (folder / "dataset_info.json").write_bytes(pointer)
    with pytest.raises(ValueError, match=r"dataset_info.json is a Git LFS pointer"):
        index_of(folder)
