"""The WebSocket of `docs/protocol.md`, section 5: a shell that does no I/O of its own.

A `Shell` feeds the registry what came, sends what the registry wants, and stops. Its `Pipe` moves
the bytes. There are two: `AsgiPipe` below, for whichever ASGI server an application chose, and the
one of `reattach serve` in `reattach.server.uvicorn_ws`, three times as fast.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketDisconnect

from reattach.core.connection import Close
from reattach.errors import BadRequest, ReattachError, SessionNotFound
from reattach.runtime.access import User
from reattach.runtime.connections import Identify
from reattach.runtime.registry import Registry
from reattach.server.auth import came_from
from reattach.server.problems import problem
from reattach.server.served import Served
from reattach.wire import SUBPROTOCOL

__all__ = ["AsgiPipe", "Pipe", "Shell", "admit", "endpoint"]

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a client has to answer a close before its connection is cut."""

_MAX_REASON = 123
"""Bytes of a close frame's reason (RFC 6455, section 5.5)."""

_SESSION_ID = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_NO_SESSION_IDS = frozenset({"heartbeat", "check-connection", "import"})


class Pipe(Protocol):
    """A WebSocket connection, as its transport has it. None of these waits."""

    def write(self, frames: Sequence[bytes]) -> int:
        """Write text messages; return how many bytes wait for the reader now."""

    def close(self, code: int, reason: str) -> None:
        """Write a close frame. Reading goes on, for the answer."""

    def read(self, on: bool) -> None:
        """Stop reading, or go on."""

    def ping(self) -> bool:
        """Write a ping; False where a pong would not be seen."""

    def abort(self) -> None:
        """Cut the connection."""


class Shell:
    """One connection: the registry's `Line` on one side, a transport's `Pipe` on the other."""

    __slots__ = (
        "_backlog",
        "_closing",
        "_connection",
        "_cut",
        "_identify",
        "_loop",
        "_max_waiting",
        "_paused",
        "_pipe",
        "_registry",
        "_session_id",
    )

    def __init__(
        self,
        registry: Registry,
        session_id: str,
        identify: Identify,
        pipe: Pipe,
        *,
        max_waiting: int,
        came_from: Mapping[str, str] | None = None,
    ) -> None:
        """Begin. ``max_waiting`` is how many bytes may wait for a slow reader (4429)."""
        self._registry = registry
        self._session_id = session_id
        self._identify = identify
        self._pipe = pipe
        self._max_waiting = max_waiting
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[bytes] = deque()
        """What had been read when reading was stopped."""
        self._paused = False
        self._closing = False
        self._cut: asyncio.TimerHandle | None = None
        self._connection = registry.connections.connect(self, came_from)

    @property
    def closing(self) -> bool:
        """Whether a close was written, or the connection is gone: nothing more is wanted."""
        return self._closing

    # Feed: what the pipe calls

    def text(self, data: bytes) -> None:
        """Take a text message."""
        if self._closing:
            return
        if self._paused or self._backlog:
            self._backlog.append(data)
            return
        self._feed(data)

    def binary(self) -> None:
        """A binary message came: there are none in this protocol (4400)."""
        self.hang_up(Close.BAD_FRAME, "expected text frames, got a binary one")

    def too_large(self) -> None:
        """More of one message came than a frame may weigh (4413)."""
        most = self._registry.limits.max_frame_bytes
        self.hang_up(Close.TOO_LARGE, f"expected frames of at most {most} bytes")

    def heard(self) -> None:
        """A sign of life came that is no message."""
        if self._identify is _identified:  # before its hello it has only so long
            self._registry.connections.heard(self._connection)

    def left(self, code: int) -> None:
        """The client closes: answer it, and tell the registry before the line is gone."""
        self.close(code, "")
        self._registry.connections.disconnected(self._connection, "closed by the client")

    # Send and dispatch: what the registry calls

    def send(self, frames: Sequence[bytes]) -> None:
        """Send frames. A reader that is too slow is never waited for."""
        if not self._closing:
            self.wrote(self._pipe.write(frames))

    def wrote(self, waiting: int) -> None:
        """Note how many bytes wait for the reader."""
        if waiting > self._max_waiting and not self._closing:
            self.close(Close.TOO_FAST, "too slow to read: come back and resume")
            # Not at once: the registry may be in the middle of telling others the same.
            why = "too slow to read"
            self._loop.call_soon(self._registry.connections.disconnected, self._connection, why)

    def close(self, code: int, reason: str) -> None:
        """Close, once. A client that does not answer is cut off after `CLOSE_TIMEOUT`."""
        if self._closing:
            return
        self._closing = True
        self._backlog.clear()
        self._pipe.close(
            code, reason.encode("utf-8", "replace")[:_MAX_REASON].decode(errors="ignore")
        )
        self._pipe.read(True)
        self._cut = self._loop.call_later(CLOSE_TIMEOUT, self._pipe.abort)

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on with what had been read already."""
        if self._closing or paused == self._paused:
            return
        self._paused = paused
        if paused:
            self._pipe.read(False)
        elif self._backlog:
            # Not at once: the registry is in the middle of something.
            self._loop.call_soon(self._catch_up)
        else:
            self._pipe.read(True)

    def ping(self) -> None:
        """Ask for a sign of life, where one could be seen.

        A line that we do not read shows none, nor does one behind an ASGI server, which keeps
        pongs to itself and finds the dead by its own pings; there a heartbeat of a hidden page may
        come once a minute only. Both count as alive.
        """
        if self._paused or not self._pipe.ping():
            self._registry.connections.heard(self._connection)

    # Stop

    def stop(self, why: str) -> None:
        """The connection is gone."""
        self._closing = True
        self._backlog.clear()
        if self._cut is not None:
            self._cut.cancel()
        self._registry.connections.disconnected(self._connection, why)

    # Inside

    def _feed(self, data: bytes) -> None:
        identify, self._identify = self._identify, _identified
        self._registry.connections.feed(self._connection, self._session_id, identify, data)

    def _catch_up(self) -> None:
        while self._backlog and not self._paused:
            self._feed(self._backlog.popleft())
        if not self._paused and not self._closing:
            self._pipe.read(True)

    def hang_up(self, code: int, reason: str) -> None:
        self.close(code, reason)
        self._registry.connections.disconnected(self._connection, reason)


async def _identified(_: str | None) -> User:
    """Stand in for the real one, whose request need not stay in memory after the hello."""
    raise AssertionError("a connection says hello once")


# Upgrades


def admit(reattach: Served, connection: HTTPConnection, session_id: str) -> None:
    """Raise what keeps a connection from being upgraded.

    `SessionNotFound` for what is no session id, `Forbidden` for a wrong host or origin,
    `BadRequest` where our subprotocol is not offered. All else is told by close codes, which a
    page can read.
    """
    if not _SESSION_ID.fullmatch(session_id) or session_id in _NO_SESSION_IDS:
        raise SessionNotFound("expected a session id in the path /ws/session/{session_id}")
    reattach.auth.check_host_and_origin(connection)
    if SUBPROTOCOL not in connection.scope["subprotocols"]:
        raise BadRequest(
            f"expected the WebSocket subprotocol {SUBPROTOCOL} to be offered",
            code="bad_subprotocol",
        )


# ASGI


async def endpoint(reattach: Served, websocket: WebSocket) -> None:
    """Serve one WebSocket of any ASGI server."""
    try:
        session_id = websocket.path_params["session_id"]
        admit(reattach, websocket, session_id)
        registry = await reattach.running()
    except ReattachError as error:
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(problem(error))
        else:
            await websocket.close()
        return
    await websocket.accept(subprotocol=SUBPROTOCOL)
    pipe = AsgiPipe(websocket)
    shell = Shell(
        registry,
        session_id,
        partial(reattach.auth.identify, websocket),
        pipe,
        max_waiting=reattach.settings.max_send_buffer_bytes,
        came_from=came_from(reattach.settings, websocket),
    )
    await pipe.run(shell)


class AsgiPipe:
    """A pipe through ASGI: one task reads, one writes what is queued."""

    def __init__(self, websocket: WebSocket) -> None:
        """Take a connection that was accepted."""
        self._websocket = websocket
        self._out: deque[bytes] = deque()
        self._waiting = 0
        self._last: tuple[int, str] | None = None
        self._written = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._gone = asyncio.Event()

    async def run(self, shell: Shell) -> None:
        """Move messages until the connection is gone."""
        tasks = [
            asyncio.create_task(work)
            for work in (self._read(shell), self._write(), self._aborted())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            shell.stop("connection lost")
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                    raise result

    # Pipe

    def write(self, frames: Sequence[bytes]) -> int:
        """Queue text messages; return how many bytes wait."""
        self._out.extend(frames)
        self._waiting += sum(map(len, frames))
        self._written.set()
        return self._waiting

    def close(self, code: int, reason: str) -> None:
        """Queue a close frame."""
        self._last = (code, reason)
        self._written.set()

    def read(self, on: bool) -> None:
        """Stop asking the server for messages, or go on."""
        if on:
            self._reading.set()
        else:
            self._reading.clear()

    def ping(self) -> bool:
        """Say that ASGI shows no pongs."""
        return False

    def abort(self) -> None:
        """Leave the connection to the server."""
        self._gone.set()

    # Inside

    async def _read(self, shell: Shell) -> None:
        while True:
            await self._reading.wait()
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("text")
            if data is None:
                shell.binary()
            else:
                shell.text(data.encode())

    async def _write(self) -> None:
        send = self._websocket.send
        while True:
            while self._out:
                data = self._out.popleft()
                await send({"type": "websocket.send", "text": data.decode()})
                self._waiting -= len(data)
            if self._last is not None:
                code, reason = self._last
                await self._websocket.close(code, reason)
                await self._gone.wait()
            self._written.clear()
            await self._written.wait()

    async def _aborted(self) -> Any:
        await self._gone.wait()
