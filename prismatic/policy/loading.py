"""A checkpoint folder (or Hub id) -> `PolicyParts`; strict, so that nothing is missing in silence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from prismatic.models.action_model import ActionModel
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.processor import PrismaticProcessor
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.files import ACTION_HEAD, ADAPTER_FOLDER, PROPRIO_PROJECTOR, STATISTICS_FILE, load_component
from prismatic.policy.parts import PolicyParts, build_action_head, build_proprio_projector
from prismatic.policy.spec import PolicySpec

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class BaseModel:
    """A vision-language model with its processor."""

    vla: OpenVLAForActionPrediction
    processor: PrismaticProcessor


def resolve_folder(name_or_path: str | Path) -> Path:
    """A local folder as it is; a Hub id as the folder that it was downloaded to.

    Raises:
        ValueError: neither.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name_or_path).count("/") != 1 or str(name_or_path).startswith((".", "~")):
        raise ValueError(f"{name_or_path} is neither a folder nor a Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_path)))
    except Exception as error:  # the client raises many kinds, all of which mean the same here
        raise ValueError(
            f"{name_or_path} is not a folder here, and could not be downloaded from the Hub ({type(error).__name__}). "
            "Check the spelling and the network, or pass the folder of a downloaded model"
        ) from error


def load_config(name_or_path: str | Path) -> OpenVLAConfig:
    """The sizes of the model in a folder or Hub id, without its weights.

    Raises:
        ValueError: no such model, or no config.json in it.
    """
    folder = resolve_folder(name_or_path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} lacks config.json; copy the whole model folder")
    return OpenVLAConfig.from_pretrained(folder)


def load_base(name_or_path: str | Path, dtype: torch.dtype) -> BaseModel:
    """The model of a folder or Hub id in the published layout, on the CPU.

    Raises:
        ValueError: no such model, a file is missing or damaged, or weights do not fit; every key that differs is listed.
    """
    folder = resolve_folder(name_or_path)
    if not any((folder / name).is_file() for name in _WEIGHT_FILES):
        raise ValueError(f"{folder} holds none of {', '.join(_WEIGHT_FILES)}; it is not a model folder, or its download is incomplete")
    config = load_config(folder)
    processor = PrismaticProcessor.from_pretrained(folder)
    return BaseModel(_load_vla(folder, config, dtype), processor)


def load_parts(name_or_path: str | Path, device: torch.device, dtype: torch.dtype) -> PolicyParts:
    """Everything in a checkpoint folder that this project wrote, in evaluation mode on `device`.

    Raises:
        ValueError: a file is missing or damaged, or does not fit the others.
    """
    folder = resolve_folder(name_or_path)
    spec = PolicySpec.load(folder)
    norm_stats = _load_statistics(folder)
    if any((folder / name).is_file() for name in _WEIGHT_FILES):
        base = load_base(folder, dtype)
    elif spec.base_model and (folder / ADAPTER_FOLDER).is_dir():
        base = _load_adapted(folder, spec.base_model, dtype)
    else:
        raise ValueError(
            f"{folder} holds neither {_WEIGHT_FILES[0]} nor {ADAPTER_FOLDER}/ with a known base model; copy the whole checkpoint"
        )
    config = base.vla.config
    head = build_action_head(spec.heads, spec.platform, config.hidden_size)
    load_component(head, folder, ACTION_HEAD)
    projector = build_proprio_projector(spec.heads, spec.platform, config.hidden_size)
    if projector is not None:
        load_component(projector, folder, PROPRIO_PROJECTOR)
    model = ActionModel(base.vla, head, projector).to(device, dtype).eval().requires_grad_(False)
    return PolicyParts(model, config, base.processor, spec, norm_stats)


def _load_vla(folder: Path, config: OpenVLAConfig, dtype: torch.dtype) -> OpenVLAForActionPrediction:
    try:
        loaded: Any = OpenVLAForActionPrediction.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the weights in {folder} cannot be read ({type(error).__name__}: {error}); copy or download them again"
        ) from error
    vla, info = loaded
    problems = [f"{kind.replace('_', ' ')}: {key}" for kind, keys in info.items() for key in _as_list(keys)]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"the weights in {folder} do not fit its config.json:\n  {shown}")
    return vla


def _as_list(keys: Any) -> list[str]:
    return sorted(map(str, keys)) if isinstance(keys, list | set | tuple | dict) else ([str(keys)] if keys else [])


def _load_adapted(folder: Path, base_model: str, dtype: torch.dtype) -> BaseModel:
    from peft import PeftModel

    base = load_base(base_model, dtype)
    adapted = PeftModel.from_pretrained(base.vla, str(folder / ADAPTER_FOLDER))
    merged: nn.Module = adapted.merge_and_unload()
    assert isinstance(merged, OpenVLAForActionPrediction)
    return BaseModel(merged, base.processor)


def _load_statistics(folder: Path) -> dict[str, Any]:
    path = folder / STATISTICS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} lacks {STATISTICS_FILE}, without which actions have no units; copy the whole checkpoint folder")
    return json.loads(path.read_text())
