"""Several processes train like one, however they share the model, and several machines need no common disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT, SCRIPT, Launcher, wait_until
from safetensors.torch import load_file
from survival import (
    DATASET,
    assert_close,
    assert_every_weight_got_a_gradient,
    contents,
    flags,
    free_port,
    make_workplace,
    rows,
    start_processes,
    wait_for,
)

from prismatic.policy.checkpoint.files import find_damage

HEADS = {
    "l1": (),
    "film": ("--use_film", "True"),
    "discrete": ("--use_l1_regression", "False"),
    "diffusion": (
        "--use_l1_regression",
        "False",
        "--use_diffusion",
        "True",
        "--num_diffusion_steps_train",
        "4",
        "--diffusion_sample_freq",
        "1",
    ),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def launcher(workplace: Path) -> Launcher:
    return Launcher(workplace)


@pytest.mark.parametrize(("head", "lora"), [("l1", "True"), ("film", "True"), ("discrete", "False")])
def test_one_process_and_two_that_copy_or_share_the_model_train_alike(launcher: Launcher, workplace: Path, head: str, lora: str) -> None:
    """The same 8 samples a step: losses, gradients (after one step AdamW's first moment is a tenth of them) and what is published agree."""
    steps = ("--max_steps", "3", "--save_freq", "1", "--use_lora", lora, *HEADS[head], "--max_grad_norm", "10.0")
    folders = {}
    for name, count, more in (
        ("one", 1, ("--batch_size", "8")),
        ("ddp", 2, ("--batch_size", "2", "--grad_accumulation_steps", "2", "--strategy", "ddp")),
        ("fsdp", 2, ("--batch_size", "2", "--grad_accumulation_steps", "2", "--strategy", "fsdp")),
    ):
        runs = workplace / f"{head}_{lora}_{name}"
        processes = start_processes(launcher, flags(workplace, runs.name, *steps, *more), [workplace] * count)
        wait_for(processes)
        assert ["of 5 episodes have no instruction" in process.text() for process in processes] == [True, False][:count]
        folders[name] = runs
    losses = {name: [row["train/loss"] for row in rows(runs / "run")] for name, runs in folders.items()}
    assert len(losses["one"]) == 3
    assert_every_weight_got_a_gradient(folders["one"] / "run--1_chkpt")
    for name in ("ddp", "fsdp"):
        # Weights whose gradient is nothing but rounding take whole AdamW steps, so that later losses differ a little.
        assert losses[name][0] == pytest.approx(losses["one"][0], rel=1e-6)
        assert losses[name] == pytest.approx(losses["one"], rel=1e-3)
        first, other = (folder / "run--1_chkpt" / "trainer_state" / "optimizer.safetensors" for folder in (folders["one"], folders[name]))
        assert_close(first, other, tolerance=1e-4)
    assert contents(folders["ddp"] / "run--1_chkpt").keys() == contents(folders["fsdp"] / "run--1_chkpt").keys()
    assert losses["ddp"] == pytest.approx(losses["fsdp"], rel=1e-5)
    published = ("model.safetensors", "trainer_state/trainable.safetensors")
    for name in published:
        assert_close(folders["ddp"] / "run--3_chkpt" / name, folders["fsdp"] / "run--3_chkpt" / name, tolerance=0.01)


def test_a_sharded_run_resumes_exactly(launcher: Launcher, workplace: Path) -> None:
    demanding = ("--strategy", "fsdp", *HEADS["diffusion"], "--lora_dropout", "0.2", "--wandb_log_freq", "3", "--save_freq", "2")
    validated = ("--use_val_set", "True", "--val_freq", "2")  # 17 samples, so that one process has a batch more than the other
    for runs, parts in (("whole", ("4",)), ("parts", ("2", "4"))):
        for last in parts:
            more = (*demanding, *validated, "--max_steps", last, "--auto_resume", "True")
            wait_for(start_processes(launcher, flags(workplace, runs, *more), [workplace] * 2))
    one, other = workplace / "whole", workplace / "parts"
    assert_every_weight_got_a_gradient(one / "run--2_chkpt")
    assert contents(one / "run--4_chkpt") == contents(other / "run--4_chkpt")
    assert rows(one / "run")[-1] == rows(other / "run")[-1]
    assert rows(one / "run")[-1].keys() >= {"val/loss"}


def test_bfloat16_shards_like_it_copies(launcher: Launcher, workplace: Path) -> None:
    """With adapters nothing differs; without, blocks compute in bfloat16 from float32 weights rather than under autocast alone."""
    for lora, tolerance in (("True", 1e-6), ("False", 0.05)):
        losses = []
        for strategy in ("ddp", "fsdp"):
            runs = f"bf16_{lora}_{strategy}"
            more = ("--precision", "bf16", "--use_lora", lora, "--strategy", strategy, "--max_steps", "2", *HEADS["film"])
            wait_for(start_processes(launcher, flags(workplace, runs, *more), [workplace] * 2))
            losses.append([row["train/loss"] for row in rows(workplace / runs / "run")])
            trained = load_file(workplace / runs / "run--2_chkpt" / "trainer_state" / "trainable.safetensors")
            assert {value.dtype for value in trained.values()} == {torch.float32}
        assert losses[0] == pytest.approx(losses[1], rel=tolerance)


def test_two_machines_without_a_common_disk(launcher: Launcher, workplace: Path) -> None:
    """Two torchrun agents, each in a folder of its own with data and base, are stopped as a batch system does, and go on."""
    nodes = [workplace / "node0", workplace / "node1"]
    for node in nodes:
        shutil.copytree(workplace / "base", node / "base")
        shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, node / "data" / DATASET)
    arguments = flags(Path(), "runs", "--save_freq", "1000")
    agent = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "run", str(SCRIPT), *arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    agents = []
    for node in nodes:
        with (node / "output.txt").open("w") as output:
            agents.append(subprocess.Popen(agent, cwd=node, env=environment, stdout=output, stderr=output, start_new_session=True))
    try:
        wait_until(lambda: len(rows(nodes[0] / "runs" / "run")) >= 3 or any(one.poll() is not None for one in agents), seconds=200)
        for one in agents:
            os.killpg(one.pid, signal.SIGTERM)
        for one in agents:
            one.wait(timeout=60)
    finally:
        for one in agents:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
    text = (nodes[0] / "output.txt").read_text()
    stopped = re.search(r"stopped after step (\d+); the same command with --resume True goes on from runs/run--\1_chkpt", text)
    assert stopped is not None, text
    assert sorted(os.listdir(nodes[1])) == ["base", "data", "output.txt"], "only the first process writes"
    assert list((nodes[1] / "data").rglob(".prismatic_index")), "but every machine has its own index"
    assert find_damage(nodes[0] / "runs" / f"run--{stopped[1]}_chkpt") is None
    last = int(stopped[1]) + 2
    wait_for(start_processes(launcher, [*arguments, "--max_steps", str(last), "--resume", "True"], nodes))
    assert [row["step"] for row in rows(nodes[0] / "runs" / "run")] == list(range(1, last + 1))
    assert sorted(os.listdir(nodes[1])) == ["base", "data", "output.txt"]
