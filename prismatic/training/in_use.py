"""in_use.json in a run's folder: what the run really computes with, what it leaves and why, and how its passes were computed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from prismatic.policy.inference.facts import describe_parts
from prismatic.training.setup import Run, activation_memory_budget, compiler_obstacle

IN_USE_FILE = "in_use.json"


def describe_training(run: Run, recording_obstacle: str | None) -> dict[str, Any]:
    """The facts of one process, in plain values; every process must call it."""
    obstacles = {"compiled": compiler_obstacle(run.config, run.ranks), "recorded": recording_obstacle}
    if not run.config.model.use_lora:
        obstacles["fp8 base"] = "--use_lora False trains the base itself"
    elif run.config.model.quantize_base != "fp8":
        obstacles["fp8 base"] = f"--quantize_base {run.config.model.quantize_base}"
    facts = describe_parts(run.parts)
    facts.pop("memory", None)
    return {
        "processes": run.ranks.world_size,
        "autocast": "bfloat16" if run.autocast else None,
        **facts,
        "compiled": obstacles["compiled"] is None,
        "recorded": recording_obstacle is None,
        "activation_memory_budget": activation_memory_budget(run.config) if obstacles["compiled"] is None else None,
        "gradient_checkpointing": run.config.speed.gradient_checkpointing,
        "left": {name: reason for name, reason in obstacles.items() if reason is not None},
    }


def write_in_use(run: Run, facts: Mapping[str, Any], passes: Mapping[str, int]) -> None:
    """Writes the file; `passes` counts those that were replayed and those that were not."""
    path = run.config.run_dir / IN_USE_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**facts, "passes": dict(passes)}, indent=2) + "\n")
    os.replace(temporary, path)
