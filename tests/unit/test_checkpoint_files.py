"""Folders appear whole or not at all; weights that do not fit are listed key by key."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prismatic.policy.checkpoint.files import (
    ACTION_HEAD,
    MANIFEST_FILE,
    atomic_folder,
    changed_texts,
    check_free_space,
    check_writable,
    component_suffix,
    find_component,
    find_damage,
    list_weights_anew,
    load_component,
    read_manifest,
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


def test_replacing_keeps_what_is_not_of_the_checkpoint(tmp_path: Path) -> None:
    final = tmp_path / "run"
    with atomic_folder(final) as folder:
        (folder / "weights").write_text("old")
        (folder / "stale").write_text("gone")
    (final / "metrics.jsonl").write_text("log")
    log = (final / "metrics.jsonl").open("a")  # stays open, as a logger's file may
    with atomic_folder(final) as folder:
        (folder / "weights").write_text("new")
    log.write("ged")
    log.close()
    assert {path.name: path.read_text() for path in final.iterdir() if path.name != MANIFEST_FILE} == {
        "metrics.jsonl": "logged",
        "weights": "new",
    }
    assert read_manifest(final) == {"weights": 3}


def test_weights_of_before_never_pass_for_those_of_a_new_checkpoint(tmp_path: Path) -> None:
    """Adapters alone were saved, merged by hand, and the run went on."""
    final = tmp_path / "run"
    with atomic_folder(final) as folder:
        (folder / "action_head--latest_checkpoint.pt").write_text("head 100")
        (folder / "lora_adapter").mkdir()
    for name in (
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "vision_backbone--7_checkpoint.pt",
    ):
        (final / name).write_text("100")
    (final / "model_card.md").write_text("mine")
    with atomic_folder(final) as folder:
        (folder / "action_head--latest_checkpoint.pt").write_text("head 200")
    assert {path.name for path in final.iterdir()} == {"action_head--latest_checkpoint.pt", "model_card.md", MANIFEST_FILE}


def test_weights_that_were_changed_on_purpose_are_listed_anew(tmp_path: Path) -> None:
    final = tmp_path / "run"
    with atomic_folder(final) as folder:
        for name in ("policy.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"):
            (folder / name).write_text("{}")
    (final / "model.safetensors").write_text("merged")
    (final / "model-00001-of-00001.safetensors").unlink()
    (final / "model.safetensors.index.json").unlink()
    (final / "policy.json").write_text("{ }")
    list_weights_anew(final)
    assert read_manifest(final) == {"policy.json": 2, "model.safetensors": 6}
    assert changed_texts(final) == ["policy.json"], "other edits are still noticed"
    (final / MANIFEST_FILE).unlink()
    list_weights_anew(final)
    assert not (final / MANIFEST_FILE).exists()


def die_at_call(number: int, final: Path) -> bool:
    """Replaces `final` in a process of its own that dies before its `number`-th rename or removal; whether it lived that long."""

    def die(*_: object) -> None:
        os._exit(9)

    child = os.fork()
    if child == 0:
        calls = itertools.count()
        for owner, name in ((Path, "rename"), (os, "unlink"), (os, "rmdir")):
            original = getattr(owner, name)
            wrapped = lambda *args, original=original, **kwargs: (die() if next(calls) == number else None, original(*args, **kwargs))[1]  # noqa: E731
            setattr(owner, name, wrapped)
        with atomic_folder(final) as folder:
            (folder / "weights").write_text("new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_death_at_any_moment_of_a_replacement_leaves_one_whole_folder(tmp_path: Path) -> None:
    contents = []
    for number in itertools.count():
        final = tmp_path / str(number) / "run"
        with atomic_folder(final) as folder:
            (folder / "weights").write_text("old")
        (final / "metrics.jsonl").write_text("log")
        survived = die_at_call(number, final)
        recover_folder(final)
        assert [path.name for path in final.parent.iterdir()] == ["run"]
        assert sorted(path.name for path in final.iterdir()) == [MANIFEST_FILE, "metrics.jsonl", "weights"]
        assert find_damage(final) is None
        contents.append((final / "weights").read_text())
        if survived:
            break
    assert contents == sorted(contents, reverse=True)  # old up to some moment, new from then on
    assert {"old", "new"} == set(contents)
    assert len(contents) > 5


def test_damage_is_named(tmp_path: Path) -> None:
    final = tmp_path / "run"
    with atomic_folder(final) as folder:
        (folder / "state").mkdir()
        (folder / "state" / "weights").write_text("0123456789")
        (folder / "model").write_text("0123")
    assert find_damage(final) is None
    (final / "model").unlink()
    assert find_damage(final) == "model is missing"
    assert find_damage(final, part="state/") is None
    (final / "state" / "weights").write_text("012345678")
    assert find_damage(final, part="state/") == "state/weights has 9 bytes instead of 10"
    (final / MANIFEST_FILE).write_text("{")
    assert find_damage(final) == "it has no manifest.json"


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
    with pytest.raises(ValueError, match=r"needs 931322574\.6 GiB .*, the disk has .* free; free some$"):
        check_free_space(tmp_path, 10**18)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_the_old_folder(small_disk: Path) -> None:
    final = small_disk / "run"
    with atomic_folder(final) as folder:
        (folder / "weights").write_bytes(bytes(400_000))

    def replace(num_bytes: int) -> None:
        with atomic_folder(final) as folder:
            (folder / "weights").write_bytes(bytes(num_bytes))

    with pytest.raises(OSError, match="No space left on device") as caught:
        replace(800_000)
    assert caught.value.errno == errno.ENOSPC
    assert find_damage(final) is None
    assert [path.name for path in small_disk.iterdir()] == ["run"]
    replace(500_000)
    assert (final / "weights").stat().st_size == 500_000


def test_a_file_system_that_does_not_flush_folders_takes_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SMB and some object stores refuse it; what fails for a file is a failing disk all the same."""
    flush, refused = os.fsync, []

    def fsync(descriptor: int, code: int = errno.EINVAL) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() or code == errno.EIO:
            refused.append(descriptor)
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "new" / "a.txt").read_text() == "a"
    assert len(refused) == 2
    monkeypatch.setattr(os, "fsync", lambda descriptor: fsync(descriptor, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), atomic_folder(tmp_path / "new") as folder:
        (folder / "a.txt").write_text("b")
    assert (tmp_path / "new" / "a.txt").read_text() == "a"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet")
    (tmp_path / "file").write_text("")
    for place in (Path("/proc/self/run"), tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=f"{place.parent} cannot be written to .* choose another --run_root_dir"):
            check_writable(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_edit_of_a_text_is_noticed_whatever_its_size(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with atomic_folder(final) as folder:
        (folder / "policy.json").write_text('{"limit": 1}')
        (folder / "weights").write_bytes(bytes(3))
    assert changed_texts(final) == []
    (final / "policy.json").write_text('{"limit": 9}')
    assert changed_texts(final) == ["policy.json"]
    assert find_damage(final) is None
    (final / MANIFEST_FILE).write_text('{"policy.json": 12, "weights": 4}')  # as earlier versions wrote it
    assert changed_texts(final) == []
    assert find_damage(final) == "weights has 3 bytes instead of 4"
