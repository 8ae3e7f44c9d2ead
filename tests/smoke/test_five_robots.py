"""Five robots of one's own: small RLDS sets, an entry each, two training steps with the real finetune.py.

Four fit a template of configs.py; the fifth, an arm with five joints, needs an entry and a platform of its own, added as a user would.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.spec import PolicySpec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from rlds_writer import make_episode, write_dataset  # noqa: E402

TWO, THREE = ("image", "wrist_image"), ("image", "left_wrist_image", "right_wrist_image")
# name -> action dim, state dim, stored cameras
ROBOTS = {
    "single_joint_task_sample": (8, 8, TWO),
    "single_eef_task_sample": (7, 7, TWO),
    "dual_joint_task_sample": (16, 16, THREE),
    "dual_eef_task_sample": (14, 14, THREE),
    "five_joint_arm": (5, 5, TWO),
}
# What a user writes into constants.py and configs.py for the arm with four joints and a gripper, its state padded to 8.
FIVE_JOINTS = """
import runpy, sys
from prismatic.vla import constants
from prismatic.vla.datasets.rlds.oxe import configs
joints = tuple(f"joint_{number} [rad]" for number in range(1, 5)) + ("gripper",)
constants.ROBOT_PLATFORMS["FIVE_JOINTS"] = constants.RobotPlatform(
    name="FIVE_JOINTS", num_actions_chunk=10, action_dim=5, proprio_dim=8, normalization=constants.NormalizationType.BOUNDS,
    control_hz=10, action_names=joints, proprio_names=(*joints, "padding_1", "padding_2", "padding_3"),
)
configs.OXE_DATASET_CONFIGS["five_joint_arm"] = {
    "image_obs_keys": {"primary": "image", "secondary": None, "wrist": "wrist_image"},
    "state_obs_keys": ["state", None, None, None],
    "state_encoding": configs.StateEncoding.JOINT,
    "action_encoding": configs.ActionEncoding.JOINT_POS,
    "robot_platform": "FIVE_JOINTS",
}
sys.argv[0] = "vla-scripts/finetune.py"
sys.path.insert(0, "vla-scripts")
runpy.run_path("vla-scripts/finetune.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robots")
    sizes = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
    write_tiny_base(folder / "base", sizes, seed=0)
    for name, (action_dim, state_dim, cameras) in ROBOTS.items():
        write_dataset(folder / "data", name, {"train": [_episode(seed, action_dim, state_dim, cameras) for seed in range(3)]})
    write_dataset(folder / "wrong", "single_joint_task_sample", {"train": [_episode(0, 7, 7, TWO)]})
    return folder


def _episode(seed: int, action_dim: int, state_dim: int, cameras: tuple[str, ...]) -> dict[str, Any]:
    return make_episode(12, seed=seed, action_dim=action_dim, state_dim=state_dim, cameras=cameras, size=32)


def _finetune(workplace: Path, data: str, name: str) -> subprocess.CompletedProcess[str]:
    starter = ["-c", FIVE_JOINTS] if name == "five_joint_arm" else ["vla-scripts/finetune.py"]
    command = [
        *(sys.executable, *starter, "--vla_path", str(workplace / "base"), "--data_root_dir", str(workplace / data)),
        *("--dataset_name", name, "--run_root_dir", str(workplace / f"runs_{data}"), "--run_id_override", name, "--use_proprio", "True"),
        *("--num_images_in_input", str(len(ROBOTS[name][2])), "--batch_size", "2", "--max_steps", "2", "--save_freq", "2"),
        *("--wandb_log_freq", "1", "--num_workers", "0", "--lora_rank", "4", "--image_aug", "False"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return launching.run(command, env=environment)


@pytest.mark.parametrize("name", ROBOTS)
def test_two_steps(workplace: Path, name: str) -> None:
    result = _finetune(workplace, "data", name)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (workplace / "runs_data" / name / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    spec = PolicySpec.load(workplace / "runs_data" / f"{name}--2_chkpt")
    action_dim, state_dim, cameras = ROBOTS[name]
    assert (spec.platform.action_dim, len(spec.cameras)) == (action_dim, len(cameras))
    assert spec.platform.proprio_dim == (8 if name == "five_joint_arm" else state_dim)


def test_wrong_dimensions_name_file_and_line_to_edit(workplace: Path) -> None:
    result = _finetune(workplace, "wrong", "single_joint_task_sample")
    assert result.returncode == 2, result.stderr
    assert "has actions of 7 dimensions, robot platform SINGLE_JOINT expects 8" in result.stderr
    assert re.search(r"prismatic/vla/datasets/rlds/oxe/configs\.py:\d+", result.stderr)
    assert re.search(r"prismatic/vla/constants\.py:\d+", result.stderr)
    assert "Traceback" not in result.stderr
