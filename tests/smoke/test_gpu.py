"""The same code on an accelerator: bf16 LoRA training through the real loop, the policy, and the batched image operations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.policy import Policy
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.images import augment_batch, draw_augmentation, resize_lanczos3_batch, stack_draws
from prismatic.vla.types import Observation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RLDS = Path(__file__).parents[1] / "golden" / "data" / "rlds"
DATASET = "libero_spatial_no_noops"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 LoRA run of ten steps on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    write_tiny_base(folder / "base", TinySizes(), seed=0)
    config = FinetuneConfig.from_flags(
        vla_path=str(folder / "base"),
        data_root_dir=RLDS,
        dataset_name=DATASET,
        run_root_dir=folder / "runs",
        run_id_override="run",
        num_images_in_input=2,
        use_proprio=True,
        batch_size=16,
        max_steps=10,
        save_freq=10,
        wandb_log_freq=1,
        num_workers=0,
    )
    finetune(config)
    return folder / "runs" / "run--10_chkpt"


def test_bf16_training_lowers_the_loss_and_reports_memory(checkpoint: Path) -> None:
    rows = [json.loads(line) for line in (checkpoint.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["train/gpu_gib"] > 0


def test_the_policy_in_bf16_agrees_with_float32_on_the_cpu(checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("primary", "wrist")}
    observation = Observation(images=images, instruction="pick up the bowl", proprio=np.zeros(8))
    on_gpu = Policy.from_pretrained(checkpoint).predict([observation])[0].actions
    on_cpu = Policy.from_pretrained(checkpoint, device="cpu").predict([observation])[0].actions
    np.testing.assert_allclose(on_gpu, on_cpu, atol=0.05)


def test_image_operations_give_the_pixels_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (3, 2, 96, 128, 3), dtype=np.uint8))
    small = resize_lanczos3_batch(frames, 64)
    difference = (resize_lanczos3_batch(frames.cuda(), 64).cpu().int() - small.int()).abs()
    assert difference.max() <= 1
    draw = stack_draws([draw_augmentation(rng) for _ in range(3)])
    difference = (augment_batch(small.cuda(), draw).cpu().int() - augment_batch(small, draw).int()).abs()
    assert difference.float().mean() < 0.02
