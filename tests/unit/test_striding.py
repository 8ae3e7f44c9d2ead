"""Recordings faster than the robot: which steps are kept, and what becomes of the actions in between."""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdf5_files import write_aloha
from lerobot_writer import FPS, write_v3
from lerobot_writer import make_episode as lerobot_episode
from rlds_writer import make_episode, write_dataset
from rollout_files import manifest, write_rollout

from prismatic.conversion.options import RldsFlags
from prismatic.conversion.rlds_writer import RldsSpec, write_rlds
from prismatic.training.config import FinetuneConfig
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.hdf5.source import Hdf5Source
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.striding import combine_actions, whole_factor
from prismatic.vla.datasets.training_data import load_training_data

TARGET, MOTION, VELOCITY = ActionKind.TARGET, ActionKind.MOTION, ActionKind.VELOCITY


def test_targets_are_taken_motions_summed_velocities_averaged() -> None:
    actions = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [5, 5, 6], [6, 6, 7], [7, 7, 9]], np.float32)
    combined = combine_actions(actions, 3, (TARGET, MOTION, VELOCITY))
    np.testing.assert_array_equal(combined, [[1, 6, 2], [4, 15, np.float32(17 / 3)], [7, 7, 9]])
    assert combined.dtype == np.float32
    np.testing.assert_array_equal(combine_actions(actions, 1, (TARGET, MOTION, VELOCITY)), actions)
    assert combine_actions(actions[:0], 2, (TARGET,) * 3).shape == (0, 3)


def test_the_sum_of_motions_and_the_way_of_velocities_stay() -> None:
    actions = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
    combined = combine_actions(actions, 4, (MOTION, VELOCITY))
    np.testing.assert_allclose(combined[:, 0].sum(), actions[:, 0].sum(), rtol=1e-5)
    np.testing.assert_allclose(4 * combined[:, 1].sum(), actions[:, 1].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("recorded", "control", "factor"), [(50, 25, 2), (30, 10, 3), (29.97, 30, 1), (59.94, 30, 2), (30, 25, None), (10, 25, None)]
)
def test_whole_factors_of_rates(recorded: float, control: float, factor: int | None) -> None:
    assert whole_factor(recorded, control) == factor


def index_of(folder: Path, cache: Path, **fields: Any) -> EpisodeIndex:
    return load_index(RldsSource(folder), DatasetEntry(**fields), identity_dataset_transform, cache)


def test_an_index_has_every_nth_step_with_its_images_states_and_texts(tmp_path: Path) -> None:
    episodes = [make_episode(7, seed=1, action_dim=7), make_episode(3, seed=2, action_dim=7)]
    episodes[0]["language_instruction"] = [f"step {step}" for step in range(7)]
    folder = write_dataset(tmp_path, "mine", {"train": episodes})
    whole, strided = index_of(folder, tmp_path / "cache"), index_of(folder, tmp_path / "cache", stride=3)
    assert strided.lengths.tolist() == [3, 1]
    steps = np.array([0, 3, 6, 7])
    np.testing.assert_array_equal(strided.proprio, whole.proprio[steps])
    np.testing.assert_array_equal(strided.images, whole.images[steps])
    assert [strided.instructions[number] for number in strided.instruction_ids] == ["step 0", "step 3", "step 6", "push the button"]
    np.testing.assert_array_equal(strided.actions[:, 6], whole.actions[steps, 6])  # the gripper's target
    ways = [whole.actions[first:end, :6].sum(0) for first, end in ((0, 3), (3, 6), (6, 7), (7, 10))]
    np.testing.assert_allclose(strided.actions[:, :6], ways, rtol=1e-5)


def lerobot_specs(root: Path, monkeypatch: pytest.MonkeyPatch, control_hz: float, stride: str | None = None, **fields: Any) -> DatasetSpec:
    monkeypatch.setitem(ROBOT_PLATFORMS, "SLOW", replace(ROBOT_PLATFORMS["METAWORLD"], name="SLOW", control_hz=control_hz))
    monkeypatch.setitem(
        OXE_DATASET_CONFIGS,
        "door",
        {"image_obs_keys": {"primary": "top", "wrist": "wrist"}, "action_encoding": 1, "robot_platform": "SLOW", **fields},
    )
    if not (root / "door").exists():
        write_v3(root / "door", [lerobot_episode(9, seed) for seed in range(2)])
    return resolve_datasets("door", root, stride=stride)[0]


def test_the_recorded_rate_gives_the_stride_and_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DatasetOptions(("primary", "wrist"), 24, cache_dir=tmp_path / "cache")
    whole = load_training_data([lerobot_specs(tmp_path, monkeypatch, FPS)], options)
    spec = lerobot_specs(tmp_path, monkeypatch, FPS / 2, stride="auto")
    assert spec.entry.stride == 2
    halved = load_training_data([spec], options)
    assert (len(whole.train), len(halved.train)) == (18, 10)
    for sample, recorded in ((1, 2), (4, 8), (5, 9)):
        np.testing.assert_array_equal(halved.train[sample].images, whole.train[recorded].images)


def test_a_whole_factor_between_the_rates_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lerobot_specs(tmp_path, monkeypatch, FPS)
    assert not caplog.messages
    lerobot_specs(tmp_path, monkeypatch, FPS / 2)
    assert caplog.messages == [
        "data set door was recorded at 10 Hz, robot platform SLOW acts at 5 Hz: the policy would move at 0.5 times the recorded speed; "
        "--stride 2, or stride=2 in its entry, mends that"
    ]
    caplog.clear()
    caplog.set_level(logging.INFO)
    lerobot_specs(tmp_path, monkeypatch, FPS / 2, stride="2")
    assert caplog.messages == ["data set door: one step in 2 is used, 5 Hz of 10"]
    caplog.clear()
    lerobot_specs(tmp_path, monkeypatch, 5, fps=20)  # the entry knows better
    assert "recorded at 20 Hz" in caplog.messages[0]
    caplog.clear()
    lerobot_specs(tmp_path, monkeypatch, 8)
    assert caplog.messages[0].endswith("0.8 times the recorded speed; a platform with control_hz=10 mends that")


def test_strides_that_cannot_be_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--stride auto: data set 'door' was recorded at 10 Hz, which is no multiple of the 8 Hz"):
        lerobot_specs(tmp_path, monkeypatch, 8, stride="auto")
    for wrong in ("0", "-1", "half", "1.5"):
        with pytest.raises(ValueError, match=r"--stride is .*such as 2, or auto"):
            lerobot_specs(tmp_path, monkeypatch, 5, stride=wrong)
    write_dataset(tmp_path, "metaworld_demo", {"train": [make_episode(3)]})
    with pytest.raises(ValueError, match=r"nothing says how fast data set 'metaworld_demo' was recorded; add fps to its entry"):
        resolve_datasets("metaworld_demo", tmp_path, stride="auto")
    with pytest.raises(ValueError, match=r"6-D rotations \(EEF_R6\) cannot be added up"):
        DatasetEntry(action_encoding=4, stride=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a stride is at least 1"):
        DatasetEntry(stride=0)


def test_a_conversion_takes_the_same_steps_as_training(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "episode_0.hdf5", length=7, instruction="fold").parent
    flags = RldsFlags(folder, "mine", tmp_path, state="qpos", stride=2, action_kinds="target*12, velocity*2")
    entry = flags.entry(("cam_high",))
    assert (entry.stride, entry.action_kinds) == (2, (TARGET,) * 12 + (VELOCITY,) * 2)
    index = load_index(Hdf5Source(folder), entry, identity_dataset_transform, tmp_path / "cache")
    whole = load_index(Hdf5Source(folder), replace(entry, stride=1), identity_dataset_transform, tmp_path / "cache")
    np.testing.assert_array_equal(index.actions[:, :12], whole.actions[::2, :12])
    np.testing.assert_allclose(index.actions[:3, 12:], (whole.actions[:6:2, 12:] + whole.actions[1:6:2, 12:]) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"--action_kinds is 'target[*]x'"):
        RldsFlags(folder, "mine", tmp_path, action_kinds="target*x")
    with pytest.raises(ValueError, match="--stride is 0"):
        RldsFlags(folder, "mine", tmp_path, stride=0)


def test_training_takes_the_flag() -> None:
    from prismatic.cli import parse_flags

    assert parse_flags(FinetuneConfig, ["--stride", "2"]).data.stride == "2"
    assert parse_flags(FinetuneConfig, ["--stride", "auto"]).data.stride == "auto"
    assert parse_flags(FinetuneConfig, []).data.stride is None


def _convert(folder: Path, entry: DatasetEntry, spec: RldsSpec) -> None:
    write_rlds(Hdf5Source(folder).under(entry), entry, spec)


@pytest.mark.parametrize("is_converted", [False, True])
def test_rollouts_are_at_the_policys_rate_and_joined_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_converted: bool
) -> None:
    """The entry was written for demonstrations at 160 Hz with two columns of commands; half of a rollout's steps would be twice as fast."""
    entry = DatasetEntry(
        image_obs_keys={"primary": "primary"},
        state_obs_keys=("joints", "gripper"),
        action_keys=("action", "base_action"),
        action_encoding=OXE_DATASET_CONFIGS["metaworld_demo"].action_encoding,
        robot_platform="METAWORLD",
        fps=160,
        stride=2,
    )
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "mine", entry)
    folder = write_rollout(tmp_path / "data" / "mine" / "rollout_001.hdf5", 1, 6, checkpoint="run--5_chkpt", control_hz=80.0).parent
    root = tmp_path / "data"
    if is_converted:
        root = tmp_path / "rlds"
        flags = RldsFlags(input_dir=folder, dataset_name="mine", data_root_dir=root, val_fraction=0)
        written = replace(entry, state_obs_keys=("qpos",), action_keys=("action",), fps=None, stride=1)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # TensorFlow wants a process of its own
            pool.submit(_convert, folder, written, flags.spec()).result()
    spec = resolve_datasets("mine", root)[0]
    assert spec.entry.stride == 1
    assert not caplog.messages
    if not is_converted:
        assert len(load_training_data([spec], DatasetOptions(("primary",), 24, cache_dir=tmp_path / "cache")).train) == 6
    write_rollout(folder / "rollout_001.hdf5", 1, 6, control_hz=80.0)  # played by no policy
    assert resolve_datasets("mine", tmp_path / "data")[0].entry.stride == 2


def test_a_folder_of_two_rates_is_not_read_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data" / "metaworld_demo"

    def load() -> int:
        options = DatasetOptions(("primary",), 24, cache_dir=tmp_path / "cache")
        return len(load_training_data(resolve_datasets("metaworld_demo", root.parent), options).train)

    write_rollout(root / "0.hdf5", 1, 6)  # nobody says
    write_rollout(root / "a.hdf5", 1, 6, control_hz=80.0)
    write_rollout(root / "b.hdf5", 2, 6, control_hz=78.0)  # a clock is no other rate
    write_rollout(root / "c.hdf5", 3, 6, control_hz=80.0)
    assert load() == 24
    write_rollout(root / "d.hdf5", 4, 6, checkpoint="run--5_chkpt", control_hz=40.0)
    told = r"d\.hdf5: a rollout of 40 Hz in a folder that is read at 80 Hz, as most of its files say \(a demonstration\)"
    with pytest.raises(ValueError, match=told):
        load()
    (root / "d.hdf5").rename(root / "00.hdf5")  # whichever comes first
    with pytest.raises(ValueError, match=told.replace("d", "00", 1)):
        load()
    write_rollout(root / "00.hdf5", 4, 6, control_hz=500.0)  # what a sensor was sampled at, beside what the entry knows
    with pytest.raises(ValueError, match="a demonstration of 500 Hz"):
        load()
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "metaworld_demo", replace(OXE_DATASET_CONFIGS["metaworld_demo"], fps=80))
    assert load() == 30


def test_a_manifest_of_two_rates_is_refused_by_what_the_entry_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*rows: dict[str, Any], **changes: Any) -> list[int]:
        monkeypatch.setitem(OXE_DATASET_CONFIGS, "metaworld_demo", replace(original, **changes))
        (spec,) = resolve_datasets(str(manifest(tmp_path, *rows)), tmp_path)
        data = load_training_data([spec], DatasetOptions(("primary",), 24, cache_dir=tmp_path / "cache"))
        return np.diff(data.train.parts[0].index.episode_starts).tolist()

    original = OXE_DATASET_CONFIGS["metaworld_demo"]
    write_rollout(tmp_path / "silent" / "a.hdf5", 1, 8)
    write_rollout(tmp_path / "sensor" / "a.hdf5", 2, 8, control_hz=500.0)
    write_rollout(tmp_path / "fast" / "a.hdf5", 3, 8, control_hz=80.0)
    write_rollout(tmp_path / "jitter" / "a.hdf5", 4, 8, control_hz=79.9)
    write_rollout(tmp_path / "slow" / "a.hdf5", 5, 8, control_hz=20.0)
    write_rollout(tmp_path / "acted" / "a.hdf5", 6, 8, control_hz=80.0, checkpoint="run--5_chkpt")
    assert load({"path": "fast"}, {"path": "jitter"}, {"path": "acted"}) == [8, 8, 8]
    assert load({"path": "sensor"}, {"path": "acted"}, fps=80) == [8, 8]
    assert load({"path": "fast"}, {"path": "slow", "weight": 0}) == [8, 8]
    with pytest.raises(ValueError, match=r"joins recordings of 20 Hz \(.*recordings 1\) and 80 Hz \(.*recordings 0\); one data set"):
        load({"path": "fast"}, {"path": "slow"})
    with pytest.raises(ValueError, match=r"joins recordings of 80 Hz \(.*recordings 1\) and 160 Hz \(.*recordings 0\)"):
        load({"path": "silent"}, {"path": "acted"}, fps=160, stride=2)
    with pytest.raises(ValueError, match=r"joins rollouts \(.*recordings 1\), .* one step in 2 is used and nobody says the rate"):
        load({"path": "silent"}, {"path": "acted"}, stride=2)
