"""AdamW and the learning-rate rule of the published recipe: linear warm-up from 10 %, then one tenfold decay.

Moments in 8 bits: Dettmers et al. 2022 (arXiv:2110.02861), block-wise quantization; small tensors keep 32 bits.

The published code resets the decayed rate whenever warm-up is on; here the two factors multiply.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def learning_rate_factor(step: int, lr_warmup_steps: int, num_steps_before_decay: int) -> float:
    """What the base learning rate is multiplied by at optimizer step `step` (counted from 0)."""
    warmup = 1.0 if lr_warmup_steps == 0 else 0.1 + 0.9 * min((step + 1) / lr_warmup_steps, 1.0)
    decay = 0.1 if step >= num_steps_before_decay else 1.0
    return warmup * decay


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float, kind: str = "adamw"
) -> torch.optim.Optimizer:
    """AdamW over the parameters that require a gradient, fused where the device offers it; "adamw_8bit" keeps its moments in 8 bits.

    Raises:
        ValueError: the package for 8 bits is not installed.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if kind == "adamw":
        return torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            '--optimizer adamw_8bit needs the package bitsandbytes, which is not installed here; pip install "openvla-oft-robot[quant]"'
        ) from error
    return AdamW8bit(trainable, lr=learning_rate, weight_decay=weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
