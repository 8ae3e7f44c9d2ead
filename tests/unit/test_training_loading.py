"""The processes that load data end with the run."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

from torch.utils.data import DataLoader, Dataset

from prismatic.interrupts import ignore_signals
from prismatic.training.loading import iterate


class HangingDataset(Dataset[int]):
    """Gives one sample; the next one never comes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index:
            time.sleep(1000)
        return index


def test_a_loading_process_that_hangs_is_killed() -> None:
    loader: DataLoader[Any] = DataLoader(HangingDataset(), batch_size=1, num_workers=1, worker_init_fn=ignore_signals)
    batches = iterate(loader)
    assert next(batches).tolist() == [0]
    assert multiprocessing.active_children()
    batches.close()  # torch waits twice for five seconds
    assert not multiprocessing.active_children()
