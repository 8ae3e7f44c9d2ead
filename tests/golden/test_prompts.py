"""Group E, prompts: text, token layout of training and prediction, labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_cases import load_case, load_tensors

from prismatic.models.sequence import append_action_slots, slots_from_labels
from prismatic.vla.action_tokenizer import ActionTokenizer
from prismatic.vla.constants import IGNORE_INDEX, TokenIds
from prismatic.vla.prompts import build_prompt, build_training_tokens, tokenize_prompt

NAME = "e_prompts_and_batch"


class RecordedTokenizer:
    """Answers with the ids that the Llama tokenizer gave for the recorded prompts (its files are not free to copy)."""

    def __init__(self, ids_by_prompt: dict[str, list[int]]) -> None:
        self.ids_by_prompt = ids_by_prompt

    def encode(self, text: str) -> list[int]:
        return self.ids_by_prompt[text]


def test_text_and_layout(golden_dir: Path) -> None:
    settings, recorded = load_case(golden_dir, NAME)
    token_ids = TokenIds(pad=settings["pad_token_id"])
    tokenizer = RecordedTokenizer({example["eval_prompt"]: example["eval_input_ids"] for example in settings["examples"]})
    for i, example in enumerate(settings["examples"]):
        assert build_prompt(example["instruction"]) == example["eval_prompt"]
        prompt_ids = tokenize_prompt(tokenizer, example["instruction"], token_ids)
        action_ids = ActionTokenizer(token_ids).encode(recorded[f"actions_{i}"].numpy()).flatten().tolist()
        input_ids, labels = build_training_tokens(prompt_ids, action_ids, token_ids)
        assert input_ids == example["train_input_ids"]
        assert labels == example["train_labels"]
        assert len(input_ids) == example["train_len"]


def test_batch(golden_dir: Path) -> None:
    settings, recorded = load_case(golden_dir, NAME)
    token_ids = TokenIds(pad=settings["pad_token_id"])
    rows = [(example["train_input_ids"], example["train_labels"]) for example in settings["examples"]]
    longest = max(len(input_ids) for input_ids, _ in rows)
    ids = np.array([input_ids + [token_ids.pad] * (longest - len(input_ids)) for input_ids, _ in rows])
    labels = np.array([row + [IGNORE_INDEX] * (longest - len(row)) for _, row in rows])
    assert np.array_equal(ids, recorded["batch_input_ids"].numpy())
    assert np.array_equal(labels, recorded["batch_labels"].numpy())
    assert np.array_equal(ids != token_ids.pad, recorded["batch_attention_mask"].numpy())


def test_prediction_batch_has_the_training_layout(golden_dir: Path) -> None:
    """Prompts of different lengths, padded, get slots, stop token and mask exactly where the training batch has them."""
    settings, _ = load_case(golden_dir, NAME)
    recorded = load_tensors(golden_dir, NAME)
    token_ids = TokenIds(pad=settings["pad_token_id"])
    count = settings["chunk"] * settings["action_dim"]
    expected = slots_from_labels(recorded["batch_labels"], count, token_ids)
    width = int(expected.start.max())
    prompt_mask = torch.arange(width) < expected.start[:, None]
    prompt_ids = recorded["batch_input_ids"][:, :width].where(prompt_mask, token_ids.pad)

    input_ids, attention_mask, slots = append_action_slots(prompt_ids, prompt_mask, count, token_ids)
    assert attention_mask is not None
    assert torch.equal(attention_mask, recorded["batch_attention_mask"])
    assert torch.equal(slots.start, expected.start)
    outside = ~slots.mask(input_ids.shape[1])
    assert torch.equal(input_ids[outside], recorded["batch_input_ids"][outside])
