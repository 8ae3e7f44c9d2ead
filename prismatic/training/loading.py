"""The processes that load a run's data: how they begin, what they say when they cannot go on, and that they end."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from prismatic.interrupts import ignore_signals
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks, raise_together
from prismatic.vla.datasets.collator import Collator
from prismatic.vla.datasets.dataset import VLADataset
from prismatic.vla.datasets.sampler import MixtureSampler
from prismatic.vla.datasets.workers import watched
from prismatic.vla.types import Batch

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Problem:
    """Comes in the place of a batch that could not be loaded: an exception would bring the whole trace of the process that loads."""

    text: str


class _Batches(Dataset[Any]):
    """Sample numbers of one batch -> the batch, or why there is none."""

    def __init__(self, data: VLADataset | Subset, collator: Collator) -> None:
        self._data, self._collator = data, collator

    def __len__(self) -> int:
        return len(self._data)

    def __getitems__(self, keys: Sequence[Any]) -> Batch | _Problem:
        """What torch's DataLoader calls where a data set has it."""
        try:
            return self._collator([self._data[key] for key in keys])
        except (ValueError, OSError, MemoryError) as error:
            if os.environ.get("PRISMATIC_DEBUG"):
                raise
            return _Problem(str(error) if isinstance(error, ValueError) else f"the data cannot be read: {type(error).__name__}: {error}")


def _as_it_is(batch: T) -> T:
    return batch


def data_loader(
    dataset: VLADataset | Subset, config: FinetuneConfig, collator: Collator, sampler: MixtureSampler | None
) -> DataLoader[Batch]:
    """Batches of `dataset` in the order of `sampler`; without one, each sample once, in order. Take them through `iterate`."""
    return DataLoader(
        _Batches(dataset, collator),
        batch_size=config.optimization.batch_size,
        sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=config.data.num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        drop_last=False,
        worker_init_fn=ignore_signals,
        # Without one, every loader would move torch's own, which resuming restores.
        generator=torch.Generator().manual_seed(config.optimization.seed),
    )


def iterate(loader: DataLoader[Batch]) -> Generator[Batch, None, None]:
    """The batches of `loader`, whose processes are gone once this iterator is used up or closed (`watched`).

    Raises:
        ValueError: a batch cannot be loaded, or a process that loads has died.
    """
    with closing(watched(loader)) as batches:
        for batch in batches:
            if isinstance(batch, _Problem):
                raise ValueError(batch.text)
            yield batch


class SteadyBatches(Iterator[T], Generic[T]):
    """The batches of one process of several, which never leaves the others waiting in the middle of a step.

    Once a batch cannot be loaded, `failure` says why and the batch before comes again and again. So the process still answers the
    messages of the step that is under way, until all come to the place where they look whether one has failed; that step then counts for
    nothing. A first batch that cannot be loaded ends all processes here, and on a single process the error simply comes.
    """

    def __init__(self, batches: Generator[T, None, None], ranks: Ranks) -> None:
        self.failure: Exception | None = None
        self._batches, self._ranks = batches, ranks
        self._last: T | None = None

    def __next__(self) -> T:
        batch = self._last
        if self.failure is None:
            try:
                batch = next(self._batches)
            except StopIteration:
                raise
            except Exception as error:
                if self._ranks.world_size == 1:
                    raise
                self.failure = error
        if self._last is None:
            raise_together(self.failure, self._ranks)
        assert batch is not None
        self._last = batch
        return batch

    def close(self) -> None:
        """Ends the processes that load."""
        self._batches.close()
