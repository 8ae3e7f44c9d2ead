"""What is kept of things that are costly to make: all that was asked for ahead, and the latest of the rest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The programs of one kind that are reserved, and of the others those that were used last, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._programs: OrderedDict[Hashable, T] = OrderedDict()  # the latest last
        self._reserved: dict[Hashable, None] = {}

    def reserve(self, keys: Iterable[Hashable]) -> None:
        """The programs of `keys` stay, once they are made."""
        self._reserved |= dict.fromkeys(keys)

    def missing(self) -> list[Hashable]:
        """Those that are reserved and were not made."""
        return [key for key in self._reserved if key not in self._programs]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._programs

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """The program of `key`, made if there is none."""
        if key not in self._programs:
            self._programs[key] = make()
            others = [one for one in self._programs if one not in self._reserved]
            if len(others) > self._limit:
                del self._programs[others[0]]
        self._programs.move_to_end(key)
        return self._programs[key]
