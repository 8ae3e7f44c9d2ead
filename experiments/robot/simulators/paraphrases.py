"""Other words for the instructions of simulated tasks, ten for each, in three distances from the original.

Tasks that are named here have a table of their own (MetaWorld, ALOHA): three that say nearly the same, four with other words, three that
describe what is wanted instead. LIBERO's tasks have their names from elsewhere; theirs follow from rules about verbs. No policy of ours is
trained on either; whoever trains with `--paraphrases` writes other sentences, or has measured memory.
"""

from __future__ import annotations

import re

import numpy as np

from experiments.robot.simulators.paraphrase_table import PARAPHRASES

_DISTANCES = {1: slice(0, 3), 2: slice(3, 7), 3: slice(7, 10)}  # severity -> which of the ten

# Verbs of instructions that come from elsewhere -> others, of which the nth paraphrase takes the nth.
_VERBS = {
    "pick up": ("grab", "take", "lift", "get hold of"),
    "place it": ("put it", "set it down", "lay it", "leave it"),
    "put both": ("place both", "move both", "set both", "lay both"),
    "put": ("place", "set", "move", "lay"),
    "open": ("pull open", "get open", "draw open", "unclose"),
    "close": ("shut", "push shut", "get closed", "bring shut"),
    "turn on": ("switch on", "start", "light", "power up"),
    "turn off": ("switch off", "stop", "put out", "power down"),
    "push": ("shove", "slide", "move", "nudge"),
    "stack": ("pile", "put", "place", "set"),
}
_VERB = re.compile(r"\b(" + "|".join(_VERBS) + r")\b")
_NEAR = ("please {}", "{} now", "could you {}")
_FAR = ("what remains to be done here is this: {}", "i need somebody to {}, and nothing else", "when you are ready, {} for me")


def paraphrases(instruction: str) -> tuple[str, ...]:
    """Ten other ways to say it, the nearest first.

    Raises:
        ValueError: none is known.
    """
    if instruction in PARAPHRASES:
        return PARAPHRASES[instruction]
    if not _VERB.search(instruction):
        raise ValueError(f"--perturb language: no other words are known for {instruction!r} (experiments/robot/simulators/paraphrases.py)")
    other = [_with_verbs(instruction, which) for which in range(4)]
    return (*(text.format(instruction) for text in _NEAR), *other, *(text.format(words) for text, words in zip(_FAR, other, strict=False)))


def _with_verbs(instruction: str, which: int) -> str:
    """Each verb of `_VERBS` replaced by its other with that number."""
    return _VERB.sub(lambda found: _VERBS[found[1]][which], instruction)


def choose_paraphrase(instruction: str, severity: int, rng: np.random.Generator) -> str:
    """One of those at that distance.

    Raises:
        ValueError: none is known.
    """
    return str(rng.choice(paraphrases(instruction)[_DISTANCES[severity]]))
