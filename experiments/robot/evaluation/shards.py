"""A part of an evaluation, for one of several machines, jobs or GPUs: every nth of its episodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Number `number` of `count` parts, from 1; the whole by default."""

    number: int = 1
    count: int = 1

    @property
    def suffix(self) -> str:
        """For the name of its journal; "" for the whole."""
        return f".shard-{self.number}-of-{self.count}" if self.count > 1 else ""

    def of(self, items: Sequence[T]) -> list[T]:
        """Those of `items` that are its own; the parts of one count are disjoint and make up the whole."""
        return list(items[self.number - 1 :: self.count])


def parse_shard(text: str) -> Shard:
    """What --shard says: "2/8"; "" is the whole.

    Raises:
        ValueError: no such part.
    """
    if not text:
        return Shard()
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--shard is {text!r}; expected number/count with numbers from 1, such as 1/8 to 8/8")
    return Shard(int(found[1]), int(found[2]))
