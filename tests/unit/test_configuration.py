"""Published, tiny and contradictory configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismatic.models.configuration import OpenVLAConfig, TinySizes, TowerConfig, openvla_7b, tiny
from prismatic.vla.constants import TokenIds

# As openvla/openvla-7b's config.json has it, norm_stats shortened.
PUBLISHED: dict[str, Any] = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "architectures": ["OpenVLAForActionPrediction"],
    "auto_map": {
        "AutoConfig": "configuration_prismatic.OpenVLAConfig",
        "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
    },
    "hf_llm_id": "meta-llama/Llama-2-7b-hf",
    "image_resize_strategy": "resize-naive",
    "image_sizes": [224, 224],
    "llm_backbone_id": "llama2-7b-pure",
    "llm_max_length": 2048,
    "model_type": "openvla",
    "n_action_bins": 256,
    "norm_stats": {"bridge_orig": {"action": {"q01": [0.0], "q99": [1.0]}}},
    "output_projector_states": False,
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_fused_vision_backbone": True,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
}


def test_published_config_has_the_sizes_of_the_preset() -> None:
    published, preset = OpenVLAConfig(**PUBLISHED), openvla_7b()
    assert published.token_ids == preset.token_ids == TokenIds()
    assert published.towers == preset.towers
    assert published.num_patches == 256
    assert (published.hidden_size, published.language.num_hidden_layers, published.language.rms_norm_eps) == (4096, 32, 1e-6)
    assert published.norm_stats == PUBLISHED["norm_stats"]


def test_tiny_survives_a_file(tmp_path: Path) -> None:
    config = tiny(TinySizes(image_size=48, patch_size=16, vision_layers=3), base_vocab_size=500, empty_token_id=259)
    config.save_pretrained(tmp_path)
    loaded = OpenVLAConfig.from_pretrained(tmp_path)
    assert loaded.towers == config.towers
    assert loaded.num_patches == 9
    assert loaded.token_ids == config.token_ids == TokenIds(base_vocab_size=500, empty=259, pad=500)
    assert loaded.language.to_dict() == config.language.to_dict()


@pytest.mark.parametrize(
    "language",
    [
        {"hidden_size": 128, "num_attention_heads": 2, "head_dim": 32},
        {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
        {"hidden_size": 128, "num_attention_heads": 2, "attention_bias": True, "mlp_bias": True},
        {
            **{"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "model_type": "qwen2"},
            **{"vocab_size": 32064, "bos_token_id": 1, "eos_token_id": 2},
        },
    ],
)
def test_every_language_model_survives_a_file(tmp_path: Path, language: dict[str, Any]) -> None:
    config = OpenVLAConfig(text_config=language)
    config.save_published(tmp_path)
    found = OpenVLAConfig.from_pretrained(tmp_path)
    assert found.decoder_sizes == config.decoder_sizes
    assert found.token_ids == config.token_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_fused_vision_backbone": False}, "both vision towers"),
        (
            {"timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_225"]},
            "did you mean vit_so400m_patch14_siglip_224",
        ),
        ({"n_action_bins": 128}, "n_action_bins is 128"),
        ({"pad_token_id": 40000}, "pad_token_id 40000"),
        ({"image_sizes": [224, 448]}, "same patches"),
        ({"image_sizes": [225, 225]}, "image_size 225 is not a multiple of patch_size 14"),
        ({"empty_token_id": None}, "empty_token_id is None; expected the id of one token"),
        ({"empty_token_id": 40000}, "empty_token_id is 40000; it must be from 0 to less than vocab_size 32064"),
        ({"llm_max_length": 0}, "llm_max_length is 0; expected a number of tokens"),
        ({"text_config": {"model_type": 3}}, "model_type 3 is not supported; known: llama"),
        ({"text_config": {"num_key_value_heads": 7, "vocab_size": 32064}}, "32 is not a multiple of num_key_value_heads 7"),
    ],
)
def test_bad_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenVLAConfig(**{**PUBLISHED, **change})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vision_layers": 0}, "--vision_layers is 0; it must be at least 1"),
        ({"vision_heads": 3}, "--vision_dim is 64, no multiple of --vision_heads 3"),
        ({"llm_heads": 3}, "llm_dim 128 is not"),
    ],
)
def test_bad_tiny_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(TinySizes(**sizes), base_vocab_size=500, empty_token_id=259)


@pytest.mark.parametrize(("depth", "num_heads", "message"), [(1, 1, "depth is 1"), (2, 3, "embed_dim 64 is not a multiple of num_heads 3")])
def test_bad_towers(depth: int, num_heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TowerConfig.dino(32, 16, 64, depth, num_heads)
