"""Tokenizers of Qwen's kind: bytes joined by learnt merges, chat marks, and 256 extra tokens at the end that stand for actions.

    ids      pieces of text | <|endoftext|> <|im_start|> <|im_end|> ... | <|extra_0|> ... <|extra_255|>
                                                                         '---- actions: the end of the base vocabulary

Qwen2.5's own tokenizer ends before the extra tokens; MiniVLA (github.com/Stanford-ILIAD/openvla-mini) appends them by these names.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prismatic.vla.constants import NUM_ACTION_BINS, TokenIds

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EXTRA_TOKENS = tuple(f"<|extra_{number}|>" for number in range(NUM_ACTION_BINS))
CHAT_SPECIAL_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
LINE_BREAK, _SPACE = "Ċ", "Ġ"  # as byte-level tokenizers write them
_CHAT_WORDS = "system user assistant You are Qwen created by Alibaba Cloud helpful What"


def build_chat_tokenizer(words: Iterable[str], token_ids: TokenIds | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind in miniature: each of `words` behind a space is one token; other text falls into bytes.

    With `token_ids` its line break, chat marks and extra tokens have those ids (unused pieces fill the gaps), so that it goes with a model
    of the published sizes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    spaced = [_SPACE + word for word in dict.fromkeys([*words, *_CHAT_WORDS.split()]) if word.isascii()]
    for piece in [*spaced, *_CHAT_WORDS.split()]:
        for end in range(2, len(piece) + 1):  # joined from the left, so that no word's merges cut another's
            if piece[:end] not in vocabulary:
                vocabulary[piece[:end]] = len(vocabulary)
                merges.append((piece[: end - 1], piece[end - 1]))
    if token_ids is not None:
        vocabulary = _at_their_ids(vocabulary, token_ids)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHAT_TOKENS])
    if token_ids is not None:
        fillers = token_ids.action_token_begin_idx - token_ids.stop  # Qwen has other marks there
        tokenizer.add_tokens([AddedToken(f"<|unused_{number}|>", normalized=False) for number in range(fillers)])
    built = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **CHAT_SPECIAL_TOKENS)
    add_extra_tokens(built)
    return built


def _at_their_ids(vocabulary: dict[str, int], token_ids: TokenIds) -> dict[str, int]:
    """The pieces, the line break at its id, and as many unused ones as let <|endoftext|> follow at its own."""
    others = [piece for piece in vocabulary if piece != LINE_BREAK]
    others += [f"{_SPACE}{LINE_BREAK}unused{number}" for number in range(token_ids.pad - len(vocabulary))]
    pieces = [*others[: token_ids.empty], LINE_BREAK, *others[token_ids.empty :]]
    return {piece: number for number, piece in enumerate(pieces)}


def add_extra_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Appends the tokens that stand for actions, where they are not there yet.

    Raises:
        ValueError: some are there and some are not.
    """
    count = len(set(EXTRA_TOKENS) & set(tokenizer.get_vocab()))
    if count not in (0, len(EXTRA_TOKENS)):
        raise ValueError(
            f"the tokenizer has {count} of the {len(EXTRA_TOKENS)} tokens {EXTRA_TOKENS[0]} ... {EXTRA_TOKENS[-1]}; "
            "take the tokenizer of Qwen/Qwen2.5-0.5B, or that of a converted base"
        )
    if count == 0:
        tokenizer.add_tokens(list(EXTRA_TOKENS))


def chat_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """The ids of <|im_start|>, <|im_end|> and <|endoftext|>."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary["<|im_start|>"], vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]


def line_break_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the line break before the action tokens."""
    return tokenizer.get_vocab()[LINE_BREAK]
