"""ActionModel: a VLA with the small modules around it, the one thing that training wraps and a policy calls.

Letters: B batch, N images, S image side, T text tokens, L prompt length, H chunk, A action dim, K = H x A slots,
P proprio dim, V vocabulary.

    training:    ActionModel(ActionInputs.from_batch(batch, token_ids))   -> L1:        normalised actions [B, H, A]
                                                                             diffusion: noise in inputs.noisy_actions [B, H, A]
                                                                             discrete:  token logits [B, K + 1, V], slots and stop
    prediction:  ActionModel.predict(ActionInputs.from_prompts(...))      -> normalised actions [B, H, A], whatever the head
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from prismatic.models.action_heads import ActionHead, DiffusionActionHead, DiscreteActionHead
from prismatic.models.diffusion import ddim_step, timestep_embedding
from prismatic.models.language import Rotation
from prismatic.models.processor import normalize_pixels
from prismatic.models.projectors import NoisyActionProjector, ProprioProjector
from prismatic.models.sequence import ActionSlots, append_action_slots, changing_rows, put_rows, slots_from_labels, state_rows
from prismatic.models.vla import OpenVLAForActionPrediction
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
    noisy_actions: torch.Tensor | None = None  # float [B, H, A], diffusion only
    timesteps: torch.Tensor | None = None  # int64 [B], diffusion only

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


@dataclass(frozen=True)
class Observed:
    """What all denoising steps of an observation have in common: the sequence of S = T + E tokens but for timestep and noisy actions."""

    embeddings: torch.Tensor  # [B, S, D]
    mask: torch.Tensor | None  # bool [B, S]; None: nothing is padded
    changing: torch.Tensor  # int64 [B, 1 + K]: where the timestep and the noisy actions go
    read: torch.Tensor  # int64 [B, K]: where the states are read
    rotation: Rotation  # of the S positions

    def copy_(self, other: Observed) -> None:
        """Takes over the numbers of `other`, which has the same shapes; a mask that it lacks hides nothing."""
        if self.mask is not None and other.mask is None:
            other = replace(other, mask=torch.ones_like(self.mask))
        for own, new in zip(self._tensors(), other._tensors(), strict=True):
            own.copy_(new)

    def _tensors(self) -> list[torch.Tensor]:
        mask = [] if self.mask is None else [self.mask]
        return [self.embeddings, *mask, self.changing, self.read, *self.rotation]


class ActionModel(nn.Module):
    """`vla` (an OpenVLAForActionPrediction or a PEFT wrapper of one), `action_head` and the projectors that the policy uses."""

    def __init__(
        self,
        vla: nn.Module,
        action_head: ActionHead,
        proprio_projector: ProprioProjector | None = None,
        noisy_action_projector: NoisyActionProjector | None = None,
    ) -> None:
        super().__init__()
        if isinstance(action_head, DiffusionActionHead) != (noisy_action_projector is not None):
            raise ValueError("a diffusion head needs a noisy-action projector; no other head takes one")
        self.vla = vla
        self.action_head = action_head
        self.proprio_projector = proprio_projector
        self.noisy_action_projector = noisy_action_projector

    @property
    def num_action_tokens(self) -> int:
        """K, the number of action slots in a row."""
        return self.action_head.num_actions_chunk * self.action_head.action_dim

    @property
    def bare_vla(self) -> OpenVLAForActionPrediction:
        """The model inside a PEFT wrapper, its layers adapted in place; `vla` itself without one."""
        inner = self.vla if isinstance(self.vla, OpenVLAForActionPrediction) else self.vla.get_base_model()  # type: ignore[operator]
        assert isinstance(inner, OpenVLAForActionPrediction)
        return inner

    def forward(self, inputs: ActionInputs) -> torch.Tensor:
        """What the head's training objective compares with its target, see the module's docstring.

        Raises:
            ValueError: proprio (diffusion: noisy actions) is missing, or the batch has another chunk or action dimension than the head.
        """
        self._check(inputs)
        inserted = self._observation_tokens(inputs)
        if (timestep := self._timestep_token(inputs.timesteps)) is not None:
            inserted = torch.cat([inserted, timestep.to(inserted.dtype)], dim=1)
        text = (inputs.input_ids, inputs.attention_mask, inputs.slots)
        is_discrete = isinstance(self.action_head, DiscreteActionHead)
        states = self.bare_vla.action_states(inserted, *text, self._action_embeddings(inputs.noisy_actions), with_stop=is_discrete)
        return self.bare_vla.language_model.lm_head(states) if is_discrete else self.action_head(states)

    @torch.no_grad()
    def predict(self, inputs: ActionInputs, noise: torch.Tensor | None = None, num_diffusion_steps: int | None = None) -> torch.Tensor:
        """Normalised actions, float32 [B, H, A].

        A diffusion head starts from `noise` [B, H, A] (None: drawn from torch's generator) and takes `num_diffusion_steps` (None: as
        many as in training); other heads ignore both.
        """
        if isinstance(self.action_head, DiffusionActionHead):
            return self._denoise(self.action_head, inputs, noise, num_diffusion_steps)
        predicted = self(inputs)
        if isinstance(self.action_head, DiscreteActionHead):
            return self.action_head(predicted[:, :-1].argmax(dim=-1))
        return predicted

    def _denoise(
        self, head: DiffusionActionHead, inputs: ActionInputs, noise: torch.Tensor | None, num_diffusion_steps: int | None
    ) -> torch.Tensor:
        """DDIM from noise to actions; images and proprio are encoded once for all steps."""
        num_steps = num_diffusion_steps or head.schedule.num_train_steps
        shape = (len(inputs.input_ids), head.num_actions_chunk, head.action_dim)
        noisy = torch.randn(shape, device=inputs.input_ids.device) if noise is None else noise
        observed = self.observe(inputs)
        for row in head.schedule.table(num_steps).to(noisy.device):
            noisy = self.denoise(observed, noisy, row)
        return noisy

    def observe(self, inputs: ActionInputs) -> Observed:
        """What `denoise` needs of the inputs, for every step."""
        vla = self.bare_vla
        tokens = self._observation_tokens(inputs)
        inserted = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1)  # the timestep's place
        embeddings, mask = vla.embed_sequence(inserted, inputs.input_ids, inputs.attention_mask, inputs.slots)
        num_inserted = inserted.shape[1]
        rows = (changing_rows(inputs.slots, num_inserted), state_rows(inputs.slots, num_inserted))
        return Observed(embeddings, mask, *rows, vla.language_model.model.rotation(embeddings))

    def _observation_tokens(self, inputs: ActionInputs) -> torch.Tensor:
        """Tokens [B, 0..E, D] of images and proprio."""
        tokens = self.bare_vla.encode_images(inputs.pixel_values, inputs.input_ids, inputs.attention_mask, inputs.slots)  # [B, N*P, D]
        proprio = self._proprio_token(inputs.proprio)
        return tokens if proprio is None else torch.cat([tokens, proprio.to(tokens.dtype)], dim=1)

    def denoise(self, observed: Observed, noisy: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Noisy actions [B, H, A] one step on; `row` [3] of `DDIMSchedule.table` says from where to where."""
        assert isinstance(self.action_head, DiffusionActionHead)
        timestep, share, next_share = row.unbind()
        token, actions = self._timestep_token(timestep.expand(len(noisy))), self._action_embeddings(noisy)
        assert token is not None
        assert actions is not None
        values = torch.cat([part.to(observed.embeddings.dtype) for part in (token, actions)], dim=1)
        embeddings = put_rows(observed.embeddings, observed.changing, values)
        states = self.bare_vla.language_model(embeddings, observed.mask, observed.read, observed.rotation)
        return ddim_step(self.action_head(states), noisy, share, next_share)

    def _check(self, inputs: ActionInputs) -> None:
        head = self.action_head
        if inputs.slots.count != self.num_action_tokens:
            raise ValueError(
                f"the batch has {inputs.slots.count} action tokens a sample; the action head predicts {head.num_actions_chunk} "
                f"actions of {head.action_dim} dimensions, {self.num_action_tokens} in all"
            )
        if isinstance(head, DiffusionActionHead) and (inputs.noisy_actions is None or inputs.timesteps is None):
            raise ValueError("the diffusion head predicts noise: the inputs must hold noisy_actions and timesteps; to act, call predict()")

    def _proprio_token(self, proprio: torch.Tensor | None) -> torch.Tensor | None:
        """[B, 1, D]"""
        if self.proprio_projector is None:
            return None
        if proprio is None:
            raise ValueError("the model was built with use_proprio, but the inputs hold no proprio")
        return self.proprio_projector(proprio)

    def _timestep_token(self, timesteps: torch.Tensor | None) -> torch.Tensor | None:
        """[B, 1, D], diffusion only."""
        if self.noisy_action_projector is None or timesteps is None:
            return None
        return timestep_embedding(timesteps, self.bare_vla.config.hidden_size).unsqueeze(1)

    def _action_embeddings(self, noisy_actions: torch.Tensor | None) -> torch.Tensor | None:
        """[B, K, D], diffusion only."""
        if self.noisy_action_projector is None or noisy_actions is None:
            return None
        return self.noisy_action_projector(noisy_actions.flatten(1))
