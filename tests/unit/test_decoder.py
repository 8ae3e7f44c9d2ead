"""The decoder against transformers' own Llama and Qwen2, with the same random weights and a mask that hides nothing but padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from prismatic.models.attention import ATTENTION_BACKENDS
from prismatic.models.configuration import OpenVLAConfig, prismatic_qwen25_0_5b
from prismatic.models.decoder_sizes import DecoderSizes
from prismatic.models.language import BidirectionalDecoder

_SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_SHARED = {"num_key_value_heads": 2, "tie_word_embeddings": True}
FORMS: dict[str, tuple[type, LlamaConfig | Qwen2Config]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**_SIZES, rms_norm_eps=1e-5)),
    "llama with shared heads, biases, tied": (
        LlamaForCausalLM,
        LlamaConfig(**_SIZES, **_SHARED, attention_bias=True, mlp_bias=True, rope_theta=500000.0, head_dim=32),
    ),
    "qwen2, tied": (Qwen2ForCausalLM, Qwen2Config(**_SIZES, **_SHARED, rope_theta=1e6)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**{**_SIZES, **_SHARED, "num_key_value_heads": 1, "tie_word_embeddings": False})),
}


def _oracle(kind: type, config: LlamaConfig | Qwen2Config) -> Any:
    """transformers' model with every weight random, biases and norms too."""
    torch.manual_seed(3)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_states_and_logits_are_those_of_transformers(form: str, backend: str) -> None:
    kind, config = FORMS[form]
    oracle = _oracle(kind, config)
    ours = BidirectionalDecoder(DecoderSizes.of(config), backend).eval()
    weights = oracle.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    ours.load_state_dict(weights)

    embeddings = torch.randn(2, 11, config.hidden_size)
    mask = torch.arange(11) < torch.tensor([[11], [8]])
    seen = torch.zeros(2, 1, 11, 11).masked_fill(~mask[:, None, None, :], torch.finfo(torch.float32).min)
    for own_mask, their_mask in ((None, torch.zeros(2, 1, 11, 11)), (mask, seen)):
        theirs = oracle(inputs_embeds=embeddings, attention_mask=their_mask, output_hidden_states=True, use_cache=False)
        real = torch.ones_like(mask) if own_mask is None else own_mask
        states = ours(embeddings, own_mask)
        torch.testing.assert_close(states[real], theirs.hidden_states[-1][real], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.lm_head(states)[real], theirs.logits[real], atol=1e-4, rtol=1e-5)
        if backend != "flex_attention":
            rows = torch.tensor([[7, 2, 5], [0, 7, 1]])
            expected = states.gather(1, rows.unsqueeze(-1).expand(-1, -1, config.hidden_size))
            torch.testing.assert_close(ours(embeddings, own_mask, rows), expected, atol=1e-5, rtol=1e-5)


def test_every_backend_is_covered() -> None:
    assert set(ATTENTION_BACKENDS) == {"sdpa", "eager", "flex_attention", "flash_attention_2"}  # the last needs a GPU


def test_a_tied_head_exists_once() -> None:
    decoder = BidirectionalDecoder(DecoderSizes.of(FORMS["qwen2, tied"][1]))
    names = [name for name, _ in decoder.named_parameters()]
    assert "model.embed_tokens.weight" in names
    assert not any("lm_head" in name for name in [*names, *decoder.state_dict()])
    decoder.lm_head(torch.randn(1, 64)).sum().backward()
    assert decoder.model.embed_tokens.weight.grad is not None


def test_the_preset_has_the_published_sizes() -> None:
    config = prismatic_qwen25_0_5b()
    with torch.device("meta"):
        decoder = BidirectionalDecoder(config.decoder_sizes)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 494_032_768  # of Qwen/Qwen2.5-0.5B
    ids = config.token_ids
    assert (ids.action_token_begin_idx + 1, ids.base_vocab_size) == (151665, 151921)  # <|extra_0|> follows Qwen's own 151,665 tokens


@pytest.mark.parametrize(
    ("text_config", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "rope_type 'yarn' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"use_sliding_window": True, "sliding_window": 128}, "use_sliding_window is true"),
        ({"layer_types": ["full_attention"] * 23 + ["sliding_attention"]}, "layer_types names sliding_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0; expected a number above 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": math.nan}}, "rope_theta is nan; expected a number above 0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0; it must be a small number"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan; it must be a small number"),
        ({"num_attention_heads": 14, "num_key_value_heads": -2}, "14 is not a multiple of num_key_value_heads -2"),
        ({"hidden_size": -896}, "hidden_size is -896; it must be at least 1"),
        ({"eos_token_id": [151645, 151643]}, r"eos_token_id is \[151645, 151643\]; expected the id of one token"),
        ({"num_attention_heads": 14, "num_key_value_heads": 3}, "14 is not a multiple of num_key_value_heads 3"),
        ({"model_type": "gemma"}, "model_type 'gemma' is not supported; known: llama, qwen2"),
    ],
)
def test_other_forms_are_refused(text_config: dict[str, Any], message: str) -> None:
    known = prismatic_qwen25_0_5b()
    content = {**known.language.to_dict(), **text_config}
    with pytest.raises(ValueError, match=message):
        OpenVLAConfig(text_config=content, pad_to_multiple_of=15, pad_token_id=151643, empty_token_id=198)
