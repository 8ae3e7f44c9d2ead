"""DecoderSizes: what the language model is made of, in the same words for every family that `language` can compute."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import LlamaConfig, Qwen2Config

TextConfig = LlamaConfig | Qwen2Config
# `model_type` of a text_config -> its class, which knows the defaults of that family.
TEXT_CONFIGS: dict[str, type[LlamaConfig] | type[Qwen2Config]] = {"llama": LlamaConfig, "qwen2": Qwen2Config}


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes and switches of one decoder."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int  # of queries
    num_key_value_heads: int  # each serves num_heads / num_key_value_heads query heads (Ainslie et al. 2023, arXiv:2305.13245)
    head_dim: int
    mlp_dim: int
    norm_eps: float
    rope_theta: float
    qkv_bias: bool  # of query, key and value
    output_bias: bool  # of the attention's output
    mlp_bias: bool
    tied_embeddings: bool  # token logits come from the embeddings' own weight

    @classmethod
    def of(cls, config: TextConfig) -> DecoderSizes:
        """The sizes that a text_config states.

        Raises:
            ValueError: it asks for something that the decoder does not compute: another rotary embedding or activation, or a window.
        """
        _check(config)
        is_qwen = isinstance(config, Qwen2Config)
        attention_bias = bool(getattr(config, "attention_bias", False))
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp_dim=config.intermediate_size,
            norm_eps=config.rms_norm_eps,
            rope_theta=rope_theta(config),
            qkv_bias=is_qwen or attention_bias,
            output_bias=attention_bias,
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
            tied_embeddings=bool(config.tie_word_embeddings),
        )


def rope_theta(config: TextConfig) -> float:
    """The base of the rotary embedding's wavelengths."""
    theta = dict(config.rope_parameters or {}).get("rope_theta", 10000.0)
    if not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise ValueError(f"text_config: rope_theta is {theta!r}; expected a number above 0")
    return float(theta)


_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _check(config: TextConfig) -> None:
    for name in _COUNTS:
        if getattr(config, name) < 1:
            raise ValueError(f"text_config: {name} is {getattr(config, name)}; it must be at least 1")
    if not 0 <= config.rms_norm_eps < math.inf:
        raise ValueError(f"text_config: rms_norm_eps is {config.rms_norm_eps}; it must be a small number, as 1e-6")
    rope = dict(config.rope_parameters or {})
    rope_type = rope.get("rope_type", "default")
    if rope_type != "default":
        raise ValueError(f"text_config: rope_type {rope_type!r} is not supported; only the default rotary embedding (rope_theta) is")
    for share in (rope.get("partial_rotary_factor"), getattr(config, "partial_rotary_factor", None)):
        if share not in (None, 1):
            raise ValueError(f"text_config: partial_rotary_factor {share} is not supported; the whole width of a head is rotated")
    if config.hidden_act != "silu":
        raise ValueError(f"text_config: hidden_act {config.hidden_act!r} is not supported; only 'silu' is")
    if getattr(config, "use_sliding_window", False):
        raise ValueError("text_config: use_sliding_window is true; the policy's attention sees the whole sequence, set it to false")
    if other := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise ValueError(f"text_config: layer_types names {', '.join(sorted(other))}; the policy's attention sees the whole sequence")
    heads, shared = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    if shared < 1 or heads % shared:
        raise ValueError(f"text_config: num_attention_heads {heads} is not a multiple of num_key_value_heads {shared}")
