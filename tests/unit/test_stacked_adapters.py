"""Stacked projections with adapters give what the single layers give, forward and backward; lean LoRA layers what PEFT's give."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from prismatic.models.base import random_weights
from prismatic.models.configuration import TinySizes, tiny
from prismatic.models.language import DecoderLayer
from prismatic.models.sizes import BACKBONES
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.spec import LoraSpec
from prismatic.policy.inference.stacking import stack_projections
from prismatic.policy.lora.adapted_linear import AdaptedLinear
from prismatic.policy.lora.adapters import add_lora

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=2, llm_heads=2, llm_mlp_dim=48)
RANK = 4


def adapted_model(dropout: float = 0.0, form: str = "llama") -> OpenVLAForActionPrediction:
    """A tiny model whose adapters (and biases, where its form has some) are not zero."""
    config = tiny(replace(SIZES, backbone=form), base_vocab_size=600, empty_token_id=300)
    model = OpenVLAForActionPrediction(config)
    model.load_state_dict(random_weights(config, seed=0))
    adapted = add_lora(model, LoraSpec(RANK, dropout))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name or ("language_model" in name and name.endswith("bias")):
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def outputs_and_gradients(model: OpenVLAForActionPrediction) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    hidden = torch.randn(2, 5, SIZES.llm_dim)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    output = model.language_model(hidden, mask)
    output.square().sum().backward()
    return output.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("form", BACKBONES)
def test_stacking_changes_neither_results_nor_gradients_nor_names(form: str) -> None:
    single = adapted_model(form=form)
    stacked = copy.deepcopy(single)
    stack_projections(stacked)
    layer = stacked.language_model.model.layers[0]
    assert isinstance(layer, DecoderLayer)
    assert layer.self_attn.stacked.layer
    assert layer.mlp.stacked.layer
    assert list(stacked.state_dict()) == list(single.state_dict())
    (expected, expected_gradients), (found, found_gradients) = outputs_and_gradients(single), outputs_and_gradients(stacked)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(found_gradients) == 7 * SIZES.llm_layers * 2
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-4)


def test_a_trained_adapter_reaches_the_stacked_layer() -> None:
    model = adapted_model()
    stack_projections(model)
    before = outputs_and_gradients(model)[0]
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "k_proj.lora_B" in name).add_(1.0)
    assert (outputs_and_gradients(model)[0] - before).abs().max() > 1e-3


@pytest.mark.parametrize("form", BACKBONES)
def test_frozen_projections_are_stacked_to_the_same_result(form: str) -> None:
    config = tiny(replace(SIZES, backbone=form), base_vocab_size=600, empty_token_id=300)
    single = OpenVLAForActionPrediction(config).eval().requires_grad_(False)
    for name, parameter in single.language_model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    stacked = copy.deepcopy(single)
    stack_projections(stacked)
    assert stacked.language_model.model.layers[0].self_attn.stacked.layer
    hidden = torch.randn(2, 5, SIZES.llm_dim)
    torch.testing.assert_close(stacked.language_model(hidden), single.language_model(hidden), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, stacked.state_dict()[name]) for name, value in single.state_dict().items())


def test_layers_with_dropout_or_trained_weights_stay_apart() -> None:
    model = adapted_model(dropout=0.5)
    stack_projections(model)
    assert not model.language_model.model.layers[0].self_attn.stacked.layer
    full = OpenVLAForActionPrediction(tiny(SIZES, base_vocab_size=600, empty_token_id=300))
    stack_projections(full)
    assert not full.language_model.model.layers[0].mlp.stacked.layer


@pytest.mark.parametrize("rank", [4, 32])
def test_the_lean_layer_gives_what_peft_gives(rank: int) -> None:
    torch.manual_seed(0)
    base = nn.Linear(8, 6).requires_grad_(False)
    settings = {"r": rank, "lora_alpha": min(rank, 16), "config": LoraConfig(r=rank, lora_alpha=min(rank, 16))}
    theirs, ours = PeftLinear(base, "default", **settings), AdaptedLinear(base, "default", **settings)
    nn.init.normal_(theirs.lora_B["default"].weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
