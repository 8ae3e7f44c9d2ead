"""LoRA layers with a lean forward and backward pass (Hu et al. 2021, arXiv:2106.09685). Imports PEFT, hence a module of its own.

Letters: D inputs, O outputs of one layer, n layers of the same input, r rank, R rows of the input.

PEFT scales the adapters' output; here the narrow middle is scaled. So the gradient of the wide result is used as it is, and no second
tensor of that size is kept or computed. As the scaling is a power of two for every usual rank, the results are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional as F

from prismatic.policy.inference.fp8 import Fp8FrozenLinear
from prismatic.policy.inference.quantization import QuantizedLinear


class AdaptedLinear(Linear):
    """W x + B (scaling * A x), [..., D] -> [..., O]; W may be quantized."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        narrow = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
        return self.base_layer(x) + self.lora_B[name](narrow)

    @property
    def kind(self) -> tuple[int, float]:
        """Rank and scaling, which layers must have in common to be computed as one."""
        name = self.active_adapters[0]
        return self.r[name], float(self.scaling[name])

    @property
    def is_stackable(self) -> bool:
        """Whether `StackedAdaptedLinear` may compute it: no dropout, which each layer draws for itself; a plain or fp8 frozen weight."""
        base, name = self.base_layer, self.active_adapters[0]
        is_plain = type(base) is nn.Linear and not any(value.requires_grad for value in base.parameters())
        is_fp8 = isinstance(base, QuantizedLinear) and isinstance(base.layer, Fp8FrozenLinear)
        return (is_plain or is_fp8) and isinstance(self.lora_dropout[name], nn.Identity)


class StackedAdaptedLinear(nn.Module):
    """Adapted layers of the same input as one, [..., D] -> [..., n*O], or the sum of different O; `base` holds their stacked weights."""

    def __init__(self, layers: Sequence[AdaptedLinear], base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self._layers: tuple[Any, ...] = tuple(layers)  # a tuple: the parameters belong to the layers themselves

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name, count = self._layers[0].active_adapters[0], len(self._layers)
        down = torch.cat([layer.lora_A[name].weight for layer in self._layers])  # [n*r, D]
        ups = [layer.lora_B[name].weight for layer in self._layers]  # n x [O, r]
        narrow = F.linear(x, down).flatten(0, -2).unflatten(-1, (count, -1)) * self._layers[0].scaling[name]  # [R, n, r]
        if len({len(up) for up in ups}) > 1:  # keys and values that several query heads share are narrower
            apart = [F.linear(part, up) for part, up in zip(narrow.unbind(1), ups, strict=True)]
            return self.base(x) + torch.cat(apart, dim=-1).unflatten(0, x.shape[:-1])
        wide = torch.bmm(narrow.transpose(0, 1), torch.stack(ups).transpose(1, 2))  # [n, R, O]
        return self.base(x) + wide.transpose(0, 1).reshape(*x.shape[:-1], -1)
