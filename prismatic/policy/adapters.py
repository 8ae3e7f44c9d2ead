"""LoRA weights folded into the weights that they adapt.

Merged weights are computed in float32 and rounded once, tensor by tensor; no second model is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_ADAPTER = "default"
_PEFT_PREFIX = "base_model.model."


def merged_state_dict(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict of `model` without its PEFT wrapper, adapters merged, floating-point weights as `dtype` on the CPU."""
    merged = {}
    layers = dict(_adapted_layers(model))
    for key, value in model.state_dict().items():
        name = key.removeprefix(_PEFT_PREFIX)
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            if leaf == "weight":
                value = value.float() + layers[owner].get_delta_weight(_ADAPTER).float()
        merged[f"{owner}.{leaf}"] = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
    return merged


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is wrapped by PEFT."""
    return hasattr(model, "peft_config")


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(getattr(module, "lora_A", None), Mapping | nn.ModuleDict):
            yield name.removeprefix(_PEFT_PREFIX), module
