"""metrics.jsonl of one or several runs -> one picture: loss, L1 error in training and validation, learning rate, throughput, success.

With a single run also where the last validation found its errors: which action dimension, how far ahead in the chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prismatic.training.rows import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
CURVES_FILE = "curves.png"

_COLORS = ("#3267c8", "#d9713c", "#3f9b6e", "#9a5fb4", "#c2496b", "#7a7f3a", "#4aa0b5", "#8a6d5a")
_INK, _MUTED, _GRID = "#25282d", "#6b7078", "#e6e8eb"
_MAX_LEVEL_NAMES = 8  # names of more dimensions are written at an angle
_SMOOTHING_WINDOW = 30  # a curve is smoothed over a thirtieth of its points


@dataclass(frozen=True)
class _Line:
    """One curve of a panel."""

    metric: str
    label: str
    style: str = "-"
    has_marks: bool = False  # a dot at every value
    is_noisy: bool = False  # smoothed, with the values behind it


@dataclass(frozen=True)
class _Panel:
    """One plot; it is left out where no run has any of its metrics."""

    title: str
    lines: tuple[_Line, ...]
    unit: str = ""
    is_log: bool = False
    starts_at_zero: bool = False


_PANELS = (
    _Panel("Loss", (_Line("train/loss", "training", is_noisy=True), _Line("val/loss", "validation", "--", has_marks=True)), is_log=True),
    _Panel(
        "L1 error of the actions",
        (
            _Line("train/action_l1_loss", "training", is_noisy=True),
            _Line("val/action_l1_loss", "validation", "--", has_marks=True),
        ),
        unit="normalised units",
        is_log=True,
    ),
    _Panel("Learning rate", (_Line("train/lr", "learning rate"),), is_log=True),
    _Panel(
        "Throughput of training", (_Line("train/samples_per_second", "samples/s", is_noisy=True),), unit="samples/s", starts_at_zero=True
    ),
    _Panel(
        "Success in closed loop", (_Line("eval/success_rate", "success", has_marks=True),), unit="share of episodes", starts_at_zero=True
    ),
)


def plot_runs(run_dirs: Sequence[Path], picture: Path) -> None:
    """Draws the curves of all runs into the PNG file `picture`.

    Raises:
        ValueError: a folder has no metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no display, half the import time
    from matplotlib.figure import Figure

    runs = {}
    for run_dir in run_dirs:
        runs[run_dir] = read_rows(run_dir / METRICS_FILE)
        if not runs[run_dir]:
            raise ValueError(f"{run_dir} has no {METRICS_FILE} with rows; pass the folder of a run of vla-scripts/finetune.py")
    panels = _panels(list(runs.values()))
    errors = read_rows(run_dirs[0] / VALIDATION_FILE)[-1:] if len(run_dirs) == 1 else []
    num_columns = min(2, len(panels) + len(errors))
    num_rows = -(-(len(panels) + len(errors)) // num_columns)
    figure = Figure(figsize=(6.2 * num_columns, 3.3 * num_rows + 0.7), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    _leave_room(figure, num_columns, num_rows, errors)
    names = _short_names(run_dirs)
    figure.suptitle(names[0] if len(names) == 1 else f"{len(names)} runs", x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(num_rows, num_columns, number + 1)
        for name, color, rows in zip(names, _cycle(len(names)), runs.values(), strict=True):
            _draw(axes, panel, rows, color, name if len(names) > 1 else "")
        _dress(axes, panel)
    for row in errors:
        _draw_errors(figure.add_subplot(num_rows, num_columns, len(panels) + 1), row)
    picture.parent.mkdir(parents=True, exist_ok=True)
    temporary = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(picture)


def _leave_room(figure: Figure, num_columns: int, num_rows: int, errors: list[dict[str, Any]]) -> None:
    """Sets the margins of `figure` and between its panels; names of dimensions that stand upright below the map of `errors` need more."""
    names = [name for row in errors for name in _short_dimensions(row) if len(row["action_names"]) > _MAX_LEVEL_NAMES]
    left, right, top, bottom = 0.8, 0.2, 0.75, 0.5 + 0.055 * max(map(len, names), default=0)  # inches, as the rest
    between, above = 0.85, 0.95
    width, height = figure.get_size_inches()
    panel_width = (width - left - right - between * (num_columns - 1)) / num_columns
    panel_height = (height - top - bottom - above * (num_rows - 1)) / num_rows
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, between / panel_width, above / panel_height)


def _short_dimensions(row: dict[str, Any]) -> list[str]:
    return [name.split(" [")[0] for name in row["action_names"]]


def _panels(runs: list[list[dict[str, Any]]]) -> list[_Panel]:
    """Those that have anything to show; where the loss is the L1 error, one of the two says it."""
    rows = [row for run in runs for row in run]
    is_l1 = all(np.isclose(row["train/loss"], row.get("train/action_l1_loss", np.nan), rtol=1e-4) for row in rows if "train/loss" in row)
    panels = _PANELS[1:] if is_l1 else _PANELS
    return [panel for panel in panels if any(line.metric in row for line in panel.lines for row in rows)]


def _draw(axes: Axes, panel: _Panel, rows: list[dict[str, Any]], color: str, run: str) -> None:
    """The curves of one run."""
    for line in panel.lines:
        points = sorted((row["step"], row[line.metric]) for row in rows if line.metric in row and np.isfinite(row[line.metric]))
        if not points:
            continue
        steps, values = np.array(points, np.float64).T
        label = ", ".join(part for part in (run, line.label if len(panel.lines) > 1 else "") if part)
        if line.is_noisy:
            axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
            values = smoothed(values, max(1, len(values) // _SMOOTHING_WINDOW))
        marker, width = ("o", 1.4) if line.has_marks else (None, 1.8)
        axes.plot(
            steps, values, line.style, color=color, label=label, linewidth=width, marker=marker, markersize=4.5, markeredgecolor="white"
        )


def _draw_errors(axes: Axes, row: dict[str, Any]) -> None:
    """The errors [H, A] of one validation as a map, dimensions from left to right, the chunk from top to bottom."""
    errors = np.array(row["l1"])
    names = _short_dimensions(row)
    is_level = len(names) <= _MAX_LEVEL_NAMES
    image = axes.imshow(errors, cmap="Blues", aspect="auto", vmin=0)
    axes.set_title(f"L1 error in validation, step {row['step']:,}", loc="left", fontsize=10.5, color=_INK, pad=8)
    axes.set_xticks(range(len(names)), names, rotation=0 if is_level else 60, ha="center" if is_level else "right")
    axes.set_ylabel("action of the chunk", fontsize=8.5, color=_MUTED)
    axes.tick_params(labelsize=8, colors=_MUTED, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.015, fraction=0.045)
    bar.ax.tick_params(labelsize=8, colors=_MUTED, length=0)
    bar.ax.set_frame_on(False)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred means over `2 * window - 1` values, fewer at the ends, so that neither end is bent; `values` itself for a window of 1."""
    if window == 1:
        return values
    sums = np.concatenate(([0.0], np.cumsum(values)))
    reach = np.minimum(np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]), window - 1)
    first, last = np.arange(len(values)) - reach, np.arange(len(values)) + reach + 1
    return (sums[last] - sums[first]) / (last - first)


def _dress(axes: Axes, panel: _Panel) -> None:
    """Title, scales, grid, legend."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    axes.set_title(panel.title, loc="left", fontsize=10.5, color=_INK, pad=8)
    if panel.is_log and all(np.min(line.get_ydata()) > 0 for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.starts_at_zero:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(panel.unit, fontsize=8.5, color=_MUTED)
    axes.set_xlabel("step", fontsize=8.5, color=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(True, which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors=_MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    if len(panel.lines) > 1:  # the colours of the runs are those of all panels
        axes.legend(fontsize=8, framealpha=0.85, edgecolor="none", labelcolor=_INK)


def _cycle(count: int) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(count)]


def _short_names(run_dirs: Sequence[Path]) -> list[str]:
    """The folders' names; with their parents' where two are the same."""
    names = [run_dir.resolve().name for run_dir in run_dirs]
    return [name if names.count(name) == 1 else str(run_dir) for name, run_dir in zip(names, run_dirs, strict=True)]
