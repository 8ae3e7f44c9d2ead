"""Closed-loop evaluation while training: a command of its own plays episodes with a checkpoint; the trainer goes on meanwhile.

The command gets a copy of the checkpoint made of hard links (no disk space, no waiting), so that neither pruning nor the next save takes
it away, and leaves report.json in its output folder, <run>--eval/step_<N>/. One evaluation runs at a time. While it does, one more may
wait; a newer checkpoint takes that place. Whatever an evaluation does or fails to do is reported, and never ends the training. One
that the end of the training process cuts off is owed: the checkpoint says so, and the run takes it up when it goes on. It shares
the GPU unless --eval_command says otherwise: "env CUDA_VISIBLE_DEVICES=1 python my_eval.py {checkpoint} {output_dir}".
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from prismatic.policy.checkpoint.files import TRAINER_STATE_FOLDER
from prismatic.training.config import FinetuneConfig
from prismatic.training.run_folder import checkpoint_folder, read_checkpoint

SUCCESS_RATE = "eval/success_rate"
_EXPERIMENTS = shlex.quote(str(Path(__file__).parents[2] / "experiments" / "robot"))
# Robot platform -> what evaluates it; {suite} is what the name of the data set says about LIBERO's suite or ALOHA's simulated task.
EVAL_COMMANDS = {
    "LIBERO": f"python {_EXPERIMENTS}/libero/run_libero_eval.py --task_suite_name {{suite}} --num_trials_per_task 2 --num_envs 1 "
    "--pretrained_checkpoint {checkpoint} --local_log_dir {output_dir}",
    "ALOHA": f"python {_EXPERIMENTS}/aloha/run_aloha_sim_eval.py --task_names [{{suite}}] --num_trials_per_task 10 --num_envs 1 "
    "--pretrained_checkpoint {checkpoint} --local_log_dir {output_dir}",
    "METAWORLD": f"python {_EXPERIMENTS}/metaworld/run_metaworld_eval.py --num_trials_per_task 10 --num_envs 1 "
    "--pretrained_checkpoint {checkpoint} --local_log_dir {output_dir}",
}
_SUITES = {
    "LIBERO": re.compile(r"(libero_(?:spatial|object|goal|10|90))(?:_no_noops)?"),
    "ALOHA": re.compile(r"aloha_sim_(transfer_cube|insertion)_scripted"),
}
_EXAMPLES = {"LIBERO": "libero_spatial", "ALOHA": "transfer_cube"}  # of {suite}
_POLICY_RUN = "none"  # the run of the report in which the policy acts without any control
_NUM_LAST_LINES = 3  # of the log of a failed evaluation
_POLL_S = 0.5  # between looks whether the run is to stop waiting
_PATIENCE_S = 10.0  # for an evaluation that is told to end
# torchrun's description of the training run is not for the evaluation.
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT")

logger = logging.getLogger(__name__)


def eval_command(config: FinetuneConfig, platform: str) -> str | None:
    """The command of --eval_every, with its placeholders; None: no evaluation.

    Raises:
        ValueError: the platform has none of its own and --eval_command is not given, or that cannot be read as words.
    """
    eval_every, dataset_name = config.evaluation.eval_every, config.data.dataset_name
    if not eval_every:
        return None
    command = config.evaluation.eval_command or EVAL_COMMANDS.get(platform)
    if command is None:
        raise ValueError(
            f"--eval_every is {eval_every}, but platform {platform} has no evaluation of its own ({', '.join(EVAL_COMMANDS)} do); "
            "pass --eval_command with {checkpoint} and {output_dir}, or leave --eval_every out"
        )
    try:
        shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--eval_command is {command!r}, which is no line of a shell ({error})") from error
    if "{suite}" not in command:
        return command
    if platform not in _SUITES:
        raise ValueError(f"--eval_command has {{suite}}, which stands for tasks of {' or '.join(_SUITES)}; write those of {platform} out")
    suite = _SUITES[platform].fullmatch(dataset_name)
    if suite is None:
        example = command.replace("{suite}", _EXAMPLES[platform])
        raise ValueError(
            f"--eval_every is {eval_every}, but it is not clear which simulated tasks {dataset_name} is of; pass --eval_command and name "
            f"them in it, such as: {example}"
        )
    return command.replace("{suite}", suite[1])


@dataclass
class _Running:
    step: int
    folder: Path
    process: subprocess.Popen


class BackgroundEvaluation:
    """The evaluations of one run; used by its main process alone."""

    def __init__(self, config: FinetuneConfig, command: str | None) -> None:
        """`command` is that of `eval_command`; None: nothing is evaluated."""
        self._config, self._command = config, command
        self._folder = config.run_dir.with_name(f"{config.run_dir.name}--eval")
        self._running: _Running | None = None
        self._waiting: tuple[int, Path] | None = None
        self._finished: deque[tuple[int, dict[str, float]]] = deque()

    @property
    def pending(self) -> list[int]:
        """The steps whose evaluations have not ended, or not been collected yet."""
        running = [] if self._running is None else [self._running.step]
        return running + ([] if self._waiting is None else [self._waiting[0]])

    def take_up(self, owed: Iterable[int], rows: Iterable[Mapping[str, Any]]) -> None:
        """Submits the evaluations of the steps `owed` that an earlier process of the run did not see the end of.

        `rows` are those of metrics.jsonl: what is in them is done. A step whose checkpoint is not there any more is reported.
        """
        if self._command is None:
            return
        done = {row["step"] for row in rows if SUCCESS_RATE in row}
        for step in sorted(set(owed) - done):
            checkpoint = read_checkpoint(checkpoint_folder(self._config, step))
            if checkpoint is None or checkpoint.state.step != step:
                logger.warning("evaluation of step %d, which was interrupted, is left out: its checkpoint is not there any more", step)
            else:
                self.submit(step, checkpoint.folder)

    def submit(self, step: int, checkpoint: Path) -> None:
        """Evaluates `checkpoint` as soon as the evaluation that runs has ended."""
        if self._command is None:
            return
        folder = self._folder / f"step_{step}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            link_checkpoint(checkpoint, folder / "checkpoint")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning(
                "evaluation of step %d is left out: its checkpoint cannot be linked or copied (%s); training goes on", step, error
            )
            return
        if self._waiting is not None:
            logger.warning("evaluation of step %d is left out: an earlier one still runs; raise --eval_every", self._waiting[0])
            shutil.rmtree(self._waiting[1], ignore_errors=True)
        self._waiting = (step, folder)
        self._advance()

    def results(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of what has ended since the last call."""
        self._advance()
        done = list(self._finished)
        self._finished.clear()
        return done

    def finish(self, is_stopped: Callable[[], bool] = lambda: False) -> Iterator[tuple[int, dict[str, float]]]:
        """Waits for everything submitted, unless it is stopped; yields as `results` returns, each as soon as it ends."""
        told = None
        while (self._running is not None or self._waiting is not None) and not is_stopped():
            if self._running is not None:
                if told != self._running.step:
                    logger.info("waiting for the evaluation of step %d", self._running.step)
                told = self._running.step
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._running.process.wait(_POLL_S)
            yield from self.results()
        yield from self.results()

    def _advance(self) -> None:
        """Collects an evaluation that has ended and starts the one that waits."""
        if self._running is not None and self._running.process.poll() is not None:
            self._collect(self._running)
            self._running = None
        if self._running is None and self._waiting is not None:
            (step, folder), self._waiting = self._waiting, None
            self._running = self._start(step, folder)

    def _start(self, step: int, folder: Path) -> _Running | None:
        assert self._command is not None
        words = [
            word.replace("{checkpoint}", str(folder / "checkpoint")).replace("{output_dir}", str(folder))
            for word in shlex.split(self._command)
        ]
        command = [sys.executable if word == "python" else word for word in words]
        environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES and "TORCHELASTIC" not in name}
        try:
            with (folder / "log.txt").open("wb") as log:  # the process keeps it open for itself
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
        except OSError as error:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
            logger.warning("evaluation of step %d cannot start (%s); training goes on. Check --eval_command: %s", step, error, command[0])
            return None
        return _Running(step, folder, process)

    def _collect(self, running: _Running) -> None:
        shutil.rmtree(running.folder / "checkpoint", ignore_errors=True)
        try:
            self._finished.append((running.step, _read_result(running.folder, running.process.returncode)))
        except Exception as problem:  # a report is somebody else's: numbers without end, lists nested a thousand times
            logger.warning(
                "evaluation of step %d failed (%s); training goes on. %s ends with:\n  %s",
                *(running.step, problem, running.folder / "log.txt", "\n  ".join(_last_lines(running.folder / "log.txt"))),
            )

    def __enter__(self) -> BackgroundEvaluation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the evaluation that still runs, if any: the training was interrupted."""
        if self.pending:
            told = ", ".join(str(step) for step in self.pending)
            logger.warning("evaluation of step %s has not ended; the run takes it up when it goes on (--resume True)", told)
        if self._running is not None:
            _end(self._running.process)
            shutil.rmtree(self._running.folder / "checkpoint", ignore_errors=True)
        if self._waiting is not None:
            shutil.rmtree(self._waiting[1], ignore_errors=True)


def _end(process: subprocess.Popen) -> None:
    """Ends a process and its children."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, kind)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            logger.warning("the evaluation does not end by itself and is killed")


def _read_result(folder: Path, status: int) -> dict[str, float]:
    """The metrics in what an evaluation left in `folder`.

    Raises:
        ValueError: it failed, or left no report that tells them.
    """
    if status:
        raise ValueError(f"exit status {status}")
    reports = list(folder.rglob("report.json"))
    if len(reports) != 1:
        raise ValueError(f"it wrote {len(reports)} report.json")
    return report_metrics(reports[0])


def _last_lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").strip().splitlines()[-_NUM_LAST_LINES:]
    except OSError as error:
        return [f"(it cannot be read: {error})"]


def report_metrics(path: Path) -> dict[str, float]:
    """Success of the policy out of an evaluation's report.json: the mean over tasks, and each task.

    With the number of episodes that crashed in the simulator, which count as failures, where there are any.

    Raises:
        ValueError: they are not in it.
    """
    try:
        report = json.loads(path.read_text())
        summary = report["summary"][_POLICY_RUN]
        tasks = {name: score for name, score in summary.items() if name != "mean" and score["num_trials"]}  # of controls alone: none
        found = {
            SUCCESS_RATE: float(summary["mean"]["rate"]),
            "eval/num_episodes": float(sum(score["num_trials"] for score in tasks.values())),
            **{f"{SUCCESS_RATE}/{name}": float(score["rate"]) for name, score in tasks.items()},
        }
        if num_crashed := report.get("num_crashed_episodes"):
            found["eval/num_crashed_episodes"] = float(num_crashed)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        wanted = '{"summary": {"none": {"mean": {"rate": 0.5}, TASK: {"rate": 0.5, "num_trials": 10}, ...}}}'
        raise ValueError(f"{path} does not hold {wanted} ({type(error).__name__}: {error})") from error
    if not all(math.isfinite(value) for value in found.values()):
        raise ValueError(f"{path} holds rates that are not numbers")
    return found


def link_checkpoint(checkpoint: Path, copy: Path) -> None:
    """Makes `copy` hold the files of the policy in `checkpoint`, as hard links where the file system has them."""
    shutil.copytree(checkpoint, copy, ignore=shutil.ignore_patterns(TRAINER_STATE_FOLDER), copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
