"""Which episode to play: everything random in it follows from its specification alone."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass

import numpy as np

# Streams of random numbers: demonstrations, evaluation and rollouts to train on never see the same draw, whatever the seed.
SPLITS = ("demonstration", "evaluation", "collection")
NO_END = sys.maxsize  # [steps] for what a simulator would end by itself: who plays decides, and an expert that takes over may need longer


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode to play; everything random in it follows from these fields alone."""

    task: str
    index: int  # number of the episode within its task; benchmarks with fixed initial states use it to pick one
    seed: int
    split: str = "evaluation"  # one of SPLITS
    attempt: int = 0  # raised when a demonstration failed and is tried again elsewhere

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"episode split is {self.split!r}, expected one of {list(SPLITS)}")
        if self.seed < 0:  # numpy draws from none
            raise ValueError(f"--seed is {self.seed}, must be at least 0")

    def rng(self, purpose: str = "reset") -> np.random.Generator:
        """A fresh generator for one purpose of this episode, the same on every machine."""
        words = [self.seed, self.index, self.attempt, SPLITS.index(self.split)]
        return np.random.default_rng([*words, zlib.crc32(self.task.encode()), zlib.crc32(purpose.encode())])
