"""What people wrote: the names under which recorders store what a robot was told, one text out of several that say the same, JSON."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INSTRUCTIONS_FILE, INSTRUCTION_FILE = TEXT_FILES = ("instructions.json", "instruction.txt")  # beside recordings, or above them

# Names of instructions, the most certain first.
TEXT_NAMES = (
    "language_instruction",
    "language_instructions",
    "natural_language_instruction",
    "instruction",
    "instructions",
    "task_instruction",
    "task_description",
    "lang_instruction",
    "language",
    "language_raw",
    "language_text",
    "lang",
    "prompt",
)


def read_text(path: Path) -> str:
    """What a file says that a person wrote: UTF-8 or, with the mark in front of it, UTF-16.

    Raises:
        ValueError: it is in another encoding; the message names it.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8, or copy it again") from error


def parse_json(text: str, remedy: str) -> Any:
    """What a person has written as JSON.

    Raises:
        ValueError: it is none, or a name stands twice in an object, of which JSON would keep the last without a word.
    """

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                raise ValueError(f"{name!r} stands there twice; {remedy}")
            content[name] = value
        return content

    return json.loads(text, object_pairs_hook=as_object)


def instruction_names(names: Collection[str]) -> list[str]:
    """Those of `names` that an instruction has, the most certain first."""
    return [name for name in TEXT_NAMES if name in names]


def draw_text(texts: Sequence[str], episode: str) -> str:
    """One of `texts`, always the same one for the same `episode` (its name within the data set); "" if there is none.

    Over many episodes every text has its turn, so that a policy hears all of them.
    """
    if len(texts) < 2:
        return texts[0] if texts else ""
    digest = hashlib.sha256(episode.encode()).digest()
    return texts[int.from_bytes(digest[:8], "big") % len(texts)]


def distinct_texts(values: Iterable[Any]) -> tuple[str, ...]:
    """The texts of `values` (str, bytes), stripped, without empty and repeated ones, in their order."""
    return tuple(dict.fromkeys(text for value in values if (text := as_text(value))))


def as_text(value: Any) -> str:
    """The text of a string stored in any way: str, bytes, an array whose first value is one of them."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()
