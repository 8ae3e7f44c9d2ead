"""What the robot was told in one episode, wherever an RLDS data set keeps it. Letters: T steps.

language_instruction and its like (`texts.TEXT_NAMES`)   in the step, in its observation or deeper, in episode_metadata or beside the steps
one text, or a list of texts that say the same           of a list one is drawn for the episode
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prismatic.vla.datasets.texts import TEXT_NAMES, distinct_texts, draw_text, instruction_names


class Told(NamedTuple):
    """One episode's instruction."""

    drawn: np.ndarray | str  # object [T], or one text for all steps; "" if nothing is said
    choice: tuple[str, ...]  # where there were several texts to choose from, all of them


def find_instruction(steps: Mapping[str, np.ndarray], beside: Sequence[Sequence[str]], episode: str) -> Told:
    """What the steps say, else what is stored beside them.

    `steps`: path of a leaf -> object [T] of texts or of tuples of texts, or [T, n] of texts; `beside`: lists of texts, the first that
    says something counts.
    """
    for path in sorted((path for path in steps if instruction_names([_last(path)])), key=_certainty):
        lists = [distinct_texts((row,) if isinstance(row, str | bytes) else row) for row in steps[path]]
        texts = distinct_texts(text for choice in lists for text in choice)
        if texts:
            drawn = np.empty(len(lists), dtype=object)
            drawn[:] = [draw_text(choice, episode) for choice in lists]
            return Told(drawn, texts if any(len(choice) > 1 for choice in lists) else ())
    for words in beside:
        if texts := distinct_texts(words):
            return Told(draw_text(texts, episode), texts if len(texts) > 1 else ())
    return Told("", ())


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _certainty(path: str) -> tuple[int, int]:
    """The step's own before those of its observation; then by name."""
    return path.count("/"), TEXT_NAMES.index(_last(path))
