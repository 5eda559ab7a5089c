"""Server-Sent Events: a session's frames to whoever can read a response (`docs/protocol.md`,
section 7). An `EventStream` is the response on one side and the registry's `Line` on the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from reattach.core.connection import Close, Connection, Phase
from reattach.errors import (
    BadRequest,
    Forbidden,
    NotAuthenticated,
    ReattachError,
    SessionEnded,
    SessionNotFound,
    Unavailable,
)
from reattach.runtime.access import User
from reattach.runtime.registry import Registry
from reattach.server.past import PlainPatches
from reattach.settings import Settings
from reattach.wire import Hello, HelloDevice, Time, encode

__all__ = ["EventStream", "RestOfHello", "TooMany", "parse_event_id", "parse_hello"]

_SLICE: Final = 64 * 1024
"""Bytes that are sent at a time: each slice that is taken shows that the reader lives."""

_CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a reader has to take what was sent before a close."""


class TooMany(ReattachError):
    """The user has as many connections as are allowed: close another."""

    code = "too_many_connections"
    status = 429


class _Head(msgspec.Struct):
    """What an event needs to know of its frame."""

    type: str
    version: int | None = None
    epoch: str | None = None


_head = msgspec.json.Decoder(_Head)
_SMALL: Final = 16 * 1024
"""Frames up to this many bytes are looked into once for all readers; those above seldom come."""


@lru_cache(maxsize=128)
def _head_of_many(frame: bytes) -> _Head:
    return _head.decode(frame)


class _Named(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    info: dict[str, Any] | None = None


class RestOfHello(msgspec.Struct):
    """What a `Hello` says beside what stands in headers of its own."""

    device: _Named = msgspec.field(default_factory=_Named)
    t: Time | None = None
    user_id: str | None = None
    schema_version: int | None = None


_rest = msgspec.json.Decoder(RestOfHello)


def parse_hello(value: str) -> RestOfHello:
    """Read a ``Reattach-Hello``; raises `BadRequest`."""
    try:
        return _rest.decode(value)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadRequest(
            f"expected Reattach-Hello with the rest of a hello, as JSON in ASCII: {error}",
            code="bad_header",
        ) from None


def parse_event_id(value: str | None) -> tuple[str, int] | None:
    """Read a ``Last-Event-ID``, ``<epoch>.<version>``; None for any other."""
    epoch, dot, version = (value or "").rpartition(".")
    if not dot or not epoch or not version.isdecimal() or len(version) > 16:
        return None
    return epoch, int(version)


class EventStream(Response):
    """One reader's stream, from when it was let in to its end."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        patches: PlainPatches | None,
        came_from: Mapping[str, str] | None = None,
    ) -> None:
        """Make a line; one of `observe` and `join` lets it in."""
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # proxies that gather answers would hold up events
            }
        )
        self._registry = registry
        self._most = settings.max_send_buffer_bytes
        self._interval = settings.heartbeat_interval_ms / 1000
        self._patches = patches
        self._frames: deque[bytes] = deque()
        self._waiting = 0
        self._woken = asyncio.Event()
        self._ended = asyncio.Event()
        self._closed: tuple[int, str] | None = None
        self._epoch: str | None = None
        """The stream's one epoch: when another begins, all connections are sent away."""
        self._connection = registry.connections.connect(self, came_from)
        # There is no hello to wait for.
        self._connection.phase = Phase.JOINING

    # Being let in

    async def observe(self, session_id: str, user: User, after: tuple[str, int] | None) -> None:
        """Let a reader in that is no client; raises what keeps it out."""
        self._epoch, version = after or (None, None)
        with self._entering():
            await self._registry.connections.observe(
                self._connection,
                session_id,
                user,
                epoch=self._epoch,
                version=version,
                backlog=self._most,
            )

    async def join(
        self,
        session_id: str,
        user: User,
        *,
        client_id: str,
        device_id: str,
        seq: int,
        after: tuple[str, int] | None,
        rest: RestOfHello | None = None,
    ) -> None:
        """Let a client's down-link in; raises what keeps it out.

        ``seq`` is the highest number of its own whose decision the client knows. With the ``rest``
        of its hello it is welcomed as on a WebSocket, whatever it has.
        """
        self._epoch, version = after or (None, None)
        told = rest or RestOfHello()
        hello = Hello(
            client_id=client_id,
            device=HelloDevice(device_id, told.device.name, told.device.info),
            t=self._registry.clock.now() if told.t is None else told.t,
            epoch=self._epoch,
            version=version,
            seq=seq,
            user_id=told.user_id,
            schema_version=told.schema_version,
        )
        backlog = self._most if rest is None else None
        with self._entering():
            await self._registry.connections.join(
                self._connection, session_id, user, hello, backlog=backlog
            )

    @contextlib.contextmanager
    def _entering(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.callback(self._registry.connections.disconnected, self._connection, "not let in")
            yield
            if self._closed is not None and not self._frames:
                raise _refusal(*self._closed)
            stack.pop_all()

    # Line

    @property
    def connection(self) -> Connection:
        """The connection whose line this is."""
        return self._connection

    def send(self, frames: Sequence[bytes]) -> None:
        """Queue frames. A reader that is too slow is never waited for."""
        if self._closed is not None:
            return
        if self._waiting > self._most:
            self._frames.clear()
            why = "too slow to read"
            self.close(Close.TOO_FAST, f"{why}: come back and resume")
            # Not at once: the registry may be in the middle of telling others the same.
            loop = asyncio.get_running_loop()
            loop.call_soon(self._registry.connections.disconnected, self._connection, why)
            return
        self._frames.extend(frames)
        self._waiting += sum(map(len, frames))
        self._woken.set()

    def close(self, code: int, reason: str) -> None:
        """End the stream after what is queued, with an event that says why."""
        if self._closed is None:
            self._closed = (code, reason)
            self._woken.set()
            self._ended.set()

    def pause(self, paused: bool) -> None:
        """Nothing: there is nothing to read."""

    def ping(self) -> None:
        """Nothing: comments go out by their own clock."""

    # Response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until either side ends it."""
        del scope
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pump = asyncio.create_task(self._pump(send))
        tasks = {pump, asyncio.create_task(_gone(receive)), asyncio.create_task(self._ending())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._registry.connections.disconnected(self._connection, "closed by the reader")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not pump.cancelled():
            pump.result()

    async def _ending(self) -> None:
        """End when the stream was closed and its reader takes nothing more."""
        await self._ended.wait()
        await asyncio.sleep(_CLOSE_TIMEOUT)

    async def _pump(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        comment_at = loop.time() + self._interval
        while True:
            while self._frames:
                frame = self._frames.popleft()
                await self._write(send, self._event(frame))
                self._waiting -= len(frame)
            if self._closed is not None:
                code, reason = self._closed
                data = encode({"code": code, "reason": reason})
                last = b"event: close\ndata: " + data + b"\n\n"
                await send({"type": "http.response.body", "body": last, "more_body": False})
                return
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(comment_at):
                    await self._woken.wait()
            if loop.time() >= comment_at:
                comment_at = loop.time() + self._interval
                await self._write(send, b":\n\n")

    async def _write(self, send: Send, data: bytes) -> None:
        for start in range(0, len(data), _SLICE):
            body = data[start : start + _SLICE]
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._registry.connections.heard(self._connection)

    def _event(self, frame: bytes) -> bytes:
        head = _head_of_many(frame) if len(frame) <= _SMALL else _head.decode(frame)
        self._epoch = epoch = head.epoch or self._epoch
        if self._patches is not None:
            frame = self._patches.rewrite(head.type, frame)
        place = "" if head.version is None else f"id: {epoch}.{head.version}\n"
        return b"".join((f"event: {head.type}\n{place}data: ".encode(), frame, b"\n\n"))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(code: int, reason: str) -> ReattachError:
    """Return the error that a close code is, where nothing was sent yet."""
    errors: dict[int, Any] = {
        Close.BAD_FRAME: BadRequest,
        Close.NOT_AUTHENTICATED: NotAuthenticated,
        Close.FORBIDDEN: Forbidden,
        Close.NO_SESSION: SessionNotFound,
        Close.ENDED: SessionEnded,
        Close.TOO_FAST: TooMany,
    }
    error: ReattachError = errors.get(code, Unavailable)(reason)
    return error
