"""Linear layers in float8 (e4m3), weights and activations, for GPUs whose matrix units multiply it (Ada, Hopper and later).

    y = (x / s) (W / t)^T * s * t      s [rows of x, 1] = max |x| / 448,   t [rows of W] = max |W| / 448

One scale per row of the weight, one per token of the activation, found anew in every call. The product itself is unscaled and its result
bfloat16: so the fastest kernels apply, and a compiler joins the scaling with what follows.
"""

from __future__ import annotations

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
        scale = weight.abs().amax(dim=1).float().clamp(min=_TINY) / _LARGEST  # [N]
        rows = (weight / scale[:, None]).to(FP8)
        self.weight = nn.Parameter(rows.view(torch.uint8), requires_grad=False)
        self.scale = nn.Parameter(scale.view(torch.int32), requires_grad=False)
        self.one = nn.Parameter(scale.new_ones(1).view(torch.int32), requires_grad=False)  # kept: making it would be a launch a product
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def empty(cls, device: torch.device) -> Fp8Linear:
        """One whose weight and scales are still to be set."""
        return cls(torch.zeros(1, 1, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        largest = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=_TINY)  # [R, 1]
        scaled = (rows.float() * (_LARGEST / largest)).clamp(-_LARGEST, _LARGEST).to(FP8)
        product = _multiply(scaled, self.weight.view(FP8), self.one.view(torch.float32))
        scale = (largest / _LARGEST) * self.scale.view(torch.float32)
        scaled_back = product * scale if self.bias is None else product * scale + self.bias
        return scaled_back.to(x.dtype).unflatten(0, x.shape[:-1])


def _multiply(x: torch.Tensor, weight: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """[R, K] and [N, K] -> [R, N], bfloat16; on a CPU the same numbers, multiplied in float32."""
    if not x.is_cuda:
        return F.linear(x.float(), weight.float()).bfloat16()
    return torch._scaled_mm(x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def check_fp8(device: torch.device) -> None:
    """Returns if `device` multiplies float8 (a CPU imitates it).

    Raises:
        ValueError: a GPU that does not.
    """
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < (8, 9):
        raise ValueError(
            f"quantization 'fp8' needs a GPU of compute capability 8.9 or later, {torch.cuda.get_device_name(device)} has "
            f"{found[0]}.{found[1]}; use 'int8_weight_only' or 'fp8_weight_only'"
        )
