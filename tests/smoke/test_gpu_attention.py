"""Every attention backend on an accelerator, in bfloat16, against the float32 result: forward and gradients, padded and not."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from prismatic.models.attention import eager_attention, get_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BACKENDS = ("sdpa", "eager", "flex_attention", "flash_attention_2")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree(backend: str, padded: bool) -> None:
    if backend == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    generator = torch.Generator("cuda").manual_seed(0)
    parts = torch.randn(3, 2, 4, 200, 64, device="cuda", generator=generator)
    mask = torch.ones(2, 200, dtype=torch.bool, device="cuda")
    mask[1, 130:] = False
    exact = [part.clone().requires_grad_() for part in parts]
    half = [part.bfloat16().requires_grad_() for part in parts]
    expected = eager_attention(*exact, mask if padded else None)
    found = get_attention(backend)(*half, mask if padded else None)
    real = mask[:, None, :, None] if padded else torch.ones_like(mask)[:, None, :, None]
    torch.testing.assert_close(found.float() * real, expected * real, atol=0.02, rtol=0.02)
    (expected * real).square().sum().backward()
    (found.float() * real).square().sum().backward()
    for one, other in zip(half, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, atol=0.03, rtol=0.05)
