"""Two evaluations in pairs: counts, the exact test, the interval, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from experiments.robot.evaluation.comparison import PairedTable, compare, comparison_table, write_comparison
from scripts.compare_runs import CompareConfig, main


def write_journal(folder: Path, successes: dict[str, list[bool]], **settings: object) -> Path:
    folder.mkdir()
    rows: list[dict] = [{"settings": {"seed": 7, **settings}}]
    for task, outcomes in successes.items():
        known = {"run": "none", "task": task, "seed": 7}
        rows += [{**known, "index": index, "success": value, "num_steps": 10 + index} for index, value in enumerate(outcomes)]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("b", "c"), [(12, 2), (0, 0), (5, 0), (7, 7), (30, 41)])
def test_the_p_value_is_the_binomial_test_of_the_discordant_pairs(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert PairedTable(10, b, c, 3).p_value == pytest.approx(expected)


def test_the_interval_is_newcombes() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 2635-2650, table II, method 10
    assert PairedTable(36, 12, 2, 0).interval == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_the_interval_at_the_ends() -> None:
    low, high = PairedTable(20, 0, 0, 0).interval
    assert low < 0 < high
    low, high = PairedTable(0, 20, 0, 0).interval
    assert (low > 0.5, high <= 1.0) == (True, True)


def test_pairs_are_made_by_task_number_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_journal(tmp_path / "a", {"open": [True, True, False, True], "close": [True, False]}, batch_size=1)
    b = write_journal(tmp_path / "b", {"close": [True, True], "open": [False, True, False]}, batch_size=8)
    comparison = compare(a, b)
    assert comparison.tables == {"open": PairedTable(1, 1, 0, 1), "close": PairedTable(1, 0, 1, 0)}
    assert comparison.total == PairedTable(2, 1, 1, 1)
    assert comparison.num_unpaired == 1
    assert comparison.settings == {"batch_size": (1, 8)}
    assert [(row["task"], row["index"], row["winner"]) for row in comparison.differing] == [("close", 1, "B"), ("open", 0, "A")]
    lines = comparison_table(comparison).splitlines()
    assert lines[2].split()[:5] == ["open", "3", "67", "%", "33"]
    main(CompareConfig(a, b, output=tmp_path / "page" / "comparison.html"))
    printed = capsys.readouterr().out
    assert "p (McNemar)" in printed
    assert "mean time to success 10.8 steps (A) and 10.8 (B)" in printed
    assert "Kolmogorov-Smirnov distance 0.20" in printed
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "no difference can be shown" in page
    assert "1 more have no partner" in page
    assert "http" not in page


def test_evaluations_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LIBERO's conditions of robustness.py: the page was headed EVAL-x twice; a folder named as . had no name."""
    folders = []
    for condition in ("clean", "robot_3"):
        (tmp_path / condition).mkdir()
        folders.append(write_journal(tmp_path / condition / "EVAL-x", {"open": [True]}))
    comparison = compare(*folders)
    assert (comparison.name_a, comparison.name_b) == ("clean/EVAL-x", "robot_3/EVAL-x")
    other = write_journal(tmp_path / "clean" / "EVAL-y", {"open": [True]})
    monkeypatch.chdir(folders[0])
    comparison = compare(Path(), other)
    assert (comparison.name_a, comparison.name_b) == ("EVAL-x", "EVAL-y")
    comparison = compare(Path(), Path())
    assert (comparison.name_a, comparison.name_b) == ("EVAL-x", "EVAL-x")


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    a = write_journal(tmp_path / "a", {"open": [True]})
    with pytest.raises(ValueError, match=r"has no episodes\.jsonl"):
        compare(a, tmp_path)
    with pytest.raises(ValueError, match="no episode in common"):
        compare(a, write_journal(tmp_path / "b", {"close": [True]}))
    with pytest.raises(ValueError, match="a has no episode of the run 'grey'; its runs are none"):
        compare(a, a, "grey")
    journal = tmp_path / "odd" / "episodes.jsonl"
    journal.parent.mkdir()
    journal.write_text((a / "episodes.jsonl").read_text() + '{"run": "none"}\n')
    with pytest.raises(ValueError, match=r"episodes\.jsonl, line 3 is no row of a journal"):
        compare(a, journal.parent)
    write_comparison(compare(a, a), tmp_path / "same.html")


def test_the_policy_is_compared_whatever_ended_first(tmp_path: Path) -> None:
    a = write_journal(tmp_path / "a", {"open": [True, False]})
    settings, *rows = (a / "episodes.jsonl").read_text().splitlines()
    grey = [json.dumps({**json.loads(row), "run": "grey", "success": False}) for row in rows]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "episodes.jsonl").write_text("\n".join([settings, *grey, *rows, ""]))  # a control ended first
    assert compare(a, tmp_path / "b").total == PairedTable(1, 0, 0, 1)
    assert compare(tmp_path / "b", tmp_path / "b", "grey").total == PairedTable(0, 0, 0, 2)


@pytest.mark.parametrize(
    ("of_a", "of_b", "message"),
    [
        ({}, {"split": "collection"}, r"split 'evaluation' and 'collection'"),
        ({"benchmark": "libero_spatial"}, {"benchmark": "libero_spatial_swap"}, "benchmark 'libero_spatial' and 'libero_spatial_swap'"),
        ({"task_suite_name": "a"}, {"task_suite_name": "b"}, "task_suite_name 'a' and 'b'"),
        (
            {"initial_states_path": "DEFAULT"},
            {"initial_states_path": "x.json", "initial_states_path_content": "12"},
            "initial states 'DEFAULT'",
        ),
        (
            {"initial_states_path": "x.json", "initial_states_path_content": "12"},
            {"initial_states_path": "x.json", "initial_states_path_content": "34"},
            "initial states '12' and '34'",
        ),
    ],
)
def test_episodes_that_begin_elsewhere_are_no_pairs(tmp_path: Path, of_a: dict[str, str], of_b: dict[str, str], message: str) -> None:
    """They have the same task, number and seed all the same, and were compared."""
    a = write_journal(tmp_path / "a", {"open": [True]}, **of_a)
    b = write_journal(tmp_path / "b", {"open": [True]}, **of_b)
    with pytest.raises(ValueError, match=rf"cannot be compared in pairs: .*{message}"):
        compare(a, b)
    assert compare(b, b).total.num_pairs == 1


def test_the_same_initial_states_may_lie_elsewhere(tmp_path: Path) -> None:
    a = write_journal(tmp_path / "a", {"open": [True]}, initial_states_path="x.json", initial_states_path_content="12")
    b = write_journal(tmp_path / "b", {"open": [True]}, initial_states_path="y.json", initial_states_path_content="12")
    assert compare(a, b).settings == {"initial_states_path": ("x.json", "y.json")}


def test_the_console_names_what_differs_and_who_was_helped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_journal(tmp_path / "a", {"open": [True, True]}, split="collection", batch_size=1)
    b = write_journal(tmp_path / "b", {"open": [True]}, split="collection", batch_size=8, expert_help="takeover")
    main(CompareConfig(a, b, output=tmp_path / "comparison.html"))
    printed = capsys.readouterr().out
    assert "B: the expert took over where the policy drifted" in printed
    assert "1 episodes have no partner and are left out" in printed
    assert "settings that differ: batch_size 1 and 8; expert_help None and 'takeover'" in printed
    assert "B: the expert took over where the policy drifted" in (tmp_path / "comparison.html").read_text()


def test_a_wrong_instruction_is_paired_with_the_same_wrong_instruction(tmp_path: Path) -> None:
    a = write_journal(tmp_path / "a", {"open": [True, True]})
    settings, *rows = (a / "episodes.jsonl").read_text().splitlines()
    for name, words in (("b", ("x", "y")), ("c", ("x", "z"))):
        told = [
            json.dumps(json.loads(row) | {"run": "wrong_instruction", "instruction": word}) for row, word in zip(rows, words, strict=True)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "episodes.jsonl").write_text("\n".join([settings, *told, ""]))
    comparison = compare(tmp_path / "b", tmp_path / "c", "wrong_instruction")
    assert (comparison.total.num_pairs, comparison.num_unpaired) == (1, 1)


def test_a_crashed_episode_did_not_end_at_once(tmp_path: Path) -> None:
    """It counted with no step at all: the mean of a run that crashes was the shorter."""
    a = write_journal(tmp_path / "a", {"open": [True, True]})
    b = write_journal(tmp_path / "b", {"open": [True, True]})
    *kept, last = (b / "episodes.jsonl").read_text().splitlines()
    crashed = {**json.loads(last), "success": False, "num_steps": 0, "error": "the simulator died"}
    (b / "episodes.jsonl").write_text("\n".join([*kept, json.dumps(crashed), ""]))
    comparison = compare(a, b)
    assert comparison.cautions == ["B: 1 episodes crashed in the simulator and count as failures"]
    times = comparison.times
    assert (times.mean_a, times.mean_b) == (10.5, 10.5)  # (10 + 11) / 2, and 10 and the longest there is


@pytest.mark.parametrize(
    ("run", "caution"),
    [
        ("grey", "B: the control with grey images, in which the policy is blind"),
        ("wrong_instruction", "B: the control with a wrong instruction"),
        ("expert", "B: the scripted expert; successes are no policy's"),
    ],
)
def test_what_is_no_policy_by_itself_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, caution: str) -> None:
    """A control alone was compared with a policy as if it were another one."""
    a = write_journal(tmp_path / "a", {"open": [True, True]})
    b = write_journal(tmp_path / "b", {"open": [True, False]})
    journal = b / "episodes.jsonl"
    journal.write_text(journal.read_text().replace('"run": "none"', f'"run": "{run}"'))
    main(CompareConfig(a, b, output=tmp_path / "comparison.html"))
    assert caution in capsys.readouterr().out
    assert caution.partition("'")[0] in (tmp_path / "comparison.html").read_text()
    assert compare(a, a).cautions == []
    assert len(compare(b, b).cautions) == 2
