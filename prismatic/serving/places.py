"""The places among the pending requests: so many, and so many bytes, for all clients together.

Where none is left, a client gets one from whoever has more of them, whose latest request that has not begun is refused instead: nobody can
keep the others out by asking for much at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from prismatic.wire.errors import BusyError

MAX_BYTES = 1 << 30  # of bodies that are not read yet and of pictures that wait; a JPEG file may hold hundreds of times what it weighs


@dataclass(eq=False)
class Place:
    """One place among the pending requests."""

    client: Hashable = None
    num_bytes: int = 0
    is_read: bool = False  # its request is in the queue or further
    is_begun: bool = False  # the policy computes it
    is_lost: bool = False  # another client has got it

    def check(self) -> None:
        """Accepts a place that is still there.

        Raises:
            BusyError: another client has got it.
        """
        if self.is_lost:
            raise self.refusal()

    @staticmethod
    def refusal() -> BusyError:
        """What its client is told."""
        return BusyError(
            f"the server is full, and this client has more requests there than others; try again in {BusyError.retry_after_s} s"
        )


class Places:
    """All places of a server. Not for several threads at once."""

    def __init__(self, most: int, on_lost: Callable[[Place], None]) -> None:
        """`on_lost` is called with each place that another client gets."""
        self._most, self._on_lost = most, on_lost
        self._taken: dict[Place, None] = {}  # the latest last

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, place: Place) -> None:
        """Until `leave`.

        Raises:
            BusyError: none is left, and no client has clearly more than that of `place`.
        """
        self._fit(place, lambda _: 1, self._most, f"the server already has {len(self)} requests (--max_queue)")
        self.weigh(place, place.num_bytes)
        self._taken[place] = None

    def weigh(self, place: Place, num_bytes: int) -> None:
        """`place` holds so many bytes now.

        Raises:
            BusyError: that is too much beside the others.
        """
        place.num_bytes = num_bytes
        self._fit(place, lambda one: one.num_bytes, MAX_BYTES, f"requests with more than {MAX_BYTES >> 20} MB of pictures are pending")

    def leave(self, place: Place) -> None:
        self._taken.pop(place, None)

    def _fit(self, place: Place, amount: Callable[[Place], int], limit: int, trouble: str) -> None:
        others = [one for one in self._taken if one is not place]
        while others and sum(map(amount, others)) + amount(place) > limit:
            lost = _spare(others, place, amount)
            if lost is None:
                raise BusyError(f"{trouble}; try again in {BusyError.retry_after_s} s")
            others.remove(lost)
            self.leave(lost)
            lost.is_lost = True
            self._on_lost(lost)


def _spare(others: list[Place], place: Place, amount: Callable[[Place], int]) -> Place | None:
    """The latest place, not begun, of the client that has most, if that is more than the client of `place` would then have."""
    held: Counter[Hashable] = Counter()
    for one in others:
        held[one.client] += amount(one)
    greedy = max(held, key=lambda client: held[client])
    if held[greedy] <= held[place.client] + amount(place):
        return None
    return next((one for one in reversed(others) if one.client == greedy and amount(one) and not one.is_begun), None)
