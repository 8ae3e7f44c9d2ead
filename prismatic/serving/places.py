"""The places among the pending requests: so many, and so many bytes, for all clients together.

Where none is left, an address gets one from another that has more of them, and a client from another of its address that has more: the
latest request there that has not begun is refused instead. So nobody can keep the others out by asking for much at once, be it under many
names or over many connections.

The limit of that: an address is where a connection comes from. Behind one proxy or router all clients have one, and whoever changes his
name with every request there stands beside robots that do not; a sender with many addresses has the share of each.
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
    is_left: bool = False  # nobody holds it any more
    address: Hashable = None  # from which its client asks

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
        more = "this client or its address has more requests there than others"
        return BusyError(f"the server is full, and {more}; try again in {BusyError.retry_after_s} s")


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
            BusyError: none is left, and nobody has clearly more than the address of `place`, or its client than others there.
        """
        self._fit(place, lambda _: 1, self._most, f"the server already has {len(self)} requests (--max_queue)")
        self.weigh(place, place.num_bytes)
        self._taken[place] = None

    def weigh(self, place: Place, num_bytes: int) -> None:
        """`place` holds so many bytes now.

        Raises:
            BusyError: that is too much beside the others. It weighs nothing then, as its holder, in another thread, leaves it later.
        """
        place.num_bytes = num_bytes
        try:
            self._fit(place, lambda one: one.num_bytes, MAX_BYTES, f"requests with more than {MAX_BYTES >> 20} MB of pictures are pending")
        except BusyError:
            place.num_bytes = 0
            raise

    def leave(self, place: Place) -> None:
        self._taken.pop(place, None)
        place.is_left = True

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
    """The latest place, not begun, of whoever has most, if that is more than `place` and its like would then have.

    Addresses are compared with that of `place`, and clients of the same address with its client.
    """
    by_address: Counter[Hashable] = Counter()
    by_client: Counter[tuple[Hashable, Hashable]] = Counter()
    for one in [*others, place]:
        by_address[one.address] += amount(one)
        by_client[one.address, one.client] += amount(one)

    def held(one: Place) -> tuple[int, int]:
        return by_address[one.address], by_client[one.address, one.client]

    of_address, of_client = held(place)

    def has_more(one: Place) -> bool:
        return held(one)[1] > of_client if one.address == place.address else held(one)[0] > of_address

    found = [one for one in reversed(others) if amount(one) and not one.is_begun and has_more(one)]
    return max(found, key=held, default=None)
