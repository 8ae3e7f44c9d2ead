"""Compares two evaluations episode by episode: table, McNemar's exact test, time to success, one HTML page.

python scripts/compare_runs.py --run_a runs/libero_eval/EVAL-libero_spatial-mine --run_b runs/libero_eval/EVAL-libero_spatial-other
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.robot.evaluation.comparison import compare, comparison_table, write_comparison
from prismatic.cli import run_script


@dataclass
class CompareConfig:
    """Which evaluations."""

    run_a: Path  # folder of an evaluation, the one that holds episodes.jsonl
    run_b: Path  # another, over the same tasks, episode numbers and seed
    control: str | None = None  # which run of both, such as grey or expert; the first by default
    output: Path = Path("runs/comparison.html")  # the page


def main(config: CompareConfig) -> None:
    comparison = compare(config.run_a, config.run_b, config.control)
    write_comparison(comparison, config.output)
    print(f"A: {config.run_a}\nB: {config.run_b}\n\n{comparison_table(comparison)}\n\n{comparison.times.line}")
    print("\n".join([*comparison.remarks, f"page: {config.output}"]))


if __name__ == "__main__":
    run_script(main, CompareConfig)
