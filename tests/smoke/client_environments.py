"""Environments with published packages that tests compare with: built for PRISMATIC_CLIENT_TESTS=1, or found in PRISMATIC_CLIENT_ENVS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def client_python(name: str, packages: Sequence[str], factory: pytest.TempPathFactory, without_dependencies: Sequence[str] = ()) -> Path:
    """The Python of an environment that holds `packages`, and `without_dependencies` as they are; skips where none is to be had."""
    if os.environ.get("PRISMATIC_CLIENT_ENVS"):
        return Path(os.environ["PRISMATIC_CLIENT_ENVS"]) / name / "bin/python"
    if os.environ.get("PRISMATIC_CLIENT_TESTS") != "1":
        pytest.skip("set PRISMATIC_CLIENT_TESTS=1 to build the clients' environments, or PRISMATIC_CLIENT_ENVS to a folder that has them")
    folder = factory.mktemp("envs") / name
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for options, names in (([], packages), (["--no-deps"], without_dependencies)):
        if names:
            subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *options, *names], check=True)
    return folder / "bin/python"
