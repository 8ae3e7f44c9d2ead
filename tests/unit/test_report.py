"""Intervals, console table, JSON and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.robot.evaluation.report import Report, console_table, report_to_dict, write_report
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.statistics import wilson_interval


def make_result(task: str, index: int, success: bool, run: str = "none", **changes) -> EpisodeResult:
    values = {
        "run": run,
        "task": task,
        "index": index,
        "seed": 7,
        "instruction": f"do <{task}>",
        "success": success,
        "num_steps": 50 + index,
    }
    return EpisodeResult(**(values | {"num_queries": 7, "latency_ms": 10.0 + index, "wall_s": 1.0} | changes))


def make_report(pictures: tuple[np.ndarray, ...] = ()) -> Report:
    none = [make_result("open", index, index < 3, pictures=pictures if index == 0 else ()) for index in range(4)]
    none += [make_result("close", index, index < 1) for index in range(2)]
    grey = [make_result(task, 0, False, "grey") for task in ("open", "close")]
    return Report("Test", {"none": none, "grey": grey}, {"task_names": ["open", "close"]}, ["python run.py --seed 7"], {"episodes": 2.0})


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_gives_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_at_the_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(40, 40)[1] == 1.0
    with pytest.raises(ValueError, match="5 successes in 4 trials"):
        wilson_interval(5, 4)


def test_console_table_shows_every_task_and_run() -> None:
    lines = console_table(make_report()).splitlines()
    assert lines[0].split("  ")[0] == "task"
    assert "grey images" in lines[0]
    assert lines[2].startswith("open")
    assert "75 % (3/4)" in lines[2]
    assert "30 - 95 %" in lines[2]
    assert "0 % (0/1)" in lines[3]
    assert lines[-1].startswith("mean")
    assert "62 % (4/6)" in lines[-1]  # tasks weigh the same, however many episodes they have
    assert len({len(line) for line in lines}) == 1


def test_json_holds_summary_versions_and_every_episode(tmp_path: Path) -> None:
    report = make_report()
    write_report(report, tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == json.loads(json.dumps(report_to_dict(report)))
    assert stored["summary"]["none"]["open"]["num_successes"] == 3
    assert stored["summary"]["none"]["mean"]["rate"] == pytest.approx(0.625)
    assert stored["summary"]["grey"]["open"]["mean_steps_of_successes"] is None
    assert stored["versions"]["numpy"] == np.__version__
    assert {run: [EpisodeResult(**row) for row in rows] for run, rows in stored["episodes"].items()} == report.runs


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    video = str(tmp_path / "videos" / "open" / "a.mp4")
    report = make_report(pictures=(np.zeros((8, 8, 3), np.uint8),) * 2)
    report.runs["none"][1] = make_result("open", 1, True, video=video)
    page = write_report(report, tmp_path).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "do &lt;open&gt;" in page
    assert "do <open>" not in page
    assert 'href="videos/open/a.mp4"' in page
    assert "http" not in page
    assert "python run.py --seed 7" in page
