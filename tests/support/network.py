"""A network between clients and servers that goes dark, forgets its lines and is slow to say so."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Self

from tests.support.server import free_port

_CHUNK = 65_536


class _Line:
    """One connection through the network."""

    def __init__(self, down: asyncio.StreamWriter) -> None:
        self.writers = [down]
        self.forgotten = False


class Network:
    """Passes bytes on from its own port to servers', each connection to one of them by chance.

    async with Network([server.port]) as network:
        network.darken(forget=True)   # a black hole: no byte passes, and nobody is told
        network.lighten()             # new connections pass; those it forgot stay silent for ever
        network.cut()                 # every connection breaks off, and both ends hear of it
    """

    def __init__(self, ports: Sequence[int], *, chance: random.Random | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.made = 0
        """How many connections were made."""
        self.late = 0.0
        """Up to how many seconds later a server hears that a client has hung up."""
        self.early = 0
        """How many of the next connections break off at the first word of the server."""
        self._ports = ports
        self._chance = chance or random.Random()
        self._light = asyncio.Event()
        self._light.set()
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    @property
    def lines(self) -> int:
        """How many connections stand."""
        return sum(not line.forgotten for line in self._lines)

    def darken(self, *, forget: bool) -> None:
        """Stops everything, without a word; connections that are made wait.

        Without `forget` those that stand go on afterwards, as TCP does that sends again; with it
        they are lost for both ends, as where a router forgot them.
        """
        self._light.clear()
        for line in self._lines:
            line.forgotten |= forget

    def lighten(self) -> None:
        """Ends the darkness."""
        self._light.set()

    def cut(self) -> None:
        """Breaks off every connection."""
        for line in self._lines:
            for writer in line.writers:
                writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(writer)
        self._lines.add(line)
        self.made += 1
        try:
            await self._light.wait()
            port = self._chance.choice(self._ports)
            with contextlib.suppress(OSError):
                there, up = await asyncio.open_connection("127.0.0.1", port)
                line.writers.append(up)
                await asyncio.gather(
                    self._pump(line, reader, up, late=True),
                    self._pump(line, there, writer, late=False),
                )
        finally:
            self._lines.discard(line)
            for one in line.writers:
                one.transport.abort()

    async def _pump(
        self,
        line: _Line,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        late: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                await self._light.wait()
                if line.forgotten:
                    continue
                if self.early > 0 and not late:
                    self.early -= 1
                    break
                writer.write(chunk)
                await writer.drain()
        await self._light.wait()
        if line.forgotten:
            return
        if late:
            await asyncio.sleep(self._chance.uniform(0, self.late))
        # What was written goes out before the end does.
        with contextlib.suppress(OSError):
            writer.close()
