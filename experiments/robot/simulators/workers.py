"""What every simulator process needs: one thread, and one open environment at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator

from experiments.robot.simulators.interfaces import Environment, Simulator

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")  # LP: Mesa's software renderer


@contextlib.contextmanager
def single_threaded_children() -> Iterator[None]:
    """Processes started inside use one thread each: many simulators beside each other are the parallelism."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def end_with_parent() -> None:
    """From now on this process ends as soon as its parent has, be that killed; a pool's worker would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


class EnvironmentSlot:
    """Keeps the environment of the latest task open and closes it before the next one opens (OSMesa allows no second renderer)."""

    def __init__(self) -> None:
        self._key: tuple[Simulator, str] | None = None
        self._environment: Environment | None = None

    def get(self, simulator: Simulator, task: str) -> Environment:
        if self._environment is None or self._key != (simulator, task):
            self.close()
            self._environment, self._key = simulator.make_environment(task), (simulator, task)
        return self._environment

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
        self._environment, self._key = None, None
