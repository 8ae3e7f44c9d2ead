from __future__ import annotations

import numpy as np
import pytest
import torch

from prismatic.vla.action_tokenizer import ActionTokenizer
from prismatic.vla.constants import IGNORE_INDEX, TokenIds
from prismatic.vla.datasets.collator import Collator
from prismatic.vla.prompts import tokenize_prompt
from prismatic.vla.types import Sample

TOKEN_IDS = TokenIds()


class LetterTokenizer:
    """One id per character after BOS; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        return [TOKEN_IDS.bos, *(3 + ord(letter) for letter in text)]


def _sample(instruction: str, seed: int, with_proprio: bool = True) -> Sample:
    rng = np.random.default_rng(seed)
    return Sample(
        images=rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
        instruction=instruction,
        actions=rng.uniform(-1, 1, (8, 7)).astype(np.float32),
        proprio=rng.uniform(-1, 1, 8).astype(np.float32) if with_proprio else None,
        sample_id=seed,
    )


def test_a_batch_holds_every_sample_padded_on_the_right() -> None:
    tokenizer = LetterTokenizer()
    samples = [_sample("Push", 0), _sample("push the long red button", 1)]
    batch = Collator(tokenizer, TOKEN_IDS)(samples)
    length = batch.input_ids.shape[1]
    assert batch.images.shape == (2, 2, 8, 8, 3)
    assert batch.actions.shape == (2, 8, 7)
    assert batch.proprio is not None
    assert batch.proprio.shape == (2, 8)
    assert batch.sample_ids.tolist() == [0, 1]
    assert batch.attention_mask.dtype == torch.bool
    for row, sample in enumerate(samples):
        prompt = tokenize_prompt(tokenizer, sample.instruction, TOKEN_IDS)
        actions = ActionTokenizer(TOKEN_IDS).encode(sample.actions).ravel().tolist()
        used = len(prompt) + 56 + 1
        assert batch.input_ids[row].tolist() == prompt + actions + [TOKEN_IDS.stop] + [TOKEN_IDS.pad] * (length - used)
        assert batch.labels[row].tolist() == [IGNORE_INDEX] * len(prompt) + actions + [TOKEN_IDS.stop] + [IGNORE_INDEX] * (length - used)
        assert batch.attention_mask[row].tolist() == [True] * used + [False] * (length - used)
        np.testing.assert_array_equal(batch.images[row].numpy(), sample.images)


def test_each_instruction_is_tokenized_once() -> None:
    tokenizer = LetterTokenizer()
    collator = Collator(tokenizer, TOKEN_IDS)
    for _ in range(3):
        collator([_sample("push", 0), _sample("pull", 1), _sample("push", 2)])
    assert tokenizer.calls == 2


def test_a_batch_of_one_keeps_its_axes_and_proprio_may_be_absent() -> None:
    batch = Collator(LetterTokenizer(), TOKEN_IDS)([_sample("push", 0)])
    assert batch.proprio is not None
    assert batch.proprio.shape == (1, 8)
    assert Collator(LetterTokenizer(), TOKEN_IDS)([_sample("push", 0, with_proprio=False)]).proprio is None


def test_an_empty_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="instruction is empty"):
        Collator(LetterTokenizer(), TOKEN_IDS)([_sample(" ", 0)])
