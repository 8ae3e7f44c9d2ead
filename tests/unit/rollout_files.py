"""Rollouts as the recorder writes them, manifests of them, and what training would show of these."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.acting.recorder import EpisodeRecorder, RecordedStep
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.training_data import TrainingData, load_training_data
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation

ROBOT = ROBOT_PLATFORMS["METAWORLD"]
OPTIONS = DatasetOptions(cameras=("primary",), image_size=16)


def write_rollout(path: Path, value: float, length: int = 3, by: Commander = Commander.POLICY, **facts: Any) -> Path:
    """A rollout whose actions, states and pictures all are `value`, as the recorder writes it."""
    known = {"action_names": ROBOT.action_names, "robot_platform": "METAWORLD", "success": True, **facts}
    with EpisodeRecorder(path, "push") as recorder:
        for _ in range(length):
            picture = np.full((16, 16, 3), 10 * value, np.uint8)
            seen = Observation({"primary": picture, "wrist": picture}, "push", np.full(4, value))
            recorder.add(RecordedStep(seen, np.full(4, value), by))
        recorder.close(known)
    return path


def load(path: Path | str, **changes: Any) -> TrainingData:
    options = {**vars(OPTIONS), **changes}
    return load_training_data(resolve_datasets(str(path), Path("/nowhere")), DatasetOptions(**options))


def manifest(folder: Path, *rows: dict[str, Any], dataset: str = "metaworld_demo") -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"dataset": dataset, "recordings": list(rows)}))
    return path


def shown(data: TrainingData, num_passes: int = 4) -> dict[float, float]:
    """Value of an episode (its proprio) -> how often a sample of it is shown per pass."""
    sampler, part = data.train.sampler(seed=0), data.train.parts[0]
    keys = islice(iter(sampler), num_passes * sampler.num_samples_per_epoch)
    counts = Counter(float(part.index.proprio[part.locate(key.sample)[0]][0]) for key in keys)
    lengths = Counter(float(part.index.proprio[part.locate(sample)[0]][0]) for sample in range(len(part)))
    return {value: count / lengths[value] / num_passes for value, count in sorted(counts.items())}
