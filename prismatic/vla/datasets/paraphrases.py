"""Instructions in other words, from a file of the user: {"open the drawer": ["pull the drawer out", "get the drawer open"], ...}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from prismatic.vla.constants import near_names
from prismatic.vla.datasets.texts import parse_json, read_text


def read_paraphrases(path: Path, instructions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Instruction -> itself and the other ways to say it, for those of `instructions` that the file knows.

    Raises:
        ValueError: no such file, not of this form, or it knows none of the instructions.
    """
    try:
        content = parse_json(read_text(path), "put all texts into one list")
    except (OSError, ValueError) as error:
        raise ValueError(f'--paraphrases {path} cannot be read ({error}); expected {{"instruction": ["in other words", ...]}}') from error
    if not isinstance(content, dict):
        raise ValueError(f'--paraphrases {path} holds no object; expected {{"instruction": ["in other words", ...]}}')
    for instruction, texts in content.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"--paraphrases {path}: what stands at {instruction!r} is no list of texts that say something")
    known = set(instructions)
    found = {instruction: (instruction, *map(str.strip, content[instruction])) for instruction in content if instruction in known}
    if not found:
        wanted = next(iter(sorted(known)), "")
        raise ValueError(f"--paraphrases {path} has none of the data's instructions, such as {wanted!r}; {near_names(wanted, content)}")
    return found


def choose_words(instruction: str, paraphrases: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    """One of the ways to say it, each as likely as the others; itself where no other is known."""
    ways = paraphrases.get(instruction)
    return ways[int(rng.integers(len(ways)))] if ways else instruction
