"""Full (bidirectional) attention, the only kind in this model. Letters: B batch, G heads, T tokens, K head width.

No function here can look causal: none takes an `is_causal` flag, and the only mask hides padding keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from prismatic.vla.constants import near_names

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def sdpa_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attended values [B, G, T, K] from q, k, v [B, G, T, K]; `mask` bool [B, T] is False on keys to hide."""
    visible = None if mask is None else mask[:, None, None, :].expand(-1, -1, query.shape[2], -1)  # [B, 1, T, T]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


def eager_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """As `sdpa_attention`, step by step with the softmax in float32."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # [B, G, T, T]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


ATTENTION_BACKENDS: dict[str, Attention] = {"sdpa": sdpa_attention, "eager": eager_attention}


def get_attention(name: str | None) -> Attention:
    """The backend called `name` (None: sdpa).

    Raises:
        ValueError: no such backend.
    """
    backend = ATTENTION_BACKENDS.get(name or "sdpa")
    if backend is None:
        raise ValueError(f"attn_implementation {name!r} is not available; {near_names(str(name), ATTENTION_BACKENDS)}")
    return backend
