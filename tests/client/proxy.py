"""A wire between a client and a server that a test can cut, or let lose what the server says."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from tests.support.server import free_port

_CHUNK = 65_536


class Proxy:
    """Passes bytes on between its own port and a server's, as long as it is told to.

    async with Proxy(server.port) as wire:
        async with connect(wire.url, …) as session:
            wire.mute = True  # the server hears, and is not heard
            wire.cut()        # every connection breaks off; others can be made
    """

    def __init__(self, server_port: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.mute = False
        self.refuse = False
        """New connections are broken off at once."""
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Breaks off every connection."""
        for task in self._tasks:
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._pass_on(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.refuse:
                return
            with contextlib.suppress(OSError):
                there, up = await asyncio.open_connection("127.0.0.1", self._server_port)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pump(reader, up, down=False))
                        group.create_task(self._pump(there, writer, down=True))
                finally:
                    up.transport.abort()
        finally:
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if down and self.mute:
                    continue
                writer.write(chunk)
                await writer.drain()
        # Whoever hangs up does it for both.
        writer.transport.abort()
