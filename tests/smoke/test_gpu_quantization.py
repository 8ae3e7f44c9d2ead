"""Quantized policies on an accelerator act like the bfloat16 one, within the bounds of tests/unit/test_quantization.py."""

from __future__ import annotations

import copy

import pytest
import torch

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.base import random_weights
from prismatic.models.configuration import TinySizes, tiny
from prismatic.models.self_test import check_bidirectional
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.inference.fast_paths import FAST_PATHS
from prismatic.policy.inference.quantization import quantize_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BOUNDS = {"int8": 0.08, "nf4": 0.5, "int8_weight_only": 0.08, "fp8_weight_only": 0.15, "fp8": FAST_PATHS["fp8 policy"].tolerance}
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=32, vision_layers=1, llm_dim=256, llm_layers=2, llm_heads=4, llm_mlp_dim=512)


@pytest.mark.parametrize("kind", BOUNDS)
def test_actions_stay_close(kind: str) -> None:
    if kind != "fp8":
        pytest.importorskip("bitsandbytes" if kind in ("int8", "nf4") else "torchao")
    config = tiny(SIZES, base_vocab_size=600, empty_token_id=300)
    vla = OpenVLAForActionPrediction(config)
    vla.load_state_dict(random_weights(config, seed=0))
    vla = vla.bfloat16().eval().requires_grad_(False)
    torch.manual_seed(1)
    head = L1RegressionActionHead(256, 3, 4).eval().to("cuda", torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    pixels, prompt = torch.randn(2, 6, 28, 28, generator=generator), torch.randint(3, 300, (2, 8), generator=generator)
    inputs = ActionInputs.from_prompts(pixels.cuda(), prompt.cuda(), None, None, 12, config.token_ids)
    quantized = copy.deepcopy(vla)
    quantize_model(quantized, kind, torch.device("cuda"), torch.bfloat16)
    expected = ActionModel(vla.cuda(), head).predict(inputs)
    found = ActionModel(quantized.to("cuda"), head).predict(inputs)
    assert 0 < ((found - expected).square().mean() / expected.square().mean()).sqrt().item() < BOUNDS[kind]
    check_bidirectional(quantized)
