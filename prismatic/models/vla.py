"""OpenVLAForActionPrediction: images and text -> action states, as one transformers model with the published parameter names.

Letters: B batch, N images, S image side, P patches an image, T text tokens, E inserted tokens, K action slots, D width.

    pixel_values [B, 6N, S, S] -> vision_backbone -> projector -> [B, N*P, D] -+
                                        ^ FiLM: mean of the prompt's embeddings |
    input_ids    [B, T] ------> language_model.model.embed_tokens -------------+-> sequence -> language_model -> states [B, K, D]
    extra tokens (proprio, timestep) [B, 0..2, D] -----------------------------+
    noisy actions (diffusion) [B, K, D] in the action slots -------------------+

Heads that turn states into actions are separate modules in separate checkpoint files; `prismatic.models.action_model` pairs them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.film import FiLMedVisionBackbone
from prismatic.models.language import BidirectionalDecoder, RMSNorm
from prismatic.models.projectors import VisionProjector
from prismatic.models.sequence import (
    ActionSlots,
    extend_mask,
    fill_slots,
    insert_after_bos,
    mean_prompt_embedding,
    read_action_states,
    state_rows,
)
from prismatic.models.vision import AttentionPool, LayerScale, PrismaticVisionBackbone, VisionTransformer


@dataclass(frozen=True)
class VLAOutput:
    """What one forward pass gives."""

    action_states: torch.Tensor  # [B, K, D], after the final norm
    hidden_states: torch.Tensor  # [B, T+E, D], the same for every position
    num_inserted: int  # E


class OpenVLAForActionPrediction(PreTrainedModel):
    """The published architecture; `from_pretrained` and sharding come from transformers."""

    config_class = OpenVLAConfig
    config: OpenVLAConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _no_split_modules = ["VisionBlock", "DecoderLayer"]  # noqa: RUF012 (as the base class declares it)

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.vision_backbone: PrismaticVisionBackbone | FiLMedVisionBackbone = PrismaticVisionBackbone(config)
        self.projector = VisionProjector(self.vision_backbone.embed_dim, config.hidden_size)
        self.language_model = BidirectionalDecoder(config.decoder_sizes, config._attn_implementation)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        slots: ActionSlots,
        extra_tokens: torch.Tensor | None = None,
        action_embeddings: torch.Tensor | None = None,
    ) -> VLAOutput:
        """Action states [B, K, D] from normalised pixels [B, 6N, S, S] and text [B, T] laid out as `sequence` says.

        `attention_mask` bool [B, T] is False on padding (None: there is none); `extra_tokens` [B, 0..2, D] follow the patches;
        `action_embeddings` [B, K, D] are put into the slots, which are zero without them.
        """
        tokens = self.encode_images(pixel_values, input_ids, attention_mask, slots)
        if extra_tokens is not None:
            tokens = torch.cat([tokens, extra_tokens.to(tokens.dtype)], dim=1)
        return self.run_sequence(tokens, input_ids, attention_mask, slots, action_embeddings)

    def encode_images(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, slots: ActionSlots
    ) -> torch.Tensor:
        """Image tokens [B, N*P, D]; with FiLM they depend on the text too."""
        if not self.uses_film:
            return self.projector(self.vision_backbone(pixel_values))
        text = self.language_model.model.embed_tokens(input_ids)
        return self.projector(self.vision_backbone(pixel_values, mean_prompt_embedding(text, attention_mask, slots)))

    def run_sequence(
        self,
        inserted: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        slots: ActionSlots,
        action_embeddings: torch.Tensor | None = None,
    ) -> VLAOutput:
        """The language model's pass over text and `inserted` tokens [B, E, D] (images, then extra tokens)."""
        embeddings, mask = self.embed_sequence(inserted, input_ids, attention_mask, slots, action_embeddings)
        hidden_states = self.language_model(embeddings, mask)
        num_inserted = inserted.shape[1]
        return VLAOutput(read_action_states(hidden_states, slots, num_inserted), hidden_states, num_inserted)

    def action_states(
        self,
        inserted: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        slots: ActionSlots,
        action_embeddings: torch.Tensor | None = None,
        with_stop: bool = False,
    ) -> torch.Tensor:
        """`run_sequence`'s action states [B, K, D], and the stop token's behind them `with_stop`; no other state is computed to the end."""
        embeddings, mask = self.embed_sequence(inserted, input_ids, attention_mask, slots, action_embeddings)
        read = replace(slots, count=slots.count + with_stop)
        return self.language_model(embeddings, mask, state_rows(read, inserted.shape[1]))

    def embed_sequence(
        self,
        inserted: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        slots: ActionSlots,
        action_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What enters the language model: embeddings [B, T+E, D] and the mask bool [B, T+E], None without padding."""
        text = fill_slots(self.language_model.model.embed_tokens(input_ids), slots, action_embeddings)
        return insert_after_bos(text, inserted), extend_mask(attention_mask, inserted.shape[1])

    @property
    def uses_film(self) -> bool:
        """Whether the instruction modulates the vision towers."""
        return isinstance(self.vision_backbone, FiLMedVisionBackbone)

    @property
    def bare_vision_backbone(self) -> PrismaticVisionBackbone:
        """Both towers, without FiLM's wrapper."""
        backbone = self.vision_backbone
        return backbone.vision_backbone if isinstance(backbone, FiLMedVisionBackbone) else backbone

    def add_film(self) -> None:
        """Wraps the vision towers with new, untrained modulation by the instruction (adapters, if any, must be in place already)."""
        assert isinstance(self.vision_backbone, PrismaticVisionBackbone)
        self.vision_backbone = FiLMedVisionBackbone(self.vision_backbone, self.config.hidden_size)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.lm_head = value

    def unused_modules(self, uses_lm_head: bool) -> list[nn.Module]:
        """Parts that published checkpoints hold and no output depends on; `lm_head` counts among them unless it is used."""
        return [*self.vision_backbone.unused_modules(), *([] if uses_lm_head else [self.language_model.lm_head])]

    def freeze_unused(self, uses_lm_head: bool = False) -> None:
        """Stops gradients for every parameter (and adapter) without influence, so that DDP need not search for them."""
        for module in self.unused_modules(uses_lm_head):
            module.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights for a model trained from scratch (called by transformers for whatever a checkpoint does not hold)."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = math.prod(module.weight.shape[1:])
            init.trunc_normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.language.initializer_range)
        elif isinstance(module, (nn.LayerNorm, RMSNorm)):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            init.ones_(module.scale_factor)
        elif isinstance(module, (VisionTransformer, AttentionPool)):
            for name, parameter in module.named_parameters(recurse=False):
                # Positions as strong as the patches themselves (both about 1): with the usual 0.02 a tiny model that must point at
                # things stays at a constant answer for several times as many steps.
                init.trunc_normal_(parameter, std=1.0 if name == "pos_embed" else 0.02)


def num_parameters(config: OpenVLAConfig) -> int:
    """How many weights a model of these sizes has, each once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in OpenVLAForActionPrediction(config).parameters())
