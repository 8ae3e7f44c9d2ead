"""failures.png: one row of frames per failed episode, to see at a glance what goes wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.robot.evaluation.rollout import EpisodeResult

if TYPE_CHECKING:
    from PIL import Image

SHEET_FILE = "failures.png"
_MAX_ROWS = 40  # more are left out, evenly over the tasks
_MARGIN, _GAP, _CAPTION = 24, 4, 30  # pixels
_PAPER, _INK, _SOFT, _RULE = "#ffffff", "#1d2733", "#66727f", "#d0453e"


def write_contact_sheet(results: Sequence[EpisodeResult], folder: Path) -> Path | None:
    """Writes failures.png; removes an old one and returns None where no episode failed with frames."""
    path = folder / SHEET_FILE
    failures = [result for result in results if not result.success and result.failure_frames]
    if not failures:
        path.unlink(missing_ok=True)
        return None
    draw_sheet(choose_rows(failures, _MAX_ROWS), len(failures), len(results)).save(path)
    return path


def choose_rows(failures: Sequence[EpisodeResult], count: int) -> list[EpisodeResult]:
    """At most `count` failures, the first of each task, then the second of each, in the order of tasks and episodes."""
    rank: dict[str, int] = {}
    ranked = []
    for position, result in enumerate(failures):
        rank[result.task] = rank.get(result.task, -1) + 1
        ranked.append((rank[result.task], position))
    return [failures[position] for _, position in sorted(sorted(ranked)[:count], key=lambda pair: pair[1])]


def draw_sheet(rows: Sequence[EpisodeResult], num_failures: int, num_episodes: int) -> Image.Image:
    """The sheet as a picture, in two columns if it would be long."""
    from PIL import Image, ImageDraw, ImageFont

    title, text = ImageFont.load_default(size=20), ImageFont.load_default(size=13)
    num_columns = 2 if len(rows) > 8 else 1
    strip_height, strip_width = np.hstack(rows[0].failure_frames).shape[:2]
    strip_width += _GAP * (len(rows[0].failure_frames) - 1)
    row_height = strip_height + _CAPTION + 14
    per_column = -(-len(rows) // num_columns)
    size = (_MARGIN + num_columns * (strip_width + _MARGIN), 70 + per_column * row_height + _MARGIN // 2)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    shown = "" if len(rows) == num_failures else f", {len(rows)} of them shown"
    draw.text((_MARGIN, 16), f"{num_failures} of {num_episodes} episodes failed{shown}", fill=_INK, font=title)
    draw.text((_MARGIN, 42), "what the policy saw, from the first query (left) to the end", fill=_SOFT, font=text)
    for number, result in enumerate(rows):
        left = _MARGIN + number // per_column * (strip_width + _MARGIN)
        top = 70 + number % per_column * row_height
        draw.rectangle((left, top + 3, left + 3, top + _CAPTION - 8), fill=_RULE)
        caption = f"#{result.index}  {result.instruction}"
        steps = "crashed" if result.error else f"{result.num_steps} steps"
        draw.text((left + 10, top + 4), textwrap.shorten(caption, strip_width // 8, placeholder=" ..."), fill=_INK, font=text)
        draw.text((left + strip_width, top + 4), steps, fill=_SOFT, font=text, anchor="ra")
        for column, frame in enumerate(result.failure_frames):
            sheet.paste(Image.fromarray(frame), (left + column * (frame.shape[1] + _GAP), top + _CAPTION))
    return sheet
