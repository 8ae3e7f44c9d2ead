"""The processes that load a run's data: how they begin, and that they end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator

import torch
from torch.utils.data import DataLoader, Subset

from prismatic.training.config import FinetuneConfig
from prismatic.training.interrupts import ignore_signals
from prismatic.vla.datasets.collator import Collator
from prismatic.vla.datasets.dataset import VLADataset
from prismatic.vla.datasets.sampler import MixtureSampler
from prismatic.vla.types import Batch


def data_loader(
    dataset: VLADataset | Subset, config: FinetuneConfig, collator: Collator, sampler: MixtureSampler | None
) -> DataLoader[Batch]:
    """Batches of `dataset` in the order of `sampler`; without one, each sample once, in order."""
    return DataLoader(
        dataset,
        batch_size=config.optimization.batch_size,
        sampler=sampler,
        collate_fn=collator,
        num_workers=config.data.num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        drop_last=False,
        worker_init_fn=ignore_signals,
        generator=torch.Generator().manual_seed(
            config.optimization.seed
        ),  # else every loader would move torch's own, which resuming restores
    )


def iterate(loader: DataLoader[Batch]) -> Generator[Batch, None, None]:
    """The batches of `loader`, whose processes are gone once this iterator is used up or closed.

    torch and Python ask them to go by SIGTERM, which they ignore (`ignore_signals`): one that hangs would keep its parent from ending.
    """
    others = {process.pid for process in multiprocessing.active_children()}
    batches = iter(loader)
    workers = [process for process in multiprocessing.active_children() if process.pid not in others]
    try:
        yield from batches
    finally:
        del batches  # torch ends them, and waits ten seconds for it
        for worker in workers:
            worker.kill()
            worker.join()
