"""Starts Python programs many times, cheaply: a process that has imported the heavy packages forks one process per program.

Each is a process of its own, in a session of its own, that executes the real script with its own argv, environment and output; it
can be signalled and killed like any other. A test may pass a script of its own, which makes something slow or fail and runs the real one.
The Pythons that such a program starts itself (`sys.executable`) come from the same place, see forked_python.py.
`python launching.py KIND` is the forking process, one per kind of imports, checkout and test process; `run` and `Launcher` talk to it.
What a checkout's modules say when the first of its programs starts holds for all of them.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import forked_python

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
        forker = _forker(TORCH, ROOT, ())
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
        return Started(forker, forker.start([str(script), *flags], environment, folder, output, output), output)


def start(command: Sequence[str | Path], output: Path, env: Mapping[str, str] | None = None, checkout: Path = ROOT) -> Started:
    """Starts `command` (as in `run`) in the background, in the folder `checkout`; what it prints goes to the file `output`."""
    assert command[0] == sys.executable, command
    output.touch()
    environment = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)}
    forker = _forker(TORCH, checkout, ())
    return Started(forker, forker.start([str(word) for word in command[1:]], environment, checkout, output, output), output)


def run(
    command: Sequence[str | Path],
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
    kind: str = TORCH,
    checkout: Path = ROOT,
    at_import: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(command, capture_output=True, text=True)` of this interpreter: python script, python -c code or python -m module.

    Variables that packages read when they are imported, and only then, go into `at_import`: each set of them needs a forking process.

    Raises:
        TimeoutError: it took longer and was killed.
    """
    assert command[0] == sys.executable, command
    forker = _forker(kind, checkout, tuple(sorted((at_import or {}).items())))
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "stdout"), Path(folder, "stderr")
        environment = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env), **(at_import or {})}
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
    at_import: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`run` as `count` processes of one run, as torchrun starts them: the highest exit status and what all have printed."""
    common = {**(os.environ if env is None else env), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(lambda place: run(command, cwd, place, timeout, checkout=checkout, at_import=at_import), places))
    status = max((process.returncode for process in done), key=abs)
    return subprocess.CompletedProcess(list(command), status, "".join(one.stdout for one in done), "".join(one.stderr for one in done))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Forker:
    """The forking process."""

    def __init__(self, kind: str, checkout: Path, variables: Iterable[tuple[str, str]]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout), **dict(variables)}
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
def _forker(kind: str, checkout: Path, variables: tuple[tuple[str, str], ...]) -> _Forker:  # no defaults: `cache` tells them apart
    return _Forker(kind, checkout, variables)


def _import_torch() -> None:
    import draccus  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import prismatic.policy.policy
    import prismatic.training.loop
    import prismatic.vla.image_kernels  # noqa: F401

    get_checkpoint_conversion_mapping("llama")  # is built once, for all models


def _import_tensorflow() -> None:
    import h5py  # noqa: F401
    import tensorflow  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    import prismatic.conversion.rlds_writer  # noqa: F401


def serve(kind: str) -> None:
    """Answers requests until stdin closes: of the test process there, of forked_python.py at a socket."""
    {TORCH: _import_torch, TENSORFLOW: _import_tensorflow}[kind]()
    import multiprocessing.spawn  # noqa: F401  remembers this interpreter, which its processes need

    gc.collect()
    gc.freeze()  # what is here stays: no program needs to look through it

    folder = Path(tempfile.mkdtemp(prefix="prismatic-forker-"))
    sys.executable = _write_python(folder)
    address = str(folder / "socket")
    answers = os.fdopen(os.dup(1), "w")
    statuses: dict[int, int] = {}
    keepers: list[int] = []
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector, os.fdopen(os.dup(0)) as requests:
        server.bind(address)
        server.listen()
        selector.register(server, selectors.EVENT_READ)
        selector.register(requests, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if server in ready:
                keepers = [pid for pid in keepers if os.waitpid(pid, os.WNOHANG)[0] == 0]
                keepers.append(_keep(server.accept()[0], address))
            if requests in ready:  # one line at a time: the next one is written when this one has been answered
                if not (line := requests.readline()):
                    break
                print(json.dumps(_answer(json.loads(line), statuses, address)), file=answers, flush=True)
    shutil.rmtree(folder)


def _write_python(folder: Path) -> str:
    """An executable that takes the place of the interpreter in the programs, and torchrun beside it."""
    python = f"exec {sys.executable} -I -S {forked_python.__file__} {sys.executable}"
    for name, first in (("python", ""), ("torchrun", "-m torch.distributed.run")):
        (folder / name).write_text(f'#!/bin/sh\n{python} {first} "$@"\n')
        (folder / name).chmod(0o755)
    return str(folder / "python")


def _answer(request: dict[str, Any], statuses: dict[int, int], address: str) -> int | None:
    if "words" in request:
        outputs = [os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("output", "errors")]
        descriptors = [os.open(os.devnull, os.O_RDONLY), *outputs]
        pid = _fork(request, descriptors, address)
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    pid = request["poll"]
    if pid not in statuses:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            statuses[pid] = os.waitstatus_to_exitcode(status)
    return statuses.get(pid)


def _keep(connection: socket.socket, address: str) -> int:
    """A process that starts what forked_python.py asks for, passes its signals on and ends it with it."""
    if pid := os.fork():
        connection.close()
        return pid
    status = 1
    try:
        request, descriptors = forked_python.receive(connection)
        program = _fork(request, descriptors, address)
        ended = os.pidfd_open(program)
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while ended not in [key.fileobj for key, _ in selector.select()]:
                number = connection.recv(1)
                os.kill(program, number[0] if number else signal.SIGKILL)
                if not number:
                    break
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        connection.sendall(json.dumps(status).encode())
    finally:
        os._exit(status % 256)


def _fork(request: dict[str, Any], descriptors: Sequence[int], address: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"] | {forked_python.ADDRESS: address})
    sys.path[1:1] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place not in sys.path]
    for source, target in zip(descriptors, range(3), strict=True):
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
