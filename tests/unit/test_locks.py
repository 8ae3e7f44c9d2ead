"""One process at a time: with flock, without it (as on some network file systems), after a death."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from rlds_writer import make_episode, write_dataset

from prismatic.vla.datasets import locks
from prismatic.vla.datasets.locks import LockedError, Owner, locked

ROOT = Path(__file__).parents[2]
# A library that takes flock away from a real process, as the kernel does on such file systems.
_NO_FLOCK = "#include <errno.h>\nint flock(int file, int operation) { errno = %d; return -1; }\n"
KINDS = {"flock": None, "ENOSYS": errno.ENOSYS, "ENOLCK": errno.ENOLCK, "EOPNOTSUPP": errno.EOPNOTSUPP, "EINVAL": errno.EINVAL}


def _environment(folder: Path, code: int | None) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/unit'}"}
    if code is not None:
        (folder / "no_flock.c").write_text(_NO_FLOCK % code)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "no_flock.so", folder / "no_flock.c"], check=True)
        environment["LD_PRELOAD"] = str(folder / "no_flock.so")
    return environment


_COUNT = """
    import sys
    from pathlib import Path
    from prismatic.vla.datasets.locks import locked
    folder = Path(sys.argv[1])
    for _ in range(40):
        with locked(folder / "lock", lambda owner: None):
            number = int((folder / "number").read_text())
            (folder / "number").write_text("")
            (folder / "number").write_text(str(number + 1))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_only_one_process_at_a_time(tmp_path: Path, kind: str) -> None:
    environment = _environment(tmp_path, KINDS[kind])
    (tmp_path / "number").write_text("0")
    words = [sys.executable, "-c", textwrap.dedent(_COUNT), str(tmp_path)]
    processes = [subprocess.Popen(words, env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "120"
    assert not (tmp_path / "lock.held").exists()


_INDEX = """
    import sys, logging
    from pathlib import Path
    from prismatic.vla.datasets.index import load_index
    from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
    from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
    from prismatic.vla.datasets.rlds.source import RldsSource
    logging.basicConfig(level=logging.INFO)
    real = RldsSource.episodes
    def noting(self):
        with open(sys.argv[2], "a") as file:
            file.write("built\\n")
        return real(self)
    RldsSource.episodes = noting
    index = load_index(RldsSource(Path(sys.argv[1])), DatasetEntry(robot_platform="METAWORLD"), identity_dataset_transform)
    print(index.num_episodes)
"""


def test_without_flock_the_index_is_built_once_and_used_by_all(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "demo", {"train": [make_episode(10, seed=seed, size=1) for seed in range(20)]})
    environment = _environment(tmp_path, errno.ENOSYS)
    words = [sys.executable, "-c", textwrap.dedent(_INDEX), str(folder), str(tmp_path / "builds")]
    processes = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, log = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "20\n"), log
        assert "cannot be cached" not in log
    assert (tmp_path / "builds").read_text() == "built\n"


def _hold(path: Path, has_it: Any, without_flock: bool) -> None:
    if without_flock:
        locks.fcntl.flock = _no_flock
    with locked(path):
        has_it.set()
        time.sleep(60)


def _no_flock(file: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("without_flock", [False, True])
def test_the_holder_is_named_and_not_waited_for_once_it_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_flock: bool
) -> None:
    context = multiprocessing.get_context("fork")
    has_it = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", has_it, without_flock))
    process.start()
    assert has_it.wait(30)
    if without_flock:
        monkeypatch.setattr(locks.fcntl, "flock", _no_flock)
    with pytest.raises(LockedError, match=f"process {process.pid} on {Owner.this_process().host}"), locked(tmp_path / "lock"):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "lock"):
        assert Owner.read(tmp_path / ("lock.held" if without_flock else "lock")) == Owner.this_process()


def _leave_behind(path: Path, age_s: float) -> None:
    path.write_text(json.dumps(dataclasses.asdict(Owner("another-host", 4711))))
    os.utime(path, (time.time() - age_s,) * 2)


def test_a_process_of_another_machine_counts_as_gone_when_it_stops_touching_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", _no_flock)
    _leave_behind(tmp_path / "lock.held", 60)
    with pytest.raises(LockedError, match="process 4711 on another-host"), locked(tmp_path / "lock"):
        pass
    _leave_behind(tmp_path / "lock.held", 150)
    with locked(tmp_path / "lock"):
        assert Owner.read(tmp_path / "lock.held") == Owner.this_process()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_the_holder_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", _no_flock)
    monkeypatch.setattr(locks, "TOUCHED_EVERY_S", 0.02)
    with locked(tmp_path / "lock"):
        os.utime(tmp_path / "lock.held", (0, 0))
        time.sleep(0.5)
        assert (tmp_path / "lock.held").stat().st_mtime > 0
