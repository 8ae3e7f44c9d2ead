"""Quantized policies on an accelerator act like the bfloat16 one, within the bounds of tests/unit/test_quantization.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.base import random_weights
from prismatic.models.configuration import PUBLISHED_TOWERS, TinySizes, TowerConfig, tiny
from prismatic.models.self_test import check_bidirectional
from prismatic.models.vision import VisionBlock
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.inference.fast_paths import FAST_PATHS
from prismatic.policy.inference.fp8 import Fp8FrozenLinear, Fp8Linear
from prismatic.policy.inference.fp8_layers import LANGUAGE, PROJECTOR, VISION, fp8_parts
from prismatic.policy.inference.quantization import QuantizedLinear, quantize_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BOUNDS = {"int8": 0.08, "nf4": 0.5, "int8_weight_only": 0.08, "fp8_weight_only": 0.15, "fp8": FAST_PATHS["fp8 policy"].tolerance}
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=32, vision_layers=1, llm_dim=256, llm_layers=2, llm_heads=4, llm_mlp_dim=512)


LANGUAGE_ONLY, ALL_PARTS = (LANGUAGE,), (LANGUAGE, VISION, PROJECTOR)
DINO, SIGLIP = PUBLISHED_TOWERS.values()


@pytest.mark.parametrize(("kind", "parts"), [*((kind, LANGUAGE_ONLY) for kind in BOUNDS), ("fp8", ALL_PARTS)])
def test_actions_stay_close(kind: str, parts: tuple[str, ...]) -> None:
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
    with fp8_parts(parts):
        quantize_model(quantized, kind, torch.device("cuda"), torch.bfloat16)
    expected = ActionModel(vla.cuda(), head).predict(inputs)
    found = ActionModel(quantized.to("cuda"), head).predict(inputs)
    assert 0 < ((found - expected).square().mean() / expected.square().mean()).sqrt().item() < BOUNDS[kind]
    check_bidirectional(quantized)


def _layers_of(tower: TowerConfig, rows: int) -> list[tuple[int, int, int]]:
    """Inputs, outputs and rows (two images) of a block's layers: qkv, proj, fc1, fc2."""
    width, inner = tower.embed_dim, tower.mlp_hidden_dim
    return [(width, 3 * width, rows), (width, width, rows), (width, inner, rows), (inner, width, rows)]


@pytest.mark.parametrize(
    ("num_inputs", "num_outputs", "rows"),
    [*_layers_of(DINO, 522), *_layers_of(SIGLIP, 512), (2176, 8704, 512), (8704, 4096, 512), (4096, 4096, 512)],
)
def test_layers_of_towers_and_projector_stay_close(num_inputs: int, num_outputs: int, rows: int) -> None:
    """Every layer of the 7B model that may be float8, at its real size: the product apart from the bias, and the gradient of its input."""
    torch.manual_seed(0)
    layer = nn.Linear(num_inputs, num_outputs, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    nn.init.trunc_normal_(layer.weight, std=num_inputs**-0.5)
    nn.init.normal_(layer.bias)
    x = torch.randn(rows, num_inputs, device="cuda", dtype=torch.bfloat16)
    expected, seen = x.float().requires_grad_(), x.clone().requires_grad_()
    product = nn.functional.linear(expected, layer.weight.float())
    frozen = Fp8FrozenLinear(layer.weight, layer.weight.abs().amax(dim=0), layer.bias)
    output, bound = frozen(seen), FAST_PATHS["fp8 towers"].tolerance
    for found in (output, Fp8Linear(layer.weight, layer.bias)(x)):
        assert found.dtype == torch.bfloat16
        assert 0 < _relative(found.float() - layer.bias.float(), product) < bound
    gradient = torch.randn_like(output)
    output.backward(gradient)
    product.backward(gradient.float())
    assert seen.grad is not None
    assert expected.grad is not None
    assert 0 < _relative(seen.grad.float(), expected.grad) < bound


@pytest.mark.parametrize("tower", [DINO, SIGLIP], ids=["dinov2", "siglip"])
def test_a_block_under_autocast_stays_close_and_in_bfloat16(tower: TowerConfig) -> None:
    """As in training, plain and compiled: what a block adds to the residual stream, and the gradient of its input."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        plain = VisionBlock(tower, None).bfloat16().requires_grad_(False)
    quantized = copy.deepcopy(plain)
    for owner in (quantized.attn, quantized.mlp):
        for name, layer in list(owner.named_children()):
            assert isinstance(layer, nn.Linear)
            frozen = Fp8FrozenLinear(layer.weight, layer.weight.abs().amax(dim=0), layer.bias)
            setattr(owner, name, QuantizedLinear(frozen, torch.bfloat16))
    x = torch.randn(2, tower.num_patches + tower.num_prefix_tokens, tower.embed_dim, device="cuda", dtype=torch.bfloat16)
    for forward in (VisionBlock.forward, torch.compile(VisionBlock.forward)):
        found = []
        for block in (plain, quantized):
            start = x.clone().requires_grad_()
            with torch.autocast("cuda", torch.bfloat16):
                output = forward(block, start)
            assert output.dtype == torch.bfloat16
            (output - start).float().square().sum().backward()
            assert start.grad is not None
            found.append(((output - start).detach().float(), start.grad.float()))
        for one, other in zip(*found, strict=True):
            assert 0 < _relative(other, one) < FAST_PATHS["fp8 policy"].tolerance


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
