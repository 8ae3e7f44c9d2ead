"""improve.md, improve.json and improve.png: what the rounds have brought."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.actors import TAKEOVER
from experiments.robot.evaluation.comparison import PairedTable, format_p
from experiments.robot.evaluation.report import HELPED_TITLE
from experiments.robot.evaluation.statistics import wilson_interval
from experiments.robot.improvement.config import ImproveConfig
from experiments.robot.improvement.judging import Round, best_of
from experiments.robot.improvement.phases import DONE_FILE, write_json

TABLE_FILE, JSON_FILE, PICTURE_FILE = "improve.md", "improve.json", "improve.png"
_INK, _MUTED, _GRID, _BLUE, _ORANGE = "#25282d", "#6b7078", "#e6e8eb", "#3267c8", "#d9713c"


@dataclass(frozen=True)
class Results:
    """What there is so far."""

    config: ImproveConfig
    rounds: Sequence[Round]
    stopped: str | None = None  # why; None: it goes on
    final: PairedTable | None = None  # on fresh starts; A: the best policy, B: the first
    num_final_crashed: int = 0  # of those episodes, in the simulator; they count as failures


def write_results(results: Results) -> str:
    """Writes table, numbers and picture; returns the table."""
    folder, table = results.config.folder, _table(results)
    write_json(folder / JSON_FILE, _content(results))
    temporary = folder / f".{TABLE_FILE}.tmp"
    temporary.write_text(table, encoding="utf-8")
    os.replace(temporary, folder / TABLE_FILE)
    _draw(results, folder / PICTURE_FILE)
    return table


def _content(results: Results) -> dict[str, Any]:
    rounds = [
        {
            "round": item.number,
            "checkpoint": item.checkpoint,
            "rollouts": item.num_rollouts,
            "rollout_successes": item.num_rollout_successes,
            "successes": item.num_successes,
            "trials": item.num_trials,
            "crashed": item.num_crashed,
            "interval_95": wilson_interval(item.num_successes, item.num_trials),
            "against_best_before": None if item.against_best is None else _describe(item.against_best),
            "seconds": item.seconds,
        }
        for item in results.rounds
    ]
    final = None if results.final is None else {**_describe(results.final), "crashed": results.num_final_crashed}
    settings = {**results.config.fixed(), "num_rounds": results.config.num_rounds, "patience": results.config.patience}
    best = best_of(results.rounds)
    return {
        "settings": settings,
        "rounds": rounds,
        "stopped": results.stopped,
        "best": {"round": best.number, "checkpoint": best.checkpoint},
        "final": final,
    }


def _describe(table: PairedTable) -> dict[str, Any]:
    a, b, n = table.both + table.only_a, table.both + table.only_b, table.num_pairs
    return {
        "successes": a,
        "other_successes": b,
        "trials": n,
        "interval_95": wilson_interval(a, n),
        "other_interval_95": wilson_interval(b, n),
        "difference": table.difference,
        "difference_interval_95": table.interval,
        "p_mcnemar": table.p_value,
    }


def _table(results: Results) -> str:
    config = results.config
    lines = [
        f"{config.simulator}, {config.method}: {config.num_rollouts} rollouts a task and round, {config.max_steps} steps of training",
        "",
    ]
    solved = HELPED_TITLE if config.expert_help == TAKEOVER else "solved"
    lines += [
        f"| round | rollouts ({solved}) | success | 95 % interval | against the best before | p | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in results.rounds:
        rollouts = f"{item.num_rollouts} ({item.num_rollout_successes})" if item.number else ""
        share, interval = _share(item.num_successes, item.num_trials)
        change = "" if item.against_best is None else _change(item.against_best)
        p_value = "" if item.against_best is None else format_p(item.against_best.p_value)
        lines.append(f"| {item.number or 'start'} | {rollouts} | {share} | {interval} | {change} | {p_value} | {item.seconds:.0f} |")
    for name, num_crashed in _crashes(results):
        lines += ["", f"{name}: {num_crashed} episodes crashed in the simulator and count as failures; they are played again without"]
        lines += [f"the evaluation's {DONE_FILE}."]
    if results.stopped is not None:
        lines += ["", f"Stopped: {results.stopped}."]
    if results.final is not None:
        lines += ["", *_final_lines(results, results.final)]
    return "\n".join(lines) + "\n"


def _crashes(results: Results) -> list[tuple[str, int]]:
    """(which evaluation, episodes that crashed) of those that have any."""
    found = [(f"After round {item.number}" if item.number else "At the start", item.num_crashed) for item in results.rounds]
    return [(name, num) for name, num in (*found, ("In the last evaluations", results.num_final_crashed)) if num]


def _final_lines(results: Results, table: PairedTable) -> list[str]:
    best = best_of(results.rounds)
    if not best.number:
        share, interval = _share(table.both + table.only_b, table.num_pairs)
        return [f"No round helped: the first policy stays. On {results.config.last_starts} it solves {share}, {interval}."]
    before, after = _share(table.both + table.only_b, table.num_pairs), _share(table.both + table.only_a, table.num_pairs)
    return [
        f"On {results.config.last_starts}: {before[0]} before ({before[1]}), {after[0]} after round {best.number} ({after[1]}); "
        f"difference {_change(table)}, McNemar's p {format_p(table.p_value)}.",
        "",
        f"The policy: {best.checkpoint}",
    ]


def _share(successes: int, trials: int) -> tuple[str, str]:
    low, high = (100 * bound for bound in wilson_interval(successes, trials))
    return f"{100 * successes / trials:.0f} % ({successes}/{trials})", f"{low:.0f} - {high:.0f} %"


def _change(table: PairedTable) -> str:
    low, high = table.interval
    return f"{100 * table.difference:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"


def _draw(results: Results, path: Path) -> None:
    """Success over rounds with intervals; that on the last starts beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    points = [(item.number, item.num_successes, item.num_trials) for item in results.rounds]
    _draw_points(axes, points, _BLUE, "same starts in every round", "-o")
    if results.final is not None:
        table, best = results.final, best_of(results.rounds).number
        last = [(0.06, table.both + table.only_b, table.num_pairs)]
        last += [(best + 0.06, table.both + table.only_a, table.num_pairs)] if best else []
        _draw_points(axes, last, _ORANGE, results.config.last_starts.partition(",")[0], "--s")
    axes.set_xticks([item.number for item in results.rounds], ["start", *(f"round {item.number}" for item in results.rounds[1:])])
    axes.set_ylim(0, 102)
    axes.set_ylabel("success [%]", fontsize=9, color=_MUTED)
    title = f"{results.config.simulator}, {results.config.method}"
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK)
    axes.grid(True, axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, edgecolor="none", labelcolor=_INK, loc="lower right")
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)
    os.replace(temporary, path)


def _draw_points(axes: Any, points: Sequence[tuple[float, int, int]], color: str, label: str, style: str) -> None:
    rates = [100 * count / total for _, count, total in points]
    bounds = [[100 * bound for bound in wilson_interval(count, total)] for _, count, total in points]
    errors = [[max(0.0, rate - low) for rate, (low, _) in zip(rates, bounds, strict=True)]]
    errors.append([max(0.0, high - rate) for rate, (_, high) in zip(rates, bounds, strict=True)])
    places = [place for place, _, _ in points]
    axes.errorbar(places, rates, yerr=errors, fmt=style, color=color, capsize=3, markersize=5, linewidth=1.6, label=label)
