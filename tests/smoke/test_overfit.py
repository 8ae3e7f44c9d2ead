"""Each head learns a tiny set by heart, to an error that no constant answer comes near: data, objective and decoding fit together."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.training_data import load_training_data

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from rlds_writer import make_episode, write_dataset

DATASET = "metaworld_demo"
NUM_SAMPLES = 6
# head -> flags, steps, learning rate, error (normalised units) that it must get below; a constant answer has 0.24
HEADS: dict[str, tuple[dict[str, Any], int, float, float]] = {
    "l1": ({}, 150, 3e-3, 0.06),
    "diffusion": ({"use_l1_regression": False, "use_diffusion": True, "num_diffusion_steps_train": 5}, 600, 2e-3, 0.12),
    "discrete": ({"use_l1_regression": False}, 80, 3e-3, 0.02),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base; one episode of noise in actions, state and images, which is validated on as well."""
    folder = tmp_path_factory.mktemp("overfit")
    sizes = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=64, llm_layers=2, llm_heads=2, llm_mlp_dim=128)
    write_tiny_base(folder / "base", sizes, seed=0)
    episodes = [make_episode(NUM_SAMPLES, size=32)]
    write_dataset(folder / "data", DATASET, {"train": episodes, "val": episodes})
    return folder


def test_a_constant_answer_would_be_far_off(workplace: Path) -> None:
    specs = resolve_datasets(DATASET, workplace / "data", None)
    data = load_training_data(specs, DatasetOptions(cameras=("primary",), image_size=28)).train
    actions = np.stack([data[number].actions for number in range(len(data))])
    assert len(actions) == NUM_SAMPLES
    constant = np.abs(actions - np.median(actions, axis=0)).mean()
    assert all(bound < 0.6 * constant for _, _, _, bound in HEADS.values()), constant


@pytest.mark.parametrize("head", HEADS)
def test_head_learns_by_heart(workplace: Path, head: str) -> None:
    flags, num_steps, learning_rate, bound = HEADS[head]
    config = FinetuneConfig.from_flags(
        **{"vla_path": str(workplace / "base"), "data_root_dir": workplace / "data", "dataset_name": DATASET},
        **{"run_root_dir": workplace / "runs", "run_id_override": head, "num_images_in_input": 2, "use_proprio": True},
        **{"use_lora": False, "image_aug": False, "batch_size": 16 if head == "diffusion" else 8, "num_workers": 0},
        **{"learning_rate": learning_rate, "lr_warmup_steps": 20, "num_steps_before_decay": num_steps * 3 // 4, "max_grad_norm": 1.0},
        **{"max_steps": num_steps, "use_val_set": True, "val_freq": num_steps, "save_freq": num_steps, "weight_decay": 0.0},
        **{"diffusion_sample_freq": num_steps, **flags},
    )
    finetune(config)
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    error = rows[-1]["val/action_l1_loss"]
    assert error < bound, f"{head} ends at {error}"
