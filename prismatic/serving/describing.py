"""`Policy` -> `PolicyInfo`: what whoever drives a robot must know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prismatic.policy.policy import Policy
from prismatic.wire.policy_info import ROBOT_UNITS, PolicyInfo


def describe_policy(policy: Policy, action_units: str = ROBOT_UNITS) -> PolicyInfo:
    """Out of the checkpoint; `action_units` are those in which its actions will be given."""
    spec = policy.spec
    return PolicyInfo(
        platform=spec.platform.name,
        cameras=spec.cameras,
        num_actions_chunk=spec.platform.num_actions_chunk,
        action_names=spec.platform.action_names,
        action_kinds=spec.platform.action_kinds,
        proprio_names=spec.platform.proprio_names,
        control_hz=spec.platform.control_hz,
        needs_state=spec.heads.use_proprio,
        center_crop=spec.image.center_crop,
        jpeg_round_trip=spec.image.jpeg_round_trip,
        unnorm_key=policy.unnorm_key,
        demonstrated=policy.demonstrated,
        limits=spec.platform.limits,
        action_units=action_units,
        checkpoint=_checkpoint_name(spec.provenance),
    )


def _checkpoint_name(provenance: Mapping[str, Any]) -> str:
    """The run and its step, as its folder is called; "" for checkpoints of other software."""
    run, step = provenance.get("run_id"), provenance.get("step")
    return f"{run}--{step}_chkpt" if run and step is not None else str(run or "")
