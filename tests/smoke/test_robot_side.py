"""A robot's computer: an environment of its own with numpy, websockets and msgpack, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("numpy", "websockets", "msgpack")

_IMPORT_ALL = """
import importlib, pkgutil, sys
import prismatic.acting, prismatic.wire
names = [item.name for room in (prismatic.acting, prismatic.wire) for item in pkgutil.walk_packages(room.__path__, room.__name__ + ".")]
for name in names:
    importlib.import_module(name)
heavy = {"torch", "PIL", "scipy", "h5py"} & sys.modules.keys()
assert not heavy, heavy
print(len(names))
"""


@pytest.fixture(scope="module")
def robots_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with `PACKAGES`."""
    folder = tmp_path_factory.mktemp("robot") / "venv"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run([str(python), "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_every_module_of_wire_and_acting_is_imported_there(robots_python: Path) -> None:
    done = run(robots_python, _IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    num_files = sum(
        len([path for path in (ROOT / "prismatic" / room).rglob("*.py") if path.stem != "__init__"]) for room in ("acting", "wire")
    )
    assert int(done.stdout) == num_files


def test_a_recording_is_refused_there_with_the_packages_to_install(robots_python: Path) -> None:
    done = run(robots_python, "from prismatic.acting.recorder import check_recording_packages; check_recording_packages()")
    assert "--record True needs h5py and pillow: pip install h5py pillow, or leave the flag out" in done.stderr


def test_the_environment_is_as_bare_as_it_claims(robots_python: Path) -> None:
    for package in ("torch", "PIL", "h5py", "scipy"):
        assert "ModuleNotFoundError" in run(robots_python, f"import {package}").stderr
