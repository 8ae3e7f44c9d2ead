"""Draws the curves of one or several runs into one picture: loss, L1 error, learning rate, throughput.

python scripts/plot_run.py runs/my_run
python scripts/plot_run.py runs/my_run runs/another_run --output runs/both.png
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prismatic.cli import run_script
from prismatic.training.curves import CURVES_FILE, plot_runs

_COMPARED_FILE = "compared_curves.png"  # a run's own picture stays


@dataclass
class PlotConfig:
    """Which runs to draw."""

    run_dirs: list[Path] = field(default_factory=list)  # folders with metrics.jsonl; the flag's name may be left out
    output: Path | None = None  # PNG file; by default in the first folder: curves.png, or compared_curves.png for several runs

    def __post_init__(self) -> None:
        if not self.run_dirs:
            raise ValueError("--run_dirs is empty; pass the folder of at least one run, such as runs/my_run")


def main(config: PlotConfig) -> None:
    """Entry point."""
    picture = config.output or config.run_dirs[0] / (CURVES_FILE if len(config.run_dirs) == 1 else _COMPARED_FILE)
    plot_runs(config.run_dirs, picture)
    print(f"wrote {picture}")


def run() -> None:
    """Entry point."""
    run_script(main, PlotConfig, positional="run_dirs")
