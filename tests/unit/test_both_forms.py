"""One entry reads a data set as it was recorded and as it was converted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdf5_files import write_aloha
from lerobot_writer import FPS, LeRobotEpisode, write_v3
from lerobot_writer import make_episode as lerobot_episode
from rlds_writer import make_episode, write_dataset

from prismatic.vla.cameras import STORED_KEYS, recorded_slot
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind
from prismatic.vla.datasets.description import Description, Dimension
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.recorded_names import FILE, RecordedColumn, RecordedNames
from prismatic.vla.datasets.sources import describe_recordings, open_source
from prismatic.vla.datasets.suggestion.suggest import suggest_entry

RECORDED = RecordedNames(
    cameras={"image": ("top", "images.top"), "wrist_image": ("hand",)},
    state=(RecordedColumn(("qpos", "state"), 3), RecordedColumn(("effort",), 1)),
    action=(RecordedColumn(("action",), 2), RecordedColumn(("base_action",), 2)),
)


def converted(root: Path, recorded: RecordedNames = RECORDED) -> Path:
    """A small RLDS folder with the file that a conversion leaves."""
    folder = write_dataset(root, "mine", {"train": [make_episode(5)]})
    recorded.save(folder)
    return folder


def index_of(folder: Path, cache: Path, **fields: Any) -> EpisodeIndex:
    entry = DatasetEntry(**fields)
    return load_index(open_source(folder, entry), entry, identity_dataset_transform, cache)


def test_an_entry_of_the_recordings_reads_the_converted_set(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    stored = index_of(folder, tmp_path / "cache")
    recorded = index_of(
        folder,
        tmp_path / "cache",
        image_obs_keys={"primary": "images.top", "wrist": "hand"},
        state_obs_keys=("effort", "qpos"),
        action_keys=("action", "base_action"),
    )
    np.testing.assert_array_equal(recorded.images, stored.images)
    np.testing.assert_array_equal(recorded.proprio, np.roll(stored.proprio, 1, axis=1))
    np.testing.assert_array_equal(recorded.actions, stored.actions)
    assert index_of(folder, tmp_path / "cache", state_obs_keys=("state", "effort")).proprio.shape == stored.proprio.shape
    assert index_of(folder, tmp_path / "cache", action_keys=("base_action",)).actions.shape == (5, 2)


def test_names_that_both_forms_use_mean_what_they_do_where_the_entry_was_written(tmp_path: Path) -> None:
    exchanged = RecordedNames({"image": ("view_1",), "wrist_image": ("image",)}, RECORDED.state, RECORDED.action)
    folder = converted(tmp_path, exchanged)
    stored = index_of(folder, tmp_path / "cache")
    recorded = index_of(folder, tmp_path / "cache", image_obs_keys={"primary": "view_1", "wrist": "image"})
    np.testing.assert_array_equal(recorded.images, stored.images)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    (folder / FILE).write_text("{}")
    with pytest.raises(ValueError, match=rf"{FILE} is damaged"):
        open_source(folder, DatasetEntry())


def test_what_a_conversion_notes_of_recordings(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "episode_0.hdf5", instruction="fold").parent
    entry = DatasetEntry(image_obs_keys={"primary": "cam_high"}, state_obs_keys=("qpos", "effort"), stride=2)
    raw = next(iter(open_source(folder, entry).episodes()))
    noted = RecordedNames.of(raw.trajectory, entry, STORED_KEYS, Description(hz=50))
    assert noted.cameras == {"image": ("cam_high", "image")}
    assert noted.state == (RecordedColumn(("qpos", "state"), 14), RecordedColumn(("effort",), 14))
    assert noted.action == (RecordedColumn(("action",), 14),)
    assert (noted.fps, noted.stride) == (25, 2)
    noted.save(tmp_path)
    assert RecordedNames.load(tmp_path) == noted


@pytest.mark.parametrize("features", [("observation.images.cam_high", "observation.images.cam_left_wrist"), ("observation.images.front",)])
def test_an_entry_of_the_converted_set_reads_the_recordings(tmp_path: Path, features: tuple[str, ...]) -> None:
    folder = write_v3(tmp_path / "set", [lerobot_episode(4, 1, cameras=features)])
    direct = index_of(folder, tmp_path / "cache", image_obs_keys={("primary", "left_wrist")[n]: key for n, key in enumerate(features)})
    stored = {("primary", "left_wrist")[n]: STORED_KEYS[("primary", "left_wrist")[n]] for n in range(len(features))}
    np.testing.assert_array_equal(index_of(folder, tmp_path / "other", image_obs_keys=stored).images, direct.images)
    with pytest.raises(ValueError, match="no key 'wrist_image'"):  # which camera would that be?
        index_of(folder, tmp_path / "other", image_obs_keys={"primary": features[0], "wrist": "wrist_image"})


def test_slots_of_recorded_names() -> None:
    assert recorded_slot("observation.images.cam_left_wrist") == "left_wrist"
    assert (recorded_slot("image"), recorded_slot("agentview_rgb"), recorded_slot("front")) == ("primary", "primary", None)


def test_what_a_conversion_did_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(ROBOT_PLATFORMS, "SLOW", replace(ROBOT_PLATFORMS["METAWORLD"], name="SLOW", control_hz=FPS / 2))
    write_v3(tmp_path / "direct" / "mine", [_lerobot(9)])
    converted(tmp_path / "converted", replace(RECORDED, fps=FPS / 2, stride=2))

    def stride_of(form: str, flag: str | None = None, **fields: Any) -> int:
        monkeypatch.setitem(OXE_DATASET_CONFIGS, "mine", DatasetEntry(robot_platform="SLOW", **fields))
        return resolve_datasets("mine", tmp_path / form, stride=flag)[0].entry.stride

    assert [stride_of(form, stride=2) for form in ("direct", "converted")] == [2, 1]
    assert [stride_of(form, stride=2, fps=FPS) for form in ("direct", "converted")] == [2, 1]
    assert [stride_of(form, flag="auto", stride=2) for form in ("direct", "converted")] == [2, 1]
    assert not caplog.messages
    assert stride_of("converted", flag="2") == 2
    assert [stride_of(form, stride=4) for form in ("direct", "converted")] == [4, 2]
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "mine", DatasetEntry(robot_platform="SLOW", image_channel_order="bgr"))
    assert resolve_datasets("mine", tmp_path / "converted", stride="2")[0].entry.image_channel_order == "bgr"  # stored as recorded
    converted(tmp_path / "corrected", replace(RECORDED, image_channel_order="bgr"))
    assert resolve_datasets("mine", tmp_path / "corrected")[0].entry.image_channel_order == "rgb"
    with pytest.raises(ValueError, match=r"was converted with --stride 2, its entry in .* says stride=3"):
        stride_of("converted", stride=3)


def _lerobot(length: int) -> LeRobotEpisode:
    return lerobot_episode(length, 0)


def test_a_joined_base_stays_a_base_and_names_stay_names(tmp_path: Path) -> None:
    """What holds a robot still must survive the conversion: velocities become 0, targets are repeated."""
    folder = converted(tmp_path)
    assert RecordedNames.load(folder) == RECORDED
    named = tuple(item.name for item in describe_recordings(folder).dimensions(("action",)))
    assert named == ("", "", "base_linear_velocity", "base_angular_velocity")
    suggestion = suggest_entry(folder, "mine")
    assert suggestion.entry.kinds(4)[2:] == (ActionKind.VELOCITY, ActionKind.VELOCITY)
    assert suggestion.platform.action_names[2:] == named[2:]
    assert "base_action" not in suggestion.text()  # no column that is missing from the actions
    with_speeds = replace(RECORDED, state=(RecordedColumn(("qpos",), 2), RecordedColumn(("qvel",), 2)))
    assert {item.name for item in with_speeds.description().dimensions(("state",))} == {""}  # joints' speeds are no base's
    arm = (Dimension("shoulder_pan.pos", "deg", ActionKind.TARGET), Dimension("x.vel", "m/s", ActionKind.VELOCITY))
    columns = (RecordedColumn(("action",), 2, arm), RecordedColumn(("base_action",), 2))
    told = replace(RECORDED, action=columns)
    told.save(folder)
    assert RecordedNames.load(folder) == told
    assert describe_recordings(folder).dimensions(("action",))[:2] == arm


def test_a_conversion_of_lerobot_keeps_the_names_of_its_dimensions(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "set", [_lerobot(4)])
    entry, said = DatasetEntry(image_obs_keys={"primary": "top"}), describe_recordings(folder)
    raw = next(iter(open_source(folder, entry).episodes()))
    noted = RecordedNames.of(raw.trajectory, replace(entry, state_obs_keys=("observation.state",)), STORED_KEYS, said)
    assert noted.action[0].dimensions == said.dimensions(("action",))
    assert noted.description().dimensions(("action",)) == said.dimensions(("action",))
