"""What is really in use where a policy is computed or trained, in plain values: for /info, /metrics, run folders and benchmarks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from prismatic.models.attention import PADDING_FORMS
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.inference.fp8_layers import FP8_PARTS, LANGUAGE, MULTIPLE, PROJECTOR, VISION, fits
from prismatic.policy.inference.quantization import QuantizedLinear, is_fp8

_FILM = ("scale", "shift")


def describe_parts(parts: PolicyParts) -> dict[str, Any]:
    """Device, dtype, attention, padding, quantized layers by kind, and memory [bytes] where the device tells it."""
    weight = next(parameter for parameter in parts.model.parameters() if parameter.is_floating_point())
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(weight.device) if weight.is_cuda else str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        **describe_model(parts.model.bare_vla),
    }
    if weight.is_cuda:
        free, total = torch.cuda.mem_get_info(weight.device)
        facts["memory"] = {"used": total - free, "total": total, "of_this_process": torch.cuda.memory_reserved(weight.device)}
    return facts


def describe_model(vla: OpenVLAForActionPrediction) -> dict[str, Any]:
    """Attention, how it hides a batch's padding, quantized layers by kind, and of a model with float8 layers which those are."""
    attention = vla.config._attn_implementation or "sdpa"
    kinds = Counter(type(module.layer).__name__ for module in vla.modules() if isinstance(module, QuantizedLinear))
    fp8 = describe_fp8(vla)
    return {"attention": attention, "padding": PADDING_FORMS[attention], "quantized_layers": dict(kinds), **({"fp8": fp8} if fp8 else {})}


def describe_fp8(vla: OpenVLAForActionPrediction) -> dict[str, dict[str, int]]:
    """Part ("film" too) -> how many of its linear layers are float8 ("fp8"), and how many are not, by reason; {} if none is at all."""
    found: dict[str, Counter[str]] = {}
    unused = {module for part in vla.vision_backbone.unused_modules() for module in part.modules()}
    for part, root in ((LANGUAGE, vla.language_model.model.layers), (VISION, vla.bare_vision_backbone), (PROJECTOR, vla.projector)):
        for path, layer in root.named_modules():
            if ".lora_" in path or not (is_fp8(layer) or isinstance(layer, nn.Linear)):
                continue
            name = path.removesuffix(".base_layer").removesuffix(".base").rpartition(".")[2]  # of adapters in training, or of a bank's
            where = "film" if name in _FILM else part
            state = "fp8" if is_fp8(layer) else "never computed" if layer in unused else _why_not_fp8(where, name, layer)
            found.setdefault(where, Counter())[state] += 1
    return {part: dict(counts) for part, counts in found.items()} if any("fp8" in counts for counts in found.values()) else {}


def _why_not_fp8(part: str, name: str, layer: nn.Module) -> str:
    """Why a layer that is computed stayed as it was."""
    if part == "film":
        return "trained"
    if part == LANGUAGE:
        return "few tokens are computed, or not chosen"
    assert isinstance(layer, nn.Linear)
    assert name in FP8_PARTS[part]
    return "not chosen" if fits(layer) else f"sizes are no multiples of {MULTIPLE}"
