"""Samples -> Batch: prompts and action tokens, padded on the right.

Letters: B batch, N cameras, S image side, T tokens of the longest sample, H chunk, A action dim, P proprio dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prismatic.vla.action_tokenizer import ActionTokenizer
from prismatic.vla.constants import IGNORE_INDEX, TokenIds
from prismatic.vla.prompts import PromptTokenizer, build_training_tokens, tokenize_prompt
from prismatic.vla.types import Batch, Sample


class Collator:
    """Joins the samples of one batch; remembers the tokens of each instruction, of which data sets have few."""

    def __init__(self, tokenizer: PromptTokenizer, token_ids: TokenIds) -> None:
        self.tokenizer, self.token_ids = tokenizer, token_ids
        self.action_tokenizer = ActionTokenizer(token_ids)
        self._prompt_ids: dict[str, list[int]] = {}

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch of B samples.

        Raises:
            ValueError: an instruction is empty.
        """
        rows = [self._tokens(sample) for sample in samples]
        length = max(len(input_ids) for input_ids, _ in rows)
        input_ids = torch.full((len(rows), length), self.token_ids.pad)  # [B, T]
        labels = torch.full((len(rows), length), IGNORE_INDEX)
        for row, (row_ids, row_labels) in enumerate(rows):
            input_ids[row, : len(row_ids)] = torch.tensor(row_ids)
            labels[row, : len(row_labels)] = torch.tensor(row_labels)
        proprio = [sample.proprio for sample in samples if sample.proprio is not None]
        assert len(proprio) in (0, len(samples)), "all samples of a run carry proprio, or none"
        draws = [sample.draw for sample in samples if sample.draw is not None]
        assert len(draws) in (0, len(samples)), "all samples of a run are augmented on the device, or none"
        return Batch(
            images=torch.from_numpy(np.stack([sample.images for sample in samples])),
            input_ids=input_ids,
            attention_mask=input_ids != self.token_ids.pad,
            labels=labels,
            actions=torch.from_numpy(np.stack([sample.actions for sample in samples])),
            proprio=torch.from_numpy(np.stack(proprio)) if proprio else None,
            sample_ids=torch.tensor([sample.sample_id for sample in samples]),
            draws=torch.from_numpy(np.stack(draws)) if draws else None,
            in_place_of=tuple(bad for sample in samples for bad in sample.in_place_of),
        )

    def _tokens(self, sample: Sample) -> tuple[list[int], list[int]]:
        prompt_ids = self._prompt_ids.get(sample.instruction)
        if prompt_ids is None:
            prompt_ids = self._prompt_ids[sample.instruction] = tokenize_prompt(self.tokenizer, sample.instruction, self.token_ids)
        action_ids = self.action_tokenizer.encode(sample.actions).ravel().tolist()  # H * A ids, step by step
        return build_training_tokens(prompt_ids, action_ids, self.token_ids)
