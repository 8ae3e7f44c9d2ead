"""Prompts, action tokens and the tiny tokenizer that keeps the published token layout."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from prismatic.models.base import build_tokenizer
from prismatic.vla.action_tokenizer import ActionTokenizer
from prismatic.vla.constants import IGNORE_INDEX, NUM_ACTION_BINS, TokenIds
from prismatic.vla.prompts import append_empty_token, build_prompt, build_training_tokens, tokenize_prompt


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def token_ids(tokenizer: PreTrainedTokenizerFast) -> TokenIds:
    base_vocab_size = len(tokenizer) - 1
    return TokenIds(base_vocab_size=base_vocab_size, empty=tokenizer.vocab["▁"], pad=base_vocab_size)


def test_special_ids_are_those_of_llama(tokenizer: PreTrainedTokenizerFast, token_ids: TokenIds) -> None:
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<PAD>"]) == [0, token_ids.bos, token_ids.stop, token_ids.pad]
    assert tokenizer.pad_token_id == token_ids.pad


def test_training_text_tokenizes_into_the_layout(tokenizer: PreTrainedTokenizerFast, token_ids: TokenIds) -> None:
    """The published training tokenizes one text; ours joins ids. Both must give the same ids, for all 256 action characters."""
    action_ids = list(range(token_ids.base_vocab_size - NUM_ACTION_BINS, token_ids.base_vocab_size))
    characters = [tokenizer.decode([i]) for i in action_ids]
    assert all(len(character) == 1 for character in characters)
    text = f"{build_prompt('Open the Window')} {''.join(characters)}</s>"
    prompt_ids = tokenize_prompt(tokenizer, "Open the Window", token_ids)
    input_ids, labels = build_training_tokens(prompt_ids, action_ids, token_ids)
    assert tokenizer.encode(text) == input_ids
    assert labels == [IGNORE_INDEX] * len(prompt_ids) + action_ids + [token_ids.stop]


@pytest.mark.parametrize(
    "instruction", ["press the button from the top", "Öffne die Schublade!", "打开 抽屉", "  two  spaces\n", "42 % \t~"]
)
def test_any_text_encodes_without_unknowns(tokenizer: PreTrainedTokenizerFast, token_ids: TokenIds, instruction: str) -> None:
    prompt_ids = tokenize_prompt(tokenizer, instruction, token_ids)
    assert 0 not in prompt_ids
    assert max(prompt_ids) <= token_ids.action_token_begin_idx
    assert tokenizer.decode(prompt_ids[:-1], skip_special_tokens=True) == build_prompt(instruction)


def test_common_words_are_single_tokens(tokenizer: PreTrainedTokenizerFast, token_ids: TokenIds) -> None:
    assert len(tokenize_prompt(tokenizer, "press the button from the top", token_ids)) == 21


def test_empty_token_is_appended_once(token_ids: TokenIds) -> None:
    once = append_empty_token([1, 5], token_ids)
    assert once == [1, 5, token_ids.empty]
    assert append_empty_token(once, token_ids) == once


def test_empty_instruction() -> None:
    with pytest.raises(ValueError, match="instruction is empty"):
        build_prompt("  ")


def test_foreign_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="must begin with the BOS id 77"):
        tokenize_prompt(tokenizer, "open", TokenIds(bos=77))


def test_action_tokens_round_trip() -> None:
    action_tokenizer = ActionTokenizer(TokenIds())
    actions = np.linspace(-1, 1, 2001)
    ids = action_tokenizer.encode(actions)
    assert (ids.min(), ids.max()) == (31744, 31999)
    assert np.abs(action_tokenizer.decode(ids) - actions).max() <= 1 / 255 + 1e-12
    assert np.array_equal(action_tokenizer.encode(np.array([-7.0, 7.0])), [31999, 31744])
