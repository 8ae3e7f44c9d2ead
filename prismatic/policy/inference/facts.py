"""What is really in use where a policy is computed or trained, in plain values: for /info, /metrics, run folders and benchmarks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from prismatic.models.attention import PADDING_FORMS
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.inference.quantization import QuantizedLinear


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
    """Attention, how it hides a batch's padding, and quantized layers by kind."""
    attention = vla.config._attn_implementation or "sdpa"
    kinds = Counter(type(module.layer).__name__ for module in vla.modules() if isinstance(module, QuantizedLinear))
    return {"attention": attention, "padding": PADDING_FORMS[attention], "quantized_layers": dict(kinds)}
