"""Curves: several runs in one picture, half-written lines, smoothing that bends nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismatic.training.curves import METRICS_FILE, VALIDATION_FILE, plot_runs, smoothed
from prismatic.training.rows import read_rows


def write_run(folder: Path, num_rows: int, head: str = "l1") -> Path:
    folder.mkdir()
    rows = []
    for step in range(1, num_rows + 1):
        row = {"step": step, "train/loss": 1 / step, "train/lr": 1e-4, "train/samples_per_second": 9.0}
        rows.append(row | ({"train/action_l1_loss": 1 / step} if head == "l1" else {}))
    rows.append({"step": num_rows, "val/loss": 0.3, "val/action_l1_loss": 0.3})
    rows.append({"step": 1, "eval/success_rate": 0.5})
    (folder / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "train/lo')
    return folder


def colors(picture: Path) -> set[int]:
    """The colours of a picture, 0xRRGGBB."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(np.int64)
    return set(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1])).tolist())


BLUE, ORANGE = 0x3267C8, 0xD9713C


def test_each_run_has_its_color(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one", 40), write_run(tmp_path / "two", 90, head="diffusion")
    plot_runs([one], tmp_path / "one.png")
    plot_runs([one, two], tmp_path / "both.png")
    assert BLUE in colors(tmp_path / "one.png")
    assert ORANGE not in colors(tmp_path / "one.png")
    assert {BLUE, ORANGE} <= colors(tmp_path / "both.png")
    # The loss of an L1 head is its L1 error and shown once; the diffusion run adds a panel for its own.
    assert Image.open(tmp_path / "both.png").height > Image.open(tmp_path / "one.png").height
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.png", "one", "one.png", "two"]


def test_the_last_validation_is_drawn_as_a_map(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 3)
    plot_runs([run], tmp_path / "without.png")
    row = {"step": 3, "action_names": ["x [m]", "gripper"], "l1": [[0.0, 0.1], [0.2, 0.9]]}
    (run / VALIDATION_FILE).write_text(json.dumps(row) + "\n")
    plot_runs([run], tmp_path / "with.png")
    darkest = 0x08306B  # of matplotlib's Blues: the cell with the largest error
    assert darkest in colors(tmp_path / "with.png")
    assert darkest not in colors(tmp_path / "without.png")


def test_half_a_line_is_skipped(tmp_path: Path) -> None:
    assert [row["step"] for row in read_rows(write_run(tmp_path / "run", 2) / METRICS_FILE)] == [1, 2, 2, 1]
    assert read_rows(tmp_path / "nothing") == []


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics.jsonl with rows"):
        plot_runs([tmp_path], tmp_path / "picture.png")


def test_smoothing_keeps_straight_lines_and_ends() -> None:
    line = np.linspace(3.0, 7.0, 50)
    np.testing.assert_allclose(smoothed(line, 6), line)
    noisy = line + np.random.default_rng(0).normal(size=50)
    assert np.abs(np.diff(smoothed(noisy, 6))).mean() < np.abs(np.diff(noisy)).mean() / 3
    assert smoothed(noisy, 6)[0] == pytest.approx(noisy[0])
