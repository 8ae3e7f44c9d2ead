"""Weights -> safetensors files of a model folder, whole or in shards; and whether weights are numbers at all."""

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


def check_finite(weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Returns if all floating-point weights are finite, as far as they are in memory; about half a second for 7.5 billion on a CPU.

    Raises:
        ValueError: some are NaN or infinite; `source` says where they are from.
    """
    known = {key: value for key, value in weights.items() if value.is_floating_point() and value.numel() and not value.is_meta}
    if wrong := [key for key, value in known.items() if not torch.stack(value.detach().aminmax()).isfinite().all()]:
        raise ValueError(
            f"{source}: {len(wrong)} of {len(weights)} weights hold NaN or infinity in {known[wrong[0]].dtype} (first {wrong[0]}); "
            "copy or download it again"
        )
