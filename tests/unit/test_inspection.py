"""Warnings about recorded data: each kind of fault is found, and sound data are left in peace."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlds_writer import encode_png, make_episode, write_dataset

from prismatic.commands.inspect_dataset import InspectConfig
from prismatic.vla import constants
from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.inspection.against import check_against
from prismatic.vla.datasets.inspection.checks import check_arrays, quick_checks
from prismatic.vla.datasets.inspection.encodings import kind_by_values
from prismatic.vla.datasets.inspection.frames import Strip, check_frames, read_strips
from prismatic.vla.datasets.inspection.page import Inspection, inspect_dataset, write_page
from prismatic.vla.datasets.inspection.ranges import check_clipping
from prismatic.vla.datasets.inspection.view import DatasetView, training_views
from prismatic.vla.datasets.opening import open_index
from prismatic.vla.datasets.reference_frames import make_reference
from prismatic.vla.datasets.repairs import Repair
from prismatic.vla.datasets.rlds.oxe.configs import ActionEncoding, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.statistics import compute_statistics
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.diagnosis import Finding, Status

Episode = dict[str, Any]
ENTRY = DatasetEntry(robot_platform="METAWORLD")


def sound_episode(seed: int, length: int = 30) -> Episode:
    """A METAWORLD-like episode: the state follows the relative actions, the gripper closes half-way."""
    episode = make_episode(length, seed=seed, size=16)
    action = np.random.default_rng(seed).normal(size=(length, 4)).astype(np.float32).clip(-2, 2)
    action[:, 3] = np.where(np.arange(length) < length // 2, 1, -1)
    state = np.cumsum(0.01 * action, axis=0, dtype=np.float32)
    state[:, 3] = action[:, 3]
    return {**episode, "action": action, "observation/state": np.concatenate([state[:1] * 0, state[:-1]])}


def spec_of(folder: Path, entry: DatasetEntry = ENTRY, platform: str = "METAWORLD") -> DatasetSpec:
    return DatasetSpec("toy", entry, folder, constants.get_robot_platform(platform), identity_dataset_transform)


def findings(tmp_path: Path, change: Callable[[list[Episode]], Any], entry: DatasetEntry = ENTRY, platform: str = "METAWORLD") -> str:
    episodes = [sound_episode(seed) for seed in range(6)]
    change(episodes)
    folder = write_dataset(tmp_path, "toy", {"train": episodes})
    return "\n".join(str(finding) for finding in inspect_dataset(spec_of(folder, entry, platform)).findings)


def set_action(dim: int, value: Any) -> Callable[[list[Episode]], None]:
    def change(episodes: list[Episode]) -> None:
        for episode in episodes:
            episode["action"][:, dim] = value(episode) if callable(value) else value

    return change


def make_absolute(episodes: list[Episode]) -> None:
    for episode in episodes:
        state = episode["observation/state"]
        episode["action"][:, :3] = np.concatenate([state[1:], state[-1:]])[:, :3]


def make_nan(episodes: list[Episode]) -> None:
    episodes[2]["action"][3, 1] = np.nan


def make_wild(episodes: list[Episode]) -> None:
    episodes[0]["action"][5, 0] = 500


def make_rare(episodes: list[Episode]) -> None:
    set_action(1, 0)(episodes)
    episodes[0]["action"][5, 1] = 1


def make_still(episodes: list[Episode]) -> None:
    for episode in episodes:
        episode["action"][:20, :3] = 0


def make_unlabelled(episodes: list[Episode]) -> None:
    episodes[1]["language_instruction"] = [""] * 30


def make_respelt(episodes: list[Episode]) -> None:
    episodes[1]["language_instruction"] = ["Push the  button."] * 30


def make_wordy(episodes: list[Episode]) -> None:
    episodes[1]["language_instruction"] = ["push the button " * 1250] * 30


def make_lines(episodes: list[Episode]) -> None:
    episodes[0]["language_instruction"] = ["push the button\npress it"] * len(episodes[0]["action"])


def make_short(episodes: list[Episode]) -> None:
    episodes[:] = [sound_episode(seed, length=4) for seed in range(5)] + [sound_episode(9, length=1)]


def share_camera(episodes: list[Episode]) -> None:
    for episode in episodes:
        episode["observation/wrist_image"] = episode["observation/image"]


def blacken(episodes: list[Episode]) -> None:
    for episode in episodes:
        episode["observation/wrist_image"] = [encode_png(np.zeros((16, 16, 3), np.uint8))] * 30


def damage(episodes: list[Episode]) -> None:
    episodes[0]["observation/image"] = [b"no image"] * 30


def test_sound_data_give_no_warning(tmp_path: Path) -> None:
    assert findings(tmp_path, lambda episodes: None) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_nan, "1 of 6 episodes cannot be used"),
        (make_wild, "action has outliers in dx"),
        (make_still, "stands still in"),
        (make_unlabelled, "1 of 6 episodes have no instruction"),
        (make_wordy, "1 instruction has more than 500 characters, the longest 19,999: 'push the"),
        (make_lines, r"1 instruction has several lines, which are taken for one text: 'push the button\npress it'"),
        (make_respelt, "differ only in case, spaces or punctuation"),
        (make_short, "chunk of 8 actions is longer than 100% of the episodes"),
        (make_short, "1 episode has only one step"),
        (lambda episodes: episodes.append(episodes[0]), "1 episode is a copy of another (same actions and states): 6 = 0"),
        (make_absolute, "declares motions, but 3 dimensions equal the next state: they look like targets"),
        (set_action(0, 0.25), "1 action dimension never changes: dx = 0.25"),
        (set_action(3, 1), "The gripper never opens or closes: gripper is always 1"),
        (set_action(3, lambda episode: 50 * (1 + episode["action"][:, 3])), "gripper command gripper runs from 0 to 100"),
        (
            set_action(3, lambda episode: 0.04 * (1 + episode["action"][:, 3])),
            "to 0.08, which is not normalised: it hardly counts",
        ),
        (set_action(3, lambda episode: np.arange(30) >= 15), "starts at 0 in 100% of the episodes; EEF_POS means 1 as open"),
        (make_rare, "98 % of the values are equal (q01 = q99)"),
        (set_action(0, lambda episode: 40 * episode["action"][:, 0]), "look like millimetres: dx up to"),
        (share_camera, "The cameras primary and wrist show the same picture"),
        (blacken, "The camera wrist is black (100% of the sampled frames)"),
        (damage, "1 of 6 sampled episodes have a damaged image"),
    ],
)
def test_each_fault_is_reported(tmp_path: Path, change: Callable[[list[Episode]], Any], message: str) -> None:
    assert message in findings(tmp_path, change)


def test_clipped_episodes_that_training_sets_aside_are_not_called_the_training_split(tmp_path: Path) -> None:
    episodes = [sound_episode(seed) for seed in range(6)]
    episodes[5]["action"][:, 0] *= 3
    spec = spec_of(write_dataset(tmp_path, "toy", {"train": episodes}))
    index, trained = open_index(spec), np.arange(5)
    view = DatasetView(spec, index, trained, compute_statistics(index, trained, spec.normalization_mask(4)))
    (finding,) = (item for item in check_clipping(view) if item.subject == "action")
    assert finding.found.startswith(
        "A high share of action values of split train, in the episodes that are not trained on, is clipped: dx "
    )
    assert "record more" in finding.remedy


def test_a_gripper_that_closes_when_commanded_to_open_is_reported(tmp_path: Path) -> None:
    """State and command in [0, 1]; the fingers follow the command a little later."""

    def command(is_reversed: bool) -> Callable[[list[Episode]], None]:
        def change(episodes: list[Episode]) -> None:
            for episode in episodes:
                is_open = np.arange(30) % 20 < 10
                episode["observation/state"][:, 3] = np.concatenate([[1], is_open[:-1]])
                episode["action"][:, 3] = ~is_open if is_reversed else is_open

        return change

    told = "The gripper sign looks wrong: the fingers close where gripper is high"
    assert told not in findings(tmp_path / "right", command(False))
    platform = replace(constants.get_robot_platform("METAWORLD"), control_hz=10)  # half a second is 5 steps
    episodes = [sound_episode(seed) for seed in range(6)]
    command(True)(episodes)
    spec = replace(spec_of(write_dataset(tmp_path / "wrong", "toy", {"train": episodes})), platform=platform)
    assert told in "\n".join(str(finding) for finding in inspect_dataset(spec).findings)


def test_data_are_compared_with_what_a_checkpoint_was_trained_on(tmp_path: Path) -> None:
    """Read once; then cameras, state and actions are changed in the index."""
    specs = [spec_of(write_dataset(tmp_path, "toy", {"train": [_scene_episode(seed) for seed in range(8)]}))]
    data = load_training_data(specs, DatasetOptions(("primary", "wrist"), image_size=32, use_proprio=True))
    (view,), reference = training_views(data, specs), make_reference(data.train)
    assert reference.instructions == (_scene_episode(0)["language_instruction"][0],)
    assert reference.frames["primary"].shape[1:] == (32, 32, 3)

    def told(**changes: Any) -> str:
        changed = DatasetView.of(view.spec, replace(view.index, **changes))
        return "\n".join(str(finding) for finding in check_against(changed, reference, view.statistics))

    actions, proprio = np.asarray(view.index.actions), np.asarray(view.index.proprio)
    assert told() == ""
    assert "the cameras primary and wrist are exchanged (8 of 8 episodes)" in told(cameras=("wrist", "primary"))
    assert "the state is far from all that training saw (8 of 8 episodes)" in told(proprio=proprio * 1000)
    assert "Actions have other ranges than the checkpoint's: dx 1e+03 times as wide" in told(actions=actions * [1000, 1, 1, 1])
    assert "gripper runs from 0 to 1, the checkpoint's from -1 to 1" in told(actions=actions * [1, 1, 1, 0.5] + np.array([0, 0, 0, 0.5]))
    assert "The actions have 3 dimensions, the checkpoint's 4" in told(actions=actions[:, :3])


def test_a_policy_that_sees_by_its_wrist_alone_is_looked_at(tmp_path: Path) -> None:
    spec = spec_of(write_dataset(tmp_path, "toy", {"train": [_scene_episode(seed) for seed in range(4)]}))
    alone = replace(spec, entry=replace(spec.entry, image_obs_keys={"wrist": "wrist_image"}))
    strips, damaged = read_strips(DatasetView.of(alone, open_index(alone)), 4, 4)
    assert [list(strip.frames) for strip in strips] == [["wrist"]] * 4
    assert damaged == check_frames(strips) == []
    assert inspect_dataset(alone).strips


@pytest.mark.parametrize(
    ("keys", "status", "found"),
    [
        ((), Status.WARNING, "states of 0 dimensions, robot platform METAWORLD expects 4"),
        (("state", None), Status.PROBLEM, "states of 5 dimensions, robot platform METAWORLD expects 4"),
    ],
)
def test_a_state_that_does_not_fit_hinders_policies_that_are_fed_it(
    tmp_path: Path, keys: tuple[Any, ...], status: Status, found: str
) -> None:
    entry = replace(ENTRY, state_obs_keys=keys)
    spec = spec_of(write_dataset(tmp_path, "toy", {"train": [sound_episode(seed) for seed in range(3)]}), entry)
    (finding,) = (item for item in inspect_dataset(spec).findings if item.subject == "dimensions")
    assert (finding.status, found in finding.found) == (status, True)
    assert finding.remedy == "Training refuses this data set with --use_proprio True."
    assert len(load_training_data([spec], DatasetOptions(("primary",), image_size=16)).train) == 90


def test_images_of_which_none_can_be_decoded_are_a_problem(tmp_path: Path) -> None:
    spec = spec_of(write_dataset(tmp_path, "toy", {"train": [sound_episode(seed) for seed in range(4)]}))
    broken = replace(open_index(spec), reader=_BrokenReader())
    strips, (finding,) = read_strips(DatasetView.of(spec, broken), 4, 4)
    assert not strips
    assert finding.status == Status.PROBLEM
    assert finding.found.startswith("4 of 4 sampled episodes have a damaged image: ")


class _BrokenReader:
    is_sequential = False

    def read(self, reference: np.void) -> np.ndarray:
        raise ValueError("16 bits a channel")


def test_instructions_that_come_later_in_an_episode_are_known_to_a_policy(tmp_path: Path) -> None:
    episode = _scene_episode(0)
    episode["language_instruction"] = [*["lift the cube"] * 20, *["put it down"] * 10]
    specs = [spec_of(write_dataset(tmp_path, "toy", {"train": [episode]}))]
    data = load_training_data(specs, DatasetOptions(("primary", "wrist"), image_size=32))
    assert make_reference(data.train).instructions == ("lift the cube", "put it down")


def _scene_episode(seed: int) -> Episode:
    """Two cameras that differ: bright above, or bright on the left."""
    episode, rng = sound_episode(seed), np.random.default_rng(seed)
    above, left = np.zeros((32, 32, 3)), np.zeros((32, 32, 3))
    above[:16], left[:, :10] = (200, 180, 160), (90, 160, 90)
    for key, scene in (("observation/image", above), ("observation/wrist_image", left)):
        noisy = [np.clip(scene + rng.normal(20, 4, scene.shape), 0, 255).astype(np.uint8) for _ in range(30)]
        episode[key] = [encode_png(image) for image in noisy]
    episode["observation/state"][:, :3] += 0.5  # away from 0, which is the same in every unit
    return episode


def test_absolute_encoding_of_motions_is_reported(tmp_path: Path) -> None:
    def shrink(episodes: list[Episode]) -> None:
        for episode in episodes:
            episode["action"][:, :3] *= 0.01

    entry = DatasetEntry(action_encoding=ActionEncoding.JOINT_POS, robot_platform="METAWORLD")
    assert "The entry declares targets, but 3 dimensions follow the state's change" in findings(tmp_path, shrink, entry)


@pytest.mark.parametrize(("low", "high"), [(0, 0.08), (0, 100), (0, 850), (-1, 1), (1, 0)])
def test_a_gripper_that_is_normalised_may_have_any_range_and_sign(tmp_path: Path, low: float, high: float) -> None:
    def change(episodes: list[Episode]) -> None:
        for episode in episodes:
            episode["action"][:, 3] = np.where(episode["action"][:, 3] > 0, high, low)

    kinds = ("motion", "motion", "motion", "target")
    entry = DatasetEntry(action_encoding=ActionEncoding.JOINT_POS, action_kinds=kinds, robot_platform="METAWORLD")
    assert findings(tmp_path, change, entry) == ""


@pytest.mark.parametrize(
    ("unit", "values", "told"),
    [
        ("[rad]", 90 * np.sin(np.arange(30)), "units look like degrees: joint_1 [rad] up to"),
        ("[rad]", np.where(np.arange(30) < 15, 3.1, -3.1), "joint_1 [rad] 3 times"),
        ("[deg]", np.where(np.arange(30) < 15, 178, -178), "joint_1 [deg] 3 times"),
        ("[deg]", 90 * np.sin(np.arange(30) / 9), ""),
        ("[0-100]", 100 * (np.arange(30) % 2), ""),
        ("", 170 * np.sin(np.arange(30) / 9), ""),  # nobody says that it is an angle
    ],
)
def test_a_unit_is_what_the_name_of_the_dimension_says(tmp_path: Path, unit: str, values: np.ndarray, told: str) -> None:
    names = (f"joint_1 {unit}".strip(), *(f"joint_{number}" for number in range(2, 8)), "wrist_roll")
    platform = replace(constants.get_robot_platform("SINGLE_JOINT"), name="MINE", action_names=names, proprio_names=names)
    rng, episodes = np.random.default_rng(0), []
    for seed in range(3):
        episode = make_episode(30, seed=seed, action_dim=8, state_dim=8, size=16)
        state = np.cumsum(rng.normal(size=(30, 8)), axis=0).astype(np.float32)
        state[:, 0], state[:, 7] = values, 60 * np.sin(np.arange(30) / 5 + seed)  # wrist_roll: degrees, which no name says
        episode["observation/state"], episode["action"] = state, np.concatenate([state[1:], state[-1:]])
        episodes.append(episode)
    entry = DatasetEntry(action_encoding=ActionEncoding.JOINT_POS, robot_platform="SINGLE_JOINT")
    spec = replace(spec_of(write_dataset(tmp_path, "toy", {"train": episodes}), entry), platform=platform)
    found = "\n".join(str(finding) for finding in inspect_dataset(spec).findings if "units" in str(finding) or "turn" in str(finding))
    assert told in found
    assert bool(told) == bool(found), found


def turn(state: np.ndarray, seed: int) -> None:
    state[:, 0] = (np.linspace(2.5, 4, 30) + np.pi) % (2 * np.pi) - np.pi


def turn_in_degrees(state: np.ndarray, seed: int) -> None:
    state[:, 0] = (np.linspace(140, 230, 30) + 180) % 360 - 180


def step_far(state: np.ndarray, seed: int) -> None:
    state[:, 0] = np.where(np.arange(30) < 15, 3, -1)


def put_quaternion(state: np.ndarray, seed: int) -> None:
    half = np.linspace(0.1, 0.5 + 0.1 * seed, 30)
    state[:, 3:7] = np.stack([0.6 * np.sin(half), 0 * half, 0.8 * np.sin(half), np.cos(half)], axis=1)


def flip_quaternion(state: np.ndarray, seed: int) -> None:
    put_quaternion(state, seed)
    state[12:, 3:7] *= -1


def flip_some_quaternions(state: np.ndarray, seed: int) -> None:
    put_quaternion(state, seed)
    state[:, 3:7] *= -1 if seed in (1, 4) else 1


def close_in_percent(state: np.ndarray, seed: int) -> None:
    state[:, 7] *= 100 if seed == 2 else 1


def hardly_close(state: np.ndarray, seed: int) -> None:
    state[:, 7] = 100 * state[:, 7] if seed == 2 else 0.2 * np.sin(np.arange(30))  # one task holds the gripper, in percent, still


def move_in_degrees(state: np.ndarray, seed: int) -> None:
    state[:, :7] *= 180 / np.pi if seed in (0, 3) else 1


def turn_one_joint(state: np.ndarray, seed: int) -> None:
    state[:, 2] *= 60 if seed in (0, 3) else 1  # one task needs it, the others do not


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (turn, "state values jump by 2 pi or by 360: joint_1 6 times. If these are angles, unwrap them"),
        (turn_in_degrees, "state values jump by 2 pi or by 360: joint_1 6 times"),
        (step_far, ""),
        (put_quaternion, ""),
        (
            flip_quaternion,
            "state's quaternion (joint_4 .. joint_7) changes its sign, and is the same rotation: 6 times from one step to the",
        ),
        (flip_some_quaternions, "is the same rotation: 2 of 6 episodes begin with the other sign than the rest"),
        (
            close_in_percent,
            "state gripper: the range is 100 times as wide in 1 of 6 episodes as in the others, as if they were in another unit",
        ),
        (hardly_close, ""),
        (move_in_degrees, "state joint_1, joint_2, joint_3, joint_4, joint_5 and 2 more: the range is"),
        (turn_one_joint, ""),
    ],
)
def test_what_is_stored_in_two_ways_is_reported(tmp_path: Path, change: Callable[[np.ndarray, int], None], told: str) -> None:
    """A policy takes the two for different things, and averages them; all that would show is a low success rate."""
    names = (*(f"joint_{number}" for number in range(1, 8)), "gripper")
    platform = replace(constants.get_robot_platform("SINGLE_JOINT"), name="MINE", action_names=names, proprio_names=names)
    episodes = []
    for seed in range(6):
        episode = make_episode(30, seed=seed, action_dim=8, state_dim=8, size=16)
        state = np.sin(np.arange(30)[:, None] / 9 + np.arange(8) + seed).astype(np.float32)
        state[:, 7] = np.arange(30) < 20
        change(state, seed)
        episode["observation/state"], episode["action"] = state, np.concatenate([state[1:], state[-1:]])
        episodes.append(episode)
    entry = DatasetEntry(action_encoding=ActionEncoding.JOINT_POS, robot_platform="SINGLE_JOINT")
    spec = replace(spec_of(write_dataset(tmp_path, "toy", {"train": episodes}), entry), platform=platform)
    found = "\n".join(str(item) for item in inspect_dataset(spec).findings if re.search("jump|sign|unit", str(item)))
    assert told in found
    assert bool(told) == bool(found), found


@pytest.mark.parametrize(("size", "told"), [((48, 64), ""), ((96, 128), ""), ((64, 64), "64 x 64 (episode 2)")])
def test_pictures_of_other_proportions_are_reported(size: tuple[int, int], told: str) -> None:
    scenes = [np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in ((48, 64), (48, 64), size)]
    strips = [Strip(episode, np.arange(2), {"primary": [scene, scene[::-1]]}) for episode, scene in enumerate(scenes)]
    found = [str(finding) for finding in check_frames(strips) if "proportions" in str(finding)]
    assert len(found) == bool(told)
    assert told in "".join(found)


def test_wrong_widths_are_reported_and_shown(tmp_path: Path) -> None:
    found = findings(tmp_path, lambda episodes: None, platform="LIBERO")
    assert "LIBERO expects 7" in found
    assert "configs.py" in found


def test_data_that_no_episode_fits_are_an_error(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "toy", {"train": [sound_episode(0)]})
    with pytest.raises(ValueError, match="did you mean image"):
        inspect_dataset(spec_of(folder, DatasetEntry(image_obs_keys={"primary": "imag"})))


def _frames(kind: str, seed: int) -> list[np.ndarray]:
    scene = np.random.default_rng(99).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    return [scene if kind == "fixed" else rng.integers(0, 255, (48, 48, 3), dtype=np.uint8) for _ in range(5)]


@pytest.mark.parametrize(("primary", "wrist", "is_swapped"), [("moving", "fixed", True), ("fixed", "moving", False)])
def test_swapped_cameras(primary: str, wrist: str, is_swapped: bool) -> None:
    strips = [Strip(e, np.arange(5), {"primary": _frames(primary, e), "wrist": _frames(wrist, e)}) for e in range(3)]
    assert any("may be swapped" in str(finding) for finding in check_frames(strips)) == is_swapped


def test_cameras_swapped_in_one_episode() -> None:
    dark, bright = [np.full((32, 32, 3), 40, np.uint8)] * 3, [np.full((32, 32, 3), 200, np.uint8)] * 3
    pairs = [(dark, bright)] * 4 + [(bright, dark)]
    strips = [Strip(10 + e, np.arange(3), {"primary": one, "wrist": other}) for e, (one, other) in enumerate(pairs)]
    assert "swapped in some episodes: 14." in "\n".join(str(finding) for finding in check_frames(strips))


def test_kind_by_values() -> None:
    state = np.cumsum(np.random.default_rng(0).normal(size=200)) + 5
    has_next = np.ones(199, bool)
    assert kind_by_values(np.append(state[1:], state[-1]), state, has_next) is ActionKind.TARGET
    assert kind_by_values(0.02 * np.diff(state, append=state[-1]), state, has_next) is ActionKind.MOTION
    # In a controller's units, ten times the metres of the state, which lags behind.
    command = np.convolve(np.random.default_rng(2).normal(size=200), np.ones(6) / 3, "same").clip(-1, 1)
    lagging = np.cumsum(np.convolve(0.1 * command, (0.1, 0.3, 0.4, 0.2), "full")[:200])
    assert kind_by_values(command, np.concatenate([[0], lagging[:-1]]), has_next) is ActionKind.MOTION
    degrees = np.append(state[1:], state[-1]) * 180 / np.pi
    assert kind_by_values(degrees, state, has_next) is ActionKind.TARGET
    unrelated = np.random.default_rng(1).normal(size=200)
    assert kind_by_values(9 * unrelated, state, has_next) is None
    assert kind_by_values(0.01 * unrelated, state, has_next) is None  # small alone says nothing: a finger that is commanded to stay near 0


def test_quick_checks_have_nothing_to_say_of_300_sound_episodes(tmp_path: Path) -> None:
    episodes = [{key: values for key, values in sound_episode(seed).items() if "wrist" not in key} for seed in range(300)]
    folder = write_dataset(tmp_path, "toy", {"train": episodes})
    spec = spec_of(folder, DatasetEntry(image_obs_keys={"primary": "image"}))
    data = load_training_data([spec], DatasetOptions(cameras=("primary",), image_size=16, use_proprio=True))
    assert quick_checks(data, [spec]) == []


def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "toy", {"train": [sound_episode(seed) for seed in range(3)]})
    inspection = inspect_dataset(spec_of(folder))
    write_page([inspection], "toy", "python x", tmp_path / "page.html", time.monotonic())
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 3 * 2 * 8
    assert 'src="http' not in text
    assert "<script" not in text
    assert "push the button" in text
    assert check_arrays(inspection.view) == []
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_the_page_shows_what_was_mended_apart_from_what_looks_wrong(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "toy", {"train": [sound_episode(seed) for seed in range(3)]})
    sound = inspect_dataset(spec_of(folder))
    repair = Repair("clocks that run backwards are set right", 3, "episode 1: step 7")
    view = DatasetView.of(sound.view.spec, replace(sound.view.index, repairs=(repair,)))
    wrong = Finding("state", Status.PROBLEM, "The state is absent: 3 episodes", "Record it.")
    inspection = Inspection(view, [*check_arrays(view), wrong], sound.strips, sound.scores)
    write_page([inspection], "toy", "python x", tmp_path / "page.html", time.monotonic())
    text = (tmp_path / "page.html").read_text()
    assert "1 thing to look at" in text
    assert '<div class="card finding problem"><b>The state is absent:</b> 3 episodes.<br>' in text
    assert "<b>Clocks that run backwards are set right</b>" in text.partition("Mended while reading")[2]
    assert "3 cases" in text
    assert text.count("episode 1: step 7") == 1


def test_a_folder_in_the_place_of_the_page_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--output {tmp_path} is a folder; name the page in it")):
        InspectConfig(dataset_name="my_robot", output=tmp_path)


@pytest.mark.parametrize("rate", [0.0, -5.0, float("inf")])
def test_a_rate_that_is_none_is_refused_before_it_is_written_into_an_entry(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"--control_hz is {rate}; it must be above 0 and finite"):
        InspectConfig(suggest="my_robot", control_hz=rate)
