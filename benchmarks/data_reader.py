"""The training side of benchmarks/data.py: opens a data set as fine-tuning does.

python data_reader.py FOLDER KIND CACHE_DIR STARTED     in a process of its own: time to the first batch of two workers, memory
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_kinds import IMAGE_SIZE, KINDS, Kind
from torch.utils.data import DataLoader

from prismatic.vla.datasets.dataset import DatasetOptions, VLADataset
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets, select_policy_cameras
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.types import Sample

NUM_WORKERS = 2
_BATCHES = 60


def open_dataset(
    folder: Path, kind: Kind, cache_dir: Path, device_augmentation: bool = False, frame_cache_dir: Path | None = None
) -> VLADataset:
    """The training samples, augmented; no frames are kept in memory."""
    specs = resolve_datasets(kind.dataset_name, folder)
    options = DatasetOptions(
        cameras=select_policy_cameras(specs, len(kind.image_keys)),
        image_size=IMAGE_SIZE,
        use_proprio=True,
        augment=True,
        device_augmentation=device_augmentation,
        frame_cache_bytes=0,
        frame_cache_dir=frame_cache_dir,
        cache_dir=cache_dir,
    )
    return load_training_data(specs, options).train


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Images, actions and states of a batch."""
    return {
        "images": torch.from_numpy(np.stack([sample.images for sample in samples])),
        "actions": np.stack([sample.actions for sample in samples]),
        "proprio": np.stack([sample.proprio for sample in samples if sample.proprio is not None]),
        "instructions": [sample.instruction for sample in samples],
    }


def proportional_bytes(process: str) -> int:
    """PSS: memory of its own and its share of what several processes map."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def total_bytes() -> int:
    """PSS of this process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum(proportional_bytes(process) for process in ["self", *children])


def main(folder: Path, kind: Kind, cache_dir: Path, started: float) -> None:
    """Prints one JSON line."""
    torch.set_num_threads(1)
    dataset = open_dataset(folder, kind, cache_dir)
    opened, memory = time.time(), total_bytes()
    loader = DataLoader(dataset, kind.batch_size, sampler=dataset.sampler(seed=0), num_workers=NUM_WORKERS, collate_fn=collate)
    batches = iter(loader)
    next(batches)
    first, cpu = time.time(), time.process_time()
    for number in range(_BATCHES):
        next(batches)
        if number % 5 == 0:
            memory = max(memory, total_bytes())
    found = {"open_seconds": opened - started, "first_batch_seconds": first - started, "first_batch_cpu_seconds": cpu}
    found |= {"peak_pss_gb": memory / 1e9, "steps": len(dataset)}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), KINDS[sys.argv[2]], Path(sys.argv[3]), float(sys.argv[4]))
