"""A quick test, whenever a policy is loaded to act, that attention looks both ways and ignores padding.

The most common cause of a ruined success rate is a library update that silently makes attention causal again. Letters: B batch,
T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import nn

from prismatic.models.language import Decoder, rotary_angles
from prismatic.models.vla import OpenVLAForActionPrediction

_NUM_TOKENS = 6
_NUM_PADDING = 2
_MAX_DEPTH = 4  # of a model whose layers are all tested
# Alone or in a padded batch, other kernels round differently; a leak of padding or a lost token is far above this share of the
# result (half of it, on random weights). Float32 may run as TF32 on a GPU.
# The coarsest dtype of a layer's parameters counts; integers are the weights of bitsandbytes.
_TOLERANCE = {torch.float32: 0.005, torch.float16: 0.02, torch.bfloat16: 0.1}
_COARSEST = 0.1


def check_bidirectional(vla: OpenVLAForActionPrediction) -> None:
    """Returns if the language model attends in both directions and to real tokens only (a deep one's first and last layer are tried).

    Raises:
        ValueError: they do not; the message names the symptom, the attention backend and the library versions.
    """
    model = vla.language_model.model
    with _evaluation(model):
        depth = len(model.layers)
        for number in range(depth) if depth <= _MAX_DEPTH else (0, depth - 1):
            problem = _symptom(model, number)
            if problem is not None:
                raise ValueError(
                    f"self-test of layer {number}: {problem}. The policy would act wrongly without any other sign. Attention backend "
                    f"{vla.config._attn_implementation or 'sdpa'!r}, torch {torch.__version__}, transformers {transformers.__version__}; "
                    "use attn_implementation='sdpa' and the versions in constraints.txt"
                )


@torch.no_grad()
def _symptom(model: Decoder, number: int) -> str | None:
    """What is wrong with one layer, or None."""
    weight = model.norm.weight
    generator = torch.Generator().manual_seed(0)  # leaves the global random state alone
    tokens = torch.randn(2, _NUM_TOKENS + _NUM_PADDING, len(weight), generator=generator).to(weight.device, weight.dtype)
    real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=weight.device)
    real[0, _NUM_TOKENS:] = False
    short, last = tokens[:1, :_NUM_TOKENS], _NUM_TOKENS - 1
    alone, padded = _run(model, number, short, None), _run(model, number, tokens, real)
    scale, tolerance = alone.abs().max(), _tolerance(model.layers[number])

    if not (alone.isfinite().all() and padded[real].isfinite().all()):
        return "it gives NaN or infinity, because weights are damaged or the dtype is too narrow"
    # Tokens are negated rather than replaced: bitsandbytes treats columns with outliers apart, and their magnitude stays.
    if torch.equal(_run(model, number, _negate(short, last), None)[:, 0], alone[:, 0]):
        return "causal attention: the first token does not see the last one"
    if torch.equal(_run(model, number, _negate(tokens, last), real)[0, 0], padded[0, 0]):
        return "causal attention in a padded batch: the first token does not see the last real one"
    other_padding = _run(model, number, _negate(tokens, slice(_NUM_TOKENS, None)), real)
    leak = (other_padding - padded)[0, :_NUM_TOKENS].abs().max() / scale
    if leak > tolerance:
        return f"padding leaks: what stands on padding changes real tokens by {leak.item():.2g} of the largest value"
    error = (padded[0, :_NUM_TOKENS] - alone[0]).abs().max() / scale
    if error > tolerance:
        return f"a sample differs by {error.item():.2g} of the largest value when it is in a padded batch"
    return None


def _tolerance(layer: nn.Module) -> float:
    """Share of the largest value by which a layer's result may differ between kernels."""
    return max(_TOLERANCE.get(parameter.dtype, _COARSEST) for parameter in layer.parameters())


def _negate(tokens: torch.Tensor, where: int | slice) -> torch.Tensor:
    """A copy of tokens [B, T, D] with the first sample's tokens at `where` negated."""
    changed = tokens.clone()
    changed[0, where] *= -1
    return changed


def _run(model: Decoder, number: int, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
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
