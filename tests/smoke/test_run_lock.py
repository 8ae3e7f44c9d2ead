"""One writer per run folder: real processes on one machine, and such as seem to be on another, because it has another name."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import Launcher, Started, wait_until
from survival import flags, make_workplace, rows, wait_for

from prismatic.policy.checkpoint.files import find_damage
from prismatic.training import run_lock
from prismatic.training.distributed import Ranks
from prismatic.training.run_lock import RunLock, only_writer
from prismatic.vla.datasets import locks

BEAT_S, SILENCE_S = 0.1, 3.0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("lock"))


@pytest.fixture(scope="module")
def launcher(workplace: Path) -> Launcher:
    return Launcher(workplace)


def stops_while_it_saves(run: Started, runs: Path) -> bool:
    """Stops `run` if it is writing a checkpoint just now, to be continued."""
    if any(path.name.endswith(".tmp") for path in runs.iterdir()):
        run.kill(signal.SIGSTOP)
        time.sleep(0.05)  # the kernel is done with it
        if any(path.name.endswith(".tmp") for path in runs.iterdir()):
            return True
        run.kill(signal.SIGCONT)
    return False


def test_a_second_run_of_one_name_is_refused_and_touches_nothing(launcher: Launcher, workplace: Path) -> None:
    runs = workplace / "twice"
    one = launcher.start(flags(workplace, runs.name, "--max_steps", "200", "--save_freq", "1", "--keep_checkpoints", "1"))
    wait_until(lambda: len(rows(runs / "run")) >= 1)
    wait_until(lambda: stops_while_it_saves(one, runs))
    left = sorted(str(path) for path in runs.rglob("*"))
    for more in ((), ("--resume", "True"), ("--auto_resume", "True"), ("--save_latest_checkpoint_only", "True")):
        other = launcher.start(flags(workplace, runs.name, "--max_steps", "200", *more))
        assert other.wait() == 2, other.text()
        assert f"run 'run' in {runs} is written by process {one.pid} on {socket.gethostname()} (since " in other.text()
        assert "Traceback" not in other.text()
        assert "Loading weights" not in other.text()
    assert sorted(str(path) for path in runs.rglob("*")) == left
    one.kill(signal.SIGCONT)
    one.kill(signal.SIGTERM)
    assert one.wait() == 75, one.text()
    step = len(rows(runs / "run"))
    assert find_damage(runs / f"run--{step}_chkpt") is None
    assert sorted(os.listdir(runs)) == ["run", f"run--{step}_chkpt"]


def test_a_killed_run_is_taken_over_at_once(launcher: Launcher, workplace: Path) -> None:
    runs = workplace / "killed"
    one = launcher.start(flags(workplace, runs.name))
    wait_until(lambda: len(rows(runs / "run")) >= 3)
    one.kill(signal.SIGKILL)
    one.wait()
    assert json.loads((runs / ".run.lock").read_text())["pid"] == one.pid
    step = len(rows(runs / "run"))
    other = launcher.start(flags(workplace, runs.name, "--auto_resume", "True", "--max_steps", str(step + 4)))
    wait_for([other])
    assert f"taking over {runs}/run from process {one.pid}" in other.text()
    assert not (runs / ".run.lock").exists()


def _hold(run_dir: Path, has_kernel_locks: bool, pipe: Connection) -> None:
    """Another machine: takes the run, and says at a word whether it still has it."""
    _elsewhere("there", has_kernel_locks)
    lock = RunLock(run_dir, BEAT_S, SILENCE_S)
    lock.take()
    pipe.send("taken")
    pipe.recv()
    try:
        lock.check()
        pipe.send(None)
    except ValueError as error:
        pipe.send(str(error))
    lock.release()


def _elsewhere(host: str, has_kernel_locks: bool, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Gives this process's machine another name, and a file system without locks where it shall have one."""
    patch = monkeypatch or pytest.MonkeyPatch()
    patch.setattr(locks, "socket", SimpleNamespace(gethostname=lambda: host))
    if not has_kernel_locks:
        patch.setattr(run_lock, "_lock", lambda descriptor: None)


@pytest.fixture
def holder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process "there" that writes tmp_path/run, while this one is "here"; the parameter says whether the file system knows locks."""
    own, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "run", request.param, other))
    process.start()
    assert own.recv() == "taken"
    _elsewhere("here", request.param, monkeypatch)
    yield process, own
    process.kill()
    process.join()


@pytest.mark.parametrize("holder", [True, False], ids=["locks", "no_locks"], indirect=True)
def test_a_writer_on_another_machine_is_seen_by_its_signs_of_life(holder: tuple[BaseProcess, Connection], tmp_path: Path) -> None:
    process, pipe = holder
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"run 'run' in {tmp_path} is written by process {process.pid} on there"):
        RunLock(tmp_path / "run", BEAT_S, SILENCE_S).take()
    assert time.monotonic() - started < SILENCE_S, "one sign is enough"
    pipe.send("still yours?")
    assert pipe.recv() is None


@pytest.mark.parametrize("holder", [True, False], ids=["locks", "no_locks"], indirect=True)
def test_a_writer_that_died_on_another_machine_is_gone_after_a_silence(holder: tuple[BaseProcess, Connection], tmp_path: Path) -> None:
    process, _ = holder
    process.kill()
    process.join()
    lock = RunLock(tmp_path / "run", BEAT_S, SILENCE_S)
    lock.take()
    lock.check()
    assert json.loads((tmp_path / ".run.lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("holder", [False], ids=["no_locks"], indirect=True)
def test_a_writer_that_was_asleep_notices_that_it_was_replaced(holder: tuple[BaseProcess, Connection], tmp_path: Path) -> None:
    process, pipe = holder
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    lock = RunLock(tmp_path / "run", BEAT_S, SILENCE_S)
    lock.take()
    os.kill(process.pid, signal.SIGCONT)
    pipe.send("still yours?")
    assert f"process {os.getpid()} on here (since " in pipe.recv()
    process.join()  # and releases nothing that is not its own
    lock.check()
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("holder", [True], ids=["locks"], indirect=True)
def test_where_the_kernel_knows_better_a_sleeping_writer_keeps_its_run(holder: tuple[BaseProcess, Connection], tmp_path: Path) -> None:
    process, pipe = holder
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(ValueError, match="is written by process"):
        RunLock(tmp_path / "run", BEAT_S, SILENCE_S).take()
    os.kill(process.pid, signal.SIGCONT)
    pipe.send("still yours?")
    assert pipe.recv() is None


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]"])
def test_a_damaged_lock_file_holds_nobody_up_for_long(tmp_path: Path, content: str) -> None:
    (tmp_path / ".run.lock").write_text(content)
    lock = RunLock(tmp_path / "run", BEAT_S, silence_s=0.3)
    lock.take()
    lock.release()
    assert os.listdir(tmp_path) == []


def test_folders_made_for_the_lock_go_with_it_unless_they_are_used(tmp_path: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="refused"), only_writer(tmp_path / "new" / "runs" / "run", ranks):
        raise ValueError("refused")
    assert os.listdir(tmp_path) == []
    with only_writer(tmp_path / "new" / "runs" / "run", ranks):
        (tmp_path / "new" / "runs" / "run").mkdir()
    assert os.listdir(tmp_path / "new" / "runs") == ["run"]
