"""Data sets called as LeRobot calls them: owner/name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lerobot_writer import make_episode, write_v3

from prismatic.cli import parse_flags
from prismatic.commands.inspect_dataset import InspectConfig, main
from prismatic.training.config import FinetuneConfig
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, registered_name
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.sources import find_dataset_folder
from prismatic.vla.datasets.training_data import load_training_data

ENTRY = {"image_obs_keys": {"primary": "top", "wrist": "wrist"}, "action_encoding": 1, "robot_platform": "METAWORLD"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_v3(tmp_path / "data" / "me" / "so101_pick", [make_episode(4, seed) for seed in range(2)])
    return tmp_path / "data"


@pytest.mark.parametrize("entry", ["me/so101_pick", "so101_pick"])
@pytest.mark.parametrize("name", ["me/so101_pick", "me/SO101_Pick"])
def test_the_folder_and_the_entry_are_found(root: Path, monkeypatch: pytest.MonkeyPatch, entry: str, name: str) -> None:
    monkeypatch.setitem(OXE_DATASET_CONFIGS, entry, ENTRY)
    (spec,) = resolve_datasets(name, root)
    assert (spec.name, spec.folder) == (entry, root / "me" / "so101_pick")


def test_a_set_that_lies_without_its_owner_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "so101_pick", ENTRY)
    write_v3(tmp_path / "so101_pick", [make_episode(4, 0)])
    assert resolve_datasets("me/so101_pick", tmp_path)[0].folder == tmp_path / "so101_pick"


def test_a_name_without_its_owner_is_answered_with_where_the_set_is(root: Path) -> None:
    with pytest.raises(ValueError, match=r"'so101_pick' has no folder .*; did you mean me/so101_pick\?"):
        find_dataset_folder(root, "so101_pick")
    with pytest.raises(ValueError, match=r"'you/other' has no folder .*; --data_root_dir holds: me"):
        find_dataset_folder(root, "you/other")


@pytest.mark.parametrize("inside", ["", "1.0.0"])
def test_a_folder_one_too_deep_is_answered_with_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    (tmp_path / "data" / "my_robot" / "1.0.0").mkdir(parents=True)
    where = tmp_path / "data" / "my_robot" / inside
    with pytest.raises(ValueError, match=re.escape(f"above the data sets: pass --data_root_dir {tmp_path / 'data'}")):
        find_dataset_folder(where, "my_robot")
    monkeypatch.chdir(where)
    with pytest.raises(ValueError, match=re.escape(f"above the data sets: pass --data_root_dir {tmp_path / 'data'}")):
        find_dataset_folder(Path("."), "My_Robot")


def test_an_entry_of_the_whole_name_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "so101_pick", ENTRY)
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "me/so101_pick", ENTRY)
    assert [registered_name(name) for name in ("me/so101_pick", "you/so101_pick", "so101_pick", "SO101_pick", "you/other")] == [
        "me/so101_pick",
        "so101_pick",
        "so101_pick",
        "so101_pick",
        None,
    ]


def test_files_that_are_called_after_the_set_lie_in_no_folder_of_the_owner(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "me/so101_pick", ENTRY)
    config = parse_flags(FinetuneConfig, ["--dataset_name", "me/so101_pick", "--run_root_dir", str(tmp_path / "runs")])
    assert config.run_dir.parent == tmp_path / "runs"
    assert "+me_so101_pick+" in config.run_id
    options = DatasetOptions(("primary", "wrist"), 24, frame_cache_dir=tmp_path / "frames", cache_dir=tmp_path / "index")
    data = load_training_data(resolve_datasets("me/so101_pick", root), options)
    assert data.train[3].images.shape == (2, 24, 24, 3)
    kept = [path.name for path in (tmp_path / "frames").iterdir() if path.is_file()]
    assert kept
    assert all("me_so101_pick" in name for name in kept)
    assert list(data.statistics) == ["me/so101_pick"]


def test_the_inspection_page_is_one_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "me/so101_pick", ENTRY)
    monkeypatch.chdir(tmp_path)
    main(InspectConfig(dataset_name="me/so101_pick", data_root_dir=root))
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").rglob("*.html")] == ["runs/inspection/me_so101_pick.html"]
