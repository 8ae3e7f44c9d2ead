"""The published 7B checkpoint's names and shapes, met on the meta device."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from golden_cases import golden_path

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.configuration import OpenVLAConfig, openvla_7b
from prismatic.models.projectors import ProprioProjector
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.vla.constants import get_robot_platform

NAME = "openvla_7b_state_dict_index.json.gz"


def _shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def test_openvla_7b(golden_dir: Path) -> None:
    recorded = json.loads(gzip.decompress(golden_path(golden_dir, NAME).read_bytes()))
    for config in (openvla_7b(), OpenVLAConfig(**recorded["meta"]["config"])):
        with torch.device("meta"):
            vla = OpenVLAForActionPrediction(config)
        assert _shapes(vla) == recorded["index"]["openvla_7b"]
        assert sum(parameter.numel() for parameter in vla.parameters()) == recorded["meta"]["parameters"]


def test_heads_and_projectors(golden_dir: Path) -> None:
    index = json.loads(gzip.decompress(golden_path(golden_dir, NAME).read_bytes()))["index"]
    width = openvla_7b().hidden_size
    for name in ("libero", "aloha"):
        platform = get_robot_platform(name)
        with torch.device("meta"):
            head = L1RegressionActionHead(width, platform.num_actions_chunk, platform.action_dim)
            projector = ProprioProjector(width, platform.proprio_dim)
        assert _shapes(head) == index[f"l1_action_head_{name}"]
        assert _shapes(projector) == index[f"proprio_projector_{name}_{platform.proprio_dim}"]
