"""A quick test, at every load of a checkpoint, that attention looks both ways and ignores padding.

The most common cause of a ruined success rate is a library update that silently makes attention causal again. Letters: B batch,
T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import nn

from prismatic.models.language import LlamaModel, rotary_angles
from prismatic.models.vla import OpenVLAForActionPrediction

_NUM_TOKENS = 6
_NUM_PADDING = 2
# Alone or in a padded batch, other kernels round differently; a leak of padding or a lost token is far above this share of the result.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


def check_bidirectional(vla: OpenVLAForActionPrediction) -> None:
    """Returns if the first and the last layer of the language model attend in both directions and to real tokens only.

    Raises:
        ValueError: they do not; the message names the symptom, the attention backend and the library versions.
    """
    model = vla.language_model.model
    with _evaluation(model):
        for number in sorted({0, len(model.layers) - 1}):
            problem = _symptom(model, number)
            if problem is not None:
                raise ValueError(
                    f"self-test of layer {number}: {problem}. The policy would act wrongly without any other sign. Attention backend "
                    f"{vla.config._attn_implementation or 'sdpa'!r}, torch {torch.__version__}, transformers {transformers.__version__}; "
                    "use attn_implementation='sdpa' and the versions in constraints.txt"
                )


@torch.no_grad()
def _symptom(model: LlamaModel, number: int) -> str | None:
    """What is wrong with one layer, or None."""
    weight = model.norm.weight
    width, device = weight.shape[0], weight.device
    dtype = weight.dtype
    generator = torch.Generator().manual_seed(0)  # leaves the global random state alone
    tokens = torch.randn(2, _NUM_TOKENS + _NUM_PADDING, width, generator=generator).to(device, dtype)
    real = torch.ones(2, _NUM_TOKENS + _NUM_PADDING, dtype=torch.bool, device=device)
    real[0, _NUM_TOKENS:] = False
    alone = _run(model, number, tokens[:1, :_NUM_TOKENS], None)

    other_end = tokens[:1, :_NUM_TOKENS].clone()
    other_end[:, -1] += 1
    if torch.equal(_run(model, number, other_end, None)[:, 0], alone[:, 0]):
        return "causal attention: the first token does not see the last one"
    padded = _run(model, number, tokens, real)
    other_padding = tokens.clone()
    other_padding[0, _NUM_TOKENS:] += 1
    if not torch.equal(_run(model, number, other_padding, real)[0, :_NUM_TOKENS], padded[0, :_NUM_TOKENS]):
        return "padding leaks: what stands on padding changes real tokens"
    other_end = tokens.clone()
    other_end[0, _NUM_TOKENS - 1] += 1
    if torch.equal(_run(model, number, other_end, real)[0, 0], padded[0, 0]):
        return "causal attention in a padded batch: the first token does not see the last real one"
    error = (padded[0, :_NUM_TOKENS] - alone[0]).abs().max() / alone.abs().max()
    if not error <= _TOLERANCE.get(dtype, 0.1):
        return f"a sample differs by {error.item():.0%} when it stands in a padded batch"
    return None


def _run(model: LlamaModel, number: int, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What the layer's attention adds to tokens [B, T, D], float32."""
    layer = model.layers[number]
    rotation = rotary_angles(tokens.shape[1], model.head_dim, model.rope_theta, like=tokens)
    return layer.self_attn(layer.input_layernorm(tokens), rotation, mask).float()  # type: ignore[operator]


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Dropout off within the block; every submodule's mode as before behind it."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
