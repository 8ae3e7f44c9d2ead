"""Watches for a loss or a weight that is not a number, without waiting for the device at every step.

The losses and sample numbers since the last look stay on the device. `check` looks at them all at once: before metrics are logged and
before anything is saved. If one is not finite the run stops, and the samples of that step and of the step before (whose update may be the
cause) are listed in a file, those of every process. What the last update has done no loss shows yet: before anything is saved
`check_weights` looks at the weights themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from prismatic.training.distributed import Ranks, any_rank, gather_objects, raise_together
from prismatic.vla.datasets.dataset import VLADataset

NON_FINITE_FILE = "non_finite.json"
_NUM_NAMED = 4  # samples, or weights, in the message; the file has all samples
_REMEDY = (
    "Lower --learning_rate, add --lr_warmup_steps or --max_grad_norm, and look at those samples (scripts/inspect_dataset.py). "
    "The last checkpoint is untouched; should its first steps end like this whatever the flags, go back further with --resume_step"
)

# What one micro-batch was: (optimizer step, loss, numbers of its samples)
_Record = tuple[int, torch.Tensor, torch.Tensor]


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite."""


class NonFiniteWeightsError(ValueError):
    """Trained weights became NaN or infinite."""


def non_finite_weights(parameters: Mapping[str, torch.Tensor], ranks: Ranks) -> list[str]:
    """The names of the parameters that hold NaN or infinity on any process, in order; every process must ask.

    Each process reduces what it has, shards of sharded ones, to one number a tensor on its device, and waits for them once.
    """
    own = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in parameters.items()}
    largest = {name: torch.linalg.vector_norm(tensor.detach(), float("inf")).float() for name, tensor in own.items() if tensor.numel()}
    is_finite = torch.stack(list(largest.values())).isfinite().tolist() if largest else []
    bad = {name for name, finite in zip(largest, is_finite, strict=True) if not finite}
    if not any_rank(bool(bad), ranks):
        return []
    bad = set().union(*gather_objects(bad, ranks))
    return [name for name in parameters if name in bad]


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
        suspects, listed = self._list_samples(first)
        bad = [suspect for suspect in suspects if suspect.step == first and not math.isfinite(suspect.loss)]
        named = [f"{sample['dataset']}, {sample['split']} episode {sample['episode']}, step {sample['step']}" for sample in bad[0].samples]
        told = f"the loss became {bad[0].loss} at step {first} on process {bad[0].rank}, with {_first(named, '; ')}"
        return f"{told}. {listed}. {_REMEDY}"

    def check_weights(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Returns if all `parameters` are finite after the last step. Every process must call it.

        Raises:
            NonFiniteWeightsError: some are not; the message names them, and the file with the samples of that step.
        """
        bad = non_finite_weights(parameters, self._ranks)
        if not bad:
            return
        step = max(self._gather([record[0] for record in self._records]), default=0)
        _, listed = self._list_samples(step)
        told = f"{len(bad)} of {len(parameters)} trained tensors are not finite after the update of step {step}: {_first(bad, ', ')}"
        raise_together(NonFiniteWeightsError(f"{told}. They are not saved. {listed}. {_REMEDY}"), self._ranks)

    def _list_samples(self, step: int) -> tuple[list[_Suspect], str]:
        """The micro-batches of `step` and the one before of all processes, and the sentence that says in which file they are now."""
        suspects = self._gather([self._suspect(record) for record in self._records if step - 1 <= record[0] <= step])
        path = self._run_dir / NON_FINITE_FILE
        listed = f"All samples of this step and the one before are in {path}"
        if self._ranks.is_main:
            content = {"step": step, "batches": [asdict(suspect) | {"loss": str(suspect.loss)} for suspect in suspects]}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content, indent=1) + "\n")
            except OSError as error:
                listed = f"Its samples cannot be listed in {path} ({error.strerror})"
        return suspects, listed

    def _suspect(self, record: _Record) -> _Suspect:
        step, loss, sample_ids = record
        origins = [asdict(self._data.origin(number)) | {"sample": number} for number in sample_ids.tolist()]
        return _Suspect(step, self._ranks.rank, float(loss), origins)

    def _gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of every process, in the order of their ranks."""
        return [item for own in gather_objects(list(items), self._ranks) for item in own]


def _first(items: Sequence[str], separator: str) -> str:
    """The first of them, and how many more there are."""
    rest = len(items) - _NUM_NAMED
    return separator.join(items[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")
