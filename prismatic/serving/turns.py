"""Whose turn it is among many clients' requests, so that one client's flood waits behind itself and not before the others.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), every request counting the same: a client's request has the turn that is
served now, or the one after its own last, whichever is later. Lower turns go first, and within a turn who came first.

A client that calls itself something else in each request has no last one. So of one address only so many clients share a turn as robots
of one laboratory may, and further ones have later turns: such a flood waits behind itself, too, and not before other addresses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

_ROBOTS = 16  # of one address, with requests of the same turn


class Turns:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self._now = 0
        self._last: dict[Hashable, int] = {}  # turn of each client's newest request, where it is not over
        self._counts: Counter[tuple[int, Hashable]] = Counter()  # requests of an address by the turn that their clients would have

    def next_of(self, client: Hashable, address: Hashable = None) -> int:
        """The turn of a further request of `client`, which asks from `address`."""
        own = max(self._now, self._last.get(client, -1) + 1)
        turn = self._last[client] = own + self._counts[own, address] // _ROBOTS
        self._counts[own, address] += 1
        return turn

    def serve(self, turn: int) -> None:
        """A request with that turn is served now."""
        if turn > self._now:
            self._now = turn
            self._last = {client: last for client, last in self._last.items() if last >= turn}
            self._counts = Counter({key: count for key, count in self._counts.items() if key[0] >= turn})
