"""Quantized policies act like the one that they were made from, within bounds measured on random weights (the hardest case: nothing
in them was trained to be robust). Observed root mean square of the difference, as a share of the actions' own: int8 and
int8_weight_only 0.024, fp8_weight_only 0.057, nf4 0.26.
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.base import random_weights
from prismatic.models.configuration import OpenVLAConfig, TinySizes, tiny
from prismatic.models.self_test import check_bidirectional
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.quantization import choose_quantization, quantize_model

# Root mean square difference of the actions as a share of their own.
BOUNDS = {"int8": 0.05, "nf4": 0.5, "int8_weight_only": 0.05, "fp8_weight_only": 0.12}
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=32, vision_layers=1, llm_dim=256, llm_layers=2, llm_heads=4, llm_mlp_dim=512)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> OpenVLAConfig:
    return tiny(SIZES, base_vocab_size=600, empty_token_id=300)


@pytest.fixture(scope="module")
def vla(config: OpenVLAConfig) -> OpenVLAForActionPrediction:
    model = OpenVLAForActionPrediction(config)
    model.load_state_dict(random_weights(config, seed=0))
    return model.eval().requires_grad_(False)


def _inputs(config: OpenVLAConfig) -> ActionInputs:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 6, 28, 28, generator=generator)
    prompt = torch.randint(3, 300, (2, 8), generator=generator)
    return ActionInputs.from_prompts(pixels, prompt, None, None, num_action_tokens=12, token_ids=config.token_ids)


@pytest.mark.parametrize("kind", BOUNDS)
def test_actions_stay_close(vla: OpenVLAForActionPrediction, config: OpenVLAConfig, kind: str) -> None:
    pytest.importorskip("bitsandbytes" if kind in ("int8", "nf4") else "torchao")
    torch.manual_seed(1)
    head = L1RegressionActionHead(256, 3, 4).eval()
    expected = ActionModel(vla, head).predict(_inputs(config))
    quantized = copy.deepcopy(vla)
    before = sum(parameter.nbytes for parameter in quantized.language_model.model.layers.parameters())
    quantize_model(quantized, kind, CPU, torch.float32)
    quantized.to(CPU)
    found = ActionModel(quantized, head).predict(_inputs(config))
    difference = ((found - expected).square().mean() / expected.square().mean()).sqrt().item()
    print(kind, difference)
    assert 0 < difference < BOUNDS[kind]
    check_bidirectional(quantized)
    if kind in ("int8", "nf4"):
        after = sum(parameter.nbytes for parameter in quantized.language_model.model.layers.parameters())
        assert after < before / (3.5 if kind == "int8" else 7)


def test_only_the_language_model_is_quantized(vla: OpenVLAForActionPrediction) -> None:
    pytest.importorskip("bitsandbytes")
    quantized = copy.deepcopy(vla)
    quantize_model(quantized, "nf4", CPU, torch.float32)
    changed = {name for name, module in quantized.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(changed) == 7 * SIZES.llm_layers
    assert all(name.startswith("language_model.model.layers.") for name in changed)


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
