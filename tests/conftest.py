"""Options and fixtures of the whole test suite."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", default=str(Path(__file__).parent / "golden" / "data"), help="folder of the recorded numbers")


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of recorded numbers that the golden tests compare with."""
    return Path(request.config.getoption("--golden-dir"))
