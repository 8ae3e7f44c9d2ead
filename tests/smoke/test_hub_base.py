"""A base model on the Hub: nothing heavy is fetched before the data are checked, and then once for all processes of a node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serve_model

from prismatic.models.base import TinySizes, write_tiny_base

ROOT = Path(__file__).parents[2]
DATASET = "libero_spatial_no_noops"
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=2, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "base"
    write_tiny_base(folder, SIZES, seed=0)
    return folder


def run(tmp_path: Path, address: str, *flags: str, processes: int = 1, offline: bool = False) -> subprocess.CompletedProcess[str]:
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, tmp_path / "data" / DATASET, dirs_exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "vla-scripts/finetune.py", "--vla_path", "me/base"]
    command += ["--data_root_dir", str(tmp_path / "data"), "--dataset_name", DATASET, "--run_root_dir", str(tmp_path / "runs")]
    command += ["--batch_size", "2", "--max_steps", "1", "--save_freq", "1", "--num_workers", "0", "--lora_rank", "4", *flags]
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": str(int(offline))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_the_weights_are_fetched_once_and_after_the_data_were_checked(tmp_path: Path, base: Path) -> None:
    with serve_model("me/base", base) as hub:
        refused = run(tmp_path, hub.address, "--robot_platform", "ALOHA")
        assert refused.returncode == 2, refused.stderr
        assert "error: data set" in refused.stderr
        assert hub.sent["config.json"] == 1
        assert hub.sent["model.safetensors"] == 0
        trained = run(tmp_path, hub.address, "--run_id_override", "run", processes=2)
        assert trained.returncode == 0, trained.stderr
        assert hub.sent["model.safetensors"] == 1
        assert hub.sent["config.json"] == 1
    again = run(tmp_path, hub.address, "--run_id_override", "later", offline=True)  # and the server is gone
    assert again.returncode == 0, again.stderr


def test_a_name_that_the_hub_does_not_know_is_one_line(tmp_path: Path, base: Path) -> None:
    with serve_model("me/other", base) as hub:
        refused = run(tmp_path, hub.address)
    assert refused.returncode == 2
    assert "me/base is not a folder here, and could not be downloaded from the Hub" in refused.stderr
    assert "Traceback" not in refused.stderr
