"""Mixtures, resolved against small recordings of their data sets."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from oxe_recordings import write_recording
from rlds_writer import make_episode, write_dataset

from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.rlds.oxe import mixtures
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets, select_policy_cameras
from prismatic.vla.datasets.training_data import load_training_data

# Number of data sets and sum of the weights of the published lists (rtx_franka without its four repetitions and berkeley_rpt).
PUBLISHED_MIXTURES = {
    "bridge": (1, 1.0),
    "bridge_rt_1": (2, 2.0),
    "rtx": (10, 14.3749758),
    "rtx_franka": (23, 35.5749758),
    "oxe_magic_soup": (23, 29.5749758),
    "oxe_magic_soup_plus": (27, 31.0349758),
    "oxe_magic_soup_plus_minus": (25, 31.3341046),
    "libero_4_task_suites_no_noops": (4, 4.0),
}


@pytest.fixture(scope="module")
def published_recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for name in {part for parts in mixtures.OXE_NAMED_MIXTURES.values() for part, _ in parts}:
        write_recording(root, name)
    return root


@pytest.mark.parametrize("name", mixtures.OXE_NAMED_MIXTURES)
def test_every_mixture_can_be_trained_on_with_its_published_weights(published_recordings: Path, tmp_path: Path, name: str) -> None:
    platform = None if name.startswith("libero") else "SINGLE_EEF"
    specs = resolve_datasets(name, published_recordings, platform, use_proprio=False)
    cameras = select_policy_cameras(specs, 1)
    data = load_training_data(specs, DatasetOptions(cameras, 24, cache_dir=tmp_path))
    assert cameras == ("primary",)
    count, total = PUBLISHED_MIXTURES[name]
    assert (len(specs), sum(spec.weight for spec in specs)) == (count, pytest.approx(total, abs=1e-6))
    lengths = [len(part) for part in data.train.parts]
    drawn = {int(np.searchsorted(data.train.part_starts, key.sample, side="right")) - 1 for key in islice(data.train.sampler(0), 2000)}
    assert drawn == set(range(count))
    assert data.train[int(data.train.part_starts[-2])].actions.shape == (specs[0].platform.num_actions_chunk, 7)
    assert set(lengths) <= {4, 6}  # bridge's transform leaves two steps out


def test_a_mixture_is_pasted_in_the_familiar_form_and_counts_a_repeated_set_once(
    published_recordings: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "mine", [("taco_play", 2.0), ("viola", 0.5), ("taco_play", 1.0)])
    specs = resolve_datasets("mine", published_recordings, "SINGLE_EEF")
    assert [(spec.name, spec.weight) for spec in specs] == [("taco_play", 2.0), ("viola", 0.5)]
    assert "mixture mine lists taco_play twice; it counts once, with the weight 2" in caplog.text


def test_a_mixture_resolves_to_its_parts(tmp_path: Path) -> None:
    parts = [name for name, _ in mixtures.OXE_NAMED_MIXTURES["libero_4_task_suites_no_noops"]]
    _write(tmp_path, *parts)
    specs = resolve_datasets("libero_4_task_suites_no_noops", tmp_path)
    assert [spec.name for spec in specs] == parts
    assert select_policy_cameras(specs, 2) == ("primary", "wrist")


def test_a_mixture_of_two_robots_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "metaworld_demo", "libero_10_no_noops")
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "both", (("metaworld_demo", 1.0), ("libero_10_no_noops", 1.0)))
    with pytest.raises(ValueError, match="different robot platforms"):
        resolve_datasets("both", tmp_path)


def test_a_published_mixture_refuses_a_data_set_that_is_absent(tmp_path: Path) -> None:
    _write(tmp_path, "bridge_orig")
    with pytest.raises(ValueError, match="fractal20220817_data"):
        resolve_datasets("bridge_rt_1", tmp_path, robot_platform="BRIDGE")


def test_two_sets_under_one_entry_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics, weights and exclusions are kept by name: one set would have been normalized by the other's statistics."""
    folder = write_dataset(tmp_path, "metaworld_demo", {"train": [make_episode(2, action_dim=7, state_dim=8)]})
    shutil.copytree(folder, folder.with_name("2.0.0"))
    for owner in ("alice", "bob"):
        shutil.copytree(folder, tmp_path / owner / "metaworld_demo" / "1.0.0")
    (tmp_path / "more.json").write_text(json.dumps({"dataset": "metaworld_demo", "recordings": [{"path": "alice/metaworld_demo"}]}))
    for one, other in (
        ("metaworld_demo:1.0.0", "metaworld_demo:2.0.0"),
        ("alice/metaworld_demo", "bob/metaworld_demo"),
        ("metaworld_demo", str(tmp_path / "more.json")),
    ):
        monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "both", ((one, 1.0), (other, 1.0)))
        with pytest.raises(ValueError, match=r"by one entry, 'metaworld_demo', .*manifest.*an entry of its own"):
            resolve_datasets("both", tmp_path)


def test_one_set_spelt_in_two_ways_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(tmp_path, "metaworld_demo", {"train": [make_episode(2, action_dim=7, state_dim=8)]})
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "both", (("metaworld_demo", 2.0), ("metaworld_demo:1.0.0", 1.0)))
    assert [(spec.name, spec.weight) for spec in resolve_datasets("both", tmp_path)] == [("metaworld_demo", 2.0)]
    assert "mixture both lists metaworld_demo twice; it counts once, with the weight 2" in caplog.text


def _write(root: Path, *names: str) -> None:
    for name in names:
        write_dataset(root, name, {"train": [make_episode(2, action_dim=7, state_dim=8)]})
