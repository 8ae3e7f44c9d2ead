"""Vision towers that listen to the instruction: FiLM around every block (Perez et al. 2018, arXiv:1709.07871; OpenVLA-OFT, section IV-C).

Letters: B images, T tokens of a tower, D tower width, E width of the language model.

    x = x + ls1(attn(norm1(x)));   x = x * (1 + scale(e)) + shift(e);   x = x + ls2(mlp(norm2(x)))

e [B, E] is the mean of the instruction's token embeddings. Parameter names are the published ones: in a state dict of
`FiLMedVisionBackbone` a tower's block reads "vision_backbone.featurizer.blocks.0.block.attn.qkv.weight", its modulation
"vision_backbone.featurizer.blocks.0.scale.weight".
"""

from __future__ import annotations

import torch
from torch import nn

from prismatic.models.vision import PrismaticVisionBackbone, VisionBlock, VisionTransformer


class FiLMedVisionBlock(nn.Module):
    """A vision block modulated by the instruction, [B, T, D] and [B, E] -> [B, T, D]."""

    def __init__(self, block: VisionBlock, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.block = block
        self.scale = nn.Linear(llm_dim, vision_dim)
        self.shift = nn.Linear(llm_dim, vision_dim)

    def forward(self, x: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        weight = getattr(self.scale, "weight", None)  # a quantized layer has none, and casts what it gets
        language = language if weight is None else language.to(weight.dtype)
        scale, shift = self.scale(language).unsqueeze(1), self.shift(language).unsqueeze(1)  # [B, 1, D]
        x = self.block.attend(x)
        return self.block.transform((x * (1 + scale) + shift).to(x.dtype))


class FiLMedVisionBackbone(nn.Module):
    """Both towers of `vision_backbone`, whose blocks are wrapped in place (they may carry LoRA adapters already)."""

    def __init__(self, vision_backbone: PrismaticVisionBackbone, llm_dim: int) -> None:
        super().__init__()
        self.vision_backbone = vision_backbone
        self.llm_dim = llm_dim
        for tower in (vision_backbone.featurizer, vision_backbone.fused_featurizer):
            _wrap_blocks(tower, llm_dim)

    @property
    def embed_dim(self) -> int:
        """Width of the features, D1 + D2."""
        return self.vision_backbone.embed_dim

    def forward(self, pixel_values: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        """Patch features [batch, N*P, D1+D2] of pixels [batch, 6N, S, S] under instructions [batch, E]."""
        return self.vision_backbone(pixel_values, language)

    def unused_modules(self) -> list[nn.Module]:
        """Parts that never affect the features; the last block's modulation is among them."""
        return self.vision_backbone.unused_modules()


def _wrap_blocks(tower: VisionTransformer, llm_dim: int) -> None:
    like = tower.pos_embed
    for i, block in enumerate(tower.blocks):
        assert not isinstance(block, FiLMedVisionBlock)
        with torch.device(like.device):
            tower.blocks[i] = FiLMedVisionBlock(block, like.shape[-1], llm_dim)  # type: ignore[arg-type]
