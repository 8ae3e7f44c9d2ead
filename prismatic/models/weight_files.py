"""Weights -> safetensors files of a model folder, whole or in shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

MAX_SHARD_SIZE = "5GB"


def write_weights(state: Mapping[str, torch.Tensor], folder: Path, name: str = "model") -> None:
    """Writes `folder`/`name`.safetensors, or shards of it and their index, for whoever may read the other files there."""
    pattern = f"{name}{{suffix}}.safetensors"
    save_torch_state_dict(dict(state), folder, filename_pattern=pattern, max_shard_size=MAX_SHARD_SIZE, metadata={"format": "pt"})
    probe = folder / f".{name}.mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.glob(f"{name}*.safetensors*"):
        path.chmod(mode)  # safetensors keeps everybody but the owner out
