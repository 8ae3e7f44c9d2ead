"""What demonstrations did, from their episodes into policy.json and over the wire."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rlds_writer import make_episode, write_dataset

from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.index import load_index
from prismatic.vla.datasets.motions import describe_motions
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.images import ImageRecipe
from prismatic.vla.stated_limits import StatedLimits
from prismatic.wire.arrays import pack_openpi
from prismatic.wire.msgpack_reader import read_msgpack
from prismatic.wire.policy_info import PolicyInfo

PLATFORM = ROBOT_PLATFORMS["METAWORLD"]
SEEN = Demonstrated((-1.0, 0.0), (1.0, 2.0), (0.1, None), (None, 0.2), (0.0,), (0.5,), {"primary": "top"})


def test_ranges_steps_gaps_and_first_states_of_the_episodes_that_are_trained_on(tmp_path: Path) -> None:
    episodes = [make_episode(20, seed=seed, size=1) for seed in range(4)]
    folder = write_dataset(tmp_path, "demo", {"train": episodes})
    index = load_index(RldsSource(folder), DatasetEntry(), identity_dataset_transform)
    platform = replace(PLATFORM, action_names=("dx", "dy", "z [m]", "gripper"), action_kinds=())
    seen = describe_motions(index, np.array([0, 2]), platform, {"primary": "image"})
    used = [episodes[0], episodes[2]]
    actions = np.concatenate([episode["action"] for episode in used])
    assert (seen.action_low, seen.action_high) == (tuple(actions.min(0).tolist()), tuple(actions.max(0).tolist()))
    steps = np.max([np.abs(np.diff(episode["action"], axis=0)).max(0) for episode in used], axis=0)  # never from one episode to the next
    assert seen.max_step == pytest.approx(steps.tolist())
    states = np.concatenate([episode["observation/state"] for episode in used])
    gaps = np.abs(actions - states).max(0)
    assert seen.max_gap == (None, None, pytest.approx(gaps[2]), pytest.approx(gaps[3]))  # motions have none
    first = np.stack([episode["observation/state"][0] for episode in used])
    assert (seen.start_low, seen.start_high) == (tuple(first.min(0).tolist()), tuple(first.max(0).tolist()))
    assert seen.cameras == {"primary": "image"}
    other = replace(platform, proprio_dim=9, proprio_names=("a",) * 9)
    assert describe_motions(index, np.array([0]), other, {}).start_low == ()


def test_policy_json_keeps_it_and_the_limits(tmp_path: Path) -> None:
    limits = StatedLimits((-1.0, None, None, 0.0), (1.0, None, None, 1.0), (0.2, None, None, 5.0))
    spec = PolicySpec(
        platform=replace(PLATFORM, limits=limits),
        cameras=("primary",),
        image=ImageRecipe(size=28, jpeg_round_trip=True, center_crop=True),
        unnorm_key="arm",
        demonstrated={"arm": SEEN},
    )
    spec.save(tmp_path)
    assert PolicySpec.load(tmp_path) == spec
    content = json.loads((tmp_path / "policy.json").read_text())
    assert content["demonstrated"]["arm"]["max_step"] == [0.1, None]
    content["demonstrated"]["arm"]["speed"] = 1
    (tmp_path / "policy.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no field speed"):
        PolicySpec.load(tmp_path)
    with pytest.raises(ValueError, match="limits have 1 values for 4 dimensions"):
        replace(PLATFORM, limits=StatedLimits((0.0,), (1.0,), (1.0,)))


def test_the_robots_computer_reads_what_the_server_wrote() -> None:
    info = PolicyInfo(
        platform="ARM",
        cameras=("primary",),
        num_actions_chunk=8,
        action_names=("elbow [rad]", "base.x.vel"),
        action_kinds=replace(PLATFORM, action_dim=2, action_names=("elbow [rad]", "base.x.vel"), action_kinds=()).action_kinds,
        proprio_names=("elbow [rad]",),
        control_hz=25.0,
        needs_state=True,
        center_crop=False,
        jpeg_round_trip=True,
        unnorm_key="arm",
        demonstrated=SEEN,
        limits=StatedLimits((None, -1.0), (None, 1.0), (0.5, None)),
    )
    assert PolicyInfo.parse(json.loads(json.dumps(info.content()))) == info
    assert PolicyInfo.parse(read_msgpack(pack_openpi(info.content()))) == info
    for name in ("demonstrated", "action_kinds", "action_units"):
        with pytest.raises(ValueError, match=name):
            PolicyInfo.parse({key: value for key, value in info.content().items() if key != name})
