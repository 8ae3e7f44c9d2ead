"""Full (bidirectional) attention, the only kind in this model. Letters: B batch, G heads, T tokens, K head width.

No function here can look causal: none takes an `is_causal` flag, and the only mask hides padding keys. A query on padding sees
the same keys as every other (its result is never used); flash attention gives zeros there.

    sdpa                torch's fused kernels; the default
    eager               step by step, softmax in float32
    flex_attention      torch's flex attention, compiled on a GPU
    flash_attention_2   the flash-attn package (extra [flash]), half precision on a GPU
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch.nn import functional as F

from prismatic.vla.constants import near_names

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def sdpa_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attended values [B, G, T, K] from q, k, v [B, G, T, K]; `mask` bool [B, T] is False on keys to hide, or what `prepare_mask` gives."""
    if mask is not None:
        additive = additive_mask(mask, query.dtype) if mask.dtype == torch.bool else mask
        mask = additive if query.shape[2] == key.shape[2] else additive[:, :, : query.shape[2]]  # all rows are the same
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def prepare_mask(attend: Attention, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What `attend` takes for `mask` bool [B, T] in every layer of a model in `dtype`; `sdpa_attention` need not make its own then."""
    return additive_mask(mask, dtype) if mask is not None and attend is sdpa_attention else mask


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, T, T] for a bool mask [B, T], added to the scores: 0 on keys to see, minus infinity on keys to hide.

    The T rows of a sample share their memory, which begins at a multiple of 8 elements: fused kernels then read it as it lies. With a
    bool mask, of which torch makes a full one in every layer, attention took 14 to 25 % longer in training (benchmarks/README.md).
    """
    num_tokens = mask.shape[1]
    width = (num_tokens // 8 + 1) * 8  # more than T, always: to a compiled block an equal one would be another kind of input
    row = torch.zeros(len(mask), 1, 1, width, dtype=dtype, device=mask.device)[..., :num_tokens]
    return row.masked_fill_(~mask[:, None, None, :], -float("inf")).expand(-1, -1, num_tokens, -1)


def eager_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """As `sdpa_attention`, step by step with the softmax in float32."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # [B, G, T, T]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


def flex_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """As `sdpa_attention`, through torch's flex attention.

    Raises:
        ValueError: a gradient is wanted on a CPU, where torch has none for it.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("attn_implementation 'flex_attention' cannot train on a CPU; use 'sdpa'")
    flex = _flex(compiled=query.device.type != "cpu")
    if mask is None:
        return flex(query, key, value)

    def hide_padding(
        score: torch.Tensor, batch: torch.Tensor, head: torch.Tensor, q_index: torch.Tensor, k_index: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(mask[batch, k_index], score, -float("inf"))

    return flex(query, key, value, score_mod=hide_padding)


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention as function

    # Compiled, scores never leave the chip. Lengths stay dynamic: prompts differ, and torch gives up compiling after eight variants.
    return torch.compile(function) if compiled else function


def flash_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """As `sdpa_attention`, through the flash-attn package; queries on padding give 0.

    Raises:
        ValueError: the package is absent, or the tensors are not half precision on a GPU.
    """
    package = _flash()
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"attn_implementation 'flash_attention_2' needs bfloat16 or float16 on a CUDA device, found {query.dtype} on "
            f"{query.device.type}; use 'sdpa', or --precision bf16 on a GPU"
        )
    if mask is not None:
        return attend_packed(partial(package.flash_attn_varlen_func, causal=False), query, key, value, mask)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [B, T, G, K]
    return package.flash_attn_func(query, key, value, causal=False).transpose(1, 2)


def attend_packed(
    attend: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """As `sdpa_attention`, by a kernel for samples of different lengths that stand one behind the other; queries on padding give 0.

    `attend` takes q, k, v [real tokens, G, K], where each sample begins (int32 [B+1], for queries and for keys) and the longest length
    (for queries and for keys), as flash_attn_varlen_func does.
    """
    batch_size, _, num_tokens, _ = query.shape
    offsets = F.pad(mask.sum(dim=1).cumsum(0), (1, 0)).int()
    where = mask.flatten().nonzero().squeeze(1)
    packed = [part.transpose(1, 2).flatten(0, 1)[where] for part in (query, key, value)]  # 3 x [real tokens, G, K]
    attended = attend(*packed, offsets, offsets, num_tokens, num_tokens)  # T bounds every length, without asking the device
    rows = attended.new_zeros(batch_size * num_tokens, *attended.shape[1:]).index_copy(0, where, attended)  # [B*T, G, K]
    return rows.unflatten(0, (batch_size, num_tokens)).transpose(1, 2)


@cache
def _flash() -> Any:
    try:
        import flash_attn
    except ImportError as error:
        raise ValueError(
            "attn_implementation 'flash_attention_2' needs the package flash-attn, which is not installed here; "
            "pip install \"openvla-oft-robot[flash]\", or use 'sdpa', which is as fast without padding"
        ) from error
    return flash_attn


ATTENTION_BACKENDS: dict[str, Attention] = {
    "sdpa": sdpa_attention,
    "eager": eager_attention,
    "flex_attention": flex_attention,
    "flash_attention_2": flash_attention,
}


PADDING_FORMS = {  # how they hide a batch's padding
    "sdpa": "one additive mask for all layers",
    "eager": "bool mask",
    "flex_attention": "score function",
    "flash_attention_2": "packed samples",
}

SELECTIVE_BACKENDS = (sdpa_attention, eager_attention)  # take fewer queries than keys; the others cannot hide padding then


def get_attention(name: str | None) -> Attention:
    """The backend called `name` (None: sdpa).

    Raises:
        ValueError: no such backend, or its package is not installed.
    """
    backend = ATTENTION_BACKENDS.get(name or "sdpa")
    if backend is None:
        raise ValueError(f"attn_implementation {name!r} is not available; {near_names(str(name), ATTENTION_BACKENDS)}")
    if backend is flash_attention:
        _flash()
    return backend
