"""Instruction -> prompt -> token layout of a sample.

    prompt      BOS "In: What action should the robot take to ...?\\nOut:" empty
    training    prompt, one id per action dimension of the chunk, stop

`empty` is the lone space that the Llama tokenizer puts between "Out:" and the action characters; the published evaluation adds
it after tokenizing, so that both layouts agree (pinned by tests/golden/test_prompts.py). In Qwen's chat the prompt itself begins with
BOS (<|im_start|>) and ends in `empty` (the line break behind "assistant").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prismatic.vla.constants import IGNORE_INDEX, PROMPT_TEMPLATE, TokenIds


class PromptTokenizer(Protocol):
    """The part of a transformers tokenizer that prompts need."""

    def encode(self, text: str) -> list[int]: ...


def build_prompt(instruction: str, template: str = PROMPT_TEMPLATE) -> str:
    """`template` with the instruction in lower case.

    Raises:
        ValueError: the instruction is empty, or no text.
    """
    if not isinstance(instruction, str):  # as HDF5 and RLDS files hold it
        raise ValueError(f"the instruction must be a text (str), found {type(instruction).__name__} {instruction!r}; decode bytes first")
    if not instruction.strip():
        raise ValueError("the instruction is empty; say what the robot should do, for example 'open the drawer'")
    return template.format(instruction=instruction.lower())


def append_empty_token(prompt_ids: Sequence[int], token_ids: TokenIds) -> list[int]:
    """`prompt_ids` that end in the empty token, which is added where it is absent."""
    return [*prompt_ids] if prompt_ids[-1] == token_ids.empty else [*prompt_ids, token_ids.empty]


def tokenize_prompt(tokenizer: PromptTokenizer, instruction: str, token_ids: TokenIds) -> list[int]:
    """Token ids [BOS, ..., ':', empty] of the prompt for `instruction`.

    Raises:
        ValueError: the tokenizer does not put BOS first, so that it is not the one that the model was made with.
    """
    prompt_ids = list(tokenizer.encode(build_prompt(instruction, token_ids.prompt_template)))
    if prompt_ids[:1] != [token_ids.bos]:
        raise ValueError(
            f"the tokenizer gave {prompt_ids[:3]} ... for a prompt, which must begin with the BOS id {token_ids.bos}; "
            "use the tokenizer files of the checkpoint"
        )
    return append_empty_token(prompt_ids, token_ids)


def build_training_tokens(prompt_ids: Sequence[int], action_ids: Sequence[int], token_ids: TokenIds) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of one sample; labels are IGNORE_INDEX except on the action ids and the stop token."""
    assert prompt_ids[-1] == token_ids.empty, "prompt_ids come from tokenize_prompt"
    target = [*action_ids, token_ids.stop]
    return [*prompt_ids, *target], [IGNORE_INDEX] * len(prompt_ids) + target
