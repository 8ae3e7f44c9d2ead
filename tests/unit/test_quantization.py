"""Quantized policies act like the one that they were made from, within bounds measured on random weights (the hardest case: nothing
in them was trained to be robust). Observed root mean square of the difference, as a share of the actions' own: int8 and
int8_weight_only 0.024, fp8_weight_only 0.058, fp8 0.073, nf4 0.30 (NF4 moves the output of every one of the 14 layers by 9 %).
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import pytest
import torch

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.base import random_weights
from prismatic.models.configuration import OpenVLAConfig, TinySizes, tiny
from prismatic.models.self_test import check_bidirectional
from prismatic.models.sizes import BACKBONES
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.inference.quantization import (
    QuantizedLinear,
    _nf4,
    choose_quantization,
    is_quantized,
    quantize_frozen_base,
    quantize_model,
)

# Root mean square difference of the actions as a share of their own.
BOUNDS = {"int8": 0.05, "nf4": 0.5, "int8_weight_only": 0.05, "fp8_weight_only": 0.12, "fp8": 0.15}
PACKAGES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "int8_weight_only": "torchao", "fp8_weight_only": "torchao", "fp8": "torch"}
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=32, vision_layers=1, llm_dim=256, llm_layers=2, llm_heads=4, llm_mlp_dim=512)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=BACKBONES)
def config(request: pytest.FixtureRequest) -> OpenVLAConfig:
    return tiny(replace(SIZES, backbone=request.param), base_vocab_size=600, empty_token_id=300)


@pytest.fixture(scope="module")
def vla(config: OpenVLAConfig) -> OpenVLAForActionPrediction:
    model = OpenVLAForActionPrediction(config)
    model.load_state_dict(random_weights(config, seed=0))
    for name, parameter in model.language_model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


def _inputs(config: OpenVLAConfig) -> ActionInputs:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 6, 28, 28, generator=generator)
    prompt = torch.randint(3, 300, (2, 8), generator=generator)
    return ActionInputs.from_prompts(pixels, prompt, None, None, num_action_tokens=12, token_ids=config.token_ids)


@pytest.mark.parametrize("kind", BOUNDS)
def test_actions_stay_close(vla: OpenVLAForActionPrediction, config: OpenVLAConfig, kind: str) -> None:
    pytest.importorskip(PACKAGES[kind])
    torch.manual_seed(1)
    head = L1RegressionActionHead(256, 3, 4).eval()
    expected = ActionModel(vla, head).predict(_inputs(config))
    quantized = copy.deepcopy(vla)
    before = sum(parameter.nbytes for parameter in quantized.language_model.model.layers.parameters())
    quantize_model(quantized, kind, CPU, torch.float32)
    quantized.to(CPU)
    found = ActionModel(quantized, head).predict(_inputs(config))
    difference = ((found - expected).square().mean() / expected.square().mean()).sqrt().item()
    assert 0 < difference < BOUNDS[kind]
    check_bidirectional(quantized)
    if kind in ("int8", "nf4"):
        after = sum(parameter.nbytes for parameter in quantized.language_model.model.layers.parameters())
        assert after < before / (3.5 if kind == "int8" else 7)


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_dtype_passed_to_to_leaves_quantized_weights_alone(vla: OpenVLAForActionPrediction, kind: str) -> None:
    pytest.importorskip(PACKAGES[kind])
    embeddings = torch.randn(1, 9, SIZES.llm_dim, generator=torch.Generator().manual_seed(0))
    quantized = copy.deepcopy(vla)
    assert not is_quantized(quantized)
    quantize_model(quantized, kind, CPU, torch.float32)
    assert is_quantized(quantized)
    before, bits = quantized.language_model(embeddings), _stored_bits(quantized)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        quantized.to(CPU, dtype)
        after = quantized.language_model(embeddings.to(dtype))
        assert after.dtype == dtype
        # fp8 rounds the activations too, and those of another dtype to other numbers
        torch.testing.assert_close(after.float(), before, atol=0.4 if kind == "fp8" else 0.15, rtol=0.05)
    assert _stored_bits(quantized) == bits


def _stored_bits(model: OpenVLAForActionPrediction) -> list[bytes]:
    """The numbers of every quantized weight, as they are stored."""
    stored = []
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            weight = module.layer.weight.data
            stored.append(getattr(weight, "qdata", weight).contiguous().view(torch.uint8).numpy().tobytes())
    return stored


def test_only_the_language_model_is_quantized(vla: OpenVLAForActionPrediction) -> None:
    pytest.importorskip("bitsandbytes")
    quantized = copy.deepcopy(vla)
    quantize_model(quantized, "nf4", CPU, torch.float32)
    changed = {name for name, module in quantized.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(changed) == 7 * SIZES.llm_layers
    assert all(name.startswith("language_model.model.layers.") for name in changed)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_evaluation_leaves_the_gradients_through_a_frozen_base_as_they_were(vla: OpenVLAForActionPrediction, kind: str) -> None:
    """On a CPU with bfloat16 products bitsandbytes packs nf4 for another kernel, in the first pass that asks for no gradient."""
    pytest.importorskip("bitsandbytes")
    frozen = copy.deepcopy(vla)
    quantize_frozen_base(frozen, kind, CPU, torch.float32)
    layer = next(module for module in frozen.modules() if isinstance(module, QuantizedLinear))
    rows = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        inputs = rows.clone().requires_grad_()
        layer.train()(inputs).square().sum().backward()
        assert inputs.grad is not None
        return inputs.grad

    before = gradient()
    with torch.inference_mode():
        layer.eval()(rows)
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(32, 64), (96, 64), (64, 48)])
def test_narrow_layers_are_computed_in_nf4_on_a_cpu_with_bfloat16_products(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    """bitsandbytes packs every layer there, and cannot pack those whose sizes are no multiples of its blocks."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    torch.manual_seed(0)
    layer, rows = torch.nn.Linear(*shape).requires_grad_(False), torch.randn(3, shape[0])
    found, expected = _nf4(layer, CPU, torch.float32).eval()(rows), layer(rows)
    assert 0 < ((found - expected).square().mean() / expected.square().mean()).sqrt().item() < 0.2


def test_fp8_also_holds_film(config: OpenVLAConfig) -> None:
    torch.manual_seed(1)
    plain = OpenVLAForActionPrediction(config)
    plain.add_film()
    plain.eval().requires_grad_(False)
    quantized = copy.deepcopy(plain)
    quantize_model(quantized, "fp8", CPU, torch.float32)
    changed = {name for name, module in quantized.vision_backbone.named_modules() if isinstance(module, QuantizedLinear)}
    assert {name.rpartition(".")[2] for name in changed} == {"scale", "shift"}
    assert len(changed) == 2 * 2 * (SIZES.vision_layers + 1)  # each tower's last, unused block is held, too
    expected, found = (
        model.encode_images(inputs.pixel_values, inputs.input_ids, None, inputs.slots)
        for model in (plain, quantized)
        for inputs in [_inputs(config)]
    )
    assert 0 < ((found - expected).square().mean() / expected.square().mean()).sqrt().item() < 0.05


def test_unknown_kind_suggests_a_near_one(vla: OpenVLAForActionPrediction) -> None:
    with pytest.raises(ValueError, match="quantization 'int8_weights' is unknown; did you mean int8_weight_only"):
        quantize_model(vla, "int8_weights", CPU, torch.float32)


@pytest.mark.parametrize(("kind", "package"), [("nf4", "bitsandbytes"), ("int8", "bitsandbytes"), ("fp8_weight_only", "torchao")])
def test_absent_package_is_named(vla: OpenVLAForActionPrediction, monkeypatch: pytest.MonkeyPatch, kind: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs the package {package}.*pip install \"openvla-oft-robot\[quant\]\""):
        quantize_model(copy.deepcopy(vla), kind, CPU, torch.float32)


def test_familiar_flags() -> None:
    assert [choose_quantization(*flags) for flags in ((False, False), (True, False), (False, True))] == ["none", "int8", "nf4"]
    with pytest.raises(ValueError, match="both True"):
        choose_quantization(True, True)
