"""Whose turn it is among many clients' requests, so that one client's flood waits behind itself and not before the others.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), every request counting the same: a client's request has the turn that is
served now, or the one after its own last, whichever is later. Lower turns go first, and within a turn who came first.
"""

from __future__ import annotations

from collections.abc import Hashable


class Turns:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self._now = 0
        self._last: dict[Hashable, int] = {}  # turn of each client's newest request, where it is not over

    def next_of(self, client: Hashable) -> int:
        """The turn of a further request of `client`."""
        turn = self._last[client] = max(self._now, self._last.get(client, -1) + 1)
        return turn

    def serve(self, turn: int) -> None:
        """A request with that turn is served now."""
        if turn > self._now:
            self._now = turn
            self._last = {client: last for client, last in self._last.items() if last >= turn}
