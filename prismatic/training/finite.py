"""Watches for a loss that is not a number, without waiting for the device at every step.

The losses and sample numbers since the last look stay on the device. `check` looks at them all at once: before metrics are logged and
before anything is saved. If one is not finite the run stops, and the samples of that step and of the step before (whose update may be the
cause) are listed in a file, those of every process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prismatic.training.distributed import Ranks, any_rank, gather_objects, raise_together
from prismatic.vla.datasets.dataset import VLADataset

NON_FINITE_FILE = "non_finite.json"
_NUM_NAMED = 4  # samples in the message; the file has all

# What one micro-batch was: (optimizer step, loss, numbers of its samples)
_Record = tuple[int, torch.Tensor, torch.Tensor]


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class _Suspect:
    """A micro-batch near the first loss that was not finite."""

    step: int
    rank: int
    loss: float
    samples: list[dict[str, Any]]  # where each was recorded


class FiniteWatch:
    """The micro-batches of one process since the last look."""

    def __init__(self, data: VLADataset, run_dir: Path, ranks: Ranks) -> None:
        self._data, self._run_dir, self._ranks = data, run_dir, ranks
        self._records: list[_Record] = []

    def add(self, step: int, loss: torch.Tensor, sample_ids: torch.Tensor) -> None:
        """Notes a micro-batch of optimizer step `step` (the number of steps done, this one included)."""
        self._records.append((step, loss.detach().clone(), sample_ids))  # cloned: a captured step writes its loss to one place

    def forget(self, after: int) -> None:
        """Drops the micro-batches of steps after step `after`: they changed nothing."""
        self._records = [record for record in self._records if record[0] <= after]

    def check(self) -> None:
        """Returns if all losses since the last look are finite. Every process must call it.

        Raises:
            NonFiniteLossError: one is not; the message names samples and the file with all of them.
        """
        if not self._records:
            return
        is_bad = ~torch.stack([loss for _, loss, _ in self._records]).isfinite()
        if not any_rank(bool(is_bad.any()), self._ranks):
            last = self._records[-1][0]
            self._records = [record for record in self._records if record[0] == last]  # the next look may have to name it
            return
        losses = [(step, float(loss)) for step, loss, _ in self._records]
        first = min(self._gather([step for step, loss in losses if not math.isfinite(loss)]))
        raise_together(NonFiniteLossError(self._report(first)), self._ranks)

    def _report(self, first: int) -> str:
        """The message about step `first`; writes the file."""
        suspects = self._gather([self._suspect(record) for record in self._records if first - 1 <= record[0] <= first])
        bad = [suspect for suspect in suspects if suspect.step == first and not math.isfinite(suspect.loss)]
        path = self._run_dir / NON_FINITE_FILE
        listed = f"All samples of this step and the one before are in {path}"
        if self._ranks.is_main:
            content = {"step": first, "batches": [asdict(suspect) | {"loss": str(suspect.loss)} for suspect in suspects]}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content, indent=1) + "\n")
            except OSError as error:
                listed = f"Its samples cannot be listed in {path} ({error.strerror})"
        named = [f"{sample['dataset']}, {sample['split']} episode {sample['episode']}, step {sample['step']}" for sample in bad[0].samples]
        more = f" and {len(named) - _NUM_NAMED} more" if len(named) > _NUM_NAMED else ""
        return (
            f"the loss became {bad[0].loss} at step {first} on process {bad[0].rank}, with {'; '.join(named[:_NUM_NAMED])}{more}. "
            f"{listed}. Lower --learning_rate, add --lr_warmup_steps or --max_grad_norm, "
            "and look at those samples (scripts/inspect_dataset.py). The last checkpoint is untouched"
        )

    def _suspect(self, record: _Record) -> _Suspect:
        step, loss, sample_ids = record
        origins = [asdict(self._data.origin(number)) | {"sample": number} for number in sample_ids.tolist()]
        return _Suspect(step, self._ranks.rank, float(loss), origins)

    def _gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of every process, in the order of their ranks."""
        return [item for own in gather_objects(list(items), self._ranks) for item in own]
