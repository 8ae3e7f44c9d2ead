"""Group F: actions <-> token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from golden_cases import load_case

from prismatic.vla.action_tokenizer import ActionTokenizer
from prismatic.vla.constants import NUM_ACTION_BINS, TokenIds

NAME = "f_action_tokenizer"


def test_action_tokenizer(golden_dir: Path) -> None:
    settings, recorded = load_case(golden_dir, NAME)
    expected = {key: value.numpy() for key, value in recorded.items()}
    token_ids = TokenIds(base_vocab_size=settings["vocab_size"])
    assert token_ids.action_token_begin_idx == settings["action_token_begin_idx"]
    assert settings["n_bins"] == NUM_ACTION_BINS
    tokenizer = ActionTokenizer(token_ids)
    assert np.array_equal(tokenizer.bins, expected["bins"])
    assert np.array_equal(tokenizer.bin_centers, expected["bin_centers"])
    assert np.array_equal(tokenizer.encode(expected["values"]), expected["token_ids"])
    assert np.array_equal(tokenizer.decode(expected["token_ids"]), expected["decoded"])
    assert np.array_equal(tokenizer.decode(expected["all_ids"]), expected["all_ids_decoded"])
