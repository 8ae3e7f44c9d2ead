"""What a run says of itself: one progress line, metrics.jsonl and a picture of the curves always, W&B and TensorBoard when asked.

A row of metrics.jsonl is {"step", "seconds", name: value, ...}; names begin with train/, val/ or eval/; those of a sample that cannot be
decoded, which are texts, with data/. Rows of an evaluation in closed loop carry the step of their checkpoint and come when it ends, so
steps need not rise.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from prismatic.training.bad_samples import as_row
from prismatic.training.config import FinetuneConfig
from prismatic.training.curves import CURVES_FILE, METRICS_FILE, plot_runs
from prismatic.training.evaluation import SUCCESS_RATE
from prismatic.training.rows import append_row, drop_later_rows, read_rows
from prismatic.training.sinks import Sink, open_sinks
from prismatic.vla.types import BadSample

_PLATEAU_L1 = 0.01  # normalised; the published guidance (ALOHA.md): train until the L1 loss is below it
_NUM_LAST_ROWS = 10  # log lines whose mean tells where the loss has got to
_LINE_INTERVAL_S = 30.0  # between progress lines where there is no terminal to draw a bar in

logger = logging.getLogger(__name__)


class RunLogger:
    """Writes the metrics of a run; silent on every process but the main one."""

    def __init__(self, config: FinetuneConfig, first_step: int, is_main: bool, owes_validation: bool = False) -> None:
        """After the checkpoint of `first_step`; with `owes_validation` its validation is about to come, if not for the first time."""
        self._config, self._is_main = config, is_main
        self._path = config.run_dir / METRICS_FILE
        self._started = time.monotonic()
        self._recent_l1: deque[float] = deque(maxlen=_NUM_LAST_ROWS)
        self._sinks: list[Sink] = []
        self.failure: ValueError | None = None  # why the run cannot go on: it writes no metrics
        has_bar = is_main and sys.stderr.isatty()
        self._max_steps = config.optimization.max_steps
        self._bar = tqdm(total=self._max_steps, initial=first_step, desc=config.data.dataset_name, unit="step", disable=not has_bar)
        self._has_bar, self._last_line = has_bar, -_LINE_INTERVAL_S
        if is_main:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_later_rows(self._path, first_step, lambda row: owes_validation and any(key.startswith("val/") for key in row))
            self._sinks = open_sinks(config, first_step)

    def step(self) -> None:
        """Moves the progress bar by one optimizer step."""
        self._bar.update(1)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Records `values` of optimizer step `step` (the number of steps done)."""
        if not self._is_main:
            return
        self._write_row(step, values)
        for sink in list(self._sinks):
            with self._without(sink):
                sink.log(step, values)
        if "train/loss" in values:
            self._show_progress(step, values)

    def evaluations(self, results: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Records what evaluations found, under the steps of their checkpoints."""
        for step, values in results:
            self.metrics(step, values)
            self.message(f"evaluation of step {step}: success {100 * values[SUCCESS_RATE]:.0f} %")

    def bad_sample(self, step: int, bad: BadSample) -> None:
        """Names a sample that was met before optimizer step `step` was done, and cannot be decoded."""
        if self._is_main:
            self._write_row(step, as_row(bad))
            logger.warning("a sample cannot be decoded and is replaced by the next: %s: %s", bad.where, bad.reason)

    def _write_row(self, step: int, values: Mapping[str, float | str]) -> None:
        row = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **values}
        try:
            append_row(self._path, row)  # opened per row: the folder may be replaced by a checkpoint in between
        except OSError as error:
            self.failure = ValueError(f"{self._path} cannot be written ({error.strerror}); make room or repair the disk")

    def rows(self) -> list[dict[str, Any]]:
        """Everything recorded so far, earlier parts of a resumed run included; on the main process."""
        return read_rows(self._path)

    def message(self, text: str) -> None:
        """A line above the progress bar."""
        if self._is_main:
            with contextlib.suppress(OSError):  # a terminal or pipe that has gone ends no run
                self._bar.write(text)

    def _show_progress(self, step: int, values: dict[str, float]) -> None:
        if "train/action_l1_loss" in values:
            self._recent_l1.append(values["train/action_l1_loss"])
        text = progress_text(values)
        self._bar.set_postfix_str(text, refresh=False)
        is_last = step == self._max_steps
        if not self._has_bar and (is_last or time.monotonic() - self._last_line >= _LINE_INTERVAL_S):
            self._last_line = time.monotonic()
            left = (self._max_steps - step) * values["train/step_seconds"]
            logger.info("step %s/%s, %s, %s left", f"{step:,}", f"{self._max_steps:,}", text, tqdm.format_interval(left))

    def plateau_warning(self) -> str | None:
        """What to tell if an L1 run ends with a loss that the published guidance calls too high."""
        if not self._config.model.use_l1_regression or not self._recent_l1:
            return None
        mean = sum(self._recent_l1) / len(self._recent_l1)
        if mean <= _PLATEAU_L1:
            return None
        return (
            f"the training L1 loss ends at {mean:.3f}; the published guidance is to train until it is below {_PLATEAU_L1}. If it still "
            "falls, go on with --resume True and a larger --max_steps. If it has levelled off, let the learning rate fall earlier "
            "(--num_steps_before_decay); if that does not help, look at the data (scripts/inspect_dataset.py)"
        )

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes everything. What goes wrong here is reported and changes nothing: neither the end of a run nor the error that ends it."""
        self._bar.close()
        for sink in list(self._sinks):
            with self._without(sink):
                sink.close(failed=kind is not None)
        if self._is_main and (kind is None or issubclass(kind, ValueError)) and self._path.exists():
            try:
                plot_runs([self._config.run_dir], self._config.run_dir / CURVES_FILE)
            except Exception as problem:
                logger.warning("the curves cannot be drawn: %s", problem)

    @contextlib.contextmanager
    def _without(self, sink: Sink) -> Iterator[None]:
        """Leaves `sink` out from now on if it fails."""
        try:
            yield
        except Exception as problem:
            self._sinks.remove(sink)
            logger.warning("%s failed and gets nothing any more, %s goes on: %s", type(sink).__name__, METRICS_FILE, problem)


def progress_text(values: dict[str, float]) -> str:
    """Loss, L1, learning rate, rate and memory as a person reads them."""
    parts = [f"loss {values['train/loss']:.4f}"]
    if "train/action_l1_loss" in values:
        parts.append(f"L1 {values['train/action_l1_loss']:.4f}")
    parts += [f"lr {values['train/lr']:.2g}", f"{values['train/samples_per_second']:.1f} samples/s"]
    parts += [f"{values[name]:.1f} GiB" for name in ("train/gpu_gib", "train/host_gib") if name in values]
    return ", ".join(parts)


def memory_used(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: of the training device, or of this process where it trains on the CPU."""
    if device.type == "cuda":
        return {"train/gpu_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    import resource

    return {"train/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # Linux counts in KiB
