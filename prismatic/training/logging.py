"""What a run says of itself: one progress line, metrics.jsonl always, Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from prismatic.training.config import FinetuneConfig

METRICS_FILE = "metrics.jsonl"

logger = logging.getLogger(__name__)


class RunLogger:
    """Writes the metrics of a run; silent on every process but the main one."""

    def __init__(self, config: FinetuneConfig, first_step: int, is_main: bool) -> None:
        self._path = config.run_dir / METRICS_FILE
        self._is_main = is_main
        self._started = time.monotonic()
        self._wandb: Any = _start_wandb(config) if is_main and config.wandb_project else None
        self._bar = tqdm(total=config.max_steps, initial=first_step, desc=config.dataset_name, unit="step", disable=not is_main, leave=True)
        if is_main:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_later_rows(self._path, first_step)

    def step(self) -> None:
        """Moves the progress bar by one optimizer step."""
        self._bar.update(1)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Records `values` of optimizer step `step` (the number of steps done)."""
        if not self._is_main:
            return
        self._bar.set_postfix({name.split("/")[-1]: f"{value:.3g}" for name, value in values.items() if name in _SHOWN}, refresh=False)
        row = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **values}
        with self._path.open("a") as file:  # opened per row: the folder may be replaced by a checkpoint in between
            file.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def message(self, text: str) -> None:
        """A line above the progress bar."""
        if self._is_main:
            self._bar.write(text)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


_SHOWN = ("train/loss", "train/lr", "train/samples_per_second", "val/loss", "train/gpu_gib")


def peak_memory() -> dict[str, float]:
    """Peak memory of the training device in GiB; empty on a CPU."""
    if not torch.cuda.is_available():
        return {}
    return {"train/gpu_gib": torch.cuda.max_memory_allocated() / 2**30}


def _drop_later_rows(path: Path, first_step: int) -> None:
    """Removes what a killed run logged beyond the checkpoint that this run resumes from."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= first_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)


def _start_wandb(config: FinetuneConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "--wandb_project is set, but the package wandb is not installed; pip install wandb, or leave the flag out to log locally only"
        ) from error
    return wandb.init(
        entity=config.wandb_entity, project=config.wandb_project, name=f"ft+{config.run_id}", id=None, dir=str(config.run_dir)
    )
