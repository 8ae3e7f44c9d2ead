"""Every attention backend on an accelerator, in bfloat16, against the float32 result: forward and gradients, padded and not."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from prismatic.models.attention import Attention, attend_packed, eager_attention, get_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BACKENDS = ("sdpa", "eager", "flex_attention", "flash_attention_2")


def _assert_agrees(attention: Attention, num_tokens: int, padded: bool) -> None:
    """Results and gradients on real tokens are those of step-by-step attention in float32."""
    generator = torch.Generator("cuda").manual_seed(0)
    parts = torch.randn(3, 2, 4, num_tokens, 64, device="cuda", generator=generator)
    mask = torch.ones(2, num_tokens, dtype=torch.bool, device="cuda")
    mask[1, num_tokens * 2 // 3 :] = not padded
    exact = [part.clone().requires_grad_() for part in parts]
    half = [part.bfloat16().requires_grad_() for part in parts]
    real = mask[:, None, :, None]
    expected = eager_attention(*exact, mask if padded else None) * real
    found = attention(*half, mask if padded else None).float() * real
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    expected.square().sum().backward()
    found.square().sum().backward()
    for one, other in zip(half, exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, atol=0.03, rtol=0.05)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree(backend: str, padded: bool) -> None:
    if backend == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    _assert_agrees(get_attention(backend), 200, padded)


def test_flex_attention_stays_compiled_over_many_lengths() -> None:
    """Prompts differ in length; beyond torch's limit of recompilations flex attention would run unfused, with every score in memory."""
    torch._dynamo.utils.counters.clear()  # other tests of this process have compiled, too
    for num_tokens in range(190, 214, 2):
        _assert_agrees(get_attention("flex_attention"), num_tokens, padded=True)
    compiled = torch._dynamo.utils.counters["frames"]
    assert compiled["ok"] == compiled["total"]
    assert not torch._dynamo.utils.counters["unimplemented"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8


def test_packed_samples_run_on_a_kernel_for_different_lengths() -> None:
    """How flash_attention_2 treats padding, on torch's own kernel of the same form."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    _assert_agrees(lambda *parts: attend_packed(varlen.varlen_attn, *parts), 200, padded=True)
