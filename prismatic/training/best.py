"""best.json in the run's folder: which of the checkpoints that exist had the lowest validation error.

It is derived, never trusted: after every save, and when a run resumes, it is written anew from metrics.jsonl and the folders that exist.
Only a checkpoint of the very step that was validated can be the best one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismatic.training.config import FinetuneConfig
from prismatic.training.run_folder import BEST_FILE, checkpoint_folder, find_checkpoints

BEST_METRIC = "val/action_l1_loss"  # mean absolute error of normalised actions, whatever the head


def mark_best(config: FinetuneConfig, rows: Sequence[dict[str, Any]], saved_step: int | None) -> str | None:
    """Writes (or removes) best.json; returns the name of the best checkpoint's folder.

    `rows` are those of metrics.jsonl; `saved_step` is the step whose checkpoint was just saved, which alone counts if only the latest one
    is kept: once a worse one has replaced the best, "checkpoint" is null.
    """
    path = config.run_dir / BEST_FILE
    validated = {row["step"]: row[BEST_METRIC] for row in rows if _is_number(row.get(BEST_METRIC))}
    if config.saving.save_latest_checkpoint_only:
        candidates = {step: value for step, value in validated.items() if step == min(validated, key=validated.__getitem__)}
    else:
        candidates = {step: validated[step] for step in find_checkpoints(config) if step in validated}
    if not candidates:
        path.unlink(missing_ok=True)
        return None
    step = min(candidates, key=candidates.__getitem__)
    exists = not config.saving.save_latest_checkpoint_only or step == saved_step
    name = checkpoint_folder(config, step).name if exists else None
    _write(path, {"checkpoint": name, "step": step, "metric": BEST_METRIC, "value": candidates[step]})
    return name


def cadence_note(config: FinetuneConfig) -> str | None:
    """What to tell if not every validated step is saved; None: every one is."""
    val_freq, save_freq, max_steps = config.evaluation.val_freq, config.saving.save_freq, config.optimization.max_steps
    if not config.evaluation.use_val_set or val_freq % save_freq == 0:
        return None
    both = math.lcm(val_freq, save_freq)
    which = f"checkpoints of steps that are multiples of {both}, and the last," if both < max_steps else "the last checkpoint"
    return (
        f"--val_freq is {val_freq}, --save_freq {save_freq}: only {which} can be marked as the best; make --val_freq a "
        "multiple of --save_freq to compare all that is validated"
    )


def _is_number(value: Any) -> bool:
    """Whether a validation found one: the error of a policy that returns NaN is neither the best nor to be compared."""
    return isinstance(value, int | float) and math.isfinite(value)


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
