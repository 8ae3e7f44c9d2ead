"""Checkpoints of tiny LoRA runs over one base model, as fine-tuning saves them: adapters, merged weights, head, statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.base_files import describe_base
from prismatic.policy.checkpoint.loading import load_base
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model
from prismatic.policy.checkpoint.saving import save_policy
from prismatic.policy.checkpoint.spec import HeadSpec, LoraSpec, PolicySpec
from prismatic.policy.lora.adapters import add_lora
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.images import ImageRecipe

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=2, llm_heads=2, llm_mlp_dim=64)


def write_base(folder: Path, seed: int = 0) -> Path:
    write_tiny_base(folder, SIZES, seed)
    return folder


def write_run(folder: Path, base: Path, seed: int, heads: HeadSpec, rank: int = 4, limit: float = 1.0) -> Path:
    """A LIBERO policy with the camera "primary", adapters that `seed` draws and actions within +-`limit`."""
    loaded = load_base(base, torch.float32)
    spec = PolicySpec(ROBOT_PLATFORMS["LIBERO"], ("primary",), ImageRecipe(28), "arm", heads, LoraSpec(rank), base_model=str(base))
    torch.manual_seed(seed)
    adapted = add_lora(loaded.vla, LoraSpec(rank))
    if heads.use_film:
        loaded.vla.add_film()
    model = build_action_model(adapted, loaded.vla.config, spec).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    bounds = {key: [sign * limit] * 7 for key, sign in (("min", -1), ("max", 1), ("q01", -1), ("q99", 1))}
    proprio = {key: values + values[:1] for key, values in bounds.items()}
    folder.mkdir()
    parts = PolicyParts(model, loaded.vla.config, loaded.processor, spec, {"arm": {"action": bounds, "proprio": proprio}})
    save_policy(parts, folder, step=1)
    (folder / "policy.json").unlink()
    described = replace(spec, base_model=None, base_files=describe_base(base))  # weights are merged, too; the adapter's file names the base
    described.save(folder)
    return folder
