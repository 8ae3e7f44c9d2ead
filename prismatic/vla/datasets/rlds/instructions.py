"""What the robot was told in one episode, wherever an RLDS data set keeps it. Letters: T steps.

language_instruction and its like (`texts.TEXT_NAMES`)   in the step, in its observation or deeper, in episode_metadata
one text, or a list of texts that say the same           of a list one is drawn for the episode
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prismatic.vla.datasets.texts import TEXT_NAMES, distinct_texts, draw_text

Told = tuple[np.ndarray | str, tuple[str, ...]]


def find_instruction(steps: Mapping[str, np.ndarray], metadata: Mapping[str, list[str]], episode: str) -> Told:
    """(object [T], or one text for all steps; where there were several to choose from, all of them); "" and () if nothing is said.

    `steps`: path of a leaf -> object [T] of texts or of tuples of texts; `metadata`: name -> texts.
    """
    for path in sorted((path for path in steps if _last(path) in TEXT_NAMES), key=_certainty):
        lists = [value if isinstance(value, tuple) else (value,) for value in steps[path]]
        texts = distinct_texts(text for texts in lists for text in texts)
        if texts:
            drawn = np.empty(len(lists), dtype=object)
            drawn[:] = [draw_text(distinct_texts(choice), episode) for choice in lists]
            return drawn, texts if any(len(choice) > 1 for choice in lists) else ()
    for name in TEXT_NAMES:
        if texts := distinct_texts(metadata.get(name, [])):
            return draw_text(texts, episode), texts if len(texts) > 1 else ()
    return "", ()


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _certainty(path: str) -> tuple[int, int]:
    """The step's own before those of its observation; then by name."""
    return path.count("/"), TEXT_NAMES.index(_last(path))
