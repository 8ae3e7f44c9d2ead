"""A loss that is not finite is found at the next look, and every process lists its samples."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rlds_writer import make_episode, write_dataset

from prismatic.training.distributed import EndedTogether, process_group
from prismatic.training.finite import NON_FINITE_FILE, FiniteWatch, NonFiniteLossError, NonFiniteWeightsError, non_finite_weights
from prismatic.vla.datasets.dataset import DatasetOptions, VLADataset
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.training_data import load_training_data

DATASET = "metaworld_demo"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finite")
    write_dataset(folder, DATASET, {"train": [make_episode(5), make_episode(7, seed=1)]})
    return folder


def load(data_root: Path) -> VLADataset:
    return load_training_data(resolve_datasets(DATASET, data_root, None), DatasetOptions(cameras=("primary",), image_size=28)).train


def test_the_first_bad_step_and_the_one_before_are_listed(data_root: Path, tmp_path: Path) -> None:
    with process_group() as ranks:
        watch = FiniteWatch(load(data_root), tmp_path, ranks)
    watch.check()
    watch.add(1, torch.tensor(0.5), torch.tensor([0, 1]))
    watch.add(2, torch.tensor(0.5), torch.tensor([2, 3]))
    watch.check()
    watch.add(3, torch.tensor(float("inf")), torch.tensor([4, 6]))
    watch.add(4, torch.tensor(float("nan")), torch.tensor([7, 8]))
    with pytest.raises(NonFiniteLossError, match=r"became inf at step 3 .*train episode 0, step 4.*train episode 1, step 1") as found:
        watch.check()
    assert "The last checkpoint is untouched" in str(found.value)
    batches = json.loads((tmp_path / NON_FINITE_FILE).read_text())["batches"]
    assert [(batch["step"], batch["loss"], [sample["sample"] for sample in batch["samples"]]) for batch in batches] == [
        (2, "0.5", [2, 3]),
        (3, "inf", [4, 6]),
    ]
    assert batches[1]["samples"][1] == {
        **{"dataset": DATASET, "split": "train", "episode": 1, "step": 1, "instruction": "push the button", "sample": 6},
        "recording": f"{DATASET}-train.tfrecord-00000-of-00001, episode 1",
    }


def test_weights_are_reduced_tensor_by_tensor(tmp_path: Path, data_root: Path) -> None:
    weights = {name: torch.ones(4, dtype=dtype) for name, dtype in (("a", torch.float32), ("b", torch.bfloat16), ("c", torch.float32))}
    weights |= {"scalar": torch.tensor(1e38), "nothing": torch.empty(0)}
    with process_group() as ranks:
        assert non_finite_weights(weights, ranks) == non_finite_weights({}, ranks) == []
        watch = FiniteWatch(load(data_root), tmp_path, ranks)
        watch.add(3, torch.tensor(0.5), torch.tensor([4, 6]))
        watch.check_weights(weights)
        weights["c"][1], weights["b"][3] = float("nan"), -float("inf")
        with pytest.raises(
            NonFiniteWeightsError, match=r"2 of 5 trained tensors are not finite after the update of step 3: b, c. They are not"
        ):
            watch.check_weights(weights)
    assert json.loads((tmp_path / NON_FINITE_FILE).read_text())["step"] == 3


def _one_process(rank: int, port: int, data_root: Path, run_dir: Path) -> None:
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
    with process_group() as ranks:
        watch = FiniteWatch(load(data_root), run_dir, ranks)
        watch.add(1, torch.tensor(1.0), torch.tensor([rank]))
        watch.check()
        watch.add(2, torch.tensor(float("nan") if rank == 1 else 1.0), torch.tensor([4 + rank]))
        with pytest.raises(EndedTogether) as ended:
            watch.check()
        assert ended.value.own is None if rank else "became nan at step 2 on process 1" in str(ended.value.own)
        watch = FiniteWatch(load(data_root), run_dir / "weights", ranks)
        weights = {"one": torch.tensor([1.0]), "other": torch.tensor([float("nan") if rank == 1 else 1.0])}  # as shards would be
        with pytest.raises(EndedTogether):
            watch.check_weights(weights)
        dist.barrier()  # both processes must come here


def test_a_loss_of_one_process_stops_all_and_all_list_their_samples(data_root: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_one_process, args=(rank, port, data_root, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    batches = json.loads((tmp_path / NON_FINITE_FILE).read_text())["batches"]
    assert [(batch["rank"], batch["step"], batch["samples"][0]["sample"]) for batch in batches] == [
        (0, 1, 0),
        (0, 2, 4),
        (1, 1, 1),
        (1, 2, 5),
    ]
