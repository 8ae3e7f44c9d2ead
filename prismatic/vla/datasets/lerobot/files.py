"""Files of LeRobot data sets as other software leaves them: JSON with a byte order mark or printed over several lines, pointers, gaps.

Every message names the file, what was found in it and what to do. Files whose names begin with a dot (macOS leaves ._name beside each
file that it copies) are no part of a data set.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.broken_files import file_problem, unreadable

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """The files at any depth whose name ends so, without hidden ones, in the order of their names."""
    found = (path for path in folder.rglob(f"*{suffix}") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`.

    Raises:
        ValueError: absent, a pointer, not JSON, or no object; the message names the file.
    """
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise unreadable(path, "JSON", error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected an object {{...}}")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`: one a line, printed over several lines, or in a list.

    Raises:
        ValueError: absent, a pointer, or not JSON; the message names the file.
    """
    try:
        rows = list(_values(_text(path)))
    except json.JSONDecodeError as error:
        raise unreadable(path, "JSON lines", error) from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds values that are no objects, expected one object {{...}} a line")
    return rows


def read_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """The table in `path` (pyarrow.Table), or those of its columns.

    Raises:
        ValueError: absent, a pointer, damaged, or pyarrow is not installed; the message names the file.
    """
    try:
        return open_parquet(path).read(columns=columns, use_threads=False)
    except OSError as error:
        raise unreadable(path, "parquet", error) from error


def open_parquet(path: Path) -> Any:
    """The open pyarrow.parquet.ParquetFile, of which only the footer is read.

    Raises:
        ValueError: as `read_parquet`.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"reading LeRobot data sets needs pyarrow ({error}); install the extra: pip install -e '.[lerobot]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise unreadable(path, "parquet", error) from error


def _text(path: Path) -> str:
    problem = file_problem(path)
    if problem is not None:
        raise ValueError(f"{path} {problem}")
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise unreadable(path, "text", error) from error


def _values(text: str) -> Iterator[Any]:
    """The JSON values one after the other, whatever blanks and commas are between them; the members of lists."""
    decoder, place = json.JSONDecoder(), 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if place == len(text):
            return
        value, place = decoder.raw_decode(text, place)
        yield from value if isinstance(value, list) else (value,)
