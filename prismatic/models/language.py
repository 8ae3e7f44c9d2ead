"""One decoder whose attention sees in both directions, in Llama-2's or Qwen2's form. Letters: B batch, T tokens, D width, G heads,
K head width.

    Llama-2  as many key/value heads as query heads, no biases, a token head of its own       Touvron et al. 2023 (arXiv:2307.09288)
    Qwen2    query heads share key/value heads, biases on q, k, v, the small ones tie the     Qwen team 2024 (arXiv:2407.10671)
             token head to the embeddings

`DecoderSizes` says which. Written out here rather than taken from transformers, whose models are causal and change between versions;
parameter names are the same. Rotary embedding: Su et al. 2021 (arXiv:2104.09864), rotating halves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.models.attention import SELECTIVE_BACKENDS, get_attention, prepare_mask
from prismatic.models.decoder_sizes import DecoderSizes

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, each [T, K]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotary_angles(num_tokens: int, head_dim: int, theta: float, like: torch.Tensor) -> Rotation:
    """Cosine and sine [T, K] of position * theta^(-2i/K), computed in float32, on the device and in the dtype of `like`."""
    # Computed anew in every forward: a buffer would be lost when a checkpoint is loaded through the meta device.
    exponents = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(num_tokens, device=like.device, dtype=torch.float32), theta**-exponents)  # [T, K/2]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Queries or keys [B, G, T, K] turned by their positions."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosine.to(x.dtype) + torch.cat([-second, first], dim=-1) * sine.to(x.dtype)


def take_rows(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """[B, R, D]: the tokens of x [B, T, D] at positions `rows` int64 [B, R]; all of them without `rows`."""
    return x if rows is None else x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Stacked:
    """Projections of one input as one product, once `prismatic.policy.inference.stacking` has filled it in; not in the state dict."""

    def __init__(self) -> None:
        self.layer: tuple[nn.Module, ...] = ()  # a tuple hides the module from the state dict: its weight is that of the projections
        self.widths: tuple[int, ...] = ()

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One output per projection, of `widths`; empty if nothing is stacked."""
        return self.layer[0](x).split(self.widths, dim=-1) if self.layer else ()


class DecoderAttention(nn.Module):
    """Bidirectional multi-head self-attention [B, T, D] -> [B, T, D]; several query heads may share a key/value head."""

    def __init__(self, sizes: DecoderSizes, attn_implementation: str | None) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        self.num_sharing = sizes.num_heads // sizes.num_key_value_heads  # query heads per key/value head
        width, shared = sizes.num_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.hidden_size, width, bias=sizes.qkv_bias)
        self.k_proj = nn.Linear(sizes.hidden_size, shared, bias=sizes.qkv_bias)
        self.v_proj = nn.Linear(sizes.hidden_size, shared, bias=sizes.qkv_bias)
        self.o_proj = nn.Linear(width, sizes.hidden_size, bias=sizes.output_bias)
        self.stacked = Stacked()
        self._attend = get_attention(attn_implementation)
        self.selects_rows = self._attend in SELECTIVE_BACKENDS

    def forward(self, x: torch.Tensor, rotation: Rotation, mask: torch.Tensor | None, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Every token attends; with `rows` int64 [B, R] only those do, and [B, R, D] comes out."""
        projected = (() if rows is not None else self.stacked(x)) or (self.q_proj(take_rows(x, rows)), self.k_proj(x), self.v_proj(x))
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in projected)  # 3 x [B, G, T, K]
        query_rotation = rotation if rows is None else tuple(part[rows].unsqueeze(1) for part in rotation)
        key, value = (self._for_every_query_head(part) for part in (rotate(key, rotation), value))
        attended = self._attend(rotate(query, query_rotation), key, value, mask)
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def _for_every_query_head(self, part: torch.Tensor) -> torch.Tensor:
        """Keys or values [B, G, T, K] from those of the shared heads: no backend then needs to know of sharing."""
        return part if self.num_sharing == 1 else part.repeat_interleave(self.num_sharing, dim=1)


class DecoderMLP(nn.Module):
    """SwiGLU, [B, T, D] -> [B, T, D] (Shazeer 2020)."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden_size, sizes.mlp_dim, bias=sizes.mlp_bias)
        self.up_proj = nn.Linear(sizes.hidden_size, sizes.mlp_dim, bias=sizes.mlp_bias)
        self.down_proj = nn.Linear(sizes.mlp_dim, sizes.hidden_size, bias=sizes.mlp_bias)
        self.stacked = Stacked()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.stacked(x) or (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm Transformer block [B, T, D] -> [B, T, D]."""

    def __init__(self, sizes: DecoderSizes, attn_implementation: str | None) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(sizes, attn_implementation)
        self.mlp = DecoderMLP(sizes)
        self.input_layernorm = RMSNorm(sizes.hidden_size, sizes.norm_eps)
        self.post_attention_layernorm = RMSNorm(sizes.hidden_size, sizes.norm_eps)

    def forward(self, x: torch.Tensor, rotation: Rotation, mask: torch.Tensor | None, rows: torch.Tensor | None = None) -> torch.Tensor:
        """With `rows` int64 [B, R] only their outputs [B, R, D]."""
        x = take_rows(x, rows) + self.self_attn(self.input_layernorm(x), rotation, mask, rows)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers and final norm; named `model` inside the language model, as in the checkpoints of both forms."""

    _gradient_checkpointing_func: Callable[..., torch.Tensor]  # set by transformers' gradient_checkpointing_enable

    def __init__(self, sizes: DecoderSizes, attn_implementation: str | None) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = sizes.head_dim, sizes.rope_theta
        self.gradient_checkpointing = False
        self._attend = get_attention(attn_implementation)
        self.embed_tokens: nn.Module = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(sizes, attn_implementation) for _ in range(sizes.num_layers))
        self.norm = RMSNorm(sizes.hidden_size, sizes.norm_eps)

    def forward(
        self, embeddings: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor | None = None, rotation: Rotation | None = None
    ) -> torch.Tensor:
        """Hidden states [B, T, D] after the final norm; `mask` bool [B, T] is False on padding, None when there is none.

        `rows` int64 [B, R]: the positions whose states [B, R, D] are wanted; the last layer computes no others. `rotation` is what
        `self.rotation` gives, for who calls more than once.
        """
        x = embeddings
        rotation = rotation or self.rotation(x)
        mask = prepare_mask(self._attend, mask, x.dtype)
        last = self.layers[-1]
        selected_last = rows is not None and last.self_attn.selects_rows  # type: ignore[union-attr]
        for layer in self.layers[:-1] if selected_last else self.layers:
            checkpointed = self.gradient_checkpointing and self.training
            x = self._gradient_checkpointing_func(layer, x, rotation, mask) if checkpointed else layer(x, rotation, mask)
        return self.norm(last(x, rotation, mask, rows) if selected_last else take_rows(x, rows))

    def rotation(self, embeddings: torch.Tensor) -> Rotation:
        """How queries and keys of a sequence [B, T, D] are turned."""
        return rotary_angles(embeddings.shape[1], self.head_dim, self.rope_theta, like=embeddings)


class TiedHead(nn.Module):
    """Token logits [..., V] of states [..., D] by the embeddings' own weight, which so exists once, in memory and in the state dict."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self._model = (model,)  # a tuple hides the module from the state dict

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self._model[0].embed_tokens.weight
        assert isinstance(weight, torch.Tensor)
        return F.linear(states, weight)


class BidirectionalDecoder(nn.Module):
    """`model` plus `lm_head`, which is computed only where token logits are asked for."""

    def __init__(self, sizes: DecoderSizes, attn_implementation: str | None = None) -> None:
        super().__init__()
        self.model = Decoder(sizes, attn_implementation)
        self.is_tied = sizes.tied_embeddings
        self.lm_head: nn.Module = TiedHead(self.model) if self.is_tied else nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)

    def forward(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, T, D] of embeddings [B, T, D]; every token sees every token that `mask` [B, T] keeps.

        With `rows` int64 [B, R] only the states [B, R, D] of those positions.
        """
        return self.model(embeddings, mask, rows, rotation)
