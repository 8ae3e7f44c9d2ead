"""What a robot was told: the names under which recorders store it, and one text out of several that say the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

# Names of instructions, the most certain first.
TEXT_NAMES = (
    "language_instruction",
    "natural_language_instruction",
    "instruction",
    "instructions",
    "task_instruction",
    "task_description",
    "language",
    "language_raw",
    "lang",
    "prompt",
)


def draw_text(texts: Sequence[str], episode: str) -> str:
    """One of `texts`, always the same one for the same `episode` (its name; folders do not count); "" if there is none.

    Over many episodes every text has its turn, so that a policy hears all of them.
    """
    if not texts:
        return ""
    digest = hashlib.sha256(PurePath(episode).name.encode()).digest()
    return texts[int.from_bytes(digest[:8], "big") % len(texts)]


def distinct_texts(values: Iterable[Any]) -> tuple[str, ...]:
    """The texts of `values` (str, bytes), stripped, without empty and repeated ones, in their order."""
    return tuple(dict.fromkeys(text for value in values if (text := as_text(value))))


def as_text(value: Any) -> str:
    """The text of a string stored in any way: str, bytes, an array whose first value is one of them."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()
