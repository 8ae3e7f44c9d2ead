"""Groups C2 and D, L1 head: training forward, loss and gradients; prediction with either form of prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import assert_matches, load_case, load_json, load_l1_model, load_pixels, parametrize_cases
from torch.nn import functional as F

from prismatic.models.action_model import ActionInputs
from prismatic.models.sequence import slots_from_labels
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.vla.constants import NormalizationType
from prismatic.vla.normalization import bounds_from_statistics, unnormalize
from prismatic.vla.prompts import append_empty_token


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_cases(metafunc, {"training_case": "*.c2_l1_*", "prediction_case": "*.d_l1_*"}, without="film")


def test_training(golden_dir: Path, training_case: str) -> None:
    settings, recorded = load_case(golden_dir, training_case)
    model = load_l1_model(golden_dir, settings)
    vla = model.vla
    assert isinstance(vla, OpenVLAForActionPrediction)
    slots = slots_from_labels(recorded["labels"], model.num_action_tokens, vla.config.token_ids)
    assert torch.equal(slots.mask(recorded["labels"].shape[1])[:, 1:], recorded["mask_shifted_actions"])
    inputs = ActionInputs(
        load_pixels(golden_dir, settings), recorded["input_ids"], recorded["attention_mask"], slots, recorded.get("proprio")
    )

    predicted = model(inputs)
    assert_matches(predicted, recorded["predicted_actions"], "predicted actions")
    loss = F.l1_loss(predicted, recorded["actions"])
    assert_matches(loss[None], recorded["loss"], "loss")
    first, rest = F.l1_loss(predicted[:, 0], recorded["actions"][:, 0]), F.l1_loss(predicted[:, 1:], recorded["actions"][:, 1:])
    metrics = torch.stack([loss, first, rest])
    keys = ("loss_value", "curr_action_l1_loss", "next_actions_l1_loss")
    assert_matches(metrics, torch.tensor([settings["metrics"][key] for key in keys]), "metrics")

    if settings.get("grad_l2_norms"):
        loss.backward()
        _check_gradients(
            settings["grad_l2_norms"], {"vla": vla, "action_head": model.action_head, "proprio_projector": model.proprio_projector}
        )


def _check_gradients(recorded: dict[str, float | None], modules: dict[str, torch.nn.Module | None]) -> None:
    found = {
        f"{name}/{key}": None if parameter.grad is None else parameter.grad.norm()
        for name, module in modules.items()
        if module is not None
        for key, parameter in module.named_parameters()
    }
    assert set(found) == set(recorded)
    assert {key for key, norm in found.items() if norm is None} == {key for key, norm in recorded.items() if norm is None}
    for key, norm in found.items():
        if norm is not None:
            assert_matches(norm, torch.tensor(recorded[key]), f"gradient of {key}")


@torch.no_grad()
def test_training_states(golden_dir: Path, training_case: str) -> None:
    settings, recorded = load_case(golden_dir, training_case)
    model = load_l1_model(golden_dir, settings)
    vla = model.vla
    assert isinstance(vla, OpenVLAForActionPrediction)
    slots = slots_from_labels(recorded["labels"], model.num_action_tokens, vla.config.token_ids)
    proprio_token = model.proprio_projector(recorded["proprio"]) if model.proprio_projector is not None else None
    output = vla(load_pixels(golden_dir, settings), recorded["input_ids"], recorded["attention_mask"], slots, proprio_token)

    stride = settings["action_position_stride"]
    assert_matches(output.action_states[:, ::stride], recorded["actions_hidden_states"], "action states")
    first = recorded["last_hidden_first_positions"]
    assert_matches(output.hidden_states[:, : first.shape[1]], first, "first hidden states")
    logits = vla.language_model.lm_head(output.hidden_states)  # [B, T+E, vocabulary]
    num_inserted = logits.shape[1] - recorded["labels"].shape[1]
    assert num_inserted == settings["num_patches_arg"]
    assert torch.equal(vla.language_model.lm_head(output.action_states).argmax(-1), recorded["logits_argmax_at_actions"])
    cross_entropy = F.cross_entropy(logits[:, num_inserted:-1].flatten(0, 1), recorded["labels"][:, 1:].flatten())
    assert_matches(cross_entropy[None], recorded["language_model_ce_loss"], "cross-entropy")


@torch.no_grad()
def test_prediction(golden_dir: Path, prediction_case: str) -> None:
    settings, recorded = load_case(golden_dir, prediction_case)
    model = load_l1_model(golden_dir, settings)
    vla = model.vla
    assert isinstance(vla, OpenVLAForActionPrediction)
    token_ids = vla.config.token_ids
    prompt_ids = torch.tensor([append_empty_token(row, token_ids) for row in recorded["input_ids"].tolist()])
    assert prompt_ids.shape[1] == settings["prompt_len_after_append"]
    proprio = recorded["proprio"][None] if settings["use_proprio"] else None
    inputs = ActionInputs.from_prompts(load_pixels(golden_dir, settings), prompt_ids, None, proprio, model.num_action_tokens, token_ids)

    predicted = model(inputs)[0]
    assert_matches(predicted, recorded["normalized_actions"], "normalised actions")
    statistics = load_json(golden_dir, f"{settings['platform']}.dataset_statistics.json")
    bounds = bounds_from_statistics(statistics, settings["unnorm_key"], "action", NormalizationType(settings["normalization"]))
    assert_matches(torch.from_numpy(unnormalize(predicted.numpy(), bounds)), recorded["actions"], "actions")

    proprio_token = model.proprio_projector(proprio) if model.proprio_projector is not None else None
    arguments = (inputs.pixel_values, inputs.input_ids, inputs.attention_mask, inputs.slots, proprio_token)
    states = vla(*arguments).action_states[:, :: settings["action_position_stride"]]
    assert_matches(states, recorded["actions_hidden_states"], "action states")
    embeddings, mask = vla.embed_sequence(*arguments)
    assert mask is None
    assert embeddings.shape[:2] == recorded["lm_attention_mask"].shape
    assert recorded["lm_attention_mask"].all()
    start = inputs.slots.start.item() + embeddings.shape[1] - inputs.input_ids.shape[1] - 1
    assert [start, start + inputs.slots.count] == settings["action_slice"]
    if "lm_inputs_embeds_first_call" in recorded:
        assert_matches(embeddings, recorded["lm_inputs_embeds_first_call"], "embeddings")
