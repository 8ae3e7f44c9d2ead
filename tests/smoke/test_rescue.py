"""An error that ends a run is one line where a user can act on it, and costs nothing of what was trained: the last whole step is saved.

Each fault strikes the real finetune.py in the middle of a step: the second micro-batch of the second step, or later.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from launching import Launcher, Started, wait_until
from survival import FINETUNE, contents, flags, make_workplace, rows, start_processes, wait_for, write_script

# Dropout and the data position would give away an unfinished step that left traces.
DEMANDING = ("--lora_dropout", "0.2", "--grad_accumulation_steps", "2", "--save_freq", "1000", "--merge_lora_during_training", "False")
COUNT = """
calls = 0
def counted(number):
    global calls
    calls += 1
    return calls == number
"""
# A batch that cannot be loaded, on the process RANK.
UNREADABLE = """
from prismatic.vla.datasets.collator import Collator
original = Collator.__call__
def collate(self, samples):
    if counted(4) and rank == RANK:
        raise ERROR
    return original(self, samples)
Collator.__call__ = collate
"""
FAILING_PASS = """
from prismatic.training.loop import Trainer
original = Trainer.accumulate
def accumulate(self, batch):
    if counted(4):
        raise RuntimeError("out of memory, or so")
    return original(self, batch)
Trainer.accumulate = accumulate
"""
FAILING_UPDATE = """
import torch
original = torch.optim.AdamW.step
def step(self):
    if counted(2):
        raise RuntimeError("half of the weights are updated")
    return original(self)
torch.optim.AdamW.step = step
"""
UNREADABLE_VALIDATION = """
from torch.utils.data import Subset
original = Subset.__getitem__
def get(self, number):
    if counted(3) and rank == 1:
        raise ValueError("held-out episode 1 is damaged")
    return original(self, number)
Subset.__getitem__ = get
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("rescue"))


@pytest.fixture(scope="module")
def launcher(workplace: Path) -> Launcher:
    return Launcher(workplace)


def strike(
    launcher: Launcher, workplace: Path, name: str, fault: str, count: int = 1, status: int = 2, more: Sequence[str] = ()
) -> list[Started]:
    """A run in the folder `name` on `count` processes that the fault ends with `status`."""
    script = write_script(workplace, name, COUNT, fault, FINETUNE)
    processes = start_processes(launcher, flags(workplace, name, *DEMANDING, "--max_steps", "5", *more), [workplace] * count, script)
    wait_for(processes, status)
    return processes


def assert_goes_on_as_if_nothing_had_been(launcher: Launcher, workplace: Path, name: str, count: int = 1, more: Sequence[str] = ()) -> None:
    """Resumed, without the fault, the run ends like one that was never disturbed."""
    last = ("--max_steps", "4", *more)
    wait_for(start_processes(launcher, flags(workplace, name, *DEMANDING, *last, "--resume", "True"), [workplace] * count))
    undisturbed = workplace / f"{name}_undisturbed"
    wait_for(start_processes(launcher, flags(workplace, undisturbed.name, *DEMANDING, *last), [workplace] * count))
    assert rows(workplace / name / "run") == rows(undisturbed / "run")
    assert contents(workplace / name / "run--4_chkpt") == contents(undisturbed / "run--4_chkpt")


@pytest.mark.parametrize(("error", "told"), [
    ("ValueError('episode 3 is damaged')", "error: episode 3 is damaged\n"),
    ("OSError(5, 'Input/output error', 'shard-7')", "error: the data cannot be read: OSError: [Errno 5] Input/output error: 'shard-7'\n"),
], ids=["damaged", "io"])  # fmt: skip
def test_a_batch_that_cannot_be_loaded_is_one_line_and_no_loss(launcher: Launcher, workplace: Path, error: str, told: str) -> None:
    name = error[:5]
    fault = UNREADABLE.replace("RANK", "0").replace("ERROR", error)
    (run,) = strike(launcher, workplace, name, fault, more=("--num_workers", "1"))
    assert told in run.text()
    assert "Traceback" not in run.text()
    assert f"saved {workplace}/{name}/run--1_chkpt after an error; once its cause is gone the same command with --resume True" in run.text()
    if name == "Value":
        assert_goes_on_as_if_nothing_had_been(launcher, workplace, name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_other_processes_save_with_the_one_that_fails(launcher: Launcher, workplace: Path, strategy: str) -> None:
    fault = UNREADABLE.replace("RANK", "1").replace("ERROR", "ValueError('episode 3 is damaged')")
    main, failing = strike(launcher, workplace, strategy, fault, count=2, more=("--strategy", strategy))
    assert "error: episode 3 is damaged" in failing.text()
    assert "error:" not in main.text()
    assert "Traceback" not in main.text() + failing.text()
    assert f"saved {workplace}/{strategy}/run--1_chkpt after an error" in main.text()
    assert_goes_on_as_if_nothing_had_been(launcher, workplace, strategy, count=2, more=("--strategy", strategy))


def test_a_first_batch_that_cannot_be_loaded_ends_all(launcher: Launcher, workplace: Path) -> None:
    fault = UNREADABLE.replace("RANK", "1").replace("ERROR", "ValueError('episode 3 is damaged')").replace("counted(4)", "counted(1)")
    main, failing = strike(launcher, workplace, "first", fault, count=2)
    assert "error: episode 3 is damaged" in failing.text()
    assert "Traceback" not in main.text() + failing.text()
    assert os.listdir(workplace / "first") == ["run"], "there is nothing to save"


def test_a_pass_that_fails_leaves_no_trace_of_its_step(launcher: Launcher, workplace: Path) -> None:
    (run,) = strike(launcher, workplace, "pass", FAILING_PASS, status=1)
    assert "RuntimeError: out of memory, or so" in run.text()
    assert "run--1_chkpt after an error" in run.text()
    assert_goes_on_as_if_nothing_had_been(launcher, workplace, "pass")


def test_a_state_that_is_not_sound_is_not_saved(launcher: Launcher, workplace: Path) -> None:
    (run,) = strike(launcher, workplace, "update", FAILING_UPDATE, status=1)
    assert "half of the weights are updated" in run.text()
    assert os.listdir(workplace / "update") == ["run"]
    wild = ("--use_lora", "False", "--learning_rate", "1e30", "--wandb_log_freq", "3")
    run = launcher.start(flags(workplace, "wild", *DEMANDING, *wild, "--lora_dropout", "0"))
    assert run.wait() == 2, run.text()
    assert "the loss became nan" in run.text()
    assert os.listdir(workplace / "wild") == ["run"]


def test_a_killed_worker_is_one_line_and_no_loss(launcher: Launcher, workplace: Path) -> None:
    run = launcher.start(flags(workplace, "worker", *DEMANDING, "--num_workers", "1"))
    wait_until(lambda: len(rows(workplace / "worker" / "run")) >= 2)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert children, "the process that loads data"
    os.kill(int(children[-1]), signal.SIGKILL)
    assert run.wait() == 2, run.text()
    assert "error: a process that loads data has died (exit status -9); most often the machine's memory is full" in run.text()
    assert "Traceback" not in run.text()
    step = len(rows(workplace / "worker" / "run"))
    assert f"run--{step}_chkpt after an error" in run.text()


def test_a_log_that_cannot_be_written_ends_the_run_with_a_checkpoint(launcher: Launcher, workplace: Path) -> None:
    processes = start_processes(launcher, flags(workplace, "log", *DEMANDING), [workplace] * 2)
    metrics = workplace / "log" / "run" / "metrics.jsonl"
    wait_until(lambda: len(rows(metrics.parent)) >= 1)
    metrics.rename(metrics.with_name("moved.jsonl"))
    metrics.mkdir()
    wait_for(processes, 2)
    assert f"error: {metrics} cannot be written (Is a directory)" in processes[0].text()
    assert "after an error" in processes[0].text()
    assert "Traceback" not in processes[0].text() + processes[1].text()


def test_a_validation_that_fails_is_owed(launcher: Launcher, workplace: Path) -> None:
    validated = ("--use_val_set", "True", "--val_freq", "2", "--batch_size", "1")
    main, failing = strike(launcher, workplace, "val", UNREADABLE_VALIDATION, count=2, more=validated)
    assert "error: held-out episode 1 is damaged" in failing.text()
    assert "Traceback" not in main.text() + failing.text()
    state = json.loads((workplace / "val" / "run--2_chkpt" / "trainer_state" / "state.json").read_text())
    assert (state["step"], state["owes_validation"]) == (2, True)
    assert_goes_on_as_if_nothing_had_been(launcher, workplace, "val", count=2, more=validated)
