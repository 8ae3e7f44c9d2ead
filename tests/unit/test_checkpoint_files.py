"""Folders appear whole or not at all; weights that do not fit are listed key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prismatic.policy.files import (
    ACTION_HEAD,
    atomic_folder,
    check_free_space,
    component_suffix,
    find_component,
    load_component,
    previous_folder,
    recover_folder,
    save_component,
)


def test_an_interrupted_save_leaves_the_old_folder(tmp_path: Path) -> None:
    final = tmp_path / "run--1_chkpt"
    with atomic_folder(final) as folder:
        (folder / "weights").write_text("old")

    def interrupted_save() -> None:
        with atomic_folder(final) as folder:
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_save()
    assert (final / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [final.name]


def test_replacing_keeps_the_named_files(tmp_path: Path) -> None:
    final = tmp_path / "run"
    final.mkdir()
    (final / "metrics.jsonl").write_text("log")
    (final / "stale").write_text("gone")
    with atomic_folder(final, keep=("metrics.jsonl",)) as folder:
        (folder / "weights").write_text("new")
    assert {path.name: path.read_text() for path in final.iterdir()} == {"metrics.jsonl": "log", "weights": "new"}


def test_death_between_the_renames_is_recovered(tmp_path: Path) -> None:
    final = tmp_path / "run"
    previous_folder(final).mkdir()
    (previous_folder(final) / "weights").write_text("old")
    recover_folder(final)
    assert (final / "weights").read_text() == "old"


def test_components_round_trip_with_the_published_prefix_and_dtype(tmp_path: Path) -> None:
    head = torch.nn.Linear(3, 2)
    save_component(head, tmp_path, ACTION_HEAD, component_suffix(7))
    path = find_component(tmp_path, ACTION_HEAD)
    assert path.name == "action_head--7_checkpoint.pt"
    stored = torch.load(path, weights_only=True)
    assert {key: value.dtype for key, value in stored.items()} == {"module.weight": torch.bfloat16, "module.bias": torch.bfloat16}
    other = torch.nn.Linear(3, 2)
    load_component(other, tmp_path, ACTION_HEAD)
    torch.testing.assert_close(other.weight, head.weight.bfloat16().float())


def test_a_component_that_does_not_fit_is_described(tmp_path: Path) -> None:
    save_component(torch.nn.Linear(3, 2), tmp_path, ACTION_HEAD, component_suffix(None))
    with pytest.raises(ValueError, match=r"weight: expected \[2, 4\], found \[2, 3\]"):
        load_component(torch.nn.Linear(4, 2), tmp_path, ACTION_HEAD)


def test_absent_and_damaged_components_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one file action_head--"):
        find_component(tmp_path, ACTION_HEAD)
    (tmp_path / "action_head--1_checkpoint.pt").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match="cannot be read"):
        load_component(torch.nn.Linear(1, 1), tmp_path, ACTION_HEAD)


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(ValueError, match="save_latest_checkpoint_only"):
        check_free_space(tmp_path, 10**18)
