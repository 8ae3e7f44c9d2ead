"""Small folders in the layout of Prismatic's training runs, as github.com/TRI-ML/prismatic-vlms names files, parts and keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from prismatic.models.base import random_weights, tiny_base, tokenizer_texts
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.sizes import TinySizes

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=2, llm_heads=2, llm_mlp_dim=64)
PUBLISHED = {
    "model_id": "prism-qwen25-extra-dinosiglip-224px+0_5b",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "qwen25-0_5b-extra",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "llm_max_length": 2048,
}
_PROJECTOR = {"fc1": "projector.0", "fc2": "projector.2", "fc3": "projector.4"}

Parts = dict[str, dict[str, torch.Tensor]]


def prismatic_parts(weights: dict[str, torch.Tensor]) -> Parts:
    """The parts of a checkpoint, under Prismatic's names, of weights under ours; the tied weight stands under both of its names."""
    parts: Parts = {"vision_backbone": {}, "projector": {}, "llm_backbone": {}}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part == "vision_backbone":
            tower, _, rest = rest.partition(".")
            side = {"featurizer": "dino_featurizer", "fused_featurizer": "siglip_featurizer"}[tower]
            parts[part][f"{side}.{rest}".replace("scale_factor", "gamma")] = value
        elif part == "projector":
            layer, _, leaf = rest.partition(".")
            parts[part][f"{_PROJECTOR[layer]}.{leaf}"] = value
        else:
            parts["llm_backbone"][f"llm.{rest}"] = value
    parts["llm_backbone"]["llm.lm_head.weight"] = parts["llm_backbone"]["llm.model.embed_tokens.weight"]
    return parts


def small_model(seed: int = 0) -> tuple[OpenVLAConfig, dict[str, torch.Tensor], dict[str, bytes]]:
    """Configuration, weights and tokenizer files of a small model of Qwen's form; the tokenizer lacks the extra tokens, as Qwen's own."""
    config, tokenizer = tiny_base(replace(SIZES, backbone="qwen"))
    files = tokenizer_texts(tokenizer)
    content = json.loads(files["tokenizer.json"])
    content["added_tokens"] = [token for token in content["added_tokens"] if "extra_" not in token["content"]]
    weights = random_weights(config, seed)
    for name, value in weights.items():
        if name.endswith("bias"):
            value.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return config, weights, {**files, "tokenizer.json": json.dumps(content).encode()}


def write_prismatic(folder: Path, parts: Parts | None = None, name: str = "latest-checkpoint.pt") -> None:
    """A small base in that layout; `parts` replace what stands in the checkpoint."""
    config, weights, files = small_model()
    (folder / "checkpoints").mkdir(parents=True)
    stated = {
        "text_config": config.language.to_dict(),
        "vision_towers": config.vision_towers,
        "image_sizes": config.image_sizes,
        "timm_model_ids": config.timm_model_ids,
        "hf_llm_id": "Qwen/Qwen2.5-0.5B",
        "pad_to_multiple_of": config.pad_to_multiple_of,
        "pad_token_id": config.pad_token_id,
        "empty_token_id": config.empty_token_id,
    }
    (folder / "config.json").write_text(json.dumps({"model": {**PUBLISHED, "openvla_config": stated}, "seed": 7}))
    torch.save({"model": prismatic_parts(weights) if parts is None else parts}, folder / "checkpoints" / name)
    for file, content in files.items():
        (folder / file).write_bytes(content)
