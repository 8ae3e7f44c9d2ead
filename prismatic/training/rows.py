"""Files of JSON rows that a run adds to and reads back when it goes on: metrics.jsonl, validation.jsonl.

A kill or a full disk may leave part of a row anywhere. Such a part costs that row alone: readers pass over it, and the next row begins on
a line of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file. Parts of rows are left out, with a warning if they are not the last line."""
    rows, damaged = [], []
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif line and number < len(lines):  # the last line has no line break: its writer was stopped
            damaged.append(number)
    if damaged:
        logger.warning("%s: %d of %d lines are damaged and left out (line %d)", path, len(damaged), len(lines), damaged[0])
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row as one line; makes the file where there is none."""
    with path.open("ab+") as file:
        if file.tell() and not _ends_with_a_line(file):
            file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def drop_later_rows(path: Path, step: int, is_done_again: Callable[[Mapping[str, Any]], bool] = lambda row: False) -> None:
    """Removes what a killed run wrote beyond the checkpoint of `step`, from which the run goes on, and rows of `step` that it will write
    again, as `is_done_again` says."""
    if not path.is_file():
        return
    kept = [row for row in read_rows(path) if row["step"] < step or (row["step"] == step and not is_done_again(row))]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    temporary.replace(path)


def _parse(line: str) -> dict[str, Any] | None:
    """The row; None for anything else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if is_row else None


def _ends_with_a_line(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
