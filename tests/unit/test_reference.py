"""What training saw against what a policy is shown: every usual mistake is reported, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismatic.policy.watching import ObservationWatch
from prismatic.vla.diagnosis import Status
from prismatic.vla.reference import REFERENCE_FILE, ObservationCheck, Reference, check_state, small_picture
from prismatic.vla.types import Observation

Images = dict[str, np.ndarray]
STATE = {"min": [-0.1, 0.4, 0.0, 1.0], "max": [0.3, 0.8, 0.0, 1.5]}
NAMES = ("x [m]", "y [m]", "still", "yaw [rad]")


def scene(rng: np.random.Generator, camera: str) -> np.ndarray:
    """uint8 [96, 128, 3]: a table with a red cube somewhere and a green arm above it, or the fingers above the cube; sensor noise."""
    image = np.full((96, 128, 3), (150, 130, 110) if camera == "primary" else (90, 90, 80), np.float64)
    x, y = rng.integers(0, 30, 2)
    if camera == "primary":
        image[:30] = 40
        image[20:60, 80 + x // 3 : 95 + x // 3] = (30, 120, 40)
        image[60 + y // 2 : 72 + y // 2, 30 + x : 45 + x] = (210, 30, 30)
    else:
        image[:, :14] = 20  # one finger: not the same in a mirror
        image[50 + y : 80 + y, 40 + x : 70 + x] = (200, 40, 30)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def observation(seed: int, instruction: str = "lift the cube") -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: scene(rng, camera) for camera in ("primary", "wrist")}
    return Observation(images, instruction, np.array([0.1, 0.5, 0.0, 1.2]))


@pytest.fixture
def reference() -> Reference:
    seen = [observation(seed) for seed in range(32)]
    frames = {camera: np.stack([small_picture(item.images[camera]) for item in seen]) for camera in ("primary", "wrist")}
    return Reference(frames, ("lift the cube", "push the cube"))


@pytest.fixture
def check(reference: Reference) -> ObservationCheck:
    return ObservationCheck(reference, STATE, NAMES)


def test_it_is_a_picture_and_comes_back(reference: Reference, tmp_path: Path) -> None:
    assert Reference.load(tmp_path) is None
    reference.save(tmp_path)
    assert Image.open(tmp_path / REFERENCE_FILE).size == (32 * 32, 2 * 32)  # for people: a row per camera
    loaded = Reference.load(tmp_path)
    assert loaded is not None
    assert list(loaded.frames) == ["primary", "wrist"]
    assert loaded.instructions == reference.instructions
    for camera in loaded.frames:
        np.testing.assert_array_equal(loaded.frames[camera], reference.frames[camera])
    (tmp_path / REFERENCE_FILE).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"reference_frames\.png cannot be read"):
        Reference.load(tmp_path)


def test_what_looks_like_training_is_not_reported(check: ObservationCheck) -> None:
    assert [check(observation(seed)) for seed in range(100, 150)] == [[]] * 50
    assert check(observation(100, "Lift the cube.")) == []


def each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Images], Images]:
    return lambda images: {name: np.ascontiguousarray(change(image)) for name, image in images.items()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda seen: {"primary": seen["wrist"], "wrist": seen["primary"]}, ["the cameras primary and wrist are exchanged"]),
        (lambda seen: {**seen, "wrist": seen["primary"]}, ["the camera wrist shows what training saw through primary"]),
        (each(lambda image: image[::-1, ::-1]), ["primary is rotated by 180 degrees", "wrist is rotated by 180 degrees"]),
        (each(lambda image: image[::-1]), ["primary is upside down", "wrist"]),
        (lambda seen: {**seen, "primary": np.rot90(seen["primary"]).copy()}, ["primary is turned by -90 degrees"]),
        (each(lambda image: image[..., ::-1]), ["red and blue exchanged (BGR)"]),
        (lambda seen: {**seen, "wrist": np.full_like(seen["wrist"], 128)}, ["the camera wrist shows a single colour"]),
        (lambda seen: {**seen, "primary": (seen["primary"] * 0.2).astype(np.uint8)}, ["the camera primary looks unlike all"]),
    ],
)
def test_each_mistake_with_the_cameras_is_reported(check: ObservationCheck, change: Callable[[Images], Images], told: list[str]) -> None:
    for seed in range(100, 110):
        seen = observation(seed)
        found = check(replace(seen, images=change(dict(seen.images))))
        assert len(found) == len(told), found
        assert all(part in str(finding) for part, finding in zip(told, found, strict=True)), found


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ([0.1, 0.5, 0.0, 1.2], ""),
        ([0.6, 0.5, 99.0, 1.2], ""),  # a little outside; what never moved in training does not count
        ([0.1, 0.5, 0.0, 70.0], "yaw [rad] = 70 (training: 1 to 1.5). It looks like degrees"),
        ([100.0, 500.0, 0.0, 1.2], "x [m] = 100 (training: -0.1 to 0.3), y [m] = 500 (training: 0.4 to 0.8). It looks like millimetres"),
        ([1.2, 0.5, 0.0, -5.0], "x [m] = 1.2 (training: -0.1 to 0.3), yaw [rad] = -5 (training: 1 to 1.5). Check its order and units"),
    ],
)
def test_a_state_far_from_training_is_reported_with_its_likely_unit(state: list[float], told: str) -> None:
    found = check_state(np.array(state), STATE, NAMES)
    assert len(found) == bool(told)
    assert told in "".join(map(str, found))


def test_an_unknown_instruction_is_reported_with_a_near_one(check: ObservationCheck) -> None:
    (told,) = check(observation(100, "lift that cube"))
    assert str(told) == "the instruction 'lift that cube' was not among the 2 of training. Did you mean lift the cube?"
    assert told.status == Status.NOTE  # it may well be a new one


def test_without_a_reference_the_state_alone_is_checked() -> None:
    check = ObservationCheck(None, STATE, NAMES)
    seen = observation(100, "anything")
    assert check(replace(seen, images={"primary": np.zeros((4, 4, 3), np.uint8)})) == []
    assert len(check(replace(seen, proprio=np.array([0.1, 0.5, 0.0, 70.0])))) == 1
    assert check(replace(seen, proprio=np.zeros(7))) == []  # the policy refuses it


def test_each_thing_is_reported_once_at_the_first_observation_of_an_instruction(
    check: ObservationCheck, caplog: pytest.LogCaptureFixture
) -> None:
    watch = ObservationWatch(check)
    watch.look([observation(100)])
    far = replace(observation(101), proprio=np.array([0.1, 0.5, 0.0, 70.0]))
    watch.look([far])  # the same instruction: not looked at again
    assert watch.warnings == []
    watch.begin()
    watch.look([far, replace(far, instruction="push the cube", proprio=np.array([0.1, 0.5, 0.0, 80.0]))])
    assert len(watch.take()) == len(watch.warnings) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    watch.begin()
    watch.look([far])  # its kind is known
    assert watch.take() == []
    assert "It looks like degrees" in caplog.text
