"""Every attention backend looks both ways and past padding; the self-test notices when one does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from prismatic.models.attention import (
    ATTENTION_BACKENDS,
    Attention,
    additive_mask,
    attend_packed,
    get_attention,
    prepare_mask,
    sdpa_attention,
)
from prismatic.models.configuration import TinySizes, tiny
from prismatic.models.self_test import check_bidirectional
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.spec import LoraSpec
from prismatic.policy.lora.adapters import add_lora

ON_CPU = ("sdpa", "eager", "flex_attention")
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=64, llm_layers=2, llm_heads=2, llm_mlp_dim=64)


def _model(backend: str) -> OpenVLAForActionPrediction:
    config = tiny(SIZES, base_vocab_size=600, empty_token_id=300)
    config._attn_implementation = backend
    torch.manual_seed(0)
    return OpenVLAForActionPrediction(config)


@pytest.fixture
def heads() -> tuple[torch.Tensor, ...]:
    return torch.randn(3, 2, 4, 20, 16, generator=torch.Generator().manual_seed(0)).unbind(0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ON_CPU)
def test_backends_agree(heads: tuple[torch.Tensor, ...], backend: str, padded: bool) -> None:
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = False
    expected = sdpa_attention(*heads, mask if padded else None)
    found = get_attention(backend)(*heads, mask if padded else None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [19, 20, 24])
def test_a_prepared_mask_hides_the_same_keys(num_tokens: int) -> None:
    query, key, value = torch.randn(3, 2, 4, num_tokens, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = torch.arange(num_tokens) < torch.tensor([[num_tokens], [13]])
    prepared = prepare_mask(sdpa_attention, mask, query.dtype)
    assert prepared is not None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
    for queries in (query, query[:, :, 3:8]):
        found = sdpa_attention(queries, key, value, prepared)
        torch.testing.assert_close(found, expected if queries is query else expected[:, :, 3:8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [19, 24])
def test_rows_of_an_additive_mask_share_aligned_memory(num_tokens: int) -> None:
    mask = additive_mask(torch.ones(3, num_tokens, dtype=torch.bool), torch.bfloat16)
    assert mask.shape == (3, 1, num_tokens, num_tokens)
    assert [stride % 8 for stride in mask.stride()] == [0, 0, 0, 1]
    assert mask.stride(2) == 0
    assert mask.stride(0) > num_tokens  # never equal, which would be compiled once more


def test_other_backends_keep_the_bool_mask() -> None:
    mask = torch.ones(2, 20, dtype=torch.bool)
    for backend in ("eager", "flex_attention"):
        assert prepare_mask(get_attention(backend), mask, torch.float32) is mask
    assert prepare_mask(sdpa_attention, None, torch.float32) is None


@pytest.mark.parametrize("backend", ON_CPU)
def test_self_test_passes_and_changes_nothing(backend: str) -> None:
    model = _model(backend).train()
    before = torch.get_rng_state()
    check_bidirectional(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_self_test_passes_in_half_precision(dtype: torch.dtype) -> None:
    check_bidirectional(_model("sdpa").to(dtype))


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def _causal_when_padded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return sdpa_attention(query, key, value, None)
    count = query.shape[2]
    visible = torch.ones(count, count, dtype=torch.bool).tril() & mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


def _without_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return sdpa_attention(query, key, value, None)


def _hides_too_much(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None:
        mask = mask.clone()
        mask[:, 2] = False
    return sdpa_attention(query, key, value, mask)


@pytest.mark.parametrize(
    ("attention", "symptom"),
    [
        (_causal, "causal attention: the first token"),
        (_causal_when_padded, "causal attention in a padded batch"),
        (_without_mask, "padding leaks"),
        (_hides_too_much, "differs by .* in a padded batch"),
    ],
)
@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_self_test_refuses(attention: Attention, symptom: str, layer: int, dtype: torch.dtype) -> None:
    model = _model("sdpa").to(dtype)
    model.language_model.model.layers[layer].self_attn._attend = attention
    with pytest.raises(ValueError, match=f"{symptom}.*'sdpa', torch .* use attn_implementation='sdpa'"):
        check_bidirectional(model)


def test_self_test_refuses_what_is_not_finite() -> None:
    model = _model("sdpa")
    model.language_model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer 1: it gives NaN or infinity"):
        check_bidirectional(model)


def test_self_test_passes_with_unmerged_adapters() -> None:
    model = _model("sdpa")
    add_lora(model, LoraSpec(4))
    check_bidirectional(model)


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, _: torch.Tensor, *longest: int
) -> torch.Tensor:
    """What a kernel for packed samples computes, [tokens, G, K], sample by sample."""
    assert starts.dtype == torch.int32
    assert min(longest) >= int(starts.diff().max())
    results = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        rows = [part[begin:end].transpose(0, 1)[None] for part in (query, key, value)]
        results.append(sdpa_attention(*rows, None)[0].transpose(0, 1))
    return torch.cat(results)


@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_samples_agree_with_padded_ones(heads: tuple[torch.Tensor, ...], side: str) -> None:
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, slice(13, None) if side == "right" else slice(None, 7)] = False
    real = mask[:, None, :, None]
    padded, packed = ([part.clone().requires_grad_() for part in heads] for _ in range(2))
    expected, found = sdpa_attention(*padded, mask) * real, attend_packed(_one_by_one, *packed, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_unknown_backend_suggests_a_near_one() -> None:
    with pytest.raises(ValueError, match="'flash_attention' is not available; did you mean flash_attention_2"):
        get_attention("flash_attention")


def test_flash_attention_says_what_is_missing() -> None:
    query = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match=r"needs the package flash-attn|needs bfloat16 or float16 on a CUDA device"):
        ATTENTION_BACKENDS["flash_attention_2"](query, query, query, None)


def test_flex_attention_says_that_it_cannot_train_on_a_cpu(heads: tuple[torch.Tensor, ...]) -> None:
    query = heads[0].clone().requires_grad_()
    flex: Callable[..., torch.Tensor] = get_attention("flex_attention")
    with pytest.raises(ValueError, match="cannot train on a CPU; use 'sdpa'"):
        flex(query, heads[1], heads[2], None)
