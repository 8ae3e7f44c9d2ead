"""A base model on the Hub: nothing heavy is fetched before the data are checked, and then once for all processes of a node."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import launching
import pytest
from hub_server import HubServer, serve_model

from prismatic.models.base import TinySizes, write_tiny_base

ROOT = Path(__file__).parents[2]
DATASET = "libero_spatial_no_noops"
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=2, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_tiny_base(folder / "base", SIZES, seed=0)
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    return folder


@pytest.fixture(scope="module")
def hub(workplace: Path) -> Iterator[HubServer]:
    with serve_model("me/base", workplace / "base") as server:
        yield server


def run(workplace: Path, address: str, *flags: str, processes: int = 1, offline: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "vla-scripts/finetune.py", "--vla_path", "me/base"]
    command += ["--data_root_dir", str(workplace / "data"), "--dataset_name", DATASET, "--run_root_dir", str(workplace / "runs")]
    command += ["--batch_size", "2", "--max_steps", "1", "--save_freq", "1", "--num_workers", "0", "--lora_rank", "4", *flags]
    variables = {"HF_ENDPOINT": address, "HF_HOME": str(workplace / "hf"), "HF_HUB_OFFLINE": str(int(offline))}
    return launching.run_ranks(command, processes, at_import=variables)


def test_the_weights_are_fetched_once_and_after_the_data_were_checked(workplace: Path, hub: HubServer) -> None:
    refused = run(workplace, hub.address, "--robot_platform", "ALOHA")
    assert refused.returncode == 2, refused.stderr
    assert "error: data set" in refused.stderr
    assert hub.sent["config.json"] == 1
    assert hub.sent["model.safetensors"] == 0
    trained = run(workplace, hub.address, "--run_id_override", "run", processes=2)
    assert trained.returncode == 0, trained.stderr
    assert hub.sent["model.safetensors"] == 1
    assert hub.sent["config.json"] == 1
    nobody = "http://127.0.0.1:9"
    again = run(workplace, nobody, "--run_id_override", "later", offline=True)
    assert again.returncode == 0, again.stderr


def test_a_name_that_the_hub_does_not_know_is_one_line(workplace: Path, hub: HubServer) -> None:
    refused = run(workplace, hub.address, "--vla_path", "me/other")
    assert refused.returncode == 2
    assert "me/other is not a folder here, and could not be downloaded from the Hub" in refused.stderr
    assert "Traceback" not in refused.stderr
