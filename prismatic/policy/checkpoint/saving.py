"""`PolicyParts` -> the files of a checkpoint folder, in the published layout; the inverse of `prismatic.policy.checkpoint.loading`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from prismatic.models.weight_files import write_weights
from prismatic.policy.checkpoint.files import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    STATISTICS_FILE,
    VISION_BACKBONE,
    component_suffix,
    save_component,
)
from prismatic.policy.checkpoint.parts import PolicyParts, head_components
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.lora.adapters import LM_HEAD, adapter_config, adapter_state, is_adapted, published_state

# The published checkpoints store the model and the adapters in bfloat16.
_MODEL_DTYPE = torch.bfloat16
_ADAPTER_README = """---
library_name: peft
tags: [lora, openvla, robotics]
---
LoRA adapters of an OpenVLA-OFT policy. The folder above holds what else the policy needs; its `policy.json` says how it was made.
"""


def save_policy(
    parts: PolicyParts, folder: Path, step: int | None, merge: bool = True, originals: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Fills the existing `folder`; `step` names the component files, None for the one latest checkpoint.

    With `merge` (or without adapters) the folder holds the whole model; otherwise the adapters alone, which need their base.
    A quantized model is merged into `originals`, the weights that it was made from.
    """
    model = parts.model
    suffix = component_suffix(step)
    for component, module in head_components(model).items():
        save_component(module, folder, component, suffix)
    if model.bare_vla.uses_film:
        save_component(model.bare_vla.vision_backbone, folder, VISION_BACKBONE, suffix)
    if is_adapted(model.vla):
        _save_adapter(model.vla, parts.spec, folder / ADAPTER_FOLDER)
    if merge or not is_adapted(model.vla):
        save_model(model.vla, folder, originals=originals)
    _save_descriptions(parts, folder)


def save_model(
    vla: nn.Module, folder: Path, merge_dtype: torch.dtype = torch.float32, originals: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Writes model.safetensors (or its shards and their index): plain names, adapters merged, bfloat16."""
    state = published_state(vla, _MODEL_DTYPE, merge_dtype, originals)
    write_weights(state, folder)


def _save_adapter(vla: nn.Module, spec: PolicySpec, folder: Path) -> None:
    """Writes the adapters in bfloat16 with PEFT's file names and keys."""
    assert spec.lora is not None
    folder.mkdir()
    write_weights(adapter_state(vla, _MODEL_DTYPE), folder, ADAPTER_FILE.removesuffix(".safetensors"))
    is_tied = not any(f"{LM_HEAD}." in key for key in vla.state_dict())
    config = adapter_config(spec.lora, spec.base_model or str(spec.provenance.get("vla_path", "")), is_tied)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(_ADAPTER_README)


def save_config(parts: PolicyParts, folder: Path) -> None:
    """Writes config.json and generation_config.json, with the policy's statistics in the former."""
    config = type(parts.config).from_dict(parts.config.to_dict())
    config.norm_stats = parts.norm_stats
    config.save_published(folder)


def _save_descriptions(parts: PolicyParts, folder: Path) -> None:
    save_config(parts, folder)
    parts.processor.save_pretrained(folder)
    (folder / STATISTICS_FILE).write_text(json.dumps(parts.norm_stats, indent=2) + "\n")
    parts.spec.save(folder)
    if parts.reference is not None:
        parts.reference.save(folder)
