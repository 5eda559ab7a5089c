"""A page's origin that outlives its server, as a content delivery network in front of it does."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
from pathlib import Path
from typing import Self

from tests.support.server import free_port

# Half-open connections of a killed browser end with the test, not before.
_CHUNK = 65_536


class Front:
    """Serves a folder of pages at its own origin, and passes everything else on to a server.

        async with Front(pages, server.port) as front:
            await browser.open(front.url)

    While the server is down the page still comes, and whatever asks for the server is cut off.
    `cut` is a network that fails for a moment: `cuts` counts the lines to the server that it took.
    With `refuses_upgrades` it lets no WebSocket through; `sockets` counts those that stand.
    """

    def __init__(self, pages: Path, server_port: int) -> None:
        self._pages = pages
        self._server_port = server_port
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._listener: asyncio.Server | None = None
        self.cuts = 0
        self.refuses_upgrades = False
        self.sockets = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._lines: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def cut(self) -> None:
        """Cuts every line to the server that stands, and loses what is on its way."""
        self.cuts += len(self._lines)
        for writer in self._lines:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ", 2)[1].decode().partition("?")[0]
                file = self._pages / (target.lstrip("/") or "index.html")
                if head.startswith(b"GET ") and file.is_file():
                    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                    body = file.read_bytes()
                    writer.write(
                        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: no-cache\r\n"
                        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    )
                    writer.write(body)
                    await writer.drain()
                elif self.refuses_upgrades and b"upgrade: websocket" in head.lower():
                    writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    await writer.drain()
                else:
                    await self._pass_on(head, reader, writer)
        finally:
            writer.close()

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        upgrades = b"upgrade: websocket" in head.lower()
        self.sockets += upgrades
        try:
            if upgrades or b"/events HTTP/1.1" in head:
                self._lines.add(writer)
            if not upgrades:
                # One request a connection: which of them are for the server is decided anew.
                head = head.replace(b"Connection: keep-alive", b"Connection: close")
            up_writer.write(head)
            pumps = {
                asyncio.ensure_future(_pump(reader, up_writer)),
                asyncio.ensure_future(_pump(up_reader, writer)),
            }
            try:
                # Whoever hangs up first does it for both.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self.sockets -= upgrades
            self._lines.discard(writer)
            up_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
