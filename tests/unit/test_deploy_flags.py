"""Flags of deploy.py that cannot be meant are told before any weight is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from prismatic.commands.deploy import DeployConfig, deploy
from prismatic.policy.checkpoint.spec import HeadSpec, PolicySpec
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.images import ImageRecipe


@pytest.mark.parametrize("flag", ["request_timeout_s", "max_body_mb", "max_latency_ms", "shutdown_timeout_s"])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_limit_is_a_positive_number(flag: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{flag} is {value}, must be more than 0 and finite"):
        DeployConfig(pretrained_checkpoint="x", **{flag: value})


@pytest.mark.parametrize("given", ["checkpoint", "adapters"])
def test_more_steps_than_a_policy_predicts_are_told_before_its_weights_are_read(tmp_path: Path, given: str) -> None:
    spec = PolicySpec(
        platform=ROBOT_PLATFORMS["LIBERO"], cameras=("primary",), image=ImageRecipe(size=28), unnorm_key="arm", heads=HeadSpec()
    )
    spec.save(tmp_path)  # and nothing else
    which = {"pretrained_checkpoint": str(tmp_path)} if given == "checkpoint" else {"adapters": f"one={tmp_path}"}
    with pytest.raises(ValueError, match="--num_open_loop_steps is 9, the policy predicts 8 actions"):
        deploy(DeployConfig(**which, num_open_loop_steps=9, port=0))
