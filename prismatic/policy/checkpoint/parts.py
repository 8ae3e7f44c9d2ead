"""`PolicyParts`: what a checkpoint folder holds, once it is in memory. Training makes them, saving writes them, loading reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from prismatic.models.action_heads import ActionHead, DiffusionActionHead, DiscreteActionHead, L1RegressionActionHead
from prismatic.models.action_model import ActionModel
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.processor import PrismaticProcessor
from prismatic.models.projectors import NoisyActionProjector, ProprioProjector
from prismatic.policy.checkpoint.files import ACTION_HEAD, NOISY_ACTION_PROJECTOR, PROPRIO_PROJECTOR
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.vla.reference import Reference


@dataclass(frozen=True)
class PolicyParts:
    """A model with everything that gives its numbers a meaning."""

    model: ActionModel
    config: OpenVLAConfig
    processor: PrismaticProcessor
    spec: PolicySpec
    norm_stats: dict[str, Any]  # dataset_statistics.json
    reference: Reference | None = None  # what training saw; published checkpoints do not say


def build_action_model(vla: nn.Module, config: OpenVLAConfig, spec: PolicySpec) -> ActionModel:
    """`vla` (FiLM and adapters in place already) with a new head and new projectors of the kinds that `spec` names."""
    heads, platform, width = spec.heads, spec.platform, config.hidden_size
    shape = (platform.num_actions_chunk, platform.action_dim)
    head: ActionHead
    noisy_action_projector = None
    if heads.action_head == "diffusion":
        assert heads.num_diffusion_steps_train is not None
        head = DiffusionActionHead(width, *shape, heads.num_diffusion_steps_train)
        noisy_action_projector = NoisyActionProjector(width)
    elif heads.action_head == "discrete":
        head = DiscreteActionHead(*shape, config.token_ids)
    else:
        head = L1RegressionActionHead(width, *shape)
    proprio_projector = ProprioProjector(width, platform.proprio_dim) if heads.use_proprio else None
    return ActionModel(vla, head, proprio_projector, noisy_action_projector)


def head_components(model: ActionModel) -> dict[str, nn.Module]:
    """Component name -> module, for each that has a checkpoint file of its own (the vision backbone apart)."""
    candidates = {
        ACTION_HEAD: None if isinstance(model.action_head, DiscreteActionHead) else model.action_head,
        PROPRIO_PROJECTOR: model.proprio_projector,
        NOISY_ACTION_PROJECTOR: model.noisy_action_projector,
    }
    return {name: module for name, module in candidates.items() if module is not None}
