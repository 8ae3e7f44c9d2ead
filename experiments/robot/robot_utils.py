"""The familiar helpers of evaluation scripts that do not depend on the robot; those of grippers are in `prismatic.vla.grippers`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.robot.openvla_utils import HasCheckpoint, get_vla, get_vla_action
from prismatic.models.processor import PrismaticProcessor
from prismatic.policy.policy import Policy
from prismatic.vla.grippers import invert_gripper_action, normalize_gripper_action

__all__ = [
    "get_action",
    "get_image_resize_size",
    "get_model",
    "invert_gripper_action",
    "normalize_gripper_action",
    "set_seed_everywhere",
]


def set_seed_everywhere(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_model(cfg: HasCheckpoint) -> Policy:
    """The policy that `cfg` names."""
    return get_vla(cfg)


def get_image_resize_size(cfg: HasCheckpoint) -> int:
    """Side in pixels of the square images that the policy looks at; images of any size may be given to it."""
    return get_vla(cfg).spec.image.size


def get_action(
    cfg: HasCheckpoint, model: Policy, obs: Mapping[str, Any], task_label: str, processor: PrismaticProcessor, **modules: nn.Module | None
) -> list[np.ndarray]:
    """The next actions, one array [action_dim] per step; `modules` are heads and projectors as for `get_vla_action`."""
    modules.pop("use_film", None)
    return get_vla_action(cfg, model, processor, obs, task_label, **modules)  # type: ignore[arg-type]
