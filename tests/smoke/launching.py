"""Starts Python programs many times, cheaply: a process that has imported the heavy packages forks one process per program.

Each is a process of its own, in a session of its own, that executes the real script with its own argv, environment and output; it
can be signalled and killed like any other. A test may pass a script of its own, which makes something slow or fail and runs the real one.
`python launching.py KIND` is the forking process, one per kind of imports, checkout and test process; `run` and `Launcher` talk to it.
What a checkout's modules say when the first of its programs starts holds for all of them.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "vla-scripts" / "finetune.py"
TORCH, TENSORFLOW = "torch", "tensorflow"  # kinds: what has been imported already; never both (they crash in one process with OpenGL)


@dataclass(frozen=True)
class Started:
    """A program that was started."""

    forker: _Forker
    pid: int
    output: Path  # its stdout and stderr

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status; minus the number of the signal that killed it. A program that takes longer is killed."""
        return self.forker.wait(self.pid, seconds, self.text)

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.forker.ask({"poll": self.pid}) is None

    def kill(self, number: int) -> None:
        """Sends a signal to this process alone."""
        os.kill(self.pid, number)

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def lines(self) -> Iterator[str]:
        """What it prints, line by line, until it has ended."""
        with self.output.open() as file:
            has_ended, part = False, ""
            while True:
                part += file.readline()
                if part.endswith("\n"):
                    yield part
                    part = ""
                elif has_ended:
                    break
                else:
                    has_ended = not self.is_running()
                    time.sleep(0.02)
            if part:
                yield part


class Launcher:
    """Starts training runs whose output goes to files of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def start(
        self, flags: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path = ROOT, script: Path = SCRIPT
    ) -> Started:
        """Starts finetune.py, or another script, with `flags` in `folder`."""
        self._count += 1
        output = self._folder / f"run{self._count}.txt"
        output.touch()
        forker = _forker(TORCH)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
        return Started(forker, forker.start([str(script), *flags], environment, folder, output, output), output)


def start(command: Sequence[str | Path], output: Path, env: Mapping[str, str] | None = None) -> Started:
    """Starts `command` (as in `run`) in the background; what it prints goes to the file `output`."""
    assert command[0] == sys.executable, command
    output.touch()
    environment = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)}
    forker = _forker(TORCH)
    return Started(forker, forker.start([str(word) for word in command[1:]], environment, ROOT, output, output), output)


def run(
    command: Sequence[str | Path],
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
    kind: str = TORCH,
    checkout: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(command, capture_output=True, text=True)` of this interpreter: python script, python -c code or python -m module.

    Raises:
        TimeoutError: it took longer and was killed.
    """
    assert command[0] == sys.executable, command
    forker = _forker(kind, checkout)
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "stdout"), Path(folder, "stderr")
        environment = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)}
        pid = forker.start([str(word) for word in command[1:]], environment, cwd, output, errors)
        status = forker.wait(pid, timeout, errors.read_text)
        return subprocess.CompletedProcess(list(command), status, output.read_text(), errors.read_text())


def run_ranks(
    command: Sequence[str | Path],
    count: int,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 240.0,
    checkout: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """`run` as `count` processes of one run, as torchrun starts them: the highest exit status and what all have printed."""
    common = {**(os.environ if env is None else env), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(lambda place: run(command, cwd, place, timeout, checkout=checkout), places))
    status = max((process.returncode for process in done), key=abs)
    return subprocess.CompletedProcess(list(command), status, "".join(one.stdout for one in done), "".join(one.stderr for one in done))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Forker:
    """The forking process."""

    def __init__(self, kind: str, checkout: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, words: list[str], environment: Mapping[str, str], folder: Path, output: Path, errors: Path) -> int:
        request = {"words": words, "environment": dict(environment), "folder": str(folder)}
        pid = self.ask({**request, "output": str(output), "errors": str(errors)})
        assert pid is not None
        return pid

    def wait(self, pid: int, seconds: float, text: Callable[[], str]) -> int:
        deadline, pause = time.monotonic() + seconds, 0.002
        while (status := self.ask({"poll": pid})) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"the program did not end:\n{text()}")
            time.sleep(pause)
            pause = min(1.2 * pause, 0.02)
        return status

    def ask(self, request: dict[str, object]) -> int | None:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())


@cache
def _forker(kind: str, checkout: Path = ROOT) -> _Forker:
    return _Forker(kind, checkout)


def _import_torch() -> None:
    import draccus  # noqa: F401
    import peft  # noqa: F401

    import prismatic.policy.policy
    import prismatic.training.loop
    import prismatic.vla.image_kernels  # noqa: F401


def _import_tensorflow() -> None:
    import h5py  # noqa: F401
    import tensorflow  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    import prismatic.conversion.rlds_writer  # noqa: F401


def serve(kind: str) -> None:
    """Answers requests until stdin closes."""
    {TORCH: _import_torch, TENSORFLOW: _import_tensorflow}[kind]()
    answers = os.fdopen(os.dup(1), "w")
    statuses: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "words" in request:
            answer: int | None = _fork(request)
        else:
            pid = request["poll"]
            if pid not in statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
            answer = statuses.get(pid)
        print(json.dumps(answer), file=answers, flush=True)


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[1:1] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place not in sys.path]
    descriptors = [os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("output", "errors")]
    for source, target in zip((os.open(os.devnull, os.O_RDONLY), *descriptors), range(3), strict=True):
        os.dup2(source, target)
    status = 1
    try:
        _execute(request["words"])
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()  # what the program registered; the forking process has nothing to end here
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _execute(words: list[str]) -> None:
    """What `python WORDS` does."""
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], ""
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Returns once `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


if __name__ == "__main__":
    serve(sys.argv[1])
