"""Fast steps on an accelerator: compiled and recorded ones train as plain ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.inference.fast_paths import FAST_PATHS
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ROOT = Path(__file__).parents[2]
RLDS = ROOT / "tests" / "golden" / "data" / "rlds"
TOLERANCE = FAST_PATHS["compiled"].tolerance  # of a loss about 0.5: bfloat16 rounds differently when operations are joined
RECORDED_TOLERANCE = FAST_PATHS["recorded"].tolerance
L1, DIFFUSION, DISCRETE = {}, {"use_l1_regression": False, "use_diffusion": True}, {"use_l1_regression": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a tiny base."""
    folder = tmp_path_factory.mktemp("gpu_training")
    write_tiny_base(folder / "base", TinySizes(), seed=0)
    return folder


def flags_of(folder: Path, name: str, **flags: Any) -> dict[str, Any]:
    """The flags of eight steps on batches of several shapes."""
    return {
        "vla_path": str(folder / "base"),
        "data_root_dir": RLDS,
        "dataset_name": "libero_spatial_no_noops",
        "run_root_dir": folder / "runs",
        "run_id_override": name,
        "num_images_in_input": 2,
        "use_proprio": True,
        "batch_size": 3,
        "learning_rate": 1e-4,
        "max_steps": 8,
        "save_freq": 8,
        "wandb_log_freq": 1,
        "num_workers": 0,
        **flags,
    }


def train(folder: Path, name: str, **flags: Any) -> list[float]:
    """The losses of those steps in this process."""
    config = FinetuneConfig.from_flags(**flags_of(folder, name, **flags))
    finetune(config)
    return losses(config.run_dir)


def train_on_two(folder: Path, name: str, **flags: Any) -> list[float]:
    """The same with torchrun on two GPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "vla-scripts/finetune.py"]
    for flag, value in flags_of(folder, name, **flags).items():
        command += [f"--{flag}", str(value)]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}  # where each thread was when a process dies of a signal
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run {name!r} ended with {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-50_000:]}"
    return losses(folder / "runs" / name)


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.parametrize("head", [L1, DIFFUSION, DISCRETE], ids=["l1", "diffusion", "discrete"])
def test_recorded_steps_give_the_losses_of_plain_ones(folder: Path, head: dict[str, bool]) -> None:
    name = "-".join(head) or "l1"
    plain = train(folder, f"plain-{name}", compile="False", cuda_graphs="False", **head)
    recorded = train(folder, f"recorded-{name}", compile="False", cuda_graphs="True", **head)
    compiled = train(folder, f"compiled-{name}", cuda_graphs="True", **head)
    scale = max(1.0, max(plain))  # token losses are larger
    assert recorded == pytest.approx(plain, abs=RECORDED_TOLERANCE * scale)
    assert compiled == pytest.approx(plain, abs=TOLERANCE * scale)


@pytest.mark.parametrize(
    "flags",
    [
        {"cuda_graphs": "False"},
        {"gradient_checkpointing": True},
        {"grad_accumulation_steps": 2},
        {"use_film": True},
        {"activation_memory_budget": 0.5},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_every_way_to_compute_a_step_gives_the_plain_losses(folder: Path, flags: dict[str, Any]) -> None:
    same = {key: value for key, value in flags.items() if key in ("grad_accumulation_steps", "use_film")}
    name = "-".join(flags)
    plain = train(folder, f"plain-{name}", compile="False", cuda_graphs="False", **same)
    assert train(folder, f"fast-{name}", **{"cuda_graphs": "auto", **flags}) == pytest.approx(plain, abs=TOLERANCE)


def test_a_quantized_base_trains_in_recorded_steps(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain = train(folder, "plain-nf4", compile="False", cuda_graphs="False", quantize_base="nf4")
    recorded = train(folder, "recorded-nf4", cuda_graphs="True", quantize_base="nf4", optimizer="adamw_8bit", gradient_checkpointing=True)
    assert recorded == pytest.approx(plain, abs=2 * TOLERANCE)


def test_a_float8_base_trains_in_recorded_steps(folder: Path) -> None:
    plain = train(folder, "plain-fp8", compile="False", cuda_graphs="False", quantize_base="fp8")
    recorded = train(folder, "recorded-fp8", cuda_graphs="True", quantize_base="fp8")
    assert recorded == pytest.approx(plain, abs=2 * TOLERANCE)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_recorded_steps_on_two_gpus_give_the_losses_of_plain_ones(folder: Path) -> None:
    plain = train_on_two(folder, "plain-two", compile="False", cuda_graphs="False")
    recorded = train_on_two(folder, "recorded-two", cuda_graphs="True")
    assert len(recorded) == 8
    assert recorded == pytest.approx(plain, abs=TOLERANCE)
