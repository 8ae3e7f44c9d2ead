"""LoRA adapters of a VLA: adding, loading, saving and folding them into the weights that they adapt.

    W' = W + scaling * B A,   scaling = alpha / rank,   alpha = min(rank, 16)        (other files: as their adapter_config.json says)

They sit on every linear layer, the patch convolutions and the LM head included; A ~ N(0, 1/rank^2), B = 0 (golden group g_lora).
Modules that never receive a gradient (the last ViT block, the attention pool, the LM head under an L1 head) are wrapped too, so that
adapter files have the published keys. Merged weights are computed in float32 and rounded once, tensor by tensor; no second model
is held in memory (the published code merges in bfloat16, which remains an option).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prismatic.models.language import TiedHead
from prismatic.models.weight_files import check_finite
from prismatic.policy.checkpoint.files import check_keys, is_film_layer, read_safetensors
from prismatic.policy.checkpoint.spec import LoraSpec
from prismatic.policy.checkpoint.stored_weights import StoredWeights
from prismatic.policy.inference.quantization import QuantizedLinear
from prismatic.policy.lora.scaling import AdapterScaling

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

State = dict[str, torch.Tensor]

# What PEFT 0.11's "all-linear" resolved to for OpenVLA; later versions leave out the output layer, so the names are spelled out.
LORA_TARGET_MODULES = (
    "down_proj", "fc1", "fc2", "fc3", "gate_proj", "k_proj", "kv", "lm_head", "o_proj", "proj", "q", "q_proj", "qkv", "up_proj", "v_proj",
)  # fmt: skip
FILM_PREFIX = "vision_backbone.vision_backbone."

_ADAPTER = "default"  # PEFT's name for the one adapter; part of the keys in memory, absent from adapter files
PEFT_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
LM_HEAD = "language_model.lm_head"


def add_lora(model: PreTrainedModel, lora: LoraSpec, ranks: Mapping[str, int] | None = None) -> PeftModel:
    """`model` with trainable adapters on frozen weights, quantized ones too; the modules are wrapped in place.

    `ranks`: those of modules that differ from `lora`'s, by name.
    """
    from peft import LoraConfig, get_peft_model

    from prismatic.policy.lora.adapted_linear import AdaptedLinear

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora_targets(is_tied=isinstance(model.get_output_embeddings(), TiedHead))),
        init_lora_weights="gaussian",
        rank_pattern={re.escape(name): rank for name, rank in (ranks or {}).items() if rank != lora.rank},
    )
    config._register_custom_module({nn.Linear: AdaptedLinear, QuantizedLinear: AdaptedLinear})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        return get_peft_model(model, config)


def lora_targets(is_tied: bool) -> tuple[str, ...]:
    """The layers that get adapters. A token head tied to the embeddings gets none: merged, it would be tied no longer."""
    return tuple(name for name in LORA_TARGET_MODULES if not (is_tied and name == "lm_head"))


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is wrapped by PEFT."""
    return hasattr(model, "peft_config")


def adapter_state(model: nn.Module, dtype: torch.dtype) -> State:
    """The content of an adapter file, on the CPU: every LoRA matrix under PEFT's file naming, and the LM head that PEFT stores along."""
    state = {}
    for key, value in model.state_dict().items():
        if ".lora_" in key or key == f"{PEFT_PREFIX}{LM_HEAD}.base_layer.weight":
            state[key.replace(f".{_ADAPTER}.", ".")] = value.detach().to("cpu", dtype).contiguous()
    return state


def adapter_config(lora: LoraSpec, base_model: str | None, is_tied: bool = False) -> dict[str, Any]:
    """adapter_config.json with the fields that PEFT 0.11.1 knows: it refuses any other, newer versions read these."""
    return {
        "alpha_pattern": {},
        "auto_mapping": {"base_model_class": "OpenVLAForActionPrediction", "parent_library": "prismatic.models.vla"},
        "base_model_name_or_path": base_model or "",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(lora_targets(is_tied)),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def load_adapter(model: nn.Module, adapter: Mapping[str, torch.Tensor], source: str, scaling: AdapterScaling | None = None) -> None:
    """Fills the LoRA matrices of a model that PEFT wraps with the content of an adapter file, and scales them as `scaling` says.

    Raises:
        ValueError: the adapter is of another model or rank; every key that differs is listed.
    """
    own = model.state_dict()
    expected = {key.replace(f".{_ADAPTER}.", "."): value for key, value in own.items() if ".lora_" in key}
    found = {key: value for key, value in adapter.items() if ".lora_" in key}
    check_keys(expected, found, f"{source} does not fit the model")
    named = {key.replace(f".{_ADAPTER}.", "."): key for key in own}
    model.load_state_dict({named[key]: value for key, value in found.items()}, strict=False)
    if scaling is not None:
        for name, module in adapted_modules(model).items():
            module.scaling[_ADAPTER] = scaling.of(without_film(name), module.r[_ADAPTER])


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """Name in the base model -> module that PEFT wraps."""
    return {name.removeprefix(PEFT_PREFIX): module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def read_adapter(path: Path) -> State:
    """The tensors of the adapter file `path`, on the CPU.

    Raises:
        ValueError: the file is absent or damaged, or holds no adapter: sharded training with other software leaves such files.
    """
    adapter = read_safetensors(path)
    matrices = {key: value for key, value in adapter.items() if ".lora_" in key}
    if empty := [key for key, value in matrices.items() if not value.numel()]:
        raise ValueError(f"{path} holds no adapter: {len(empty)} matrices are empty (first {empty[0]}); save it again, gathered")
    if not matrices:
        raise ValueError(f"{path} holds no LoRA weights, without which the policy would act as its base does; copy or save it again")
    if other := [f"{key} is {value.dtype}" for key, value in matrices.items() if not value.is_floating_point()]:
        raise ValueError(
            f"{path} holds no floating-point weights: {other[0].replace('torch.', '')}; take the adapter before it was quantized"
        )
    check_finite(matrices, str(path))
    return adapter


def adapter_ranks(adapter: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Name in the base model without FiLM -> rank, of each module in an adapter file."""
    return {without_film(module_of(key)): value.shape[0] for key, value in adapter.items() if key.endswith(_DOWN)}


def stored_ranks(path: Path) -> dict[str, int]:
    """`adapter_ranks` of the adapter file `path`, whose matrices are not read.

    Raises:
        ValueError: the file is absent or damaged.
    """
    with StoredWeights.open_file(path) as file:
        return adapter_ranks({key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()})  # noqa: SIM118


def module_of(key: str) -> str:
    """The name in the base model of the module whose matrix A an adapter file calls `key`."""
    return key.removeprefix(PEFT_PREFIX).removesuffix(_DOWN)


def adapter_pairs(adapter: Mapping[str, torch.Tensor], source: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name in the base model of each module in an adapter file -> its matrices A and B.

    Raises:
        ValueError: one of them is absent, or there are LoRA tensors of another kind.
    """
    pairs = {}
    left = {key for key in adapter if ".lora_" in key}
    for down in [key for key in left if key.endswith(_DOWN)]:
        up = down.removesuffix(_DOWN) + _UP
        if up not in adapter:
            raise ValueError(f"{source}: {down} has no lora_B beside it; the file is incomplete, copy or download it again")
        pairs[module_of(down)] = (adapter[down], adapter[up])
        left -= {down, up}
    if left:
        what = f"{min(left)} has no lora_A beside it; the file is incomplete, copy or download it again"
        other = f"{min(left)} is neither lora_A.weight nor lora_B.weight; adapters here are B A beside a weight"
        raise ValueError(f"{source}: {what if min(left).endswith(_UP) else other}")
    return pairs


def merge_adapter(
    state: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor], source: str, scaling: AdapterScaling | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, float32 weight) of each entry of `state` that the adapter file changes, merged; `scaling`: by default as published.

    Raises:
        ValueError: the adapter adapts a weight that the model lacks, or in another shape.
    """
    scaling = scaling or AdapterScaling()
    for module, (down, up) in adapter_pairs(adapter, source).items():
        name = f"{module}.weight"
        if name not in state:
            raise ValueError(f"{source}: {PEFT_PREFIX}{module}{_DOWN} has no weight in the model; take the right base")
        yield name, _merge(state[name], (down, up), scaling.of(module, down.shape[0]), f"{source}: {module}")


def merge_component(state: Mapping[str, torch.Tensor], source: str, scaling: AdapterScaling | None = None) -> State:
    """The vision backbone's state dict with unmerged adapters (PEFT's naming in memory) -> the plain one; without adapters as it is.

    Raises:
        ValueError: an adapter is incomplete.
    """
    merged: State = {}
    scaling = scaling or AdapterScaling()
    for key, value in state.items():
        if ".lora_" in key:
            continue
        owner, _, leaf = key.rpartition(".")
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            if leaf == "weight":
                down, up = (state.get(f"{owner}.lora_{side}.{_ADAPTER}.weight") for side in "AB")
                if down is None or up is None:
                    raise ValueError(f"{source}: {owner} lacks lora_A or lora_B; copy the file again")
                value = _merge(value, (down, up), scaling.of(without_film(f"vision_backbone.{owner}"), down.shape[0]), f"{source}: {owner}")
        merged[f"{owner}.{leaf}" if owner else leaf] = value
    return merged


def lora_rank(state: Mapping[str, torch.Tensor]) -> int | None:
    """The rank of the adapters in a state dict; None without any."""
    return next((value.shape[0] for key, value in state.items() if ".lora_A." in key), None)


def published_state(
    model: nn.Module, dtype: torch.dtype, merge_dtype: torch.dtype = torch.float32, originals: Mapping[str, torch.Tensor] | None = None
) -> State:
    """The content of model.safetensors, on the CPU: plain names, adapters merged, floating-point weights as `dtype`.

    With FiLM the vision towers are those of the base model, unmodulated and unmerged, as published: the real ones are in the
    file of the vision backbone. Layers that are quantized take their weights from `originals`, the base model's by plain name.
    """
    merged: State = {}
    state = model.state_dict()
    scalings = {name: float(module.scaling[_ADAPTER]) for name, module in adapted_modules(model).items()}
    quantized = tuple(f"{name}.layer." for name, module in model.named_modules() if isinstance(module, QuantizedLinear))
    assert originals is not None or not quantized, "a quantized model cannot be saved without the weights that it was made from"
    owners = [name.removesuffix(".layer.") for name in quantized]
    biases = [f"{owner}.bias" for owner in owners if _plain_name(f"{owner}.bias") in (originals or ())]
    for key in [*(key for key in state if not key.startswith(quantized)), *(f"{owner}.weight" for owner in owners), *biases]:
        name = key.removeprefix(PEFT_PREFIX)
        if ".lora_" in name or is_film_layer(name):
            continue
        is_film = name.startswith(FILM_PREFIX)
        owner, _, leaf = name.rpartition(".")
        is_adapted_layer = owner.endswith(".base_layer")
        owner = owner.removesuffix(".base_layer")
        value = state[key] if key in state else originals[f"{owner}.{leaf}"]  # type: ignore[index]
        if is_adapted_layer and leaf == "weight" and not is_film:
            down, up = (state[f"{key.removesuffix('.base_layer.weight')}.lora_{side}.{_ADAPTER}.weight"] for side in "AB")
            value = _merge(value.to(down.device), (down, up), scalings[owner], owner, merge_dtype)
        if is_film:
            owner = without_film(owner)
        merged[f"{owner}.{leaf}"] = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
    return merged


def _plain_name(key: str) -> str:
    """The name in a model without adapters of a weight that PEFT wraps."""
    return key.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")


def without_film(name: str) -> str:
    """The name of a tower's weight or adapter in the same model without FiLM; any other name as it is."""
    return name.replace(FILM_PREFIX, "vision_backbone.").replace(".block.", ".") if FILM_PREFIX in name else name


def _merge(
    weight: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], scaling: float, source: str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """W + scaling * B A in `dtype`, of a linear layer or of a convolution whose B is 1 x 1; `pair` is A and B."""
    down, up = pair
    if weight.shape != (shape := torch.Size((up.shape[0], *down.shape[1:]))):
        raise ValueError(f"{source}: the adapter is for a weight of {list(shape)}, the model has {list(weight.shape)}; take the right base")
    product = up.to(dtype).flatten(1) @ down.to(dtype).flatten(1)
    return weight.to(dtype) + scaling * product.view_as(weight)
