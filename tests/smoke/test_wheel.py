"""The package builds as a wheel whose entry points run away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("prismatic", "experiments", "pyproject.toml", "README_EN.md", "LICENSE", "constraints.txt")
ENTRY_POINTS = {
    "openvla-finetune": "--dataset_name",
    "openvla-deploy": "--pretrained_checkpoint",
    "openvla-merge": "--lora_finetuned_checkpoint_dir",
    "openvla-inspect": "--suggest",
    "openvla-plot-run": "--output",
    "openvla-doctor": "--checkpoint",
    "openvla-push-to-hub": "--repo_id",
    "openvla-convert-aloha": "--input_dir",
    "openvla-convert-lerobot": "--input_dir",
    "openvla-convert-libero": "--input_dir",
    "openvla-run-robot": "--robot_args",
    "openvla-run-aloha": "--vla_server_url",
    "openvla-eval-aloha-sim": "--num_trials_per_task",
    "openvla-eval-libero": "--task_suite_name",
    "openvla-eval-metaworld": "--task_names",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:  # a build leaves files in its source folder
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("openvla_oft_robot-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(installed: Path, cwd: Path, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """An entry point, which finds the wheel first and the packages that it depends on behind it."""
    path = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [str(installed / "bin" / command), *flags]
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


SHOW_ALL = """
import contextlib, io, json, sys
from importlib.metadata import distributions
(wheel,) = distributions(name="openvla-oft-robot", path=[sys.argv[1]])
shown = {}
for point in wheel.entry_points:
    sys.argv = [point.name, "--help"]
    program = point.load()
    assert sys.modules[program.__module__].__file__.startswith(str(wheel.locate_file(""))), program.__module__
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        program()
    shown[point.name] = text.getvalue()
print(json.dumps(shown))
"""


def test_every_entry_point_shows_its_flags(installed: Path, tmp_path: Path) -> None:
    """In one process: starting each would take most of the time."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", SHOW_ALL, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown.keys() == ENTRY_POINTS.keys()
    for name, flag in ENTRY_POINTS.items():
        assert flag in shown[name], name


def test_entry_points_and_scripts_are_the_same_list(installed: Path) -> None:
    assert {path.name for path in (installed / "bin").iterdir() if path.name.startswith("openvla-")} == set(ENTRY_POINTS)


def test_the_doctor_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    data = ROOT / "tests/golden/data/rlds"
    result = run(installed, tmp_path, "openvla-doctor", "--json", "--data", str(shutil.copytree(data, tmp_path / "data")))
    found = json.loads(result.stdout)
    assert found["problems"] == 0, result.stdout
    assert result.returncode == 0
    versions = next(item for item in found["sections"]["Software"] if item["subject"] == "versions")
    assert versions["status"] in ("ok", "warning"), versions  # the table of tested versions came along in the wheel
    assert "libero_spatial_no_noops" in result.stdout
    code = "import prismatic.doctor.screen as module; print(module.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(installed))
