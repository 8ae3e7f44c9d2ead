"""A TCP proxy with faults, run as a process of its own. Arguments: port of the server. Prints its port, then obeys lines on stdin:

pass        forward everything                     delay S     keep every piece of the server's answers for S seconds
freeze      take bytes and forward none            drop        reset the open connections, accept new ones
refuse      close the listening socket, too (pass opens it again)
trickle     send the server's answers byte by byte, 50 a second
target P    drop, and forward to another server from now on
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


class Proxy:
    """One listening port in front of one server."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, 0
        self.delay_s, self.is_frozen, self.is_trickling = 0.0, False, False
        self.server: asyncio.Server | None = None
        self.writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        if self.server is None:
            self.server = await asyncio.start_server(self.accept, "127.0.0.1", self.port)
            self.port = self.server.sockets[0].getsockname()[1]

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self.writers |= {writer, up_writer}
        with contextlib.suppress(asyncio.CancelledError):  # the proxy ends
            await asyncio.gather(self.forward(reader, up_writer, delayed=False), self.forward(up_reader, writer, delayed=True))

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delayed: bool) -> None:
        try:
            while data := await reader.read(1 << 16):
                while self.is_frozen:
                    await asyncio.sleep(0.01)
                if delayed:
                    await asyncio.sleep(self.delay_s)
                for piece in [data[at : at + 1] for at in range(len(data))] if self.is_trickling and delayed else [data]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.02 if self.is_trickling else 0)
        except ConnectionError:
            pass  # dropped on command or by one of the ends
        writer.close()

    def drop(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def obey(self, words: list[str]) -> None:
        self.delay_s = float(words[1]) if words[0] == "delay" else 0.0
        self.is_frozen, self.is_trickling = words[0] == "freeze", words[0] == "trickle"
        if words[0] == "refuse" and self.server is not None:
            self.server.close()
            self.server = None
        elif words[0] != "refuse":
            await self.listen()
        if words[0] == "target":
            self.target = int(words[1])
        if words[0] in ("drop", "refuse", "target"):
            self.drop()
        print("done", flush=True)


async def main() -> None:
    proxy = Proxy(int(sys.argv[1]))
    await proxy.listen()
    print(proxy.port, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await proxy.obey(line.split())
    proxy.drop()


asyncio.run(main())
