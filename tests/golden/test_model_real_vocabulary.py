"""d_real_vocab: the real vocabulary of 32064 rows, whose embeddings come from a formula, with the default token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import assert_matches, head_weights, load_case, load_config, load_json, load_pixels, load_tensors

from prismatic.models.action_heads import DiscreteActionHead, L1RegressionActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.sequence import slots_from_labels
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.training.objectives import discrete_objective, slot_targets
from prismatic.vla.constants import NormalizationType, TokenIds
from prismatic.vla.normalization import bounds_from_statistics, unnormalize
from prismatic.vla.prompts import append_empty_token

NAME = "d_real_vocab"
PLATFORM = "libero"


def _formula(settings: dict[str, Any]) -> torch.Tensor:
    """The recorded hash of row and column (golden README, section 5), rounded to bfloat16."""
    word = np.uint64(0xFFFFFFFF)
    rows, columns = np.arange(settings["rows"], dtype=np.uint64)[:, None], np.arange(settings["cols"], dtype=np.uint64)
    x = ((rows * np.uint64(2654435761) & word) + (columns * np.uint64(40503) & word) + np.uint64(settings["salt"])) & word
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        x ^= x >> np.uint64(shift)
        x = (x * np.uint64(factor)) & word
    x ^= x >> np.uint64(16)
    values = (x.astype(np.float64) / 2**32 - 0.5) * settings["amp"]
    return torch.from_numpy(values).float().bfloat16().float()


def _load_model(golden_dir: Path) -> tuple[ActionModel, OpenVLAForActionPrediction]:
    settings, recorded = load_case(golden_dir, NAME)
    small = load_config(golden_dir)
    text_config = {**small.language.to_dict(), "vocab_size": settings["embed_formula"]["rows"], "pad_token_id": TokenIds().pad}
    vla = OpenVLAForActionPrediction(OpenVLAConfig(vision_towers=small.vision_towers, text_config=text_config))
    assert vla.config.token_ids == TokenIds()
    embed, lm_head = _formula(settings["embed_formula"]), _formula(settings["lm_head_formula"])
    lm_head[vla.config.token_ids.action_token_begin_idx + 1 : vla.config.token_ids.base_vocab_size] *= 4
    for table, key in ((embed, "embed_first_rows_check"), (lm_head, "lm_head_first_rows_check")):
        check = recorded[key]
        assert torch.equal(table[[0, 1, TokenIds().empty, len(table) - 1], : check.shape[1]], check)
    weights = load_tensors(golden_dir, "vla")
    weights |= {"language_model.model.embed_tokens.weight": embed, "language_model.lm_head.weight": lm_head}
    vla.load_state_dict(weights)
    head_state = head_weights(golden_dir, PLATFORM, "l1_action_head")
    actions = recorded["as_is_l1_actions"]
    head = L1RegressionActionHead(vla.config.hidden_size, *actions.shape)
    head.load_state_dict(head_state)
    return ActionModel(vla.eval(), head).eval(), vla


@pytest.mark.parametrize("prompt", ["append", "as_is"])
@torch.no_grad()
def test_prediction(golden_dir: Path, prompt: str) -> None:
    settings, recorded = load_case(golden_dir, NAME)
    model, vla = _load_model(golden_dir)
    token_ids = TokenIds()
    prompt_ids = torch.tensor([append_empty_token(row, token_ids) for row in recorded[f"{prompt}_input_ids"].tolist()])
    pixels = load_pixels(golden_dir, {"pixel_values": settings["predict_pixel_values"]})
    inputs = ActionInputs.from_prompts(pixels, prompt_ids, None, None, model.num_action_tokens, token_ids)
    states = vla(inputs.pixel_values, inputs.input_ids, None, inputs.slots).action_states
    assert_matches(states, recorded[f"{prompt}_l1_actions_hidden_states"], "action states")
    assert torch.equal(vla.language_model.lm_head(states).argmax(-1), recorded[f"{prompt}_predicted_token_ids"])
    statistics = load_json(golden_dir, f"{PLATFORM}.dataset_statistics.json")
    bounds = bounds_from_statistics(statistics, settings["unnorm_key"], "action", NormalizationType.BOUNDS_Q99)
    actions = torch.from_numpy(unnormalize(model.predict(inputs)[0].numpy(), bounds))
    assert_matches(actions, recorded[f"{prompt}_l1_actions"], "actions")
    discrete = ActionModel(vla, DiscreteActionHead(*actions.shape, token_ids))
    actions = torch.from_numpy(unnormalize(discrete.predict(inputs)[0].numpy(), bounds))
    assert_matches(actions, recorded[f"{prompt}_discrete_actions"], "discrete actions")


@torch.no_grad()
def test_training_states(golden_dir: Path) -> None:
    _, recorded = load_case(golden_dir, NAME)
    batch = load_tensors(golden_dir, "e_prompts_and_batch")
    model, vla = _load_model(golden_dir)
    input_ids, labels = batch["batch_input_ids"], batch["batch_labels"]
    pixels = load_tensors(golden_dir, "pixels")["pool"][:1, :12].expand(len(input_ids), -1, -1, -1)
    slots = slots_from_labels(labels, model.num_action_tokens, TokenIds())
    head = DiscreteActionHead(model.action_head.num_actions_chunk, model.action_head.action_dim, TokenIds())
    logits = ActionModel(vla, head)(ActionInputs(pixels, input_ids, batch["batch_attention_mask"], slots))
    targets = slot_targets(labels, model.num_action_tokens, TokenIds())
    assert_matches(discrete_objective(logits, targets, head).loss[None], recorded["train_loss"], "loss")
    output = vla(pixels, input_ids, batch["batch_attention_mask"], slots)
    assert_matches(output.action_states, recorded["train_hidden_at_actions"], "action states")
    assert torch.equal(vla.language_model.lm_head(output.action_states).argmax(-1), recorded["train_argmax_at_actions"])
