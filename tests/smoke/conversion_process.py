"""Runs a conversion script, or reads a data set with tensorflow-datasets, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import launching
import numpy as np

REPOSITORY = Path(__file__).parents[2]

# Any attempt to reach the network fails the conversion.
OFFLINE = """
import runpy, socket, sys
def refuse(*arguments):
    raise AssertionError(f"network access: {arguments}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
READ = """
import sys
import numpy as np
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
found = {name: info.num_examples for name, info in builder.info.splits.items()}
episodes = {}
for name in found:
    for episode in builder.as_dataset(name):
        steps = [step for step in episode["steps"].as_numpy_iterator()]
        path = episode["episode_metadata"]["file_path"].numpy().decode()
        flat = {key: np.stack([step[key] for step in steps]) for key in steps[0] if key != "observation"}
        flat |= {key: np.stack([step["observation"][key] for step in steps]) for key in steps[0]["observation"]}
        episodes[path] = {"split": name, **flat}
np.savez(sys.argv[2], episodes=episodes, name=builder.info.name, splits=found)
"""


def command(script: str, folder: Path, *extra: str, prelude: str = "") -> list[str]:
    """scripts/convert/<script> from folder/recordings to folder/rlds/toy_robot, after the code `prelude` in the same process."""
    flags = ["--input_dir", str(folder / "recordings"), "--dataset_name", "toy_robot", "--data_root_dir", str(folder / "rlds"), *extra]
    return [sys.executable, "-c", prelude + OFFLINE, str(REPOSITORY / "scripts" / "convert" / script), *flags]


def convert(script: str, folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return launching.run(command(script, folder, *extra), timeout=200, kind=launching.TENSORFLOW)


def read_with_tfds(target: Path, output: Path) -> dict[str, Any]:
    """{"name", "splits", "episodes": {file path: {"split", step feature: [T, ...]}}}."""
    done = launching.run([sys.executable, "-c", READ, str(target), str(output)], timeout=200, kind=launching.TENSORFLOW)
    assert done.returncode == 0, done.stderr
    read = np.load(output, allow_pickle=True)
    return {"name": str(read["name"]), "splits": read["splits"].item(), "episodes": read["episodes"].item()}
