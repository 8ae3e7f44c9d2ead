"""Smaller weights for inference: the linear layers of the language model in 8 or 4 bits, everything else as it was.

    int8                bitsandbytes LLM.int8(): weights and activations in 8 bits, outliers apart (Dettmers et al. 2022, arXiv:2208.07339)
    nf4                 bitsandbytes NF4: weights in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)
    int8_weight_only    torchao: weights in 8 bits, one scale per row
    fp8_weight_only     torchao: weights as float8 (e4m3), one scale per row
    fp8                 weights and activations as float8, one scale per row of each; the fastest (see `fp8.py` beside this file);
                        FiLM's layers too, half a gigabyte that is read for a single token

Each layer computes in a dtype of its own, whatever its input has: `.to(device, dtype)` moves a quantized model, changes the dtype of
what is not quantized, and leaves the rest as it is.

The language model holds nine tenths of the weights. The vision towers themselves, the projectors, the embeddings, the LM head and the
action head stay in the policy's dtype: they are small, and actions are most sensitive to them. Adapters must be merged before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prismatic.models.film import FiLMedVisionBlock
from prismatic.models.language import DecoderLayer
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.inference.fp8 import Fp8FrozenLinear, Fp8Linear, check_fp8
from prismatic.vla.constants import near_names


class QuantizedLinear(nn.Module):
    """A quantized linear layer; its input is cast to `compute_dtype`, its output to the dtype that a plain layer would give.

    That is the input's, or autocast's: norms give float32 there, and what is added to the residual stream would make all of it float32.
    """

    def __init__(self, layer: nn.Module, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.in_features = self.out_features = 0  # of the layer that it stands for; adapters are sized by them
        self.compute_dtype = compute_dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return self.layer(x.to(self.compute_dtype)).to(dtype)


Quantizer = Callable[[nn.Linear, torch.device, torch.dtype], QuantizedLinear]
_INSTALL = 'pip install "openvla-oft-robot[quant]"'
_PACKED_INPUTS, _PACKED_OUTPUTS = 64, 32  # of a layer that bitsandbytes can pack for its nf4 kernel on a CPU: multiples of these


def quantize_model(vla: OpenVLAForActionPrediction, kind: str, device: torch.device, compute_dtype: torch.dtype) -> None:
    """Quantizes the language model's layers in place, moving each to `device` on the way, so that they are never there unquantized.

    Raises:
        ValueError: an unknown kind, or its package is not installed.
    """
    if kind == "none":
        return
    quantizer = _find(kind)
    assert not is_quantized(vla)
    with torch.random.fork_rng(devices=[]):  # packages fill new layers with random numbers before they get their weights
        for module in [*vla.language_model.model.layers.modules(), *(_film_blocks(vla) if kind == "fp8" else ())]:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    quantized = quantizer(child, device, compute_dtype)
                    quantized.in_features, quantized.out_features = child.in_features, child.out_features
                    setattr(module, name, quantized)


def quantize_frozen_base(vla: OpenVLAForActionPrediction, kind: str, device: torch.device, compute_dtype: torch.dtype) -> None:
    """The same for a base under adapters, through which gradients pass: "fp8" then holds two copies of each weight.

    In fp8 the last layer stays as it is: it computes a few rows only.

    Raises:
        ValueError: as `check_frozen_base`; or a layer's sizes are no multiples of 16, which fp8 products need, or there is but one.
    """
    check_frozen_base(kind, device)
    if kind != "fp8":
        quantize_model(vla, kind, device, compute_dtype)
        quantized: list[Any] = [module.layer for module in vla.modules() if isinstance(module, QuantizedLinear)]
        for layer in quantized:  # bitsandbytes packs nf4 anew in the first evaluation on a CPU, for a kernel without a backward pass:
            layer.support_avx512bf16_for_cpu = False  # steps after a validation had wrong gradients
        return
    if len(vla.language_model.model.layers) == 1:
        raise ValueError("--quantize_base fp8 leaves the last layer as it is, and this language model has no other; leave the flag out")
    for layer in vla.language_model.model.layers[:-1]:
        assert isinstance(layer, DecoderLayer)
        for owner, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj")),
            (layer.self_attn, ("o_proj",)),
            (layer.mlp, ("gate_proj", "up_proj")),
            (layer.mlp, ("down_proj",)),
        ):
            _freeze_in_fp8(owner, names, device, compute_dtype)


def check_frozen_base(kind: str, device: torch.device) -> None:
    """Returns if a base can be quantized that way here, as far as that is known before the base is read.

    Raises:
        ValueError: the GPU cannot multiply float8, or a package is not installed.
    """
    if kind == "fp8":
        check_fp8(device, "--quantize_base fp8", "use --quantize_base nf4, which takes less memory and more time, or leave the flag out")
    elif kind != "none":
        _bitsandbytes()


def _freeze_in_fp8(owner: nn.Module, names: Sequence[str], device: torch.device, compute_dtype: torch.dtype) -> None:
    """Puts float8 layers in the place of `names`, projections of one input, whose columns share scales so that they can be stacked."""
    weights = [getattr(owner, name).weight.detach().to(device) for name in names]
    biases = [_bias(getattr(owner, name), device, compute_dtype) for name in names]
    for name, weight in zip(names, weights, strict=True):
        if any(size % 16 for size in weight.shape):
            raise ValueError(f"--quantize_base fp8: {name} is {list(weight.shape)}, fp8 products need multiples of 16; leave the flag out")
    largest = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    for name, weight, bias in zip(names, weights, biases, strict=True):
        quantized = QuantizedLinear(Fp8FrozenLinear(weight, largest, bias), compute_dtype)
        quantized.out_features, quantized.in_features = weight.shape
        setattr(owner, name, quantized)


def _film_blocks(vla: OpenVLAForActionPrediction) -> list[nn.Module]:
    return [module for module in vla.vision_backbone.modules() if isinstance(module, FiLMedVisionBlock)]


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer of `model` is quantized."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def _find(kind: str) -> Quantizer:
    if kind not in _QUANTIZERS:
        raise ValueError(f"quantization {kind!r} is unknown; {near_names(kind, QUANTIZATIONS)}")
    return _QUANTIZERS[kind]


def _int8(linear: nn.Linear, device: torch.device, compute_dtype: torch.dtype) -> QuantizedLinear:
    layers: Any = _bitsandbytes().nn
    quantized = layers.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=6.0)
    quantized.weight = layers.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
    _take_bias(quantized, _bias(linear, device, torch.float16))
    return QuantizedLinear(quantized.to(device), torch.float16)  # the package rounds inputs to float16 in any case, and warns of others


def _nf4(linear: nn.Linear, device: torch.device, compute_dtype: torch.dtype) -> QuantizedLinear:
    layers: Any = _bitsandbytes().nn
    quantized = layers.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=compute_dtype, quant_type="nf4")
    quantized.weight = layers.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
    _take_bias(quantized, _bias(linear, device, compute_dtype))
    if linear.in_features % _PACKED_INPUTS or linear.out_features % _PACKED_OUTPUTS:
        quantized.support_avx512bf16_for_cpu = False  # it would be packed all the same, which fails in the first call
    return QuantizedLinear(quantized.to(device), compute_dtype)


def _int8_weight_only(linear: nn.Linear, device: torch.device, compute_dtype: torch.dtype) -> QuantizedLinear:
    return _torchao("Int8WeightOnlyConfig", linear.to(device, compute_dtype))


def _fp8_weight_only(linear: nn.Linear, device: torch.device, compute_dtype: torch.dtype) -> QuantizedLinear:
    return _torchao("Float8WeightOnlyConfig", linear.to(device, compute_dtype))


def _fp8(linear: nn.Linear, device: torch.device, compute_dtype: torch.dtype) -> QuantizedLinear:
    check_fp8(device)
    return QuantizedLinear(Fp8Linear(linear.weight.detach().to(device), _bias(linear, device, compute_dtype)), compute_dtype)


def _bias(linear: nn.Linear, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    return None if linear.bias is None else linear.bias.detach().to(device, dtype)


def _take_bias(layer: nn.Module, bias: torch.Tensor | None) -> None:
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)


def _torchao(config: str, linear: nn.Linear) -> QuantizedLinear:
    try:
        from torchao import quantization
    except ImportError as error:
        raise ValueError(f"this quantization needs the package torchao, which is not installed here; {_INSTALL}") from error
    compute_dtype = linear.weight.dtype
    quantization.quantize_(linear, getattr(quantization, config)())
    return QuantizedLinear(linear, compute_dtype)


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(f"this quantization needs the package bitsandbytes, which is not installed here; {_INSTALL}") from error
    return bitsandbytes


_QUANTIZERS: dict[str, Quantizer] = {
    "int8": _int8,
    "nf4": _nf4,
    "int8_weight_only": _int8_weight_only,
    "fp8_weight_only": _fp8_weight_only,
    "fp8": _fp8,
}
QUANTIZATIONS = ("none", *_QUANTIZERS)


def choose_quantization(load_in_8bit: bool, load_in_4bit: bool, quantization: str = "none") -> str:
    """The kind that --quantization or the familiar flags ask for.

    Raises:
        ValueError: they contradict each other.
    """
    if load_in_8bit and load_in_4bit:
        raise ValueError("--load_in_8bit and --load_in_4bit are both True; set one")
    familiar = "int8" if load_in_8bit else "nf4" if load_in_4bit else "none"
    if familiar != "none" and quantization not in ("none", familiar):
        raise ValueError(f"--quantization {quantization} and --load_in_{'8' if load_in_8bit else '4'}bit True: set one of them")
    return quantization if familiar == "none" else familiar
