"""What is really in use where a policy is computed, in plain values: for /info, the status page and benchmarks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.inference.quantization import QuantizedLinear


def describe_parts(parts: PolicyParts) -> dict[str, Any]:
    """Device, dtype, attention, quantized layers by kind, and memory [bytes] where the device tells it."""
    weight = next(parameter for parameter in parts.model.parameters() if parameter.is_floating_point())
    kinds = Counter(type(module.layer).__name__ for module in parts.model.modules() if isinstance(module, QuantizedLinear))
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(weight.device) if weight.is_cuda else str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "attention": parts.config._attn_implementation or "sdpa",
        "quantized_layers": dict(kinds),
    }
    if weight.is_cuda:
        free, total = torch.cuda.mem_get_info(weight.device)
        facts["memory"] = {"used": total - free, "total": total, "of_this_process": torch.cuda.memory_reserved(weight.device)}
    return facts
