"""Where every token sits. Letters: B batch, T text tokens, E inserted tokens, K = chunk x action_dim slots, D width, L prompt length.

    text (input_ids)   BOS                                  prompt ... ':' empty | slot_0 ... slot_K-1 | stop | PAD ...
    embeddings         BOS | patches of image 1..N | extras | prompt ... ':' empty | slot_0 ... slot_K-1 | stop | PAD ...
                           '---- E inserted tokens -------'                        ^ L + E
    hidden states                                                   read K here:  '-- L+E-1 ... L+E+K-2 --'

Extras are the proprio token and, for diffusion, the timestep token, in this order. Slots are zeroed (or hold noisy actions).
The state for slot k is read one position early, because the base model was trained to predict the next token. Training and
prediction use this one layout; a batch of prompts of different lengths is padded at the end of each row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prismatic.vla.constants import TokenIds


@dataclass(frozen=True)
class ActionSlots:
    """The K consecutive text positions of each row that stand for actions."""

    start: torch.Tensor  # int64 [B]: position in input_ids of the first slot, the prompt length L
    count: int  # K

    def mask(self, num_tokens: int) -> torch.Tensor:
        """Bool [B, T]: True on slots."""
        offset = torch.arange(num_tokens, device=self.start.device) - self.start[:, None]
        return (offset >= 0) & (offset < self.count)


def slots_from_labels(labels: torch.Tensor, count: int, token_ids: TokenIds) -> ActionSlots:
    """The slots of a training batch: they begin at the first label [B, T] that is an action id."""
    is_action = labels > token_ids.action_token_begin_idx  # IGNORE_INDEX is negative, the stop id is small
    return ActionSlots(is_action.int().argmax(dim=1), count)


def append_action_slots(
    prompt_ids: torch.Tensor, prompt_mask: torch.Tensor | None, count: int, token_ids: TokenIds
) -> tuple[torch.Tensor, torch.Tensor | None, ActionSlots]:
    """Prompts [B, L] -> (input_ids [B, L+K+1], attention_mask or None, slots), laid out as in training.

    `prompt_mask` is False on padding at the end of a row; None says that there is none. The contents of the slots never matter.
    """
    batch_size, width = prompt_ids.shape
    if prompt_mask is None:
        tail = prompt_ids.new_full((batch_size, count + 1), token_ids.pad)
        tail[:, -1] = token_ids.stop
        start = torch.full((batch_size,), width, device=prompt_ids.device)
        return torch.cat([prompt_ids, tail], dim=1), None, ActionSlots(start, count)
    start = prompt_mask.sum(dim=1)
    position = torch.arange(width + count + 1, device=prompt_ids.device)
    input_ids = prompt_ids.new_full((batch_size, width + count + 1), token_ids.pad)
    input_ids[:, :width] = prompt_ids.masked_fill(~prompt_mask.bool(), token_ids.pad)
    stop = (start + count)[:, None]
    return input_ids.masked_fill(position == stop, token_ids.stop), position <= stop, ActionSlots(start, count)


def insert_after_bos(text: torch.Tensor, inserted: torch.Tensor) -> torch.Tensor:
    """[B, T, ...] and [B, E, ...] -> [B, T+E, ...]: BOS, then what is inserted, then the rest of the text."""
    return torch.cat([text[:, :1], inserted.to(text.dtype), text[:, 1:]], dim=1)


def fill_slots(embeddings: torch.Tensor, slots: ActionSlots, action_embeddings: torch.Tensor | None) -> torch.Tensor:
    """Text embeddings [B, T, D] with the slots zeroed, or holding `action_embeddings` [B, K, D]."""
    embeddings = embeddings * ~slots.mask(embeddings.shape[1]).unsqueeze(-1)
    if action_embeddings is None:
        return embeddings
    return put_rows(embeddings, _slot_rows(slots), action_embeddings)


def put_rows(embeddings: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, T, D] with `values` [B, R, D] at positions `rows` int64 [B, R]."""
    return embeddings.scatter(1, rows.unsqueeze(-1).expand(-1, -1, embeddings.shape[-1]), values.to(embeddings.dtype))


def mean_prompt_embedding(embeddings: torch.Tensor, attention_mask: torch.Tensor | None, slots: ActionSlots) -> torch.Tensor:
    """What FiLM listens to: the mean [B, D] of text embeddings [B, T, D] over BOS, prompt, empty and stop token.

    The published code averages padding too, so that a sample's features depend on its batch; here they do not.
    """
    chosen = ~slots.mask(embeddings.shape[1])
    if attention_mask is not None:
        chosen = chosen & attention_mask.bool()
    weights = chosen.unsqueeze(-1).to(embeddings.dtype)  # [B, T, 1]
    return (embeddings * weights).sum(dim=1) / weights.sum(dim=1)


def read_action_states(hidden: torch.Tensor, slots: ActionSlots, num_inserted: int) -> torch.Tensor:
    """The states [B, K, D] for the slots, out of hidden states [B, T+E, D]: each one position before its slot."""
    return hidden.gather(1, state_rows(slots, num_inserted).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def state_rows(slots: ActionSlots, num_inserted: int) -> torch.Tensor:
    """int64 [B, K]: where the states for the slots stand, each one position before its slot."""
    return _slot_rows(slots) + (num_inserted - 1)


def changing_rows(slots: ActionSlots, num_inserted: int) -> torch.Tensor:
    """int64 [B, 1 + K]: where in the sequence the timestep token, the last of those inserted, and the slots stand."""
    return torch.cat([torch.full_like(slots.start, num_inserted)[:, None], _slot_rows(slots) + num_inserted], dim=1)


def extend_mask(attention_mask: torch.Tensor | None, num_inserted: int) -> torch.Tensor | None:
    """Bool [B, T+E] from the text's mask [B, T]: nothing inserted is padding. None when nothing at all is."""
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    # Without padding the mask is dropped, which lets the fastest attention kernels run. A compiled or captured graph cannot look at
    # values: callers that compile or capture pass None themselves.
    if not _is_traced(mask) and bool(mask.all()):
        return None
    return insert_after_bos(mask, mask.new_ones(len(mask), num_inserted))


def _is_traced(x: torch.Tensor) -> bool:
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _slot_rows(slots: ActionSlots) -> torch.Tensor:
    """int64 [B, K]: start ... start + K - 1, positions in the text."""
    return slots.start[:, None] + torch.arange(slots.count, device=slots.start.device)
