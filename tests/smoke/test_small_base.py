"""The small base (Qwen's form) out of Prismatic's layout: trained directly, resumed, merged, quantized, and as a policy. On a CPU, tiny."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prismatic.conversion.merging import merge_checkpoint
from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.policy import Policy
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.constants import QWEN_PROMPT_TEMPLATE
from prismatic.vla.types import Observation

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from prismatic_files import small_model, write_prismatic

ROOT = Path(__file__).parents[2]
DATASET = "libero_spatial_no_noops"
EMBEDDINGS = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small_base")
    write_prismatic(folder / "prismatic")
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    return folder


def train(workplace: Path, name: str, max_steps: int = 2, **flags: Any) -> Path:
    """The folder of the last checkpoint."""
    config = FinetuneConfig.from_flags(
        vla_path=str(workplace / "prismatic"),
        data_root_dir=workplace / "data",
        dataset_name=DATASET,
        run_root_dir=workplace,
        run_id_override=name,
        num_images_in_input=2,
        use_proprio=True,
        batch_size=2,
        learning_rate=0.01,
        max_steps=max_steps,
        save_freq=2,
        num_workers=0,
        lora_rank=4,
        **flags,
    )
    finetune(config)
    return workplace / f"{name}--{max_steps}_chkpt"


def predict(folder: Path, options: LoadOptions | None = None) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("primary", "wrist")}
    policy = Policy.from_pretrained(folder, device="cpu", options=options)
    return policy.predict([Observation(images, "Pick up the bowl", np.zeros(8))])[0].actions


def test_adapters_over_that_layout_resume_act_and_merge(workplace: Path) -> None:
    flags: dict[str, Any] = {"merge_lora_during_training": False}
    straight = train(workplace, "straight", 4, **flags)
    train(workplace, "resumed", 2, **flags)
    resumed = train(workplace, "resumed", 4, resume=True, **flags)
    assert not (resumed / "model.safetensors").exists()
    assert PolicySpec.load(resumed).prompt == QWEN_PROMPT_TEMPLATE
    expected = predict(straight)
    np.testing.assert_allclose(predict(resumed), expected, atol=1e-5)
    np.testing.assert_allclose(predict(resumed, LoadOptions(keep_adapters=True)), expected, atol=1e-3)
    result = merge_checkpoint(resumed, None, torch.float32, torch.device("cpu"), torch.float32, LoadOptions())
    assert result.max_action_difference < 0.02 * max(1.0, result.max_action)  # weights are stored in bfloat16
    assert (resumed / "model.safetensors").is_file()
    assert not any("lm_head" in key for key in load_file(resumed / "lora_adapter" / "adapter_model.safetensors"))


def test_a_quantized_base_is_merged_with_its_biases(workplace: Path) -> None:
    pytest.importorskip("bitsandbytes")
    merged = load_file(train(workplace, "nf4", quantize_base="nf4") / "model.safetensors")
    base = small_model()[1]
    assert merged.keys() == base.keys()
    for name, value in base.items():
        if name.endswith("bias") and "language_model" in name:
            assert torch.equal(merged[name], value.bfloat16()), name
    assert np.isfinite(predict(workplace / "nf4--2_chkpt")).all()


def test_full_training_of_a_discrete_policy_moves_the_tied_weight(workplace: Path) -> None:
    folder = train(workplace, "discrete", use_lora=False, use_l1_regression=False)
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == small_model()[1].keys()
    assert not torch.equal(saved[EMBEDDINGS], small_model()[1][EMBEDDINGS].bfloat16())
    assert np.isfinite(predict(folder)).all()
