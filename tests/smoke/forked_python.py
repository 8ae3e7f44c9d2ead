"""What stands for the interpreter in programs that launching.py forks: has a program forked, too, and behaves as if it were that program.

Used as `python -I -S forked_python.py INTERPRETER WORDS...`. What cannot be forked (options of the interpreter but -u, which changes
nothing that a test sees; no address in the environment) is executed by INTERPRETER.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

ADDRESS = "PRISMATIC_FORKER"  # environment variable: the socket of the forking process
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def send(connection: socket.socket, request: dict[str, Any]) -> None:
    """One request, with the three standard streams of this process."""
    content = json.dumps(request).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(content)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What `send` sent: the request and the streams."""
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    content, length = b"", int.from_bytes(head, "big")
    while len(content) < length:
        content += connection.recv(length - len(content))
    return json.loads(content), descriptors


def main() -> None:
    """Ends as the program does: with its status, or by the signal that killed it."""
    interpreter, words = sys.argv[1], sys.argv[2:]
    plain = words[1:] if words[:1] == ["-u"] else words
    if ADDRESS not in os.environ or not plain or (plain[0].startswith("-") and plain[0] not in ("-c", "-m")):
        os.execv(interpreter, [interpreter, *words])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        for number in _FORWARDED:
            signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
        send(connection, {"words": plain, "environment": dict(os.environ), "folder": os.getcwd()})
        status = json.loads(connection.recv(16))
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
