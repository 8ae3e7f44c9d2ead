"""A server's address, taken before minutes of loading, so that whoever comes second is told at once.

Two sockets may be bound to one address while neither listens: on Linux SO_REUSEADDR allows that, and without it a server could not be
started anew for a minute. Listening already would make a server that still loads look like one that hangs (`healthcheck.py`). So until it
listens, a server also has a name for its address among Linux's abstract sockets: it belongs to one process, in the same network namespace
as the port, and is free again as soon as that process ends, however it ends. Other systems refuse the second socket by themselves.
"""

from __future__ import annotations

import ipaddress
import socket
import sys

_BACKLOG = 1024
_ANY, _LOOPBACK = ("0.0.0.0", "::"), ("127.0.0.1", "::1")


class BoundSocket(socket.socket):
    """A socket with an address of its own, as soon as it is bound by `open_socket`."""

    _wanted = ""
    _names: tuple[socket.socket, ...] = ()

    def listen(self, backlog: int = _BACKLOG) -> None:
        """Raises ValueError where another program has begun to listen there meanwhile."""
        try:
            super().listen(backlog)
        except OSError as error:
            raise ValueError(_trouble(self._wanted, error)) from error
        self._let_go()

    def close(self) -> None:
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        for name in self._names:
            name.close()


def open_socket(host: str, port: int) -> BoundSocket:
    """A bound socket; port 0 takes a free one.

    Raises:
        ValueError: the address is taken, also by a server that still loads, or is not one of this machine.
    """
    wanted = f"--host {host} --port {port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = BoundSocket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:  # the last: a name with an empty or too long part
        raise ValueError(_trouble(wanted, error)) from error
    taken = found.getsockname()[:2]
    found._wanted = f"--host {host} --port {taken[1]}"
    try:
        found._names = _take_names(*taken)
    except OSError as error:
        found.close()
        raise ValueError(_trouble(wanted, "another server, which still loads its policy, has this address")) from error
    return found


def _trouble(wanted: str, error: object) -> str:
    return f"{wanted}: {error}; choose another address or stop the server that has it"


def _take_names(host: str, port: int) -> tuple[socket.socket, ...]:
    """Holds the address; every address is also that of this machine to itself.

    Raises:
        OSError: somebody has it.
    """
    if not sys.platform.startswith("linux"):
        return ()
    plain = str(ipaddress.ip_address(host.partition("%")[0]))
    taken: list[socket.socket] = []
    try:
        for one in (plain, *_LOOPBACK) if plain in _ANY else (plain,):
            taken.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            taken[-1].bind(f"\0openvla-oft-robot {one} {port}")
    except OSError:
        for name in taken:
            name.close()
        raise
    return tuple(taken)
