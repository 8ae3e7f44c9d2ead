"""Images -> patch features: DINOv2 and SigLIP Vision Transformers side by side.

Letters: B batch, N images, S image side, P patches an image, D tower width, T = prefix tokens + P.

    pixels [B, 6N, S, S] --first 3 channels of each image--> featurizer (DINOv2)       [B*N, P, D1] \
                         --last 3 channels of each image---> fused_featurizer (SigLIP) [B*N, P, D2] -> [B, N*P, D1+D2]

All images of a batch go through a tower in one call. Features come from the second-to-last block without the final norm:
the last block, `norm` and `attn_pool` exist because published checkpoints hold them, and are never computed.
Parameter names are those of timm 0.9 (Dosovitskiy et al. 2021; Oquab et al. 2023; Zhai et al. 2023), with LayerScale's
parameter named `scale_factor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.models.attention import get_attention
from prismatic.models.configuration import OpenVLAConfig, TowerConfig

_NORM_EPSILON = 1e-6


class PatchEmbed(nn.Module):
    """Pixels [B, 3, S, S] -> patches [B, P, D]."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixels.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)
        return patches.contiguous()  # sums keep the order in memory: without this, every norm of the tower would read across it


class VisionAttention(nn.Module):
    """Multi-head self-attention [B, T, D] -> [B, T, D]."""

    def __init__(self, config: TowerConfig, attn_implementation: str | None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)
        self._attend = get_attention(attn_implementation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, G, K]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x [B, G, T, K]
        return self.proj(self._attend(query, key, value, None).transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Two layers around an exact (erf) GELU, [B, T, D] -> [B, T, D]."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned gain per feature. Not called `gamma`: transformers rewrites names that hold that word."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale_factor


class VisionBlock(nn.Module):
    """Pre-norm Transformer block [B, T, D] -> [B, T, D]."""

    def __init__(self, config: TowerConfig, attn_implementation: str | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=_NORM_EPSILON)
        self.attn = VisionAttention(config, attn_implementation)
        self.ls1 = LayerScale(config.embed_dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=_NORM_EPSILON)
        self.mlp = VisionMLP(config.embed_dim, config.mlp_hidden_dim)
        self.ls2 = LayerScale(config.embed_dim) if config.layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.transform(self.attend(x))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """The first half: tokens exchange what they hold."""
        return x + self.ls1(self.attn(self.norm1(x)))

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """The second half: each token on its own."""
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """Holds SigLIP's pooling weights, which OpenVLA never computes with."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPSILON)
        self.mlp = VisionMLP(dim, config.mlp_hidden_dim)


class VisionTransformer(nn.Module):
    """One tower."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]  # set by transformers' gradient_checkpointing_enable

    def __init__(self, config: TowerConfig, attn_implementation: str | None = None) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_prefix_tokens = config.num_prefix_tokens
        self.gradient_checkpointing = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_register_tokens, dim)) if config.num_register_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches, dim))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config, attn_implementation) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPSILON)
        if config.attn_pool:
            self.attn_pool = AttentionPool(config)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens [B, T, D] that enter the first block; only patches carry a position."""
        patches = self.patch_embed(pixels) + self.pos_embed
        prefix = [token.expand(len(pixels), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        return torch.cat([*(token.to(patches.dtype) for token in prefix), patches], dim=1) if prefix else patches

    def forward(self, pixels: torch.Tensor, language: torch.Tensor | None = None) -> torch.Tensor:
        """Patch features [B, P, D] of normalised pixels [B, 3, S, S]; blocks wrapped by FiLM take `language` [B, E]."""
        x = self.embed(pixels)
        condition = () if language is None else (language,)
        for block in self.blocks[:-1]:
            checkpointed = self.gradient_checkpointing and self.training
            x = self._gradient_checkpointing_func(block, x, *condition) if checkpointed else block(x, *condition)
        return x[:, self.num_prefix_tokens :]

    def unused_modules(self) -> list[nn.Module]:
        """Parts that exist for the checkpoint's sake and never affect the features."""
        return [self.blocks[-1], self.norm, *([self.attn_pool] if hasattr(self, "attn_pool") else [])]


@contextmanager
def _second_stream(device: torch.device | None) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Gives a context whose GPU work runs beside the block's; what follows waits for both. None, or a CPU: one after the other.

    The streams come together again after an error, too: a recording that is given up (something must be compiled first) may not end with
    a stream that has left it.
    """
    if device is None or device.type != "cuda":
        yield nullcontext
        return
    first, second = torch.cuda.current_stream(device), _side_stream(device)
    second.wait_stream(first)
    try:
        yield lambda: torch.cuda.stream(second)
    finally:
        first.wait_stream(second)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class PrismaticVisionBackbone(nn.Module):
    """Both towers."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        dino, siglip = config.towers
        self.image_size = config.image_size
        self.embed_dim = dino.embed_dim + siglip.embed_dim
        self.featurizer = VisionTransformer(dino, config._attn_implementation)
        self.fused_featurizer = VisionTransformer(siglip, config._attn_implementation)
        self.side_by_side = False  # on a GPU, both towers at the same time: alone, neither fills it

    def forward(self, pixel_values: torch.Tensor, language: torch.Tensor | None = None) -> torch.Tensor:
        """Patch features [B, N*P, D1+D2], image after image, of pixels [B, 6N, S, S]; `language` [B, E] for FiLM only.

        Raises:
            ValueError: another shape.
        """
        size = self.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] % 6 or pixel_values.shape[2:] != (size, size):
            raise ValueError(f"pixel_values must be [batch, 6 x images, {size}, {size}], found {list(pixel_values.shape)}")
        batch_size = len(pixel_values)
        images = pixel_values.reshape(-1, 2, 3, size, size)  # [B*N, 2, 3, S, S]
        if language is not None:
            language = language.repeat_interleave(len(images) // batch_size, dim=0)  # [B*N, E]
        with _second_stream(images.device if self.side_by_side else None) as on_second:
            with on_second():
                dino = self.featurizer(images[:, 0], language)  # [B*N, P, D1]
            siglip = self.fused_featurizer(images[:, 1], language)  # [B*N, P, D2]
        return torch.cat([dino, siglip], dim=-1).view(batch_size, -1, self.embed_dim)

    def unused_modules(self) -> list[nn.Module]:
        """Parts that never affect the features."""
        return [*self.featurizer.unused_modules(), *self.fused_featurizer.unused_modules()]
