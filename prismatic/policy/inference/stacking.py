"""Projections of the same input, computed as one product: query, key and value; gate and up.

The weights are stacked once and every projection's own weight becomes a view of its part: the state dict keeps its names, and no number
exists twice. The outputs are those of the single products, up to the order in which a kernel sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prismatic.models.language import DecoderLayer, Stacked
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.inference.fp8 import Fp8FrozenLinear, Fp8Linear
from prismatic.policy.inference.quantization import QuantizedLinear


def stack_projections(vla: OpenVLAForActionPrediction) -> None:
    """Stacks where the layers' kind allows it: plain or fp8 layers, adapted ones without dropout. Others stay apart.

    Call it once the model is on its device: moving it afterwards would tear the views from the stack.
    """
    for layer in vla.language_model.model.layers:
        assert isinstance(layer, DecoderLayer)
        attention, mlp = layer.self_attn, layer.mlp
        _stack(attention.stacked, (attention.q_proj, attention.k_proj, attention.v_proj))
        _stack(mlp.stacked, (mlp.gate_proj, mlp.up_proj))
        if layer.input_layernorm.weight.is_cuda:
            torch.cuda.empty_cache()  # the parts' old memory is too small for the next stack, and would add up


def _stack(stacked: Stacked, projections: Sequence[nn.Module]) -> None:
    if stacked.layer:
        return
    layer = _joined(projections)
    if layer is None:
        return
    stacked.layer, stacked.widths = (layer,), tuple(int(projection.out_features) for projection in projections)  # type: ignore[arg-type]


def _joined(projections: Sequence[nn.Module]) -> nn.Module | None:
    """One layer that computes what all of `projections` do; None where their kind does not allow it."""
    if all(type(projection) is nn.Linear for projection in projections):
        trained = [projection for projection in projections if any(value.requires_grad for value in projection.parameters())]
        return None if trained else _share_rows(projections, nn.Linear(1, 1, bias=False))
    if all(getattr(projection, "is_stackable", False) for projection in projections) and len({part.kind for part in projections}) == 1:
        from prismatic.policy.lora.adapted_linear import StackedAdaptedLinear

        bases: list[Any] = [projection.base_layer for projection in projections]
        if isinstance(bases[0], QuantizedLinear):
            base: nn.Module = QuantizedLinear(Fp8FrozenLinear.stacked([part.layer for part in bases]), bases[0].compute_dtype)
        else:
            base = _share_rows(bases, nn.Linear(1, 1, bias=False))
        return StackedAdaptedLinear(projections, base)  # type: ignore[arg-type]
    quantized = [part for part in projections if isinstance(part, QuantizedLinear)]
    inner = [part.layer for part in quantized if isinstance(part.layer, Fp8Linear)]
    if len(inner) < len(projections):
        return None
    return QuantizedLinear(_share_rows(inner, Fp8Linear.empty(inner[0].weight.device)), quantized[0].compute_dtype)


def _share_rows(parts: Sequence[nn.Module], whole: nn.Module) -> nn.Module:
    """`whole` with the weights (their scales and biases) of `parts` one below the other, which become views of it."""
    assert len({getattr(part, "bias", None) is None for part in parts}) == 1, "projections of one input have biases together or not at all"
    for name in ("weight", "scale", "bias"):
        if getattr(parts[0], name, None) is None:
            continue
        rows = torch.cat([getattr(part, name).data for part in parts])
        setattr(whole, name, nn.Parameter(rows, requires_grad=False))
        for part, view in zip(parts, rows.split([len(getattr(part, name)) for part in parts]), strict=True):
            setattr(part, name, nn.Parameter(view, requires_grad=False))
    return whole
