"""Starts vla-scripts/finetune.py many times, cheaply: a process that has imported everything forks one process per run.

Each run is a process of its own, in a session of its own, that executes the real script with its own argv, environment and output; it
can be signalled and killed like any other. A test may pass a script of its own, which makes something slow or fail and runs the real one.
`python finetune_launcher.py` is the forking process; `Launcher` talks to it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "vla-scripts" / "finetune.py"


@dataclass(frozen=True)
class Started:
    """A run that was started."""

    launcher: Launcher
    pid: int
    output: Path  # its stdout and stderr

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status; minus the number of the signal that killed it. A run that takes longer is killed."""
        deadline = time.monotonic() + seconds
        while (status := self.launcher.ask({"poll": self.pid})) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"the run did not end:\n{self.text()}")
            time.sleep(0.005)
        return status

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.launcher.ask({"poll": self.pid}) is None

    def kill(self, number: int) -> None:
        """Sends a signal to the training process alone."""
        os.kill(self.pid, number)

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()


class Launcher:
    """The forking process, as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __enter__(self) -> Launcher:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self, flags: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path = ROOT, script: Path = SCRIPT
    ) -> Started:
        """Starts finetune.py, or another script, with `flags` in `folder`."""
        self._count += 1
        output = self._folder / f"run{self._count}.txt"
        output.touch()
        request = {"flags": list(flags), "environment": dict(environment or {}), "output": str(output), "folder": str(folder)}
        pid = self.ask({**request, "script": str(script)})
        assert pid is not None
        return Started(self, pid, output)

    def ask(self, request: dict[str, object]) -> int | None:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Answers requests until stdin closes."""
    import draccus  # noqa: F401
    import peft  # noqa: F401

    import prismatic.training.loop
    import prismatic.vla.image_kernels  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    statuses: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "flags" in request:
            answer: int | None = _fork(request)
        else:
            pid = request["poll"]
            if pid not in statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
            answer = statuses.get(pid)
        print(json.dumps(answer), file=answers, flush=True)


def _fork(request: dict[str, object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.chdir(str(request["folder"]))
    os.environ.update(request["environment"])  # type: ignore[arg-type]
    output = os.open(str(request["output"]), os.O_WRONLY | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.argv = [str(request["script"]), *request["flags"]]  # type: ignore[misc]
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Returns once `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


if __name__ == "__main__":
    serve()
