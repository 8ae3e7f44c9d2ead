"""Where a name is in the files that users edit, for messages: "prismatic/vla/datasets/rlds/oxe/configs.py:123"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prismatic.vla import constants
from prismatic.vla.datasets.rlds.oxe import configs

CONSTANTS_FILE = "prismatic/vla/constants.py"
_OWN_TABLE = "OXE_DATASET_CONFIGS"


@dataclass(frozen=True)
class _Place:
    """Where an entry stands."""

    table: str
    line: int
    is_dictionary: bool  # as users paste entries of other code; the shipped ones are calls of DatasetEntry


def entry_location(dataset_name: str) -> str:
    """File and line of the entry called `dataset_name` that is used; the file alone if the name is not in it literally."""
    places = _effective(dataset_name)
    return f"{configs.CONFIGS_FILE}:{places[-1].line}" if places else configs.CONFIGS_FILE


def check_entry_stands_once(dataset_name: str) -> None:
    """Returns if no entry of one's own called `dataset_name` is lost to a later line of the same table, as Python takes the last.

    Raises:
        ValueError: one is; the message names the lines. A plain dictionary behind a call of DatasetEntry is what was pasted: it is taken.
    """
    places = _effective(dataset_name)
    lost = [str(place.line) for place in places[:-1] if place.is_dictionary or not places[-1].is_dictionary]
    if lost:
        raise ValueError(
            f"data set {dataset_name!r} has several entries in one table of {configs.CONFIGS_FILE}, in the lines {', '.join(lost)} and "
            f"{places[-1].line}, of which Python takes the last; remove all but one, or move yours into {_OWN_TABLE} at the end of the file"
        )


def platform_location(platform_name: str) -> str:
    """File and line of the robot platform called `platform_name`; the file alone if the name is not in it literally."""
    pattern = rf"""name\s*=\s*["']{re.escape(platform_name)}["']"""
    numbered = enumerate(_read(constants.__file__).splitlines(), start=1)
    return next((f"{CONSTANTS_FILE}:{number}" for number, line in numbered if re.search(pattern, line)), CONSTANTS_FILE)


def _effective(dataset_name: str) -> list[_Place]:
    """The places of that name in the table that is taken: one's own, else the shipped one."""
    places = list(_entries(dataset_name))
    return [place for place in places if place.table == _OWN_TABLE] or places


def _entries(dataset_name: str) -> Iterator[_Place]:
    """All places of that name, from top to bottom."""
    for statement in ast.parse(_read(configs.__file__)).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Dict) and isinstance(statement.target, ast.Name):
            for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == dataset_name:
                    yield _Place(statement.target.id, key.lineno, isinstance(value, ast.Dict))


def _read(source: str) -> str:
    try:
        return Path(source).read_text(encoding="utf-8")
    except OSError:  # installed without sources: a message is still right without a line
        return ""
