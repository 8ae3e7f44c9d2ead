"""`PolicyParts` -> the files of a checkpoint folder, in the published layout; the inverse of `prismatic.policy.loading`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import GenerationConfig

from prismatic.policy.adapters import is_adapted, merged_state_dict
from prismatic.policy.files import ACTION_HEAD, ADAPTER_FOLDER, PROPRIO_PROJECTOR, STATISTICS_FILE, component_suffix, save_component
from prismatic.policy.parts import PolicyParts

# The published checkpoints store the model in bfloat16.
_MODEL_DTYPE = torch.bfloat16
_MAX_SHARD_SIZE = "5GB"


def save_policy(parts: PolicyParts, folder: Path, step: int | None, merge: bool = True) -> None:
    """Fills the existing `folder`; `step` names the component files, None for the one latest checkpoint.

    With `merge` (or without adapters) the folder holds the whole model; otherwise the adapters alone, which need their base.
    """
    model = parts.model
    suffix = component_suffix(step)
    save_component(model.action_head, folder, ACTION_HEAD, suffix)
    if model.proprio_projector is not None:
        save_component(model.proprio_projector, folder, PROPRIO_PROJECTOR, suffix)
    if is_adapted(model.vla):
        _save_adapter(model.vla, folder / ADAPTER_FOLDER)
    if merge or not is_adapted(model.vla):
        state = merged_state_dict(model.vla, _MODEL_DTYPE)
        save_torch_state_dict(state, folder, max_shard_size=_MAX_SHARD_SIZE, metadata={"format": "pt"})
    _save_descriptions(parts, folder)


def _save_adapter(vla: nn.Module, folder: Path) -> None:
    """Writes the adapters in bfloat16 with PEFT's file names and keys."""
    from peft import get_peft_model_state_dict

    state = {key: value.detach().to("cpu", torch.bfloat16) for key, value in get_peft_model_state_dict(vla).items()}
    folder.mkdir()
    save_torch_state_dict(state, folder, filename_pattern="adapter_model{suffix}.safetensors", metadata={"format": "pt"})
    vla.peft_config["default"].save_pretrained(folder)  # type: ignore[union-attr, index]


def _save_descriptions(parts: PolicyParts, folder: Path) -> None:
    config = type(parts.config).from_dict(parts.config.to_dict())
    config.norm_stats = parts.norm_stats
    config.dtype = _MODEL_DTYPE
    config.architectures = ["OpenVLAForActionPrediction"]
    config.save_pretrained(folder)
    token_ids = parts.config.token_ids
    GenerationConfig(bos_token_id=token_ids.bos, eos_token_id=token_ids.stop, pad_token_id=token_ids.pad).save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    (folder / STATISTICS_FILE).write_text(json.dumps(parts.norm_stats, indent=2) + "\n")
    parts.spec.save(folder)
