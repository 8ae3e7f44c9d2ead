"""ActionModel: a VLA with the small modules around it, the one thing that training wraps and a policy calls.

Letters: B batch, N images, S image side, T text tokens, L prompt length, H chunk, A action dim, P proprio dim.

    training:    ActionModel(ActionInputs.from_batch(batch, token_ids))             -> normalised actions [B, H, A]
    prediction:  ActionModel(ActionInputs.from_prompts(..., num_action_tokens=H*A)) -> normalised actions [B, H, A]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.processor import normalize_pixels
from prismatic.models.projectors import ProprioProjector
from prismatic.models.sequence import ActionSlots, append_action_slots, slots_from_labels
from prismatic.vla.constants import TokenIds
from prismatic.vla.types import Batch


@dataclass(frozen=True)
class ActionInputs:
    """Everything that one forward pass looks at, as tensors on one device."""

    pixel_values: torch.Tensor  # float [B, 6N, S, S], normalised
    input_ids: torch.Tensor  # int64 [B, T], prompt, action slots, stop, padding
    attention_mask: torch.Tensor | None  # bool [B, T]; None: nothing is padded
    slots: ActionSlots
    proprio: torch.Tensor | None = None  # float [B, P], normalised

    @classmethod
    def from_batch(cls, batch: Batch, token_ids: TokenIds) -> ActionInputs:
        """The inputs of a training batch; its images are normalised on the device where they are."""
        slots = slots_from_labels(batch.labels, batch.actions[0].numel(), token_ids)
        return cls(normalize_pixels(batch.images), batch.input_ids, batch.attention_mask, slots, batch.proprio)

    @classmethod
    def from_prompts(
        cls,
        pixel_values: torch.Tensor,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor | None,
        proprio: torch.Tensor | None,
        num_action_tokens: int,
        token_ids: TokenIds,
    ) -> ActionInputs:
        """The inputs for predicting: prompts int64 [B, L] that end in the empty token, padded at the end where the mask is False."""
        input_ids, attention_mask, slots = append_action_slots(prompt_ids, prompt_mask, num_action_tokens, token_ids)
        return cls(pixel_values, input_ids, attention_mask, slots, proprio)


class ActionModel(nn.Module):
    """`vla` (an OpenVLAForActionPrediction or a PEFT wrapper of one), `action_head` and, if used, `proprio_projector`."""

    def __init__(self, vla: nn.Module, action_head: L1RegressionActionHead, proprio_projector: ProprioProjector | None = None) -> None:
        super().__init__()
        self.vla = vla
        self.action_head = action_head
        self.proprio_projector = proprio_projector

    @property
    def num_action_tokens(self) -> int:
        """K, the number of action slots in a row."""
        return self.action_head.num_actions_chunk * self.action_head.action_dim

    def forward(self, inputs: ActionInputs) -> torch.Tensor:
        """Normalised actions, float32 [B, H, A].

        Raises:
            ValueError: proprio is missing, or the batch has another chunk or action dimension than the head.
        """
        if inputs.slots.count != self.num_action_tokens:
            raise ValueError(
                f"the batch has {inputs.slots.count} action tokens a sample; the action head predicts {self.action_head.num_actions_chunk} "
                f"actions of {self.action_head.action_dim} dimensions, {self.num_action_tokens} in all"
            )
        output = self.vla(
            pixel_values=inputs.pixel_values,
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            slots=inputs.slots,
            extra_tokens=self._proprio_token(inputs.proprio),
        )
        return self.action_head(output.action_states)

    def _proprio_token(self, proprio: torch.Tensor | None) -> torch.Tensor | None:
        if self.proprio_projector is None:
            return None
        if proprio is None:
            raise ValueError("the model was built with use_proprio, but the inputs hold no proprio")
        return self.proprio_projector(proprio)
