"""Evaluations in parts: disjoint, merged by their journals; batch sizes that are measured; what robustness.py makes of many conditions."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from script_modules import load_script
from toy_simulator import ToyPolicy, ToySimulator

from experiments.robot.evaluation import run
from experiments.robot.evaluation.batching import best_size, measure_batch_size
from experiments.robot.evaluation.comparison import compare
from experiments.robot.evaluation.journal import Journal, JournalError, journal_files, read_journals
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags, outcome_settings, plan_episodes
from experiments.robot.evaluation.report import Report, report_to_dict, write_report
from experiments.robot.evaluation.robustness import make_conditions, markdown, measure, write_findings
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.run import print_report, run_evaluation, with_batch_size
from experiments.robot.evaluation.shards import Shard, parse_shard
from prismatic.vla.datasets.locks import locked
from prismatic.vla.types import Observation


def flags(folder: Path, **changes) -> EvaluationFlags:
    known = {"pretrained_checkpoint": "toy", "num_trials_per_task": 3, "num_envs": 1, "num_pictures": 1, "local_log_dir": folder}
    return EvaluationFlags(**(known | changes))


def no_policy() -> ToyPolicy:
    raise AssertionError("the policy was loaded")


def benchmark(load=ToyPolicy, **simulator) -> Benchmark:
    return Benchmark("Toy", "METAWORLD", ToySimulator(**simulator), ["left", "right"], load)


def test_shards_are_disjoint_and_make_up_the_whole() -> None:
    items = list(range(11))
    parts = [parse_shard(f"{number}/4").of(items) for number in (1, 2, 3, 4)]
    assert sorted(item for part in parts for item in part) == items
    assert {len(part) for part in parts} == {2, 3}
    assert parse_shard("") == Shard()
    assert Shard().of(items) == items
    for text in ("0/4", "5/4", "1", "a/b", "1/0"):
        with pytest.raises(ValueError, match="expected number/count"):
            parse_shard(text)


def test_the_journals_of_shards_become_the_report_of_one_process(tmp_path: Path) -> None:
    whole = run_evaluation(flags(tmp_path / "whole"), benchmark())
    config = flags(tmp_path / "parts")
    planned, results = plan_episodes(config, benchmark()), {(r.task, r.index): r for r in whole.main_run}
    folder, first = tmp_path / "parts", parse_shard("1/2")
    journal = Journal(folder, outcome_settings(config, benchmark()), shard=first)
    for episode in first.of(planned):
        journal.add(results[episode.spec.task, episode.spec.index])
    second = run_evaluation(replace(config, shard="2/2"), benchmark())  # another process, beside it or later
    assert [path.name for path in journal_files(folder)] == ["episodes.shard-1-of-2.jsonl", "episodes.shard-2-of-2.jsonl"]
    assert second.num_missing == 0
    merged = run_evaluation(config, benchmark(no_policy, broken=True))  # plays nothing
    same = [report_to_dict(report)["summary"] for report in (whole, second, merged)]
    for summary in same:
        for score in summary["none"].values():
            score.pop("latency_ms", None)
    assert same[0] == same[1] == same[2]
    assert [report_to_dict(report)["timing"] for report in (second, merged)] == [report_to_dict(whole)["timing"]] * 2
    assert len(merged.main_run[0].pictures) == 2
    assert compare(tmp_path / "whole", folder).num_unpaired == 0
    assert json.loads((folder / "report.json").read_text())["num_missing_episodes"] == 0


def test_a_shard_tells_what_is_missing_and_refuses_what_does_not_belong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_evaluation(flags(tmp_path, shard="1/3"), benchmark())
    assert len(report.main_run) == 2
    assert report.num_missing == 4
    with pytest.raises(JournalError, match=r"shard-1-of-3\.jsonl holds episodes of another evaluation \(seed was 7, is 8\)"):
        run_evaluation(flags(tmp_path, shard="2/3", seed=8), benchmark())
    assert len(read_journals(tmp_path)[1]) == 2
    Journal(tmp_path, {"other": 1}, restart=True)
    assert [path.name for path in journal_files(tmp_path)] == ["episodes.jsonl"]  # the whole is forgotten
    more = flags(tmp_path / "more", shard="8/8")  # than there are episodes
    print_report(run_evaluation(more, benchmark(no_policy)), more)
    assert "nothing has been played: of 6 episodes this shard has none" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--batch_size 0 would be measured by each shard anew"):
        flags(tmp_path, shard="1/3", batch_size=0)


def test_a_shard_that_begins_anew_forgets_what_it_will_play_and_other_settings(tmp_path: Path) -> None:
    """It forgot its own journal alone: other settings were refused with the advice to pass what had been passed, and the same settings
    played nothing where the journal of the whole held the episodes."""
    config = flags(tmp_path)
    run_evaluation(config, benchmark())
    stamps = {(row["task"], row["index"]): row["ended_s"] for row in read_journals(tmp_path)[1]}
    report = run_evaluation(replace(config, shard="1/2", restart=True), benchmark())
    assert report.num_missing == 0
    again = {(row["task"], row["index"]) for row in read_journals(tmp_path)[1] if stamps[row["task"], row["index"]] != row["ended_s"]}
    own = Shard(1, 2).of(plan_episodes(config, benchmark()))
    assert again == {(episode.spec.task, episode.spec.index) for episode in own}
    other = replace(config, seed=8, restart=True)
    for shard, num_missing in (("1/2", 3), ("2/2", 0)):
        assert run_evaluation(replace(other, shard=shard), benchmark()).num_missing == num_missing
    assert read_journals(tmp_path)[0]["seed"] == 8
    assert [path.name for path in journal_files(tmp_path)] == ["episodes.shard-1-of-2.jsonl", "episodes.shard-2-of-2.jsonl"]
    journal_files(tmp_path)[1].write_text("damaged\n")
    assert run_evaluation(replace(other, shard="1/2"), benchmark()).num_missing == 3


def test_journal_and_reader_take_the_same_row_of_an_episode(tmp_path: Path) -> None:
    """The latest, whichever file holds it; one took its own, the other the first file's."""
    config = flags(tmp_path)
    report = run_evaluation(config, benchmark())
    settings, first = outcome_settings(config, benchmark()), report.main_run[0]
    for of, num_steps in ((Shard(1, 2), 20), (Shard(), 21), (Shard(2, 2), 22)):  # played again by one of them, then by another
        Journal(tmp_path, settings, shard=of).add(replace(first, num_steps=num_steps))
        for shard in (Shard(), Shard(1, 2), Shard(2, 2)):
            results = Journal(tmp_path, settings, shard=shard).results
            assert [item.num_steps for item in results if (item.task, item.index) == (first.task, first.index)] == [num_steps]
        rows = read_journals(tmp_path)[1]
        assert [row["num_steps"] for row in rows if (row["task"], row["index"]) == (first.task, first.index)] == [num_steps]


def test_robustness_names_flags_that_it_has(tmp_path: Path) -> None:
    for seed in (7, 8):
        conditions = make_conditions(flags(tmp_path, num_trials_per_task=1, seed=seed), [], [1], [])
        if seed == 7:
            measure(conditions, lambda config: benchmark(), lambda so_far: None)
            continue
        with pytest.raises(
            ValueError, match=r"\(seed was 7, is 8\); choose another --output_dir, or add --restart True to --evaluation_flags"
        ):
            measure(conditions, lambda config: benchmark(no_policy), lambda so_far: None)


def test_journals_that_do_not_belong_together_are_not_compared(tmp_path: Path) -> None:
    """As when shards of two checkpoints were copied into one folder: they were counted together, under the settings of the first."""
    run_evaluation(flags(tmp_path / "a", shard="1/2"), benchmark())
    run_evaluation(flags(tmp_path / "b", shard="2/2", pretrained_checkpoint="other"), benchmark())
    other = tmp_path / "b" / "episodes.shard-2-of-2.jsonl"
    other.rename(tmp_path / "a" / other.name)
    with pytest.raises(
        JournalError, match=r"shard-2-of-2\.jsonl holds .* than episodes\.shard-1-of-2\.jsonl \(pretrained_checkpoint was 'toy'"
    ):
        compare(tmp_path / "a", tmp_path / "a")


def test_an_episode_that_crashed_in_one_shard_and_was_played_in_another_counts_once(tmp_path: Path) -> None:
    """Whichever file comes first; a comparison took the last one, and the crash for a failure."""
    config = flags(tmp_path / "whole")
    report = run_evaluation(config, benchmark())
    crashed = replace(report.main_run[0], success=False, error="the simulator died", pictures=(), failure_frames=())
    Journal(config.folder, outcome_settings(config, benchmark()), shard=Shard(1, 2)).add(crashed)
    rows = read_journals(config.folder)[1]
    assert len(rows) == 6
    assert [row["error"] for row in rows] == [None] * 6
    assert compare(config.folder, config.folder).total.both == sum(result.success for result in report.main_run) == 6


def test_the_batch_size_is_the_smallest_that_no_other_clearly_beats() -> None:
    assert best_size({1: 10.0, 2: 19.5, 4: 38.5}) == 1  # 4 % are not worth waiting for others
    assert best_size({1: 10.0, 2: 12.0, 4: 16.0}) == 4
    assert best_size({1: 10.0, 2: 12.0, 4: 40.0}) == 2
    sizes: list[int] = []
    seen = Observation({}, "go")
    times = measure_batch_size(lambda rows: sizes.append(len(rows)), seen, num_envs=8)
    assert sizes == [1] * 4 + [2] * 4 + [4] * 4  # half of the environments at most
    assert set(times.call_ms) == {1, 2, 4}
    assert "--batch_size" in times.line()


def test_a_measured_batch_size_stays_that_of_the_episodes_that_are_there(tmp_path: Path) -> None:
    config = flags(tmp_path, batch_size=0)
    assert with_batch_size(config, benchmark()).batch_size == 1  # no checkpoint: nothing to measure
    Journal(tmp_path, {"batch_size": 4})
    assert with_batch_size(config, benchmark(no_policy)).batch_size == 4
    with pytest.raises(ValueError, match="--batch_size is -1"):
        flags(tmp_path, batch_size=-1)


def test_robustness_is_a_table_of_paired_evaluations_and_goes_on(tmp_path: Path) -> None:
    clean = flags(tmp_path, num_trials_per_task=4, num_pictures=0)
    conditions = make_conditions(clean, ["brightness", "brightness"], [1, 3, 1], [])  # what is named twice is played once
    assert [condition.name for condition in conditions] == ["clean", "brightness:1", "brightness:3"]
    assert [condition.config.folder.name for condition in conditions] == ["clean", "brightness_1", "brightness_3"]
    findings = measure(conditions, lambda config: benchmark(), lambda so_far: write_findings(so_far, "Toy", tmp_path))
    assert findings[0].score.rate == 1.0
    assert findings[2].score.rate < 1.0  # the toy reads distances from the brightness
    assert findings[2].difference == findings[2].score.rate - 1.0
    table = (tmp_path / "robustness.md").read_text()
    assert "| clean | 100 % (8/8) |  |" in table
    assert f"| brightness | {findings[1].cell()} | {findings[2].cell()} |" in table
    assert "pictures 1 octaves brighter or darker" in table
    content = json.loads((tmp_path / "robustness.json").read_text())
    assert [row["num_trials"] for row in content["conditions"]] == [8, 8, 8]
    assert (tmp_path / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert (content["num_missing_conditions"], "Not complete" in table) == (0, False)
    write_findings(findings[:2], "Toy", tmp_path, 1)  # as it stands while the third is played, or was cut off
    assert "**Not complete:** 1 conditions have not been played yet" in (tmp_path / "robustness.md").read_text()
    assert json.loads((tmp_path / "robustness.json").read_text())["num_missing_conditions"] == 1
    again = measure(conditions, lambda config: benchmark(no_policy, broken=True), lambda so_far: None)
    assert markdown(again, "Toy") == markdown(findings, "Toy")
    crashed = [again[0], replace(again[1], num_crashed=2)]
    assert "- brightness:1: 2 episodes crashed in the simulator and count as failures\n" in markdown(crashed, "Toy")
    fewer = make_conditions(replace(clean, num_trials_per_task=2), ["brightness"], [1, 3], [])
    for finding in measure(fewer, lambda config: benchmark(no_policy, broken=True), lambda so_far: None):
        assert finding.score.num_trials == 4
        assert finding.difference == finding.score.rate - 1.0, "of the episodes that are counted, not of all that lie there"


@pytest.mark.parametrize(
    ("line", "said"), [("perturb: camera:3", "perturb"), ("shard: 1/2", "shard"), ("num_trials_per_task: 50", "num_trials_per_task")]
)
def test_clean_episodes_are_clean_and_all_there_whatever_a_file_of_flags_says(tmp_path: Path, line: str, said: str) -> None:
    """The "clean" row was that of changed scenes, or of half of the episodes; a number of trials was passed over."""
    script = load_script("scripts/robustness.py")
    file = tmp_path / "flags.yaml"
    make_config = partial(script.RobustnessConfig, "runs/toy", evaluation_flags=f"--config_path {file}", output_dir=tmp_path)
    file.write_text("policy: expert\nnum_envs: 3\n")
    config = make_config()
    clean = script.clean_flags(config, EvaluationFlags)
    assert (clean.num_envs, clean.num_trials_per_task, clean.local_log_dir) == (3, 10, tmp_path)
    assert script.title_of("metaworld", clean) == "Changed scenes, metaworld: scripted experts", "not the checkpoint, which does not act"
    assert script.title_of("metaworld", replace(clean, policy="checkpoint")) == "Changed scenes, metaworld: runs/toy"
    file.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=f"--config_path sets {said}; that is a matter of this script"):
        make_config()


@pytest.mark.parametrize(
    ("axis", "message"), [("distractor", "the toy cannot change its distractor"), ("language", "no other words are known")]
)
def test_an_axis_that_cannot_be_is_refused_before_anything_is_played(tmp_path: Path, axis: str, message: str) -> None:
    conditions = make_conditions(flags(tmp_path), ["brightness", axis], [1], [])
    with pytest.raises(ValueError, match=message):
        measure(conditions, lambda config: benchmark(no_policy, broken=True), lambda so_far: None)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_was_cut_short_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = flags(tmp_path, num_trials_per_task=1)
    run_evaluation(config, benchmark())
    strip = tmp_path / "pictures" / "none" / "left" / "episode_000_seed_7.png"
    strip.write_bytes(strip.read_bytes()[:100])
    again = run_evaluation(config, benchmark(no_policy))
    assert [len(result.pictures) for result in again.main_run] == [0, 2]
    assert "episode_000_seed_7.png cannot be read" in caplog.text


def test_two_at_once_play_one_after_the_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = flags(tmp_path, num_trials_per_task=1)
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / ".lock"):
            second = pool.submit(run_evaluation, config, benchmark(no_policy))
            while "which plays the same episodes" not in caplog.text:
                assert not second.done()
                time.sleep(0.01)
            journal = Journal(tmp_path, outcome_settings(config, benchmark()))
            for task in ("left", "right"):
                journal.add(EpisodeResult("none", task, 0, 7, "go", True, 3, 1, 1.0, 1.0))
        assert second.result(timeout=30).score("none").num_successes == 2


def test_the_last_of_shards_that_end_at_once_tells_of_all_their_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had looked at the journals before the other's last line wrote its report over the whole one."""
    second: list[Future[Report]] = []

    def write_slowly(report: Report, folder: Path) -> Path:
        if not second:
            second.append(pool.submit(run_evaluation, flags(tmp_path, shard="2/2"), benchmark()))
            path, latest = tmp_path / "episodes.shard-2-of-2.jsonl", time.monotonic() + 60
            while (not path.exists() or len(path.read_text().splitlines()) < 4) and time.monotonic() < latest:
                time.sleep(0.05)
            wait(second, timeout=1.5)
        return write_report(report, folder)

    monkeypatch.setattr(run, "write_report", write_slowly)
    with ThreadPoolExecutor(1) as pool:
        run_evaluation(flags(tmp_path, shard="1/2"), benchmark())
        assert second[0].result().num_missing == 0
    assert json.loads((tmp_path / "report.json").read_text())["num_missing_episodes"] == 0
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_another_shard_told_meanwhile_stays_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play_beside(*arguments: object) -> None:
        run_evaluation(flags(tmp_path, shard="2/2"), benchmark())
        content = json.loads((tmp_path / "report.json").read_text())
        (tmp_path / "report.json").write_text(json.dumps(content | {"warnings": ["the cameras are exchanged"]}))

    real = run._play
    monkeypatch.setattr(run, "_play", lambda *given: (monkeypatch.setattr(run, "_play", real), play_beside(), real(*given)))
    assert run_evaluation(flags(tmp_path, shard="1/2"), benchmark()).warnings == ["the cameras are exchanged"]
    assert run_evaluation(flags(tmp_path, restart=True), benchmark()).warnings == [], "of episodes that are forgotten"
