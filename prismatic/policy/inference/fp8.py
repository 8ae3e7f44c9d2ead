"""Linear layers in float8 (e4m3), weights and activations, for GPUs whose matrix units multiply it (Ada, Hopper and later).

    y = (x / s) (W / t)^T * s * t      s [rows of x, 1] = max |x| / 448,   t [rows of W] = max |W| / 448

One scale per row of the weight, one per token of the activation, found anew in every call. The product itself is unscaled and its result
bfloat16: so the fastest kernels apply, and a compiler joins the scaling with what follows.

A frozen layer under adapters also hands gradients on, dL/dx = dL/dy W. Its matrix units want the summed dimension to be contiguous in
both factors, so `Fp8FrozenLinear` holds the weight twice: rows scaled for y, and transposed with columns scaled for dL/dx; together as
many bytes as bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # of e4m3
_TINY = 1e-12  # a row of zeros stays one


class Fp8Linear(nn.Module):
    """[..., K] -> [..., N]. Weight and scales hold bits, which `.to(dtype)` leaves as they are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """From a weight [N, K] of any floating-point dtype and perhaps a bias [N], which stays as it is."""
        super().__init__()
        self.weight, self.scale = _bits(weight)
        one = torch.ones(1, device=weight.device)
        self.one = nn.Parameter(one.view(torch.int32), requires_grad=False)  # kept: making it would be a launch a product
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def empty(cls, device: torch.device) -> Fp8Linear:
        """One whose weight and scales are still to be set."""
        return cls(torch.zeros(1, 1, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = _scaled_product(x.flatten(0, -2), self.weight, self.scale, self.one)
        return (product if self.bias is None else product + self.bias).to(x.dtype).unflatten(0, x.shape[:-1])


class Fp8FrozenLinear(nn.Module):
    """[..., K] -> [..., N] with a gradient for its input. Weights and scales hold bits, as those of `Fp8Linear`."""

    def __init__(self, weight: torch.Tensor, largest_of_columns: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """From a weight [N, K] and perhaps a bias [N]; `largest_of_columns` [K] is max |W| over these rows, and over those of layers to
        be stacked with it."""
        super().__init__()
        self.weight, self.scale = _bits(weight)
        self.transposed, self.transposed_scale = _bits(weight.t(), largest_of_columns)  # [K, N], [K]
        self.one = nn.Parameter(torch.ones(1, device=weight.device).view(torch.int32), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def stacked(cls, parts: Sequence[Fp8FrozenLinear]) -> Fp8FrozenLinear:
        """One layer for `parts` of the same input and the same `largest_of_columns`; their numbers become views of its own."""
        whole = cls.__new__(cls)
        nn.Module.__init__(whole)
        sizes = [len(part.weight) for part in parts]
        whole.bias = None
        for name, dim in (("weight", 0), ("scale", 0), ("transposed", 1), *((("bias", 0),) if parts[0].bias is not None else ())):
            joined = torch.cat([getattr(part, name).data for part in parts], dim=dim)
            setattr(whole, name, nn.Parameter(joined, requires_grad=False))
            for part, view in zip(parts, joined.split(sizes, dim=dim), strict=True):
                setattr(part, name, nn.Parameter(view, requires_grad=False))
        whole.transposed_scale, whole.one = parts[0].transposed_scale, parts[0].one
        return whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = frozen_product(x.flatten(0, -2), self.weight, self.scale, self.transposed, self.transposed_scale, self.one)
        return (rows if self.bias is None else rows + self.bias.to(rows.dtype)).unflatten(0, x.shape[:-1])


class _FrozenProduct(torch.autograd.Function):
    """x [R, K] -> [R, N]; nothing of x is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *bits: torch.Tensor) -> torch.Tensor:
        weight, scale, transposed, transposed_scale, one = bits
        ctx.save_for_backward(transposed, transposed_scale, one)
        return _scaled_product(x, weight, scale, one).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        return _scaled_product(gradient, *ctx.saved_tensors).to(gradient.dtype), None, None, None, None, None


def frozen_product(x: torch.Tensor, *bits: torch.Tensor) -> torch.Tensor:
    """What `Fp8FrozenLinear` computes; `compile_blocks` admits it into graphs as one node, since dynamo cannot trace its two sides."""
    return _FrozenProduct.apply(x, *bits)


def _bits(weight: torch.Tensor, largest: torch.Tensor | None = None) -> tuple[nn.Parameter, nn.Parameter]:
    """The rows of `weight` [N, K] as float8, uint8 [N, K], and their scales, int32 [N]; `largest` [N] replaces each row's own maximum."""
    scale = (weight.abs().amax(dim=1) if largest is None else largest).float().clamp(min=_TINY) / _LARGEST
    rows = (weight / scale[:, None]).to(FP8).contiguous()
    return nn.Parameter(rows.view(torch.uint8), requires_grad=False), nn.Parameter(scale.view(torch.int32), requires_grad=False)


def _scaled_product(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """rows [R, K] times float8 weight [N, K], both scaled, float32 [R, N]; weight, scale and one as bits."""
    largest = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=_TINY)  # [R, 1]
    scaled = (rows.float() * (_LARGEST / largest)).clamp(-_LARGEST, _LARGEST).to(FP8)
    product = _multiply(scaled, weight.view(FP8), one.view(torch.float32))
    return product * ((largest / _LARGEST) * scale.view(torch.float32))


def _multiply(x: torch.Tensor, weight: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """[R, K] and [N, K] -> [R, N], bfloat16; on a CPU the same numbers, multiplied in float32."""
    if not x.is_cuda:
        return F.linear(x.float(), weight.float()).bfloat16()
    return torch._scaled_mm(x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def check_fp8(device: torch.device, flag: str = "quantization 'fp8'", instead: str = "use 'int8_weight_only' or 'fp8_weight_only'") -> None:
    """Returns if `device` multiplies float8 (a CPU imitates it).

    Raises:
        ValueError: a GPU that does not; the message begins with `flag` and ends with what to do `instead`.
    """
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"{flag} needs a GPU of compute capability 8.9 or later, {name} has {found[0]}.{found[1]}; {instead}")
