"""Options and fixtures of the whole test suite."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from experiments.robot.simulators.rendering import RenderingUnavailableError, configure_rendering

_CACHE = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", default=str(Path(__file__).parent / "golden" / "data"), help="folder of the recorded numbers")


def pytest_configure(config: pytest.Config) -> None:
    """Caches of tests are not the user's; MuJoCo renders off-screen; Ctrl-C reaches tests and their programs also in a shell's background
    job, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_CACHE] = tempfile.mkdtemp(prefix="prismatic-test-cache-")
    os.environ["XDG_CACHE_HOME"] = config.stash[_CACHE]
    with suppress(RenderingUnavailableError):  # tests that render say so
        configure_rendering()  # before any test module imports MuJoCo


def pytest_collection_finish() -> None:
    """What has been imported stays: no collection of garbage, of which trainings ask for one each, needs to look through it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


@pytest.fixture(autouse=True)
def no_tensorflow() -> Iterator[None]:
    """TensorFlow is for processes of their own: imported beside OpenGL it crashes, and with it a worker and all tests it would have run."""
    yield
    assert "tensorflow" not in sys.modules, "a test imported TensorFlow; let a program do it (tests/smoke/conversion_process.py)"


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of recorded numbers that the golden tests compare with."""
    return Path(request.config.getoption("--golden-dir"))
