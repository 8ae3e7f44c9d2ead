"""Group g_lora: which modules carry adapters, how they start, an adapter file, predictions with it and after merging it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import Tensors, assert_matches, load_case, load_json, load_model, load_pixels, load_tensors
from torch import nn

from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.policy.checkpoint.spec import LoraSpec
from prismatic.policy.lora.adapters import adapter_config, adapter_state, add_lora, load_adapter, merge_adapter, published_state
from prismatic.vla.constants import NormalizationType
from prismatic.vla.normalization import bounds_from_statistics, unnormalize
from prismatic.vla.prompts import append_empty_token

NAME = "g_lora"
PLATFORM = "libero"


def _load(golden_dir: Path) -> tuple[dict[str, Any], Tensors, ActionModel]:
    settings, recorded = load_case(golden_dir, NAME)
    chunk, action_dim = recorded["lora_actions"].shape
    used = {"platform": PLATFORM, "chunk": chunk, "action_dim": action_dim, "film": False, "use_proprio": True}
    return settings, recorded, load_model(golden_dir, used, "l1")


def _adapted(golden_dir: Path) -> tuple[dict[str, Any], Tensors, ActionModel]:
    settings, recorded, model = _load(golden_dir)
    wrapped = add_lora(model.bare_vla, LoraSpec(settings["r"]))
    load_adapter(wrapped, load_tensors(golden_dir, "g_lora_adapter"), "g_lora_adapter")
    return settings, recorded, ActionModel(wrapped, model.action_head, model.proprio_projector).eval()


def test_modules_and_first_weights(golden_dir: Path) -> None:
    settings, _, model = _load(golden_dir)
    lora = LoraSpec(settings["r"])
    assert (lora.alpha, lora.alpha / lora.rank) == (settings["lora_alpha"], settings["scaling"])
    assert set(adapter_config(lora, None)["target_modules"]) == set(settings["target_modules_resolved"])
    torch.manual_seed(0)
    wrapped = add_lora(model.bare_vla, lora)
    trained = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert list(trained) == settings["trainable_parameter_names"]
    found = {(name, type(module.base_layer).__name__) for name, module in wrapped.named_modules() if hasattr(module, "lora_A")}
    assert found == {tuple(item) for item in settings["wrapped_modules"]}
    for name, parameter in trained.items():
        if ".lora_B." in name:
            assert not parameter.any()
        else:  # a normal distribution of standard deviation 1 / rank; the spread of an estimate from n values is sigma / sqrt(2n)
            assert parameter.std().item() * lora.rank == pytest.approx(1, abs=5 * (2 * parameter.numel()) ** -0.5), name


def test_adapter_file(golden_dir: Path) -> None:
    settings, _, model = _adapted(golden_dir)
    written = adapter_state(model.vla, torch.float32)
    expected = load_tensors(golden_dir, "g_lora_adapter")
    assert sorted(written) == sorted(expected) == sorted(settings["adapter_keys"])
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    own, published = adapter_config(LoraSpec(settings["r"]), ""), settings["adapter_config"]
    assert own.keys() == published.keys()
    differing = {key for key in own if own[key] != published[key]} - {"target_modules", "auto_mapping"}
    assert not differing


@torch.no_grad()
def test_prediction_with_adapters(golden_dir: Path) -> None:
    settings, recorded, model = _adapted(golden_dir)
    _check(golden_dir, settings, recorded, model, "lora")


@torch.no_grad()
def test_prediction_after_merging(golden_dir: Path) -> None:
    settings, recorded, model = _load(golden_dir)
    _, _, adapted = _adapted(golden_dir)
    state = model.bare_vla.state_dict()
    for name, merged in merge_adapter(dict(state), load_tensors(golden_dir, "g_lora_adapter"), "g_lora_adapter"):
        state[name].copy_(merged)
    _check(golden_dir, settings, recorded, model, "merged")
    published = published_state(adapted.vla, torch.float32)
    assert published.keys() == state.keys()
    for key, weight in recorded.items():
        if key.startswith("merged/"):
            name = key.removeprefix("merged/")
            rows = published[name].shape[0] // weight.shape[0]  # lm_head is recorded at every eighth row
            assert_matches(published[name][::rows], weight, name)
            assert_matches(state[name][::rows], weight, name)


def _check(golden_dir: Path, settings: dict[str, Any], recorded: Tensors, model: ActionModel, prefix: str) -> None:
    token_ids = model.bare_vla.config.token_ids
    prompt_ids = torch.tensor([append_empty_token(row, token_ids) for row in recorded["input_ids"].tolist()])
    pixels = load_pixels(golden_dir, settings)
    inputs = ActionInputs.from_prompts(pixels, prompt_ids, None, recorded["proprio"][None], model.num_action_tokens, token_ids)
    states: list[torch.Tensor] = []
    head: nn.Module = model.action_head
    head.register_forward_pre_hook(lambda module, arguments: states.append(arguments[0]))
    normalized = model.predict(inputs)[0]
    assert_matches(states[0], recorded[f"{prefix}_actions_hidden_states"], "action states")
    statistics = load_json(golden_dir, f"{PLATFORM}.dataset_statistics.json")
    bounds = bounds_from_statistics(statistics, settings["unnorm_key"], "action", NormalizationType.BOUNDS_Q99)
    assert_matches(torch.from_numpy(unnormalize(normalized.numpy(), bounds)), recorded[f"{prefix}_actions"], "actions")
