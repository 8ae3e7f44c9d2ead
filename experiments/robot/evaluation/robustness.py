"""One table and one picture of how a policy stands changed scenes: every axis at every severity, beside the unchanged episodes.

    robustness.md, robustness.json, robustness.png      what was found
    clean/, camera_1/, ..., suite_libero_goal_swap/     an evaluation each, with its journal, report and pictures

Each condition is an evaluation like others and goes on where it was interrupted. An axis has the initial states of the clean episodes,
so it is compared in pairs (McNemar's exact test); suites of LIBERO-PRO have their own, and are compared by Fisher's exact test.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.comparison import format_p, pair_up
from experiments.robot.evaluation.journal import JournalError
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from experiments.robot.evaluation.report import Score
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.run import checked_simulator, run_evaluation, with_batch_size
from experiments.robot.evaluation.statistics import fisher_p_value
from experiments.robot.simulators.interfaces import Simulator
from experiments.robot.simulators.perturbations import LANGUAGE_AXIS, PICTURE_AXES, Perturbation

MakeBenchmark = Callable[[Any], Benchmark]
CLEAN = "clean"


@dataclass(frozen=True)
class Condition:
    """One of the evaluations, and where it stands in the table."""

    row: str  # an axis, or a suite
    severity: int | None  # None: the row has one column
    config: EvaluationFlags
    text: str  # what is changed

    @property
    def name(self) -> str:
        return self.row if self.severity is None else f"{self.row}:{self.severity}"


@dataclass(frozen=True)
class Finding:
    """What came out of a condition."""

    condition: Condition
    score: Score
    difference: float  # of success, to the clean episodes
    p_value: float  # of no difference
    is_paired: bool
    num_crashed: int = 0  # episodes in which the simulator died twice; they count as failures

    def cell(self) -> str:
        """For people."""
        text = f"{100 * self.score.rate:.0f} % ({self.score.num_successes}/{self.score.num_trials})"
        if self.condition.row == CLEAN:
            return text
        return f"{text}, {100 * self.difference:+.0f}, p {format_p(self.p_value)}"

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "condition": self.condition.name,
            "changes": self.condition.text,
            "num_successes": self.score.num_successes,
            "num_trials": self.score.num_trials,
            "num_crashed": self.num_crashed,
            "rate": self.score.rate,
            "interval_95": list(self.score.interval),
            "difference_to_clean": self.difference,
            "p_value": self.p_value,
            "test": "McNemar" if self.is_paired else "Fisher",
            "folder": str(self.condition.config.folder),
        }


def available_axes(simulator: Simulator) -> tuple[str, ...]:
    """All that can be changed of a simulator's scenes, pictures and words."""
    return (*simulator.scene_axes, *PICTURE_AXES, LANGUAGE_AXIS)


def make_conditions(clean: EvaluationFlags, axes: Sequence[str], severities: Sequence[int], suites: Sequence[str]) -> list[Condition]:
    """The clean evaluation first; every one in a folder of its own below that of `clean`, also where it is named twice.

    Raises:
        ValueError: an unknown axis, severity or suite.
    """
    root = clean.local_log_dir

    def at(name: str, **changes: Any) -> EvaluationFlags:
        return dataclasses.replace(clean, local_log_dir=root / name.replace(":", "_"), **changes)

    found = [Condition(CLEAN, None, at(CLEAN), "nothing changed")]
    for axis in dict.fromkeys(axes):
        for severity in dict.fromkeys(severities):
            change = Perturbation(axis, severity)
            found.append(Condition(axis, severity, at(str(change), perturb=str(change)), change.describe()))
    for suite in suites:
        found.append(Condition(suite, None, at(f"suite_{suite}", task_suite_name=suite), f"LIBERO-PRO's suite {suite}"))
    return found


def measure(conditions: Sequence[Condition], make_benchmark: MakeBenchmark, write: Callable[[list[Finding]], None]) -> list[Finding]:
    """Plays what is missing, with one policy for all; `write` is called with what there is after each condition.

    Raises:
        ValueError: an axis that the simulator cannot change, instructions without other words, or an expert that does not exist, before
            anything is played; a condition's folder holds episodes of other settings.
    """
    benchmarks = [make_benchmark(condition.config) for condition in conditions]  # what is wrong is told before anything is played
    for condition, benchmark in zip(conditions, benchmarks, strict=True):
        checked_simulator(condition.config, benchmark)
    load = cache(benchmarks[0].load_policy)
    batch_size = with_batch_size(conditions[0].config, dataclasses.replace(benchmarks[0], load_policy=load)).batch_size
    findings: list[Finding] = []
    unchanged: list[EpisodeResult] = []
    for condition, benchmark in zip(conditions, benchmarks, strict=True):
        config = dataclasses.replace(condition.config, batch_size=batch_size)  # the same rounding for all
        try:
            report = run_evaluation(config, dataclasses.replace(benchmark, load_policy=load))
        except JournalError as error:
            raise ValueError(
                f"{error.problem}; choose another --output_dir, or add --restart True to --evaluation_flags, which forgets all conditions"
            ) from error
        unchanged = unchanged or report.main_run
        findings.append(_find(condition, report.main_run, unchanged))
        write(findings)
    return findings


def _find(condition: Condition, results: Sequence[EpisodeResult], unchanged: Sequence[EpisodeResult]) -> Finding:
    """What came out of the planned episodes, beside that of the clean ones."""
    score, clean = Score.of(results), Score.of(unchanged)
    num_crashed = sum(result.error is not None for result in results)
    if condition.row == CLEAN or condition.severity is not None:
        table = pair_up(results, unchanged)
        return Finding(condition, score, table.difference, table.p_value, True, num_crashed)
    p_value = fisher_p_value(score.num_successes, score.num_trials, clean.num_successes, clean.num_trials)
    return Finding(condition, score, score.rate - clean.rate, p_value, False, num_crashed)


def markdown(findings: Sequence[Finding], title: str, num_missing: int = 0) -> str:
    """The table, with what stands behind its rows and the command; `num_missing` conditions have not been played yet."""
    severities = sorted({finding.condition.severity for finding in findings if finding.condition.severity is not None})
    rows = list(dict.fromkeys(finding.condition.row for finding in findings))
    cells = {(finding.condition.row, finding.condition.severity): finding.cell() for finding in findings}
    header = ["", *(f"severity {severity}" for severity in severities)] if severities else ["", "success"]
    lines = [f"# {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        own = [cells.get((row, severity), "") for severity in severities]
        if (row, None) in cells:
            own = [cells[row, None], *[""] * (len(header) - 2)]
        lines.append(f"| {' | '.join([row, *own])} |")
    lines += ["", "Success, difference to the clean episodes in percentage points, p of no difference: McNemar's exact test over the same"]
    lines += ["initial states; for suites, which have their own, Fisher's exact test.", ""]
    if num_missing:
        lines += [f"**Not complete:** {num_missing} conditions have not been played yet; the same command goes on.", ""]
    lines += [f"- {finding.condition.text}" for finding in findings[1:]]
    crashed = [finding for finding in findings if finding.num_crashed]
    lines += [f"- {item.condition.name}: {item.num_crashed} episodes crashed in the simulator and count as failures" for item in crashed]
    return "\n".join([*lines, "", f"`{shlex.join(['python', *sys.argv])}`", ""])


def write_findings(findings: Sequence[Finding], title: str, folder: Path, num_missing: int = 0) -> None:
    """robustness.md, robustness.json and robustness.png in `folder`, each whole or not at all, of the conditions that have been played."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"title": title, "command": ["python", *sys.argv], "num_missing_conditions": num_missing}
    content["conditions"] = [finding.content() for finding in findings]
    table = markdown(findings, title, num_missing)
    for name, text in (("robustness.md", table), ("robustness.json", json.dumps(content, indent=1, allow_nan=False))):
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
    temporary = folder / f".robustness.{os.getpid()}.tmp.png"
    draw(findings, title, temporary)
    os.replace(temporary, folder / "robustness.png")


def draw(findings: Sequence[Finding], title: str, path: Path) -> None:
    """Success with its 95 % interval of each condition, row beside row, over the band of the clean episodes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(finding.condition.row for finding in findings))
    figure = Figure(figsize=(max(6.0, 1.15 * len(rows)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low, high = findings[0].score.interval
    axes.axhspan(100 * low, 100 * high, color="0.9", label="clean, 95 % interval")
    axes.axhline(100 * findings[0].score.rate, color="0.5", linewidth=1)
    for finding in findings:
        severity, rate = finding.condition.severity, 100 * finding.score.rate
        x = rows.index(finding.condition.row) + (0 if severity is None else 0.22 * (severity - 2))
        low, high = (100 * bound for bound in finding.score.interval)
        is_other = finding.p_value < 0.05
        axes.errorbar(
            x, rate, [[max(0.0, rate - low)], [max(0.0, high - rate)]], color="tab:red" if is_other else "tab:blue", capsize=2, zorder=2
        )
        axes.plot(x, rate, "o", markersize=4 + (severity or 1), color="tab:red" if is_other else "tab:blue", zorder=3)
    for is_other, text in ((False, "p at least 0.05"), (True, "p below 0.05")):
        axes.plot([], [], "o", color="tab:red" if is_other else "tab:blue", label=text)
    axes.set_xticks(range(len(rows)), [row.replace("libero_", "") for row in rows], rotation=30 if len(rows) > 8 else 0)
    axes.set(ylim=(-3, 103), ylabel="success [%]", xlim=(-0.6, len(rows) - 0.4), title=title)
    axes.set_xlabel("severity 1, 2, 3 from left to right")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=130)
