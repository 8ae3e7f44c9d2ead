"""Folders of runs as the trainer leaves them, without weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prismatic.cli_sections import plain_values
from prismatic.policy.checkpoint.files import atomic_folder
from prismatic.training.config import FinetuneConfig
from prismatic.training.run_folder import TrainerState, checkpoint_folder


def add_checkpoint(config: FinetuneConfig, step: int, **state: Any) -> Path:
    """The checkpoint of `step` of the run that `config` describes: what tells that it is one, and from what it can be resumed."""
    content = TrainerState(step=step, sampler={}, world_size=1, flags=plain_values(config), **state)
    folder = checkpoint_folder(config, step)
    with atomic_folder(folder) as temporary:
        (temporary / "policy.json").write_text("{}")
        (temporary / "model.safetensors").write_text(f"weights of step {step}")
        (temporary / "trainer_state").mkdir()
        (temporary / "trainer_state" / "state.json").write_text(json.dumps(asdict(content)))
    return folder
