"""`PolicyParts`: what a checkpoint folder holds, once it is in memory. Training makes them, saving writes them, loading reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.action_model import ActionModel
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.processor import PrismaticProcessor
from prismatic.models.projectors import ProprioProjector
from prismatic.policy.spec import HeadSpec, PolicySpec
from prismatic.vla.constants import RobotPlatform


@dataclass(frozen=True)
class PolicyParts:
    """A model with everything that gives its numbers a meaning."""

    model: ActionModel
    config: OpenVLAConfig
    processor: PrismaticProcessor
    spec: PolicySpec
    norm_stats: dict[str, Any]  # dataset_statistics.json


def build_action_head(heads: HeadSpec, platform: RobotPlatform, llm_dim: int) -> L1RegressionActionHead:
    """A new action head of the kind that `heads` names.

    Raises:
        ValueError: that kind is not available.
    """
    if heads.action_head != "l1" or heads.use_film:
        film = " with FiLM" if heads.use_film else ""
        raise ValueError(f"{heads.action_head} head{film}: only the L1 head without FiLM is in this version")
    return L1RegressionActionHead(llm_dim, platform.num_actions_chunk, platform.action_dim)


def build_proprio_projector(heads: HeadSpec, platform: RobotPlatform, llm_dim: int) -> ProprioProjector | None:
    """A new projector of the robot's state, or None for a policy that does not use it."""
    return ProprioProjector(llm_dim, platform.proprio_dim) if heads.use_proprio else None
