from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rlds_writer import make_episode, write_dataset

from prismatic.vla.constants import NormalizationType
from prismatic.vla.datasets.index import load_index
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.statistics import compute_statistics, published_episodes
from prismatic.vla.normalization import bounds_from_statistics

MASK = np.array([True, True, True, False])


def test_values_and_layout(tmp_path: Path) -> None:
    episodes = [make_episode(40, seed=seed, size=1) for seed in range(3)]
    folder = write_dataset(tmp_path, "demo", {"train": episodes[:2], "val": episodes[2:]})
    index = load_index(RldsSource(folder), DatasetEntry(), identity_dataset_transform)

    statistics = compute_statistics(index, index.episodes_of("train"), MASK)
    rows = np.concatenate([episode["action"] for episode in episodes[:2]])
    np.testing.assert_allclose(statistics["action"]["q01"], np.quantile(rows, 0.01, axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics["action"]["q99"], np.quantile(rows, 0.99, axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics["action"]["mean"], rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics["action"]["std"], rows.std(0), rtol=1e-5)
    assert statistics["action"]["max"] == rows.max(0).tolist()
    assert statistics["action"]["mask"] == [True, True, True, False]
    assert set(statistics["proprio"]) == {"mean", "std", "max", "min", "q01", "q99"}
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (80, 2)

    assert compute_statistics(index, published_episodes(index), MASK)["num_transitions"] == 120
    with pytest.raises(ValueError, match="at least one episode"):
        compute_statistics(index, np.zeros(0, int), MASK)


def test_statistics_survive_json_and_serve_normalization(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "demo", {"train": [make_episode(10, size=1)]})
    index = load_index(RldsSource(folder), DatasetEntry(state_obs_keys=()), identity_dataset_transform)
    loaded = json.loads(json.dumps({"demo": compute_statistics(index, published_episodes(index), MASK)}))
    bounds = bounds_from_statistics(loaded, "demo", "action", NormalizationType.BOUNDS)
    np.testing.assert_array_equal(bounds.high, index.actions.max(0))
    np.testing.assert_array_equal(bounds.mask, MASK)
    assert loaded["demo"]["proprio"]["mean"] == []
