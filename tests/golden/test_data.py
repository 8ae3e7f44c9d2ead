"""Golden README, section 10: the published data pipeline's statistics, normalised steps, chunks, proprio and frames.

Both sets were written by tensorflow-datasets and are read here without it, with the published tail and statistics options.
Tolerances: numbers 2e-6; frames mean 0.01 and at most 1 level (the stated tolerance is mean 0.2, at most 8).
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from prismatic.vla.constants import NormalizationType
from prismatic.vla.datasets.dataset import DatasetOptions, RobotDataset
from prismatic.vla.datasets.frame_cache import CachedFrames
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import action_normalization_mask
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.statistics import DatasetStatistics, compute_statistics, published_episodes
from prismatic.vla.normalization import normalize

TOLERANCE = 2e-6
FRAME_SIZE, FRAME_STRIDE = 224, 4  # section 10 stores every 4th pixel of 224 x 224


class Case(NamedTuple):
    expected: dict[str, Any]
    arrays: dict[str, np.ndarray]
    spec: DatasetSpec
    index: EpisodeIndex
    statistics: DatasetStatistics

    def dataset(self, split: str) -> RobotDataset:
        episodes = self.index.episodes_of(split)
        options = DatasetOptions(cameras=tuple(self.expected["camera_order"]), image_size=FRAME_SIZE, use_proprio=True, published_tail=True)
        frames = CachedFrames(self.index, options.cameras, options.image_size, ())
        return RobotDataset(self.spec, frames, episodes[self.index.is_labelled()[episodes]], self.statistics, options)


@cache
def load_case(golden_dir: Path, name: str, cache_dir: Path) -> Case:
    for path in (golden_dir / f"{name}.json", golden_dir / f"{name}.safetensors", golden_dir / "rlds"):
        if not path.exists():
            pytest.fail(f"{path} is absent; --golden-dir names the folder of the recorded numbers", pytrace=False)
    expected = json.loads((golden_dir / f"{name}.json").read_text())
    spec = resolve_datasets(expected["dataset"], golden_dir / "rlds")[0]
    platform = dataclasses.replace(
        spec.platform, num_actions_chunk=expected["chunk"], normalization=NormalizationType(expected["normalization"])
    )
    spec = dataclasses.replace(spec, platform=platform)
    index = load_index(RldsSource(spec.folder), spec.entry, spec.transform, cache_dir)
    mask = action_normalization_mask(spec.entry.action_encoding, index.actions.shape[1])
    statistics = compute_statistics(index, published_episodes(index), mask)
    return Case(expected, load_file(golden_dir / f"{name}.safetensors"), spec, index, statistics)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden-dir"))
    cases = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("data.*.json"))}
    cases = cases or {"data.*": {"splits": ["train"]}}  # the tests then say what is absent
    if "split" in metafunc.fixturenames:
        metafunc.parametrize(("name", "split"), [(name, split) for name, case in cases.items() for split in case["splits"]])
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", list(cases))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden_index")


@pytest.fixture
def case(golden_dir: Path, name: str, cache_dir: Path) -> Case:
    return load_case(golden_dir, name, cache_dir)


def test_statistics(case: Case) -> None:
    expected = case.expected["statistics"]
    assert case.statistics.keys() == expected.keys()
    for quantity in ("action", "proprio"):
        assert case.statistics[quantity].keys() == expected[quantity].keys()
        for key, values in expected[quantity].items():
            np.testing.assert_allclose(case.statistics[quantity][key], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{quantity} {key}")
    assert case.statistics["action"]["mask"] == expected["action"]["mask"]
    assert case.statistics["num_transitions"] == expected["num_transitions"]
    assert case.statistics["num_trajectories"] == expected["num_trajectories"]


def test_cameras_come_in_the_published_order(case: Case) -> None:
    assert list(case.index.cameras) == case.expected["camera_order"]


def test_episodes_and_their_samples(case: Case, split: str) -> None:
    expected = case.expected["splits"][split]
    assert case.index.lengths[case.index.episodes_of(split)].tolist() == expected["all_episode_lengths"]
    dataset = case.dataset(split)
    kept = [
        {"samples": int(last - first), "instruction": dataset.instruction(int(first))}
        for first, last in zip(dataset.sample_starts[:-1], dataset.sample_starts[1:], strict=True)
    ]
    assert kept == expected["kept_episodes"]


def test_every_step_normalised(case: Case, split: str) -> None:
    steps = case.index.steps_of(case.index.episodes_of(split))
    dataset = case.dataset(split)
    assert dataset.proprio_bounds is not None
    actions = normalize(case.index.actions[steps], dataset.action_bounds)
    proprio = normalize(case.index.proprio[steps], dataset.proprio_bounds)
    np.testing.assert_allclose(actions, case.arrays[f"{split}.full_actions_normalized"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(proprio, case.arrays[f"{split}.full_proprio_normalized"], rtol=0, atol=TOLERANCE)


def test_chunks_and_proprio_of_every_sample(case: Case, split: str) -> None:
    dataset = case.dataset(split)
    chunks = np.stack([dataset.actions(sample) for sample in range(len(dataset))])
    proprio = np.stack([values for sample in range(len(dataset)) if (values := dataset.proprio(sample)) is not None])
    assert chunks.dtype == proprio.dtype == np.float32
    np.testing.assert_allclose(chunks, case.arrays[f"{split}.chunks"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(proprio, case.arrays[f"{split}.proprio"], rtol=0, atol=TOLERANCE)


def test_frames(case: Case, split: str) -> None:
    dataset = case.dataset(split)
    for sample in case.expected["splits"][split]["frames"]:
        frames = dataset.frames(sample)  # [N, 224, 224, 3]
        for camera, frame in zip(case.expected["camera_order"], frames, strict=True):
            expected = case.arrays[f"{split}.frame{sample}.{camera}"].astype(int)
            difference = np.abs(frame[::FRAME_STRIDE, ::FRAME_STRIDE] - expected)
            assert difference.mean() <= 0.01, f"{camera} of sample {sample}"
            assert difference.max() <= 1, f"{camera} of sample {sample}"
