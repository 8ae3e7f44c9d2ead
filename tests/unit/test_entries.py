"""What the fields of an entry select, on small RLDS folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlds_writer import Episode, make_episode, write_dataset

from prismatic.conversion.options import RldsFlags
from prismatic.training.setup import unused_parts
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import make_spec
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource


def index_of(tmp_path: Path, episode: Episode, **fields: Any) -> EpisodeIndex:
    folder = write_dataset(tmp_path / "data", "mine", {"train": [episode]})
    return load_index(RldsSource(folder), DatasetEntry(**fields), identity_dataset_transform, tmp_path / "cache")


def _split_action(episode: Episode, *names: str) -> tuple[Episode, np.ndarray]:
    """The episode with its action in columns: all dimensions but the last, then the last."""
    action = episode.pop("action")
    return {**episode, names[0]: action[:, :-1], names[1]: action[:, -1]}, action


@pytest.mark.parametrize("names", [("action/joint", "action/gripper"), ("action.joint.position", "action.gripper.position")])
def test_columns_of_actions_are_joined_in_the_order_of_the_entry(tmp_path: Path, names: tuple[str, str]) -> None:
    episode, action = _split_action(make_episode(5), *names)
    np.testing.assert_array_equal(index_of(tmp_path, episode, action_keys=names).actions, action)
    turned = load_index(
        RldsSource(tmp_path / "data/mine/1.0.0"), DatasetEntry(action_keys=list(names[::-1])), identity_dataset_transform, tmp_path
    )
    np.testing.assert_array_equal(turned.actions, np.roll(action, 1, axis=1))


def test_a_group_of_actions_is_reported_with_the_line_to_write(tmp_path: Path) -> None:
    episode, _ = _split_action(make_episode(5), "action/joint", "action/gripper")
    with pytest.raises(ValueError, match=r"'action' is a group.*action_keys=\('action/joint', 'action/gripper'\)"):
        index_of(tmp_path, episode)


def test_an_absent_action_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no key 'base_action'; correct action_keys"):
        index_of(tmp_path, make_episode(5), action_keys=("action", "base_action"))
    with pytest.raises(ValueError, match=r"action_keys lists \[\]; it needs the stored key"):
        DatasetEntry(action_keys=())


def test_cameras_and_states_within_groups_are_found_by_their_path(tmp_path: Path) -> None:
    episode = make_episode(4, cameras=("images/cam_high", "images/cam_left_wrist"))
    episode["observation/arm/joints"] = episode.pop("observation/state")
    cameras = {"primary": "images/cam_high", "wrist": "images/cam_left_wrist"}
    index = index_of(tmp_path, episode, image_obs_keys=cameras, state_obs_keys=("arm/joints",))
    assert index.cameras == ("primary", "wrist")
    assert index.reader.read(index.images[3, 1]).shape == (24, 24, 3)
    np.testing.assert_array_equal(index.proprio, episode["observation/arm/joints"])
    with pytest.raises(ValueError, match=r"no key 'images/cam_hig'.*did you mean images/cam_high"):
        load_index(
            RldsSource(tmp_path / "data/mine/1.0.0"),
            DatasetEntry(image_obs_keys={"primary": "images/cam_hig"}, state_obs_keys=()),
            identity_dataset_transform,
            tmp_path,
        )


def test_one_key_needs_no_list(tmp_path: Path) -> None:
    entry = DatasetEntry(state_obs_keys="state", action_keys="action")  # type: ignore[arg-type]
    assert (entry.state_obs_keys, entry.action_keys) == (("state",), ("action",))
    assert DatasetEntry(state_obs_keys=None).state_obs_keys == ()  # type: ignore[arg-type]


def test_a_conversion_joins_columns_of_actions(tmp_path: Path) -> None:
    flags = RldsFlags(tmp_path, "mine", tmp_path, action="action.joint, action.gripper")
    assert flags.entry(["cam_high"]).action_keys == ("action.joint", "action.gripper")


def test_what_a_run_leaves_out_of_an_entry_is_named(tmp_path: Path) -> None:
    """Two of four cameras of a robot with two arms, and no state, would pass unseen."""
    cameras = {slot: slot for slot in ("primary", "left_wrist", "right_wrist", "secondary")}
    spec = make_spec("mine", DatasetEntry(image_obs_keys=cameras, state_obs_keys=("qpos",)), tmp_path, ROBOT_PLATFORMS["METAWORLD"])
    assert unused_parts(spec, ("primary", "left_wrist"), False) == ["right_wrist", "secondary", "a state"]
    assert unused_parts(spec, tuple(cameras), True) == []
