"""Two evaluations over the same episodes, compared in pairs: which succeeded where the other failed.

            B succeeds   B fails
A succeeds      a           b         McNemar's exact test: were A and B equally good, b and c would be a fair coin's heads and tails.
A fails         c           d         The difference (b - c) / n has Newcombe's interval for paired proportions.

Sources: McNemar, Psychometrika 12 (1947); Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.actors import TAKEOVER
from experiments.robot.evaluation.journal import read_journals
from experiments.robot.evaluation.plan import Benchmark
from experiments.robot.evaluation.rollout import EXPERT_RUN, EpisodeResult
from experiments.robot.evaluation.statistics import ks_test, mcnemar_p_value, wilson_interval
from experiments.robot.evaluation.timing import restricted_mean

_Key = tuple[str, int, int]  # task, number, seed
_MAIN_RUNS = ("none", EXPERT_RUN)  # what an evaluation is about, unless it has controls alone
_RUNS_SHOWN = {
    "grey": "the control with grey images, in which the policy is blind",
    "wrong_instruction": "the control with a wrong instruction, in which the policy is told another task's",
    EXPERT_RUN: "the scripted expert; successes are no policy's",
}
_STARTS = ("split", "benchmark", "task_suite_name", "initial states")  # what tells one start from another of the same number and seed


@dataclass(frozen=True)
class PairedTable:
    """Counts of episodes, and what follows from them."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def num_pairs(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def rate_a(self) -> float:
        return (self.both + self.only_a) / self.num_pairs

    @property
    def rate_b(self) -> float:
        return (self.both + self.only_b) / self.num_pairs

    @property
    def difference(self) -> float:
        """Success of A minus success of B."""
        return (self.only_a - self.only_b) / self.num_pairs

    @property
    def p_value(self) -> float:
        """Two-sided, exact."""
        return mcnemar_p_value(self.only_a, self.only_b)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference."""
        a, b, c, d, n = self.both, self.only_a, self.only_b, self.neither, self.num_pairs
        (low_a, high_a), (low_b, high_b) = wilson_interval(a + b, n), wilson_interval(a + c, n)
        phi = _correlation(a, b, c, d)
        down, up = self.rate_a - low_a, high_a - self.rate_a
        down_b, up_b = self.rate_b - low_b, high_b - self.rate_b
        below = math.sqrt(max(0.0, down**2 - 2 * phi * down * up_b + up_b**2))
        above = math.sqrt(max(0.0, up**2 - 2 * phi * up * down_b + down_b**2))
        return self.difference - below, self.difference + above


def _correlation(a: int, b: int, c: int, d: int) -> float:
    """Newcombe's estimate, corrected for continuity where it is positive."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    excess = float(a * d - b * c)
    if excess > 0:
        excess = max(0.0, excess - (a + b + c + d) / 2)
    return excess / math.sqrt(product)


@dataclass(frozen=True)
class TimeComparison:
    """Time to success of both, in control steps; failures count with their length in the mean, and as later than all others in the test."""

    mean_a: float
    mean_b: float
    distance: float  # of Kolmogorov and Smirnov
    p_value: float

    @property
    def line(self) -> str:
        """For people."""
        return (
            f"mean time to success {self.mean_a:.1f} steps (A) and {self.mean_b:.1f} (B), failures counted with their length; "
            f"Kolmogorov-Smirnov distance {self.distance:.2f}, p {format_p(self.p_value)}"
        )


@dataclass(frozen=True)
class Comparison:
    """What is shown of two evaluations."""

    name_a: str
    name_b: str
    tables: dict[str, PairedTable]  # task -> counts
    differing: list[dict[str, Any]]  # episodes that ended differently: task, index, seed, winner
    num_unpaired: int  # episodes that one of them lacks
    settings: dict[str, tuple[Any, Any]]  # flags that differ
    times: TimeComparison
    helped: tuple[str, ...] = ()  # "A", "B": in its episodes the expert may have taken over
    runs: tuple[str, str] = ("none", "none")  # of A and of B: whose episodes these are
    num_crashed: tuple[int, int] = (0, 0)  # of A's and of B's episodes that are compared

    @property
    def cautions(self) -> list[str]:
        """Whose successes are not those of a policy by itself that saw and heard what it should; failures that are no policy's."""
        shown = [f"{name}: {_RUNS_SHOWN[run]}" for name, run in zip("AB", self.runs, strict=True) if run in _RUNS_SHOWN]
        helped = "the expert took over where the policy drifted; successes are not the policy's own"
        crashed = [(name, num) for name, num in zip("AB", self.num_crashed, strict=True) if num]
        return [
            *shown,
            *(f"{name}: {helped}" for name in self.helped),
            *(f"{name}: {num} episodes crashed in the simulator and count as failures" for name, num in crashed),
        ]

    @property
    def remarks(self) -> list[str]:
        """What a reader of the table must know, a line each."""
        found = self.cautions
        if self.num_unpaired:
            found.append(f"{self.num_unpaired} episodes have no partner and are left out")
        if self.settings:
            listed = "; ".join(f"{name} {a!r} and {b!r}" for name, (a, b) in self.settings.items())
            found.append(f"settings that differ: {listed}")
        return found

    @property
    def total(self) -> PairedTable:
        tables = self.tables.values()
        names = ("both", "only_a", "only_b", "neither")
        return PairedTable(*(sum(getattr(table, name) for table in tables) for name in names))


def compare(folder_a: Path, folder_b: Path, run: str | None = None) -> Comparison:
    """The episodes that both folders have, of `run` (by default the policy's own of each, or the expert's, or those of a control).

    Raises:
        ValueError: a folder holds no journal, they have no episode in common, or episodes of one number begin elsewhere in the other.
    """
    (settings_a, rows_a), (settings_b, rows_b) = (read_journals(folder) for folder in (folder_a, folder_b))
    starts_a, starts_b = _starts(settings_a), _starts(settings_b)
    if other := [name for name in _STARTS if starts_a[name] != starts_b[name] and None not in (starts_a[name], starts_b[name])]:
        listed = "; ".join(f"{name} {starts_a[name]!r} and {starts_b[name]!r}" for name in other)
        raise ValueError(
            f"{folder_a} and {folder_b} cannot be compared in pairs: episodes of the same number and seed are not the same ({listed}); "
            "play both on the same starts"
        )
    run_a, run_b = _chosen_run(folder_a, rows_a, run), _chosen_run(folder_b, rows_b, run)
    a, b = _by_episode(rows_a, run_a), _by_episode(rows_b, run_b)
    common = [key for key in a if key in b and _is_told_alike(a[key], b[key])]
    if not common:
        raise ValueError(f"{folder_a} and {folder_b} have no episode in common (task, number and seed must be the same)")
    tasks = list(dict.fromkeys(task for task, _, _ in common))
    names = [name for name in sorted(settings_a.keys() | settings_b.keys()) if settings_a.get(name) != settings_b.get(name)]
    name_a, name_b = _names(folder_a, folder_b)
    won_a, won_b = ({key: row["success"] for key, row in rows.items()} for rows in (a, b))
    return Comparison(
        name_a=name_a,
        name_b=name_b,
        tables={task: _count((won_a[key], won_b[key]) for key in common if key[0] == task) for task in tasks},
        differing=[
            {"task": task, "index": index, "seed": seed, "winner": "A" if won_a[task, index, seed] else "B"}
            for task, index, seed in sorted(common)
            if won_a[task, index, seed] != won_b[task, index, seed]
        ],
        num_unpaired=len(a.keys() | b.keys()) - len(common),
        settings={name: (settings_a.get(name), settings_b.get(name)) for name in names},
        times=_compare_times([a[key] for key in common], [b[key] for key in common]),
        helped=tuple(name for name, said, rows in (("A", settings_a, a), ("B", settings_b, b)) if _is_helped(said, rows)),
        runs=(run_a, run_b),
        num_crashed=(_num_crashed(a, common), _num_crashed(b, common)),
    )


def _names(*folders: Path) -> list[str]:
    """The folders as they are seen from the one that holds them: evaluations of one policy often have one name in different places."""
    found = [folder.resolve() for folder in folders]
    parent = os.path.commonpath([path.parent for path in found])
    return [path.relative_to(parent).as_posix() for path in found]


def _starts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name of `_STARTS` -> what a journal's settings say of it; None: nothing. A file of initial states is known by its content."""
    states = settings.get("initial_states_path_content") or settings.get("initial_states_path")
    known = {name: settings.get(name) for name in ("benchmark", "task_suite_name")}
    return {"split": settings.get("split", Benchmark.split), **known, "initial states": states}


def _is_told_alike(row_a: Mapping[str, Any], row_b: Mapping[str, Any]) -> bool:
    """Which instruction the control borrowed depends on the tasks that were evaluated with it."""
    return row_a["run"] != "wrong_instruction" or row_a.get("instruction") == row_b.get("instruction")


def _is_helped(settings: Mapping[str, Any], rows: Mapping[_Key, Mapping[str, Any]]) -> bool:
    return settings.get("expert_help") == TAKEOVER and any(row["run"] == "none" for row in rows.values())


def _num_crashed(rows: Mapping[_Key, Mapping[str, Any]], keys: Sequence[_Key]) -> int:
    return sum(rows[key].get("error") is not None for key in keys)


def pair_up(results_a: Iterable[EpisodeResult], results_b: Iterable[EpisodeResult]) -> PairedTable:
    """The episodes that both have, of one run each."""
    a, b = ({(item.task, item.index, item.seed): item.success for item in results} for results in (results_a, results_b))
    return _count((a[key], b[key]) for key in a if key in b)


def _compare_times(rows_a: Sequence[dict[str, Any]], rows_b: Sequence[dict[str, Any]]) -> TimeComparison:
    horizon = max(row["num_steps"] for row in (*rows_a, *rows_b))
    mean_a, mean_b = (restricted_mean([(row["num_steps"], row.get("error")) for row in rows], horizon) for rows in (rows_a, rows_b))
    ends_a, ends_b = ([row["num_steps"] if row["success"] else math.inf for row in rows] for rows in (rows_a, rows_b))
    distance, p_value = ks_test(ends_a, ends_b)
    return TimeComparison(mean_a, mean_b, distance, p_value)


def _chosen_run(folder: Path, rows: Sequence[dict[str, Any]], run: str | None) -> str:
    """The run whose episodes are compared: `run`, or else what the evaluation is about.

    Raises:
        ValueError: no episode is of `run`, or there is none at all.
    """
    names = sorted({row["run"] for row in rows})  # the order of rows is that in which episodes ended
    if not rows or (run is not None and run not in names):
        raise ValueError(f"{folder} has no episode" + (f" of the run {run!r}; its runs are {', '.join(names)}" if names else " yet"))
    return run or next((name for name in _MAIN_RUNS if name in names), names[0])


def _by_episode(rows: Sequence[dict[str, Any]], run: str) -> dict[_Key, dict[str, Any]]:
    """(task, number, seed) -> its row."""
    return {(row["task"], row["index"], row["seed"]): row for row in rows if row["run"] == run}


def _count(pairs: Iterable[tuple[bool, bool]]) -> PairedTable:
    outcomes = list(pairs)
    return PairedTable(*(outcomes.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))


def comparison_table(comparison: Comparison) -> str:
    """The table people read, the total last."""
    header = ["task", "pairs", "A", "B", "A - B", "95 % interval", "only A", "only B", "p (McNemar)"]
    rows = [[task, *_cells(table)] for task, table in comparison.tables.items()] + [["all", *_cells(comparison.total)]]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _cells(table: PairedTable) -> list[str]:
    low, high = table.interval
    return [
        str(table.num_pairs),
        f"{100 * table.rate_a:.0f} %",
        f"{100 * table.rate_b:.0f} %",
        f"{100 * table.difference:+.0f}",
        f"{100 * low:+.0f} to {100 * high:+.0f}",
        str(table.only_a),
        str(table.only_b),
        format_p(table.p_value),
    ]


def format_p(p_value: float) -> str:
    """Three decimals, or that it is smaller."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes one self-contained HTML page."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        environment.get_template("comparison.html.j2").render(comparison=comparison, cells=_cells, format_p=format_p), encoding="utf-8"
    )
