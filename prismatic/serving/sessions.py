"""Who is being served: each robot's observations are watched apart from those of others, over websockets as over HTTP."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from prismatic.policy.watching import ObservationWatch
from prismatic.wire import keys

_MAX_SESSIONS = 256  # of HTTP clients, whose end nobody notices
_MAX_WARNINGS = 64


class Sessions:
    """The watches of one policy's clients, and what they warned of."""

    def __init__(self, make_watch: Callable[[], ObservationWatch]) -> None:
        self.open = make_watch
        self._watches: OrderedDict[str, ObservationWatch] = OrderedDict()
        self._warnings: dict[str, None] = {}

    def of_http(self, headers: Mapping[str, str], host: str) -> ObservationWatch:
        """The watch of the client that names its session in a header, else of its address."""
        name = headers.get(keys.SESSION_HEADER, "")[:64] or host
        watch = self._watches.pop(name, None) or self.open()
        self._watches[name] = watch  # the latest last
        if len(self._watches) > _MAX_SESSIONS:
            self._watches.popitem(last=False)
        return watch

    def note(self, warnings: list[str]) -> None:
        """Keeps them for people who look at /info."""
        for warning in warnings:
            if len(self._warnings) < _MAX_WARNINGS:
                self._warnings[warning] = None

    @property
    def warnings(self) -> list[str]:
        """Of all clients since the server started, the first ones."""
        return list(self._warnings)
