"""Samples that cannot be decoded: replaced along the order of training, for all workers, processes and resumed runs alike; named once."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from failing_reads import failing_reads
from rlds_writer import Episode, make_episode, write_dataset
from torch.utils.data import DataLoader

from prismatic.training.bad_samples import BadSampleWatch, TooManyBadSamplesError, as_row, bad_samples_allowed
from prismatic.training.distributed import Ranks
from prismatic.vla.datasets.dataset import DatasetOptions, VLADataset
from prismatic.vla.datasets.inspection.page import inspect_dataset
from prismatic.vla.datasets.reference_frames import make_reference
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.sampler import SampleKey
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.types import BadSample, Sample

OPTIONS = DatasetOptions(cameras=("primary",), image_size=24, augment=True, frame_cache_bytes=0)
DAMAGED = (2, 3, 17)


def _damage(episode: Episode, step: int) -> None:
    episode["observation/image"][step] = episode["observation/image"][step][:30]


def _write(root: Path) -> None:
    episodes = [make_episode(8, seed=number) for number in range(3)]
    for sample in DAMAGED:
        _damage(episodes[sample // 8], sample % 8)
    write_dataset(root, "metaworld_demo", {"train": episodes})


@pytest.fixture
def data(tmp_path: Path) -> VLADataset:
    _write(tmp_path)
    return load_training_data(resolve_datasets("metaworld_demo", tmp_path), OPTIONS).train


def _shown(data: VLADataset, count: int, rank: int = 0, world_size: int = 1, workers: int = 0, position: int = 0) -> list[Sample]:
    """What process `rank` is given from a place in the order on."""
    sampler = data.sampler(OPTIONS.seed, rank, world_size)
    sampler.load_state_dict({**sampler.state_dict(), "position": position})
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=list)
    samples: list[Sample] = []
    for batch in loader:
        samples += batch
        if len(samples) >= count:
            return samples[:count]
    raise AssertionError("the order has no end")


def _described(samples: list[Sample]) -> list[tuple[int, int, list[int]]]:
    return [(sample.sample_id, int(sample.images.sum()), [bad.sample for bad in sample.in_place_of]) for sample in samples]


def test_a_bad_sample_is_replaced_by_the_next_of_the_permutation(data: VLADataset) -> None:
    sampler = data.sampler(OPTIONS.seed)
    order, passes = sampler.epoch_order(1)
    in_pass = np.random.default_rng((OPTIONS.seed, 0, 1)).permutation(24).tolist()
    for number in range(24):
        sample = data[SampleKey(int(order[number]), int(passes[number]))]
        expected, bad = int(order[number]), []
        while expected in DAMAGED:
            bad.append(expected)
            expected = in_pass[(in_pass.index(expected) + 1) % 24]
        assert (sample.sample_id, [item.sample for item in sample.in_place_of]) == (expected, bad)
        if not bad:
            continue
        np.testing.assert_array_equal(sample.images, data[SampleKey(expected, 1)].images)
        np.testing.assert_array_equal(sample.actions, data[SampleKey(expected, 1)].actions)
    bad_sample = data[2].in_place_of[0]
    assert bad_sample.where == "metaworld_demo, train episode 0 (metaworld_demo-train.tfrecord-00000-of-00001, episode 0), step 2"
    assert bad_sample.episode == "metaworld_demo: train 0"
    assert "metaworld_demo-train.tfrecord-00000-of-00001, image at byte" in bad_sample.reason


def test_workers_processes_and_resuming_change_nothing(data: VLADataset) -> None:
    alone = _described(_shown(data, 48))
    assert sum(len(bad) for _, _, bad in alone) >= 6
    assert _described(_shown(data, 48, workers=3)) == alone
    both = [_described(_shown(data, 24, rank, 2, workers=1)) for rank in range(2)]
    assert [item for pair in zip(*both, strict=True) for item in pair] == alone
    assert _described(_shown(data, 28, workers=2, position=20)) == alone[20:]


def test_validation_replaces_and_recorded_frames_too(tmp_path: Path) -> None:
    bad = make_episode(4, seed=9)
    _damage(bad, 1)
    write_dataset(tmp_path, "metaworld_demo", {"train": [make_episode(5)], "val": [bad]})
    options = dataclasses.replace(OPTIONS, val_fraction=0.5, device_augmentation=True)
    data = load_training_data(resolve_datasets("metaworld_demo", tmp_path), options).val
    assert data is not None
    assert [item.sample for item in data[1].in_place_of] == [1]
    assert data[1].sample_id != 1
    assert data[1].images.shape == (1, 24, 24, 3)


def test_where_nothing_can_be_decoded_the_search_ends(tmp_path: Path) -> None:
    episode = make_episode(6)
    for step in range(6):
        _damage(episode, step)
    write_dataset(tmp_path, "metaworld_demo", {"train": [episode]})
    data = load_training_data(resolve_datasets("metaworld_demo", tmp_path), OPTIONS).train
    with pytest.raises(
        ValueError, match=r"6 samples in a row cannot be decoded; the first is metaworld_demo, train episode 0 .*image at byte"
    ):
        data[0]
    with pytest.raises(ValueError, match=r"none of .* samples all over the data can be decoded"):
        make_reference(data)


def test_pictures_for_reference_and_inspection_go_on(tmp_path: Path) -> None:
    _write(tmp_path)
    (spec,) = resolve_datasets("metaworld_demo", tmp_path)
    data = load_training_data([spec], dataclasses.replace(OPTIONS, cameras=("primary", "wrist"))).train
    assert len(make_reference(data).frames["wrist"]) == len(make_reference(data).frames["primary"]) >= 8
    findings = [str(finding) for finding in inspect_dataset(spec).findings]
    assert any("sampled episodes have a damaged image" in text for text in findings)


_READ = """
import sys
from pathlib import Path
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
options = DatasetOptions(cameras=("primary",), image_size=24, frame_cache_bytes=0)
data = load_training_data(resolve_datasets("metaworld_demo", Path(sys.argv[1])), options).train
print(data[4])
"""


def test_what_the_disk_refuses_is_named_as_such(tmp_path: Path) -> None:
    shards = {"train": [make_episode(3), make_episode(3, seed=1)]}
    folder = write_dataset(tmp_path, "metaworld_demo", shards)
    load_training_data(resolve_datasets("metaworld_demo", tmp_path), OPTIONS)  # the index is made while the disk is whole
    (shard,) = folder.glob("*.tfrecord*")
    words = [sys.executable, "-c", _READ, str(tmp_path)]
    done = subprocess.run(words, env=failing_reads(tmp_path, shard.name), capture_output=True, text=True, check=False)
    assert f"{shard} cannot be read: Input/output error" in done.stderr


ALONE = Ranks(0, 1, torch.device("cpu"))


def _bad(number: int) -> BadSample:
    return BadSample(number, f"demo, train episode {number // 10} (a.hdf5), step {number % 10}", f"demo: train {number // 10}", "cut off")


def test_each_is_named_once_also_after_resuming() -> None:
    watch = BadSampleWatch(10, ALONE)
    watch.add([_bad(1), _bad(2), _bad(1)])
    assert watch.look() == [_bad(1), _bad(2)]
    watch.add([_bad(2), _bad(3)])
    assert watch.look() == [_bad(3)]
    resumed = BadSampleWatch(10, ALONE)
    resumed.restore([{"step": 4, "train/loss": 1.0}, json.loads(json.dumps({"step": 5, **as_row(_bad(1))}))])
    resumed.add([_bad(1), _bad(2)])
    assert resumed.look() == [_bad(2)]


def test_those_of_an_earlier_part_stop_nothing_once_their_files_are_repaired() -> None:
    watch = BadSampleWatch(1, ALONE)
    watch.restore([{"step": 5, **as_row(_bad(number))} for number in (1, 2)])
    watch.add([_bad(1)])
    assert watch.look() == []
    watch.check()
    watch.add([_bad(3)])
    watch.look()
    watch.look()
    with pytest.raises(TooManyBadSamplesError, match=r"^3 samples"):
        watch.check()


def test_more_than_allowed_end_the_run_with_the_way_on() -> None:
    watch = BadSampleWatch(3, ALONE)
    watch.add([_bad(number) for number in (11, 12, 21)])
    watch.look()
    watch.check()
    watch.add([_bad(13), _bad(13)])
    watch.look()
    with pytest.raises(TooManyBadSamplesError, match=r"^4 samples .*--max_bad_samples 3;.*begin with demo: train 1; demo: train 2$"):
        watch.check()


def test_a_thousandth_of_an_epoch_is_allowed_and_ten_at_least() -> None:
    assert [bad_samples_allowed(None, size) for size in (10, 10_000, 12_345)] == [10, 10, 13]
    assert bad_samples_allowed(0, 10**6) == 0
