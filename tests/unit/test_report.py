"""Intervals, console table, JSON and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.robot.evaluation.actors import RELABEL, TAKEOVER
from experiments.robot.evaluation.plan import EvaluationFlags
from experiments.robot.evaluation.report import Report, console_table, report_to_dict, write_report
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.run import print_report, wandb_values
from experiments.robot.evaluation.statistics import interval_of_mean, wilson_interval


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


def test_the_page_shows_all_that_a_policy_was_told(tmp_path: Path) -> None:
    """Of words that differ from episode to episode (--perturb language) it showed the first, as if all had been told that."""
    report = make_report()
    for number, words in enumerate(("undo it", "unlatch")):
        report.main_run[number] = replace(report.main_run[number], instruction=words)
    assert report.instruction("open") == "undo it / unlatch / do <open>"
    assert "undo it / unlatch / do &lt;open&gt;" in write_report(report, tmp_path).read_text()
    assert report.instruction("another") == ""


def test_the_mean_has_its_own_interval_in_every_output(tmp_path: Path) -> None:
    """50 of 50 and 0 of 1 are 50 % on average over tasks; the interval beside it was that of 50 of 51 episodes, 90 to 100 %."""
    report = Report("T", {"none": [make_result("a", index, True) for index in range(50)] + [make_result("b", 0, False)]})
    low, high = report.mean("none").interval
    assert low < 0.2 < report.mean("none").rate == 0.5 < 0.8 < high
    assert console_table(report).splitlines()[-1].split() == f"mean 50 % (50/51) {100 * low:.0f} - {100 * high:.0f} %".split()
    assert report_to_dict(report)["summary"]["none"]["mean"] == {"rate": 0.5, "interval_95": [low, high]}
    page = write_report(report, tmp_path).read_text()
    assert "50 % (success), the mean over 2 tasks" in page
    assert f">{100 * low:.0f} - {100 * high:.0f}</td>" in page
    assert wandb_values(report) == {"success_rate/a": 1.0, "success_rate/b": 0.0, "success_rate/total": 0.5, "num_episodes/total": 51}


def test_tasks_of_as_many_episodes_have_wilsons_interval_of_all_of_them() -> None:
    assert interval_of_mean([(3, 10), (10, 10), (8, 10)]) == pytest.approx(wilson_interval(21, 30))
    assert interval_of_mean([(5, 5)]) == wilson_interval(5, 5)
    assert interval_of_mean([(1, 1), (7, 7), (3, 3)])[1] == 1.0


def test_a_run_may_have_tasks_that_the_main_run_lacks(tmp_path: Path) -> None:
    """As of a shard: its report ended in ZeroDivisionError, or the mean of a control left those tasks out."""
    report = Report("T", {"none": [make_result("b", 0, True)], "grey": [make_result("a", 0, True, "grey")]}, {"task_names": ["b", "a"]})
    assert report.tasks == ["b", "a"]
    assert (report.mean("none").rate, report.mean("grey").rate) == (1.0, 1.0)
    report.runs["grey"].append(make_result("b", 0, False, "grey"))
    assert report.mean("grey").rate == 0.5
    lines = console_table(report).splitlines()
    assert lines[3].split() == ["a", "-", "-", "100", "%", "(1/1)"]
    assert lines[-1].split()[-2:] == ["%", "(1/2)"]
    assert "not a number" not in write_report(report, tmp_path).read_text()
    stored = json.loads((tmp_path / "report.json").read_text())["summary"]
    assert stored["none"]["a"]["rate"] is None
    assert "success_rate/a" not in wandb_values(report)


def test_what_an_expert_may_have_solved_is_not_called_success(tmp_path: Path) -> None:
    report = make_report()
    report.settings["expert_help"] = TAKEOVER
    assert "solved with the expert's help" in console_table(report).splitlines()[0]
    assert "success  " not in console_table(report).splitlines()[0]
    assert "62 % (solved with the expert&#39;s help)" in write_report(report, tmp_path).read_text()
    report.settings["expert_help"] = RELABEL  # it only says what it would have done
    assert "success  " in console_table(report).splitlines()[0]


def test_a_page_that_was_copied_links_to_the_videos_beside_it(tmp_path: Path) -> None:
    """Shards of several machines are copied together; their journals tell where the videos lay before."""
    report = make_report()
    first = report.main_run[0]
    report.runs[report.main_name][0] = replace(first, video=f"/elsewhere/eval/videos/{first.task}/episode_000_seed_7_success.mp4")
    page = write_report(report, tmp_path).read_text()
    assert f'href="videos/{first.task}' not in page
    copied = tmp_path / "videos" / first.task / "episode_000_seed_7_success.mp4"
    copied.parent.mkdir(parents=True)
    copied.touch()
    assert f'href="videos/{first.task}/episode_000_seed_7_success.mp4"' in write_report(report, tmp_path).read_text()


def test_crashed_and_missing_episodes_are_told_wherever_the_figures_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Success that includes crashes as failures looked like any other."""
    report = make_report()
    last = report.main_run[-1]
    report.main_run[-1] = replace(last, success=False, error="the simulator process died with exit code -9")
    report.num_missing = 2
    print_report(report, EvaluationFlags(pretrained_checkpoint="toy", local_log_dir=tmp_path))
    page = write_report(report, tmp_path).read_text()
    for text in (capsys.readouterr().out, page):
        assert "1 episodes crashed in the simulator and count as failures; the same command plays them again" in text
        assert "2 episodes are not there yet" in text
    assert json.loads((tmp_path / "report.json").read_text())["num_crashed_episodes"] == 1
    assert make_report().gaps == []
