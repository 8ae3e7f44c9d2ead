"""A fine-tuned checkpoint -> a model that is built for further training: its towers, adapters, FiLM, heads and projectors.

A checkpoint with FiLM holds its vision towers in the file of the vision backbone; model.safetensors has those of the base, as published.
Adapters are merged in the weights, and training adds new ones on top; or the checkpoint holds them apart, and the same ones go on.

    towers -> quantize -> add_lora -> adapters -> add_film -> film -> heads        the order in which a model is built
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prismatic.models.action_model import ActionModel
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.files import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    VISION_BACKBONE,
    check_keys,
    find_component,
    has_component,
    is_film_layer,
    load_component,
    load_strictly,
    read_component,
)
from prismatic.policy.checkpoint.parts import build_action_model, head_components
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.lora.adapters import load_adapter, merge_component, read_adapter, without_film
from prismatic.policy.lora.scaling import AdapterScaling


@dataclass(frozen=True)
class Continuation:
    """What the model takes over from the checkpoint in `folder`. Only the process that holds the weights fills them in."""

    folder: Path
    keeps_adapters: bool  # they stand apart and go on; else they are merged
    has_fresh_heads: bool = False  # heads, projectors and FiLM stay new

    def fill_towers(self, vla: OpenVLAForActionPrediction) -> None:
        """The vision towers of a checkpoint with FiLM, into a model without adapters and FiLM; rounded as every stored model is."""
        if not has_component(self.folder, VISION_BACKBONE):
            return
        source = find_component(self.folder, VISION_BACKBONE)
        state = read_component(self.folder, VISION_BACKBONE)
        if self.keeps_adapters:
            state = {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}
        else:
            state = merge_component(state, str(source), AdapterScaling.read(self.folder / ADAPTER_FOLDER))
        towers = {
            without_film(f"vision_backbone.{key}").removeprefix("vision_backbone."): value.to(torch.bfloat16)
            for key, value in state.items()
            if not is_film_layer(key)
        }
        load_strictly(vla.vision_backbone, towers, str(source))

    def fill_adapters(self, vla: nn.Module) -> None:
        """The adapters, into a model that PEFT wraps and that has no FiLM yet."""
        if self.keeps_adapters:
            path = self.folder / ADAPTER_FOLDER / ADAPTER_FILE
            load_adapter(vla, {without_film(key): value for key, value in read_adapter(path).items()}, str(path))

    def fill_film(self, vla: OpenVLAForActionPrediction) -> None:
        """FiLM's layers, into a model that has them."""
        if self.has_fresh_heads or not vla.uses_film:
            return
        source = find_component(self.folder, VISION_BACKBONE)
        film = {key: value for key, value in read_component(self.folder, VISION_BACKBONE).items() if is_film_layer(key)}
        expected = {key: value for key, value in vla.vision_backbone.state_dict().items() if is_film_layer(key)}
        check_keys(expected, film, f"{source} does not fit FiLM's layers")
        vla.vision_backbone.load_state_dict(film, strict=False)

    def fill_heads(self, model: ActionModel) -> None:
        """Action head and projectors."""
        for component, module in {} if self.has_fresh_heads else head_components(model).items():
            load_component(module, self.folder, component)


def check_heads(folder: Path, config: OpenVLAConfig, spec: PolicySpec) -> None:
    """Returns if the files of the heads in `folder` have the shapes that `spec` and the width of the model in `config` ask for.

    Raises:
        ValueError: they have not, or one is absent or unreadable; every key that differs is listed.
    """
    with torch.device("meta"):
        model = build_action_model(nn.Identity(), config, spec)
    for component, module in head_components(model).items():
        found = read_component(folder, component, torch.device("meta"))
        check_keys(module.state_dict(), found, f"{find_component(folder, component)} does not fit this run's {type(module).__name__}")
