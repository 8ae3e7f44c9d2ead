"""Where tokens sit, for rows of different lengths."""

from __future__ import annotations

import torch

from prismatic.models.sequence import ActionSlots, append_action_slots, extend_mask, fill_slots, read_action_states, slots_from_labels
from prismatic.vla.constants import IGNORE_INDEX, TokenIds

TOKEN_IDS = TokenIds(base_vocab_size=300, empty=20, pad=300)


def test_prediction_layout_of_unequal_prompts() -> None:
    prompt_ids = torch.tensor([[1, 5, 20, 300], [1, 6, 7, 20]])
    input_ids, mask, slots = append_action_slots(prompt_ids, prompt_ids != 300, count=2, token_ids=TOKEN_IDS)
    assert slots.start.tolist() == [3, 4]
    assert mask is not None
    assert mask.tolist() == [[True] * 6 + [False], [True] * 7]
    assert input_ids[:, :3].tolist() == [[1, 5, 20], [1, 6, 7]]
    assert input_ids[0, 5:].tolist() == [TOKEN_IDS.stop, TOKEN_IDS.pad]
    assert input_ids[1, 6] == TOKEN_IDS.stop


def test_prediction_layout_without_a_mask_is_the_same() -> None:
    prompt_ids = torch.tensor([[1, 5, 20], [1, 6, 20]])
    masked = append_action_slots(prompt_ids, torch.ones_like(prompt_ids, dtype=torch.bool), count=4, token_ids=TOKEN_IDS)
    plain = append_action_slots(prompt_ids, None, count=4, token_ids=TOKEN_IDS)
    assert plain[1] is None
    assert torch.equal(plain[0], masked[0])
    assert torch.equal(plain[2].start, masked[2].start)


def test_slots_from_labels() -> None:
    ignore = IGNORE_INDEX
    labels = torch.tensor([[ignore, ignore, 100, 299, 2, ignore], [ignore, ignore, ignore, 44, 44, 2]])
    slots = slots_from_labels(labels, count=2, token_ids=TOKEN_IDS)
    assert slots.start.tolist() == [2, 3]
    assert slots.mask(6).sum(dim=1).tolist() == [2, 2]


def test_slots_are_zeroed_or_filled_and_nothing_else_changes() -> None:
    embeddings = torch.randn(2, 6, 3)
    slots = ActionSlots(torch.tensor([1, 3]), count=2)
    zeroed = fill_slots(embeddings, slots, None)
    mask = slots.mask(6)
    assert torch.equal(zeroed[~mask], embeddings[~mask])
    assert not zeroed[mask].any()
    actions = torch.randn(2, 2, 3)
    filled = fill_slots(embeddings, slots, actions)
    assert torch.equal(filled[~mask], embeddings[~mask])
    assert torch.equal(filled[mask], actions.flatten(0, 1))


def test_states_are_read_one_position_early() -> None:
    hidden = torch.arange(8.0)[None, :, None].expand(2, 8, 1)  # the state at position t is t
    slots = ActionSlots(torch.tensor([2, 3]), count=3)
    assert read_action_states(hidden, slots, num_inserted=2)[..., 0].tolist() == [[3, 4, 5], [4, 5, 6]]


def test_mask_covers_inserted_tokens() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert extend_mask(mask, 2).tolist() == [[True, True, True, True, False], [True] * 5]  # type: ignore[union-attr]
    assert extend_mask(None, 2) is None
