"""A base as Prismatic's training writes it -> its configuration, weights and tokenizer, as the rest of the house knows them.

config.json                     {"model": {"vision_backbone_id", "llm_backbone_id", "arch_specifier", ...}}; of a VLA (MiniVLA)
                                {"vla": {"base_vlm", ...}}
checkpoints/latest-checkpoint.pt, or the last step-*.pt
                                {"model": {"vision_backbone": ..., "projector": ..., "llm_backbone": ...}}
tokenizer.json, ...             of the language model, which has to be copied there: a published folder has none
<timm id>.safetensors           the towers' own weights, where the .pt holds none because training left them as they were

Layout and names: github.com/TRI-ML/prismatic-vlms and github.com/Stanford-ILIAD/openvla-mini. A folder of other sizes (a test's) states
them as "openvla_config" in its "model".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.nn import functional as F

from prismatic.models.base import tokenizer_texts
from prismatic.models.chat_tokenizer import add_extra_tokens
from prismatic.models.configuration import OpenVLAConfig, prismatic_qwen25_0_5b
from prismatic.models.json_files import read_object
from prismatic.models.processor import PrismaticImageProcessor, PrismaticProcessor, load_tokenizer
from prismatic.policy.checkpoint.files import read_safetensors

BASE_NAME = "prism-qwen25-extra-dinosiglip-224px+0_5b"
_BASE_NAMES = re.compile(r"prism-qwen25-extra-dinosiglip-224px[+-]0_5b")  # + in its training, - on the Hub
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # of weights
_NUM_SHOWN = 6  # names in a message
_PARTS = ("vision_backbone", "projector", "llm_backbone")
_LANGUAGE, _VISION, _PROJECTOR = "qwen25-0_5b-extra", "dinosiglip-vit-so-224px", "fused-gelu-mlp"
# Beginning of an id -> what is missing for that base.
_OTHER_LANGUAGE_MODELS = {
    "qwen25": "it has no extra tokens for actions, or another size",
    "llama2": "openvla/openvla-7b is the policy base that was trained from it; take that one",
    "vicuna": "its prompt; openvla/openvla-7b has the same form, take that one",
    "mistral": "its sliding attention window, prompt and tokenizer",
    "phi": "its parallel layers, partial rotary embedding, prompt and tokenizer",
    "gemma": "its norms, activation, prompt and tokenizer",
}
_EMBEDDINGS, _HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
# Prismatic's name -> ours, at the beginning of a key; every key has one of them.
_PREFIXES = {
    "dino_featurizer.": "vision_backbone.featurizer.",
    "siglip_featurizer.": "vision_backbone.fused_featurizer.",
    "projector.0.": "projector.fc1.",
    "projector.2.": "projector.fc2.",
    "projector.4.": "projector.fc3.",
    "llm.": "language_model.",
}


def is_prismatic(folder: Path) -> bool:
    """Whether `folder` has a config.json as Prismatic's training writes it."""
    try:
        content = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" not in content and bool({"model", "vla"} & set(content))


def prismatic_config(folder: Path) -> OpenVLAConfig:
    """The sizes of the base in `folder`.

    Raises:
        ValueError: it is another base than the one that is supported; the message says what is missing for it.
    """
    model = _described(folder)
    _check_supported(model, folder)
    config = OpenVLAConfig(**model["openvla_config"]) if "openvla_config" in model else prismatic_qwen25_0_5b()
    config.image_resize_strategy = model.get("image_resize_strategy", config.image_resize_strategy)
    return config


def _described(folder: Path) -> dict[str, Any]:
    """What config.json says of the vision-language model; that of a VLA names its base only."""
    content = read_object(folder / "config.json")
    kind = "model" if "model" in content else "vla"
    if not isinstance(content[kind], dict):
        raise ValueError(f"{folder}/config.json: {kind!r} is {content[kind]!r}, expected an object; copy or download it again")
    if kind == "model":
        return content["model"]
    base = str(content["vla"].get("base_vlm"))
    if Path(base).is_dir() and is_prismatic(Path(base)):
        return _described(Path(base))
    if _BASE_NAMES.search(base):
        return {"llm_backbone_id": _LANGUAGE, "vision_backbone_id": _VISION, "arch_specifier": _PROJECTOR}
    raise ValueError(f"{folder}/config.json: the VLA was trained from {base!r}, which is not known here; supported: {BASE_NAME}")


def _check_supported(model: Mapping[str, Any], folder: Path) -> None:
    language, vision, projector = (str(model.get(key)) for key in ("llm_backbone_id", "vision_backbone_id", "arch_specifier"))
    name = model.get("model_id", folder.name)
    if language != _LANGUAGE:
        missing = next((text for start, text in _OTHER_LANGUAGE_MODELS.items() if language.startswith(start)), "its decoder")
        raise ValueError(f"{name} has the language model {language!r}; missing here: {missing}. Supported: {_LANGUAGE!r}")
    if vision != _VISION:
        raise ValueError(f"{name} has the vision backbone {vision!r}; missing here: other towers than those of {_VISION!r}")
    if projector.rpartition("+")[2] != _PROJECTOR:
        raise ValueError(f"{name} has the projector {projector!r}; missing here: other projectors than {_PROJECTOR!r}")


def prismatic_processor(folder: Path, tokenizer_folder: Path, config: OpenVLAConfig) -> PrismaticProcessor:
    """The base's image processor, and its tokenizer with the extra tokens for actions.

    Raises:
        ValueError: `tokenizer_folder` holds no tokenizer, or one with some of the extra tokens.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    add_extra_tokens(tokenizer)
    return PrismaticProcessor(
        PrismaticImageProcessor(config.image_size, config.image_resize_strategy), tokenizer, tokenizer_texts(tokenizer)
    )


def weights_file(folder: Path) -> Path:
    """checkpoints/latest-checkpoint.pt, or the checkpoint of the last step.

    Raises:
        ValueError: there is none.
    """
    latest = folder / "checkpoints" / "latest-checkpoint.pt"
    steps = {path: re.match(r"step-(\d+)", path.name) for path in (folder / "checkpoints").glob("step-*.pt")}
    numbered = sorted((int(found[1]), path) for path, found in steps.items() if found)
    if latest.is_file() or not numbered:
        if not latest.is_file():
            raise ValueError(f"{folder} lacks checkpoints/latest-checkpoint.pt (or step-*.pt); its download is incomplete")
        return latest
    return numbered[-1][1]


@dataclass(frozen=True)
class PrismaticWeights(Mapping[str, torch.Tensor]):
    """The tensors of a base under our names; each is read from the disk when it is looked at."""

    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def open(cls, folder: Path, config: OpenVLAConfig) -> PrismaticWeights:
        """The weights in `folder`.

        Raises:
            ValueError: the file is damaged, a part is missing, a key is unknown, or tied weights contradict each other.
        """
        path = weights_file(folder)
        parts = _read_parts(path)
        found = {**(parts.get("vision_backbone") or {}), **parts["projector"], **parts["llm_backbone"]}
        if config.decoder_sizes.tied_embeddings:
            found = _untwinned(found, path)
        tensors = {_our_name(key, path): value for key, value in found.items()}
        if not parts.get("vision_backbone"):
            tensors |= _tower_weights(folder, config, path)
        return cls(tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def other_dtypes(self) -> dict[str, str]:
        """Name -> dtype of tensors that are no plain floating-point weights: those of a quantized model."""
        return {name: str(value.dtype).removeprefix("torch.") for name, value in self.tensors.items() if value.dtype not in _DTYPES}

    def shapes(self) -> dict[str, torch.Tensor]:
        """Every tensor on the meta device: its shape without its content."""
        return {name: torch.empty(value.shape, device="meta") for name, value in self.tensors.items()}


def _read_parts(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Part -> name -> tensor of a .pt of Prismatic's training; the towers may be absent."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path} is no checkpoint of Prismatic, or damaged ({type(error).__name__}); download it again") from error
    parts = content.get("model") if isinstance(content, dict) else None
    if not isinstance(parts, dict):
        raise ValueError(f"{path} is no checkpoint of Prismatic: it has no 'model' with the parts {', '.join(_PARTS)}")
    if missing := [name for name in _PARTS[1:] if not parts.get(name)]:
        names = [str(name) for name in parts]
        held = ", ".join(names[:_NUM_SHOWN]) + (f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else "")
        raise ValueError(f"{path} lacks {', '.join(missing)} in its 'model', which holds {held or 'nothing'}")
    for name in _PARTS:
        part = parts.get(name) or {}
        if not isinstance(part, dict) or (wrong := [key for key, value in part.items() if not isinstance(value, torch.Tensor)]):
            what = f"is a {type(part).__name__}" if not isinstance(part, dict) else f"holds {wrong[0]!r}, which is no tensor"
            raise ValueError(f"{path}: {name} {what}; expected the names and tensors of Prismatic's training")
    return parts


def _our_name(key: str, path: Path) -> str:
    for prefix, ours in _PREFIXES.items():
        if key.startswith(prefix):
            return f"{ours}{key.removeprefix(prefix)}".replace(".gamma", ".scale_factor")
    raise ValueError(f"{path} holds {key!r}, which belongs to no part of this base")


def _untwinned(found: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """`found` with the tied weight once, under the name of the embeddings."""
    embeddings, head = found.get(_EMBEDDINGS), found.get(_HEAD)
    if embeddings is None and head is None:
        raise ValueError(f"{path} holds neither {_EMBEDDINGS} nor {_HEAD}: the tied weight of embeddings and token head is missing")
    if embeddings is not None and head is not None and not torch.equal(embeddings, head):
        raise ValueError(
            f"{path} holds {_EMBEDDINGS} and {_HEAD} with different numbers, but this base ties them to one weight, and nothing says which "
            "of the two is meant; save the checkpoint again from a model whose weights are tied"
        )
    return {**{key: value for key, value in found.items() if key != _HEAD}, _EMBEDDINGS: head if embeddings is None else embeddings}  # type: ignore[dict-item]


def _tower_weights(folder: Path, config: OpenVLAConfig, path: Path) -> dict[str, torch.Tensor]:
    """The towers out of timm's files, for a base whose training left them as they were."""
    tensors: dict[str, torch.Tensor] = {}
    sides = zip(("featurizer", "fused_featurizer"), config.timm_model_ids, config.towers, strict=True)
    files = [folder / f"{model_id}.safetensors" for model_id in config.timm_model_ids]
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{path} lacks vision_backbone, as training does not save towers that it left as they were; put timm's weights of them beside "
            f"config.json: {', '.join(absent)} is missing"
        )
    for (side, _, tower), file in zip(sides, files, strict=True):
        for key, value in _trunk(read_safetensors(file)).items():
            fitting = _resample(value, tower.num_patches) if key == "pos_embed" else value
            tensors[f"vision_backbone.{side}.{key.replace('.gamma', '.scale_factor')}"] = fitting
    return tensors


def _trunk(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vision tower of a file that may hold a text tower beside it."""
    prefix = "visual.trunk."
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inner or state


def _resample(positions: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Position embeddings [1, P, D] of a square grid for another one, bicubic with antialiasing, as timm does it."""
    old, new = (round(count**0.5) for count in (positions.shape[1], num_patches))
    if old == new:
        return positions
    grid = positions.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)  # [1, D, old, old]
    resized = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    return resized.flatten(2).transpose(1, 2).to(positions.dtype)
