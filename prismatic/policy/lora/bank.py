"""Several LoRA adapters over one base model in memory: each one a policy of its own, with its own head, cameras and statistics.

    policies = load_adapter_policies({"bowls": "runs/bowls--5000_chkpt", "cups": "runs/cups--5000_chkpt"}, device, dtype)
    policies["cups"].predict([observation])

The base weights exist once. An adapted layer computes  y = W x + up (down x),  up = scaling * B, down = A  of the adapter that is switched
on, one at a time; merged weights would give the same up to rounding. The base may be quantized, adapters never are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from prismatic.models.self_test import check_bidirectional
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.base_files import check_base, named_base
from prismatic.policy.checkpoint.files import ADAPTER_FILE, ADAPTER_FOLDER, load_component
from prismatic.policy.checkpoint.loading import (
    LoadOptions,
    check_spec,
    load_base,
    load_spec,
    move_used_parts,
    resolve_base,
    resolve_folder,
)
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model, head_components
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.checkpoint.told import load_reference, load_statistics, warn_of_changes, warn_of_newer
from prismatic.policy.inference.engine import Engine, EngineInputs
from prismatic.policy.inference.graphs import make_engine
from prismatic.policy.inference.quantization import quantize_model
from prismatic.policy.lora.adapters import PEFT_PREFIX, State, adapter_pairs, read_adapter
from prismatic.policy.lora.scaling import AdapterScaling
from prismatic.policy.policy import Policy
from prismatic.vla.constants import near_names

Delta = tuple[torch.Tensor, torch.Tensor]  # down and up


class LowRankLayer(nn.Module):
    """A frozen linear layer or convolution, plus the delta that is switched on."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.delta: Delta | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The base's own."""
        weight = self.base.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if self.delta is None:
            return y
        down, up = self.delta
        if isinstance(self.base, nn.Conv2d):
            return y + F.conv2d(F.conv2d(x, down, stride=self.base.stride), up)
        return y + F.linear(F.linear(x.to(down.dtype), down), up).to(y.dtype)


class AdapterBank:
    """The deltas of several adapters over one model; one call at a time, with one of them."""

    def __init__(self, vla: OpenVLAForActionPrediction) -> None:
        self._vla = vla
        self._layers: dict[str, LowRankLayer] = {}  # by path
        self._deltas: dict[str, dict[str, Delta]] = {}  # adapter -> path -> delta
        self._switched_on: str | None = None
        self._lock = threading.Lock()

    def add(self, name: str, adapter: State, scaling: AdapterScaling) -> None:
        """Keeps the content of an adapter file, which must fit the model (`check_adapter`), on the model's device and in its dtype."""
        like = self._vla.language_model.model.norm.weight
        found: dict[str, Delta] = {}
        for path, (down, up) in adapter_pairs(adapter, name).items():
            factor = scaling.of(path, down.shape[0])
            found[path] = (down.to(like.device, like.dtype), (factor * up.float()).to(like.device, like.dtype))
            self._wrap(path)
        self._deltas[name] = found

    @contextmanager
    def activated(self, name: str) -> Iterator[None]:
        """The model with that adapter, for the block."""
        with self._lock:
            if self._switched_on != name:
                deltas = self._deltas[name]
                for path, layer in self._layers.items():
                    layer.__dict__["delta"] = deltas.get(path)  # a module's own assignment looks at every kind of thing first
                self._switched_on = name
            yield

    def _wrap(self, path: str) -> None:
        """Wraps the layer at `path`, unless it is."""
        if path in self._layers:
            return
        owner, _, leaf = path.rpartition(".")
        parent = self._vla.get_submodule(owner)
        self._layers[path] = LowRankLayer(getattr(parent, leaf))
        setattr(parent, leaf, self._layers[path])


class AdapterEngine:
    """An engine that switches its adapter on before it runs, and records programs of its own."""

    def __init__(self, bank: AdapterBank, name: str, engine: Engine) -> None:
        self._bank, self._name, self._engine = bank, name, engine

    @property
    def kind(self) -> str:
        return self._engine.kind

    @property
    def left(self) -> Mapping[str, str]:
        return self._engine.left

    @property
    def plain_calls(self) -> Mapping[str, int]:
        return self._engine.plain_calls

    @property
    def batch_sizes(self) -> Sequence[int]:
        return self._engine.batch_sizes

    def seal(self, frame_sizes: Sequence[tuple[int, int]], batch_size: int) -> None:
        self._engine.seal(frame_sizes, batch_size)

    def __call__(self, inputs: EngineInputs) -> np.ndarray:
        with self._bank.activated(self._name):
            return self._engine(inputs)

    def warm_up(self, batch_sizes: Sequence[int], frame_sizes: Sequence[tuple[int, int]], prompt_lengths: Sequence[int]) -> None:
        with self._bank.activated(self._name):
            self._engine.warm_up(batch_sizes, frame_sizes, prompt_lengths)


def load_adapter_policies(
    folders: Mapping[str, str | Path], device: torch.device, dtype: torch.dtype, options: LoadOptions | None = None
) -> dict[str, Policy]:
    """Name -> policy, of checkpoint folders with unmerged adapters over the same base model.

    `options.unnorm_key` counts for each adapter whose statistics have it; the others answer in their own units.

    Raises:
        ValueError: a folder holds no adapter, one of another base model or with FiLM, a file is missing or damaged, or no adapter has
            statistics of that data set.
    """
    options = options or LoadOptions()
    found = {name: resolve_folder(folder) for name, folder in folders.items()}
    statistics = {name: load_statistics(folder) for name, folder in found.items()}
    unnorm_keys = _unnorm_keys(statistics, options.unnorm_key)
    specs = {name: load_spec(folder, replace(options, unnorm_key=unnorm_keys[name]), statistics[name]) for name, folder in found.items()}
    base_model = _common_base(found, specs, options)
    for name, folder in found.items():
        warn_of_changes(folder)
        warn_of_newer(folder)
        check_base(folder, specs[name].base_files, base_model, resolve_base(folder, base_model))
    base = load_base(base_model, dtype, options.attn_implementation)
    vla = base.vla.eval().requires_grad_(False)
    adapters = {name: _read_adapter(folder, specs[name], vla) for name, folder in found.items()}
    quantize_model(vla, options.quantization, device, dtype)
    bank, loaded = AdapterBank(vla), {}
    for name, folder in found.items():
        check_spec(folder, specs[name], vla.config)
        model = build_action_model(vla, vla.config, specs[name])
        for component, module in head_components(model).items():
            load_component(module, folder, component)
            module.to(dtype).eval().requires_grad_(False)
        move_used_parts(model, device)
        bank.add(name, adapters.pop(name), AdapterScaling.read(folder / ADAPTER_FOLDER))
        loaded[name] = PolicyParts(model, vla.config, base.processor, specs[name], statistics[name], load_reference(folder, specs[name]))
    # Made last: engines see every adapted layer.
    return {name: _policy(bank, name, parts, replace(options, unnorm_key=unnorm_keys[name])) for name, parts in loaded.items()}


def _unnorm_keys(statistics: Mapping[str, Mapping[str, Any]], wanted: str | None) -> dict[str, str | None]:
    """Adapter -> `wanted`, where its statistics have that data set; None: its own."""
    known = {key for entry in statistics.values() for key in entry}
    if wanted is not None and wanted not in known:
        raise ValueError(f"--unnorm_key {wanted!r} is in no adapter's statistics; {near_names(wanted, known)}")
    return {name: wanted if wanted in entry else None for name, entry in statistics.items()}


def _policy(bank: AdapterBank, name: str, parts: PolicyParts, options: LoadOptions) -> Policy:
    engine = AdapterEngine(bank, name, make_engine(parts, options.engine, options.max_batch_size))
    with bank.activated(name):
        check_bidirectional(parts.model.bare_vla)
    return Policy(parts, options.unnorm_key, engine)


def _common_base(folders: Mapping[str, Path], specs: Mapping[str, PolicySpec], options: LoadOptions) -> str:
    bases = {name: options.base_model or specs[name].base_model or named_base(folder) for name, folder in folders.items()}
    if missing := [name for name, base in bases.items() if base is None]:
        raise ValueError(f"adapter {missing[0]!r} ({folders[missing[0]]}) does not say which base model it belongs to; pass --base_model")
    distinct = {str(base) for base in bases.values()}
    if len(distinct) > 1:
        listed = "; ".join(f"{name}: {base}" for name, base in bases.items())
        raise ValueError(f"adapters over one base model were expected, found {listed}. Serve them apart, or pass --base_model")
    return distinct.pop()


def _read_adapter(folder: Path, spec: PolicySpec, vla: OpenVLAForActionPrediction) -> State:
    """The adapter of a folder, without the layers that no output of this policy depends on."""
    if spec.heads.use_film:
        raise ValueError(f"{folder} uses FiLM, whose modulation is no low-rank delta of the base; serve it alone, without --adapters")
    path = folder / ADAPTER_FOLDER / ADAPTER_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {ADAPTER_FOLDER}/{ADAPTER_FILE}; --adapters takes runs that were fine-tuned with LoRA")
    adapter = read_adapter(path)
    unused = vla.unused_modules(uses_lm_head=spec.heads.action_head == "discrete")
    names = {module: name for name, module in vla.named_modules()}
    prefixes = tuple(f"{PEFT_PREFIX}{names[module]}." for module in unused)
    adapter = {key: value for key, value in adapter.items() if ".lora_" in key and not key.startswith(prefixes)}
    check_adapter(adapter, vla, str(path))
    return adapter


def check_adapter(adapter: State, vla: OpenVLAForActionPrediction, source: str) -> None:
    """Returns if every delta fits a layer of the model.

    Raises:
        ValueError: one does not.
    """
    pairs = adapter_pairs(adapter, source)
    weights = vla.state_dict()
    for path, (down, up) in pairs.items():
        weight = weights.get(f"{path}.weight")
        found = [up.shape[0], *down.shape[1:]]
        if weight is None or list(weight.shape) != found:
            expected = "no such layer" if weight is None else f"{list(weight.shape)}"
            raise ValueError(f"{source}: {path} is for a weight of {found}, the model has {expected}; take the right base model")
