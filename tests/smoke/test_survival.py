"""Runs of the real finetune.py that are killed, stopped or run out of disk, and go on as if nothing had happened.

The kill test repeats its choices with PRISMATIC_KILL_SEED=<the seed that it prints>; what the run is doing at those moments varies.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Launcher, Started, wait_until
from survival import FINETUNE, contents, flags, make_workplace, rows, start_processes, wait_for, write_script

from prismatic.interrupts import STOPPED
from prismatic.policy.checkpoint.files import find_damage, previous_folder, temporary_folder

# What makes a step depend on all that a checkpoint must hold: dropout, several micro-batches, log lines and validations between saves.
DEMANDING = ("--lora_dropout", "0.2", "--grad_accumulation_steps", "2", "--wandb_log_freq", "3", "--use_val_set", "True", "--val_freq", "5")
LATEST_ONLY = ("--save_latest_checkpoint_only", "True")
DIFFUSION = ("--use_diffusion", "True", "--use_l1_regression", "False", "--num_diffusion_steps_train", "5", "--diffusion_sample_freq", "4")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("survival"))


@pytest.fixture(scope="module")
def launcher(workplace: Path) -> Launcher:
    return Launcher(workplace)


def newest_step(runs: Path) -> int | None:
    """The step of the newest checkpoint, read as a user would, without repairing anything."""
    states = [*runs.glob("run*/trainer_state/state.json"), *runs.glob(".run.previous/trainer_state/state.json")]
    return max((json.loads(path.read_text())["step"] for path in states), default=None)


def is_saving(runs: Path) -> bool:
    return any(re.fullmatch(r"\.run.*\.(tmp|previous)", name) for name in os.listdir(runs)) if runs.is_dir() else False


def kill_somewhere(run: Started, runs: Path, rng: random.Random) -> str:
    """Kills `run` at a random moment: while it starts, between log lines, or while it saves; says when."""
    kind = rng.choice(("start", "steps", "steps", "save", "save"))
    num_rows, delay = len(rows(runs / "run")), rng.uniform(0.0, 0.03)
    conditions: dict[str, Callable[[], bool]] = {
        "start": lambda: True,
        "steps": lambda: len(rows(runs / "run")) > num_rows,
        "save": lambda: is_saving(runs),
    }
    wait_until(lambda: conditions[kind]() or not run.is_running())
    time.sleep(rng.uniform(0.0, 0.5) if kind == "start" else delay)
    mid_save = is_saving(runs)
    run.kill(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, run.text()
    return f"{kind}{' (mid-save)' if mid_save else ''}"


@pytest.mark.parametrize(
    ("num_kills", "mode"),
    [(20, LATEST_ONLY), (6, ("--keep_checkpoints", "2", *DIFFUSION)), (4, (*LATEST_ONLY, "--use_lora", "False"))],
    ids=["latest", "numbered_diffusion", "full"],
)
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(
    launcher: Launcher, workplace: Path, num_kills: int, mode: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get("PRISMATIC_KILL_SEED", random.SystemRandom().randrange(2**31)))
    print(f"PRISMATIC_KILL_SEED={seed}")
    rng = random.Random(seed)
    name = request.node.callspec.id
    runs, undisturbed = workplace / f"{name}_killed", workplace / f"{name}_undisturbed"
    step: int | None = None
    for number in range(num_kills):
        resume = "--auto_resume" if step is None else "--resume"  # the latter refuses to begin anew
        run = launcher.start(flags(workplace, runs.name, *DEMANDING, *mode, resume, "True"))
        moment = kill_somewhere(run, runs, rng)
        before, step = step, newest_step(runs)
        print(f"kill {number + 1} ({moment}): newest checkpoint at step {step}")
        assert before is None or (step is not None and step >= before), "a kill cost a checkpoint"
    last = ("--max_steps", str((step or 0) + 5))
    wait_for([launcher.start(flags(workplace, runs.name, *DEMANDING, *mode, "--auto_resume", "True", *last))])
    wait_for([launcher.start(flags(workplace, undisturbed.name, *DEMANDING, *mode, *last))])
    assert rows(runs / "run") == rows(undisturbed / "run")
    assert sorted(os.listdir(runs)) == sorted(os.listdir(undisturbed))
    final = "run" if mode[0] == LATEST_ONLY[0] else f"run--{last[1]}_chkpt"
    assert contents(runs / final) == contents(undisturbed / final)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_has_saved_and_goes_on(launcher: Launcher, workplace: Path, number: signal.Signals) -> None:
    runs = workplace / number.name
    unmerged = ("--save_freq", "1000", "--num_workers", "1", "--val_freq", "1")  # so that a validation is due when it stops
    run = launcher.start(flags(workplace, runs.name, *DEMANDING, *unmerged))
    wait_until(lambda: len(rows(runs / "run")) >= 2)
    os.killpg(run.pid, number)  # as a terminal or a batch system does: the process that loads data gets it too
    assert run.wait() == STOPPED, run.text()
    step = newest_step(runs)
    assert f"stopped after step {step}; the same command with --resume True goes on from {runs}/run--{step}_chkpt" in run.text()
    assert not (runs / f"run--{step}_chkpt" / "model.safetensors").exists(), "merging takes longer than a stop may"
    assert step is not None
    last = ("--max_steps", str(step + 7))
    wait_for([launcher.start(flags(workplace, runs.name, *DEMANDING, *unmerged, "--resume", "True", *last))])
    wait_for([launcher.start(flags(workplace, f"{number.name}_undisturbed", *DEMANDING, *unmerged, *last))])
    undisturbed = workplace / f"{number.name}_undisturbed"
    assert rows(runs / "run") == rows(undisturbed / "run")
    assert contents(runs / f"run--{last[1]}_chkpt") == contents(undisturbed / f"run--{last[1]}_chkpt")


def test_a_second_interrupt_leaves_at_once_and_nothing_behind(launcher: Launcher, workplace: Path) -> None:
    runs = workplace / "impatient"
    run = launcher.start(flags(workplace, runs.name, "--grad_accumulation_steps", "100000"))
    wait_until(lambda: "parameters trained" in run.text())
    for delay in (0.1, 2.2, 0.0):  # the second comes as from a launcher, the third from an impatient user
        run.kill(signal.SIGINT)
        time.sleep(delay)
    assert run.wait() == 130, run.text()
    assert os.listdir(runs) == ["run"]
    assert "Ctrl-C again leaves at once" in run.text()


def test_processes_agree_to_stop_and_another_number_of_them_goes_on(launcher: Launcher, workplace: Path) -> None:
    runs, undisturbed = workplace / "agreed", workplace / "agreed_undisturbed"
    unlike = ("--save_freq", "1000", "--lora_dropout", "0.0", "--image_aug", "True")
    processes = start_processes(launcher, flags(workplace, runs.name, *unlike), [workplace] * 2)
    wait_until(lambda: len(rows(runs / "run")) >= 2)
    processes[1].kill(signal.SIGTERM)  # one of them only
    wait_for(processes, STOPPED)
    step = newest_step(runs)
    assert step is not None
    last = ("--max_steps", str(step + 3))
    refused = launcher.start(flags(workplace, runs.name, *unlike, *last, "--resume", "True"))
    assert refused.wait() == 2
    assert "a step takes 2 x 1 x 1 = 2 samples" in refused.text()
    alone = ("--batch_size", "4", *last)
    resumed = launcher.start(flags(workplace, runs.name, *unlike, *alone, "--resume", "True"))
    wait_for([resumed])
    assert "resumed on 1 processes, saved by 2" in resumed.text()
    wait_for([launcher.start(flags(workplace, undisturbed.name, *unlike, *alone))])
    one, other = ([row["train/loss"] for row in rows(folder / "run")] for folder in (runs, undisturbed))
    assert one == pytest.approx(other, rel=1e-3)
    assert len(set(other)) == len(other), "the losses tell steps apart"


def test_a_save_that_fails_stops_the_run_and_leaves_the_checkpoint_before(launcher: Launcher, workplace: Path) -> None:
    runs = workplace / "full_disk"
    run = launcher.start(flags(workplace, runs.name, *LATEST_ONLY))
    wait_until(lambda: newest_step(runs) is not None)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))  # writing fails from here on, as on a full disk
    assert run.wait() == 2, run.text()
    step = newest_step(runs)
    message = rf"the checkpoint of step (\d+) cannot be written to {runs}/run \(.*File too large.*\); it needs [\d.]+ MiB \([\d,]+ bytes\)"
    failed = re.search(message, run.text())
    assert failed is not None, run.text()
    assert int(failed[1]) == (step or 0) + 2
    assert "Traceback" not in run.text()
    assert find_damage(runs / "run") is None
    assert not temporary_folder(runs / "run").exists()
    assert not previous_folder(runs / "run").exists()
    wait_for([launcher.start(flags(workplace, runs.name, *LATEST_ONLY, "--resume", "True", "--max_steps", str((step or 0) + 3)))])


FULL = """
import resource
import prismatic.training.checkpoint as checkpoint
original = checkpoint.save_policy
def save(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
    return original(*arguments)
checkpoint.save_policy = save
"""


def test_a_first_save_that_fails_says_to_start_again(launcher: Launcher, workplace: Path) -> None:
    """--resume True would find no checkpoint."""
    script = write_script(workplace, "first_save", FULL, FINETUNE)
    (run,) = start_processes(launcher, flags(workplace, "first_save"), [workplace], script)
    assert run.wait() == 2, run.text()
    assert "there is no earlier checkpoint. Make room or repair the disk, then start again with the same command" in run.text()
    assert "--resume" not in run.text()


def test_a_place_that_cannot_take_a_checkpoint_is_refused_before_the_model_loads(launcher: Launcher, workplace: Path) -> None:
    run = launcher.start(flags(workplace, "anywhere", "--run_root_dir", "/proc/self/runs"))
    assert run.wait() == 2
    assert "/proc/self cannot be written to" in run.text()
    disk = workplace / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        full = launcher.start(flags(workplace, disk.name))
        assert full.wait() == 2
        assert re.search(r"needs [\d.]+ MiB \([\d,]+ bytes\), the disk has 0\.1 MiB \([\d,]+ bytes\) free", full.text())
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert "Loading weights" not in run.text() + full.text()


def test_old_checkpoints_go_and_the_best_stays(launcher: Launcher, workplace: Path) -> None:
    runs = workplace / "pruned"
    wait_for([launcher.start(flags(workplace, runs.name, "--max_steps", "2", "--save_freq", "1"))])
    (runs / "run" / "best.json").write_text(json.dumps({"checkpoint": "run--1_chkpt"}))
    more = ("--max_steps", "6", "--save_freq", "1", "--keep_checkpoints", "2", "--resume", "True")
    wait_for([launcher.start(flags(workplace, runs.name, *more))])
    assert sorted(os.listdir(runs)) == ["run", "run--1_chkpt", "run--5_chkpt", "run--6_chkpt"]


def test_damaged_checkpoints_are_passed_over_and_finished_runs_protected(launcher: Launcher, workplace: Path) -> None:
    runs = workplace / "damaged"
    wait_for([launcher.start(flags(workplace, runs.name, "--max_steps", "4"))])
    again = launcher.start(flags(workplace, runs.name, "--max_steps", "4"))
    assert again.wait() == 2
    assert "has checkpoints in" in again.text()
    optimizer = runs / "run--4_chkpt" / "trainer_state" / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    resumed = launcher.start(flags(workplace, runs.name, "--max_steps", "4", "--resume", "True"))
    wait_for([resumed])
    assert "run--4_chkpt cannot be resumed: trainer_state/optimizer.safetensors has" in resumed.text()
    assert "run--2_chkpt at step 2" in resumed.text()
    assert find_damage(runs / "run--4_chkpt") is None  # written anew
    shutil.copy(runs / "run--2_chkpt" / "trainer_state" / optimizer.name, optimizer)  # as large as the one that it replaces
    mixed = launcher.start(flags(workplace, runs.name, "--max_steps", "6", "--resume", "True"))
    assert mixed.wait() == 2
    assert "optimizer.safetensors is of step 2, the checkpoint is of step 4; copy it again" in mixed.text()
