"""The frozen base in float8: forward product and input gradient near those of the plain layer, single and stacked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prismatic.models.configuration import TinySizes, tiny
from prismatic.models.sizes import BACKBONES
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.spec import LoraSpec
from prismatic.policy.inference.fast_paths import FAST_PATHS
from prismatic.policy.inference.fp8 import Fp8FrozenLinear
from prismatic.policy.inference.quantization import QuantizedLinear, check_frozen_base, quantize_frozen_base
from prismatic.policy.inference.stacking import stack_projections
from prismatic.policy.lora.adapters import add_lora

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ERROR = FAST_PATHS["fp8 base"].tolerance  # of a product whose factors both have 3 bits of mantissa: each is off by at most 1/16


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def frozen(weight: torch.Tensor) -> Fp8FrozenLinear:
    return Fp8FrozenLinear(weight, weight.abs().amax(dim=0))


@pytest.mark.parametrize("shape", [(48, 64), (16, 32)])
def test_product_and_gradient_are_near_the_plain_ones(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * torch.logspace(-2, 1, shape[1])  # columns of very different size
    x = torch.randn(2, 5, shape[1], generator=generator)
    seen, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, reference = frozen(weight)(seen), nn.functional.linear(expected, weight)
    assert relative(output, reference) < ERROR
    gradient = torch.randn(output.shape, generator=generator) * torch.logspace(-6, 0, shape[0])
    output.backward(gradient)
    reference.backward(gradient)
    assert seen.grad is not None
    assert expected.grad is not None
    assert relative(seen.grad, expected.grad) < ERROR


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(3, 32, requires_grad=True)
    output = frozen(torch.zeros(16, 32))(x)
    output.sum().backward()
    assert x.grad is not None
    assert float(output.detach().abs().sum() + x.grad.abs().sum()) == 0


def test_stacked_layers_are_the_single_ones_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(rows, 32, generator=generator) * size for rows, size in ((16, 1.0), (32, 3.0), (16, 0.1))]
    largest = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    parts = [Fp8FrozenLinear(weight, largest) for weight in weights]
    x = torch.randn(7, 32, generator=generator)
    apart = [part(x) for part in parts]
    whole = Fp8FrozenLinear.stacked(parts)
    assert torch.equal(whole(x), torch.cat(apart, dim=1))
    assert [torch.equal(part(x), before) for part, before in zip(parts, apart, strict=True)] == [True] * 3
    seen = x.clone().requires_grad_()
    whole(seen).square().sum().backward()
    reference = x.clone().requires_grad_()
    nn.functional.linear(reference, torch.cat(weights)).square().sum().backward()
    assert seen.grad is not None
    assert reference.grad is not None
    assert relative(seen.grad, reference.grad) < 2 * ERROR


@pytest.mark.parametrize("form", BACKBONES)
def test_adapters_over_it_are_stacked_and_learn_as_over_the_plain_base(form: str) -> None:
    sizes = TinySizes(llm_dim=64, llm_layers=2, llm_heads=2, llm_mlp_dim=96, backbone=form)
    gradients = []
    for kind in ("none", "fp8"):
        torch.manual_seed(0)
        vla = OpenVLAForActionPrediction(tiny(sizes, 512, 300))
        for name, parameter in vla.language_model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.5)
        quantize_frozen_base(vla, kind, torch.device("cpu"), torch.float32)
        torch.manual_seed(1)
        model = add_lora(vla, LoraSpec(4, 0.0))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.manual_seed(len(name))
                nn.init.normal_(parameter, std=0.02)
        stack_projections(vla)
        attention = vla.language_model.model.layers[0].self_attn
        assert bool(attention.stacked.layer)
        assert isinstance(attention.o_proj.base_layer, QuantizedLinear) == (kind == "fp8")
        assert not isinstance(vla.language_model.model.layers[1].self_attn.o_proj.base_layer, QuantizedLinear)
        states = vla.language_model(torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(2)))
        # Not the states' squares: after the final norm their sum is the same whatever the weights are.
        (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        gradients.append(
            {name: value.grad for name, value in model.named_parameters() if value.grad is not None and "language_model" in name}
        )
    for kind in PROJECTIONS:
        plain, quantized = (torch.cat([found[name].flatten() for name in sorted(found) if f".{kind}." in name]) for found in gradients)
        assert 0 < relative(quantized, plain) < FAST_PATHS["fp8 base under adapters"].tolerance, kind
        assert float(torch.cosine_similarity(plain, quantized, dim=0)) > 0.99, kind


def test_under_autocast_it_gives_the_dtype_of_a_plain_layer() -> None:
    """Norms may give float32 there (RMS norms since torch 2.12): one float32 output would make the residual stream float32."""
    plain = nn.Linear(32, 16, bias=False).bfloat16()
    quantized = QuantizedLinear(frozen(plain.weight.detach().float()), torch.bfloat16)
    x = torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantized(x).dtype == plain(x).dtype == torch.bfloat16
    assert quantized(x).dtype == torch.float32


def test_sizes_that_fp8_products_cannot_have_are_refused() -> None:
    vla = OpenVLAForActionPrediction(tiny(TinySizes(llm_dim=40, llm_layers=2, llm_heads=2, llm_mlp_dim=64), 512, 300))
    with pytest.raises(ValueError, match=r"--quantize_base fp8: q_proj is \[40, 40\]"):
        quantize_frozen_base(vla, "fp8", torch.device("cpu"), torch.float32)


def test_a_base_of_which_nothing_would_be_float8_is_refused() -> None:
    """The last layer stays plain: a flag that changes nothing."""
    vla = OpenVLAForActionPrediction(tiny(TinySizes(llm_dim=64, llm_layers=1, llm_heads=2, llm_mlp_dim=64), 512, 300))
    with pytest.raises(ValueError, match="--quantize_base fp8 leaves the last layer as it is, and this language model has no other"):
        quantize_frozen_base(vla, "fp8", torch.device("cpu"), torch.float32)


def test_a_gpu_without_float8_is_refused_with_advice_that_training_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told to use kinds that --quantize_base does not have, after the base had been read."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
    with pytest.raises(ValueError, match=r"^--quantize_base fp8 needs .* an A100 has 8\.0; use --quantize_base nf4"):
        check_frozen_base("fp8", torch.device("cuda"))
