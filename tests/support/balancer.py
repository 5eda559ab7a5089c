"""A load balancer: one address for several servers, each connection to one of them by lot."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_CHUNK = 65_536
_KEEP_ALIVE = re.compile(rb"\r\nConnection: *keep-alive(?=\r\n)", re.IGNORECASE)
_WEBSOCKET = re.compile(rb"\r\nUpgrade: *websocket\r\n", re.IGNORECASE)


class Balancer:
    """Passes bytes on between its own port and servers on others, in a thread of its own.

    A client cannot stay with a server that it has found: of connections that would be kept for
    further requests each carries one, and with `moving` a WebSocket breaks off after that many
    seconds on average, so that whoever comes back comes to another server as well.

    It takes connections from `open` to `close`. Where no server listens it breaks them off at once.
    """

    def __init__(
        self,
        ports: Sequence[int],
        *,
        host: str,
        port: int,
        chance: random.Random,
        moving: float | None = None,
    ) -> None:
        self._ports = ports
        self._address = host, port
        self._chance = chance
        self._moving = moving
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Begins to take connections, unless it does."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(self._loop,), daemon=True).start()
            await self._there(self._listen())

    async def close(self) -> None:
        """Takes no more of them; those that stand get what the servers said, and are cut."""
        loop, self._loop = self._loop, None
        if loop is not None:
            work = asyncio.run_coroutine_threadsafe(self._end(), loop)
            await asyncio.wrap_future(work)
            loop.call_soon_threadsafe(loop.stop)

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    # In its thread

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, *self._address, backlog=2048)

    async def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._lines:
            # Lines of servers that are gone end by themselves.
            await asyncio.wait(self._lines, timeout=0.2)
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # until they are really closed

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.get_running_loop().create_task(self._pass_on(reader, writer))
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(writer)
        found = await self._connect()
        if found is None:
            writer.transport.abort()
            return
        there, up = found
        self._keep(up)
        heard = asyncio.ensure_future(self._requests(reader, writer, up))
        try:
            await _pump(there, writer)
            # Whatever the server said is still to come to the client.
            writer.close()
        except OSError:
            writer.transport.abort()
        finally:
            heard.cancel()
            await asyncio.gather(heard, return_exceptions=True)
            up.transport.abort()

    def _keep(self, writer: asyncio.StreamWriter) -> None:
        self._writers = {one for one in self._writers if not one.is_closing()} | {writer}

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._chance.sample(self._ports, len(self._ports)):
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: asyncio.StreamWriter
    ) -> None:
        first = await reader.read(_CHUNK)
        head, blank, rest = first.partition(b"\r\n\r\n")
        if self._moving is not None and _WEBSOCKET.search(head + blank):
            after = self._chance.expovariate(1 / self._moving)
            asyncio.get_running_loop().call_later(after, writer.transport.abort)
        up.write(_KEEP_ALIVE.sub(b"\r\nConnection: close", head + blank) + rest)
        try:
            await _pump(reader, up)
            up.write_eof()
        except OSError:
            up.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()
