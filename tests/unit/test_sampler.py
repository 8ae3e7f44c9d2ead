from __future__ import annotations

import itertools
import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from prismatic.vla.datasets.sampler import MixtureSampler, SampleKey


def _take(sampler: MixtureSampler, count: int) -> list[SampleKey]:
    return list(islice(iter(sampler), count))


def test_an_epoch_shows_every_sample_once_in_an_order_of_its_own() -> None:
    sampler = MixtureSampler([100], [1.0], seed=3)
    first, second = _take(sampler, 200)[:100], _take(sampler, 200)[100:]
    for number, epoch in enumerate((first, second)):
        assert sorted(key.sample for key in epoch) == list(range(100))
        assert {key.num_earlier_passes for key in epoch} == {number}
    assert [key.sample for key in first] != [key.sample for key in second]
    assert [key.sample for key in first] != list(range(100))
    assert _take(MixtureSampler([100], [1.0], seed=3), 200) == first + second
    assert _take(MixtureSampler([100], [1.0], seed=4), 100) != first


def test_a_mixture_shuffles_all_data_sets_together() -> None:
    sampler = MixtureSampler([50, 150], [1.0, 1.0], seed=0)
    epoch = [key.sample for key in _take(sampler, 200)]
    assert sorted(epoch) == list(range(200))
    assert 10 < sum(sample < 50 for sample in epoch[:100]) < 40


def test_weights_scale_the_size_of_a_data_set_and_leave_nothing_out() -> None:
    sampler = MixtureSampler([40, 100], [0.5, 2.0], seed=0)
    assert sampler.num_samples_per_epoch == 20 + 200
    two_epochs = Counter(key.sample for key in _take(sampler, 440))
    assert all(two_epochs[sample] == 1 for sample in range(40))  # half per epoch, the other half in the next
    assert all(two_epochs[sample] == 4 for sample in range(40, 140))


def test_no_sample_is_ever_shown_twice_with_the_same_augmentation() -> None:
    keys = _take(MixtureSampler([7, 13, 5], [1.5, 1.0, 0.3], seed=1), 2000)
    assert len(set(keys)) == len(keys)


def test_a_small_set_does_not_repeat_in_a_fixed_order() -> None:
    keys = _take(MixtureSampler([6], [5.0], seed=1), 60)
    passes = [tuple(key.sample for key in keys if key.num_earlier_passes == number) for number in range(10)]
    assert len(set(passes)) > 8


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_processes_share_one_order_without_overlap(world_size: int) -> None:
    whole = _take(MixtureSampler([10, 31], [1.0, 0.7], seed=5), 24 * world_size)
    shares = [_take(MixtureSampler([10, 31], [1.0, 0.7], 5, rank, world_size), 24) for rank in range(world_size)]
    dealt = [key for together in zip(*shares, strict=True) for key in together]
    assert dealt == whole


@pytest.mark.parametrize("position", [0, 1, 37, 41, 100, 1000])
def test_a_saved_position_continues_exactly(position: int) -> None:
    sampler = MixtureSampler([10, 31], [1.0, 1.0], seed=5)
    whole = _take(sampler, position + 50)
    sampler.advance(position)
    resumed = MixtureSampler([10, 31], [1.0, 1.0], seed=99)
    resumed.load_state_dict(sampler.state_dict())
    assert _take(resumed, 50) == whole[position:]


def test_another_number_of_processes_continues_with_the_same_global_batches() -> None:
    whole = _take(MixtureSampler([64], [1.0], seed=2), 64)
    two = MixtureSampler([64], [1.0], 2, rank=0, world_size=2)
    two.advance(16)
    four = [MixtureSampler([64], [1.0], 2, rank, 4) for rank in range(4)]
    for sampler in four:
        sampler.load_state_dict(two.state_dict())
    assert {key for sampler in four for key in _take(sampler, 4)} == set(whole[16:32])


def test_a_position_in_other_data_is_refused() -> None:
    state = MixtureSampler([10], [1.0], seed=0).state_dict()
    with pytest.raises(ValueError, match=r"sizes \[10\], now they have \[11\]"):
        MixtureSampler([11], [1.0], seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match=r"counts \[10\], now they have \[5\]"):
        MixtureSampler([10], [0.5], seed=0).load_state_dict(state)


def test_empty_sets_and_weights_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one sample, found sizes \[5, 0\]"):
        MixtureSampler([5, 0], [1.0, 1.0], seed=0)
    with pytest.raises(ValueError, match="weight above 0"):
        MixtureSampler([5], [0.0], seed=0)


class _Echo(Dataset):
    def __getitem__(self, key: SampleKey) -> SampleKey:
        return key


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_any_number_of_workers_delivers_the_same_order(num_workers: int) -> None:
    sampler = MixtureSampler([20], [1.0], seed=0)
    loader = DataLoader(_Echo(), batch_size=4, sampler=sampler, num_workers=num_workers, collate_fn=list)
    batches = [batch for batch, _ in zip(loader, range(6), strict=False)]
    assert [key for batch in batches for key in batch] == _take(sampler, 24)
    assert sampler.position == 0  # what was fetched ahead does not count


def test_orders_are_uniform() -> None:
    firsts = Counter(_take(MixtureSampler([5], [1.0], seed), 1)[0].sample for seed in range(500))
    assert np.abs(np.array([firsts[sample] for sample in range(5)]) - 100).max() < 40


SHARES = np.array([0.0, 1.0, 2.0, 0.5, 3.0, 0.5] * 20)


def test_shares_say_how_often_a_pass_shows_a_sample() -> None:
    sampler = MixtureSampler([120, 30], [1.0, 1.0], seed=1, shares=[SHARES, None])
    assert sampler.num_samples_per_epoch == round(SHARES.sum()) + 30
    keys = _take(sampler, 10 * sampler.num_samples_per_epoch)
    counts = np.bincount([key.sample for key in keys], minlength=150)
    np.testing.assert_array_equal(counts[120:], 10)
    whole = np.round(SHARES) == SHARES
    np.testing.assert_array_equal(counts[:120][whole], 10 * SHARES[whole])
    assert set(counts[:120][~whole]) <= {4, 5, 6}, "in every other pass, as evenly as it goes"
    assert len(set(keys)) == len(keys), "no sample twice with the same augmentation"
    first = [key.sample for key in keys[: sampler.num_samples_per_epoch]]
    twice = [abs(one - other) for one, other in itertools.pairwise(first)]
    assert twice.count(0) < 10, "the showings of a sample are shuffled apart"


def test_shares_keep_one_order_for_all_processes_and_after_resuming_and_other_shares_are_refused() -> None:
    shares = [SHARES]
    whole = _take(MixtureSampler([120], [1.5], seed=5, shares=shares), 600)
    dealt = [_take(MixtureSampler([120], [1.5], 5, rank, 3, shares), 200) for rank in range(3)]
    assert [key for together in zip(*dealt, strict=True) for key in together] == whole
    sampler = MixtureSampler([120], [1.5], seed=5, shares=shares)
    sampler.advance(77)
    resumed = MixtureSampler([120], [1.5], seed=99, shares=shares)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert _take(resumed, 300) == whole[77:377]
    key = next(key for key in whole if SHARES[key.sample] == 3)
    others = Counter(sampler.following(key))
    assert others.total() == 139, "the others of its pass"
    assert others[key.sample] == int(SHARES[key.sample]) - 1
    assert set(others) | {key.sample} >= set(np.flatnonzero(SHARES >= 1).tolist())
    for other in ([None], [SHARES[::-1].copy()]):
        changed = MixtureSampler([120], [1.5 * 140 / 120] if other[0] is None else [1.5], seed=5, shares=other)
        with pytest.raises(ValueError, match=r"with (other weights of the episodes|data sets with counts)"):
            changed.load_state_dict(sampler.state_dict())


def test_a_state_without_shares_is_resumed_without_them() -> None:
    sampler = MixtureSampler([10], [1.0], seed=0)
    state = {name: value for name, value in sampler.state_dict().items() if name != "shares"}
    MixtureSampler([10], [1.0], seed=0).load_state_dict(state)
