"""The one division into training and validation: its size, how it spreads over tasks, that nothing but names decides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rlds_writer import make_episode, write_dataset

from prismatic.conversion.options import RldsFlags
from prismatic.training.config import FinetuneConfig
from prismatic.vla.datasets.index import load_index
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.split_names import VAL_FRACTION
from prismatic.vla.datasets.splits import choose_validation, split_episodes


def _episodes(*sizes: int) -> tuple[list[str], list[str]]:
    tasks = [f"task {task}" for task, size in enumerate(sizes) for _ in range(size)]
    return [f"episode_{number:04d}.hdf5" for number in range(len(tasks))], tasks


def _taken(sizes: tuple[int, ...], fraction: float) -> list[int]:
    names, tasks = _episodes(*sizes)
    found = Counter(np.array(tasks)[choose_validation(names, tasks, fraction)].tolist())
    return [found[f"task {task}"] for task in range(len(sizes))]


@pytest.mark.parametrize(
    ("sizes", "fraction", "total", "most"),
    [
        ((2,) * 100, 0.1, 20, 1),
        ((4,) * 50, 0.1, 20, 1),
        ((1,) * 200, 0.1, 20, 1),
        ((50,), 0.1, 5, 5),
        ((2,) * 3, 0.9, 3, 1),  # not five: each task keeps one
        ((1, 1), 0.9, 1, 1),
        ((100,), 0.001, 1, 1),
        ((3, 1, 1, 1), 0.34, 2, 2),
    ],
)
def test_the_fraction_is_taken_overall_and_spread_over_the_tasks(sizes: tuple[int, ...], fraction: float, total: int, most: int) -> None:
    taken = _taken(sizes, fraction)
    assert (sum(taken), max(taken)) == (total, most)
    assert all(count < size for count, size in zip(taken, sizes, strict=True) if size > 1)


def test_tasks_of_different_sizes_give_the_same_share() -> None:
    assert _taken((100, 40, 20), 0.1) == [10, 4, 2]
    assert _taken((100, 1, 1, 1), 0.1) == [10, 0, 0, 0]  # the only episode of a task is the last to go


def test_the_names_of_the_files_alone_decide_in_any_order() -> None:
    names, tasks = _episodes(7, 5, 3)
    is_val = choose_validation(names, tasks, 0.3)
    order = np.random.default_rng(0).permutation(len(names))
    moved = choose_validation([f"elsewhere/{names[number]}" for number in order], [tasks[number] for number in order], 0.3)
    np.testing.assert_array_equal(moved, is_val[order])


def test_training_and_conversion_have_one_default() -> None:
    assert FinetuneConfig().evaluation.val_fraction == RldsFlags(Path("a"), "b", Path("c")).val_fraction == VAL_FRACTION


def test_training_divides_a_set_of_many_tasks(tmp_path: Path) -> None:
    episodes = [make_episode(2, seed=number, size=1, instruction=f"task {number // 2}") for number in range(20)]
    folder = write_dataset(tmp_path, "metaworld_demo", {"train": episodes})
    spec = resolve_datasets("metaworld_demo", tmp_path)[0]
    index = load_index(RldsSource(folder), spec.entry, spec.transform)
    train, val = split_episodes(spec, index, 0.2)
    assert (len(train), len(val)) == (16, 4)
    assert len(set(index.instruction_ids[index.episode_starts[train]].tolist())) == 10
    assert sorted([*train, *val]) == list(range(20))
