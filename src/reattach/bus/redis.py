"""A bus through Redis or Valkey: one pub/sub channel for each session, and one for all nodes.

Two connections: one says, one hears. If either fails, both are made anew, with a backoff of up to a
second; meanwhile what is published is dropped at once, because the database has it. A server that
stands still (SIGSTOP, a partition) is noticed by its silence: it is asked for a sign of life twice
a second. Nothing here is ever waited for by a commit or an acknowledgement.

The size of what is queued is bounded here by `_MOST_QUEUED`, and in the server by its
``client-output-buffer-limit pubsub``: whoever hears too slowly is disconnected by it, and comes
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import structlog
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from reattach.bus.base import Counts, Listener, Message, Missed, Watched
from reattach.errors import BadSetting

__all__ = ["RedisBus"]

log = structlog.get_logger("reattach.bus")

_FORMAT: Final = b"1"
"""The first byte of every message: one of another format is not ours to read."""
_ORIGIN: Final = 12
"""Bytes behind it that say who sent it, so that nobody decodes what it said itself."""

_MOST_QUEUED: Final = 8 * 1024 * 1024
"""Bytes of messages that may wait to be sent; beyond it the oldest are dropped."""
_MOST_SENT: Final = 512
"""Messages that are sent at once."""
_MOST_WATCHED: Final = 500
"""Channels that are asked for at once."""
_MOST_HEARD: Final = 64
"""Messages that are told before others get their turn on the event loop."""

_PING_S: Final = 0.5
_SILENCE_S: Final = 1.5
"""Silence that means that the server stands still."""
_FIRST_RETRY_S: Final = 0.05
_LAST_RETRY_S: Final = 1.0
_LAST_WORDS_S: Final = 0.5
"""How long a bus that is closed may still send what waits."""
_WARN_EVERY_S: Final = 60.0

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class RedisBus:
    """The nodes of one database, as far as they use one Redis."""

    def __init__(self, url: str) -> None:
        """Describe it: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py takes them.

        Raises `BadSetting` for what is no such URL. Nothing is opened yet.
        """
        self.counts = Counts()
        self._pool = _pool(url)
        self._live = False
        self._origin = secrets.token_bytes(_ORIGIN)
        self._own = _FORMAT + self._origin
        self._prefix = b""
        self._listeners: list[Listener] = []
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._queued = 0
        self._said = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._wanted: set[str] = set()
        self._asked: set[str] = set()
        """What the server was asked for on this connection."""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warned_at = float("-inf")

    @property
    def live(self) -> bool:
        """Whether the server answers, as far as is known."""
        return self._live

    async def open(self, identity: str) -> None:
        """Begin; returns at once, whether the server is there or not."""
        self._prefix = f"reattach:{identity}:".encode()
        self._task = asyncio.create_task(self._run(), name="reattach bus")

    async def close(self) -> None:
        """Send what waits, for a moment, and end."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._all_sent.wait()
        await _end([self._task], every=_LAST_WORDS_S)
        self._task = None
        self._live = False

    def publish(self, message: Message) -> None:
        """Queue a message, encoded once for all nodes. Never waits."""
        if not self._live:
            self.counts.dropped += 1
            return
        session_id = getattr(message, "session_id", None)
        data = self._own + _encoder.encode(message)
        self._queue.append((self._channel(session_id), data))
        self._queued += len(data)
        while self._queued > _MOST_QUEUED and self._queue:
            self._queued -= len(self._queue.popleft()[1])
            self.counts.dropped += 1
        self._said.set()
        self._all_sent.clear()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; call what is returned to remove it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def watch(self, session_id: str) -> None:
        """Begin to hear of a session; `Watched` says from when on."""
        self._wanted.add(session_id)
        self._changed.set()

    def unwatch(self, session_id: str) -> None:
        """Hear of a session no more."""
        self._wanted.discard(session_id)
        self._changed.set()

    # One life after the other

    async def _run(self) -> None:
        delay = _FIRST_RETRY_S
        while True:
            begun = time.monotonic()
            try:
                await self._live_once()
            except (RedisError, OSError) as error:  # a timeout is one
                self._fell(error)
            if time.monotonic() - begun > 10 * _LAST_RETRY_S:
                delay = _FIRST_RETRY_S
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            delay = min(2 * delay, _LAST_RETRY_S)

    async def _live_once(self) -> None:
        """Be connected until something fails, and raise that."""
        mouth, ear = self._connection(), self._connection()
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(_SILENCE_S):
                await mouth.connect()  # type: ignore[no-untyped-call]
                await ear.connect()  # type: ignore[no-untyped-call]
            self._asked = set()
            await self._ask(ear, b"SUBSCRIBE", [self._channel(None)])
            await self._renew(ear)
            confirmed = 0
            while confirmed <= len(self._asked):
                confirmed += self._heard(await ear.read_response())
            self._rose()
            parts = self._say(mouth), self._hear(ear), self._keep(ear)
            tasks = [asyncio.create_task(part) for part in parts]
            for task in tasks:
                task.add_done_callback(_retrieve)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            self._live = False
            try:
                await _end(tasks, every=_LAST_WORDS_S / 10)
            finally:
                # Also where it is cancelled once more.
                self.counts.dropped += len(self._queue)
                self._queue.clear()
                self._queued = 0
                self._all_sent.set()
                for connection in (mouth, ear):
                    with contextlib.suppress(RedisError, OSError):
                        await connection.disconnect(nowait=True)

    def _connection(self) -> AbstractConnection:
        made: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return made

    def _rose(self) -> None:
        self._live = True
        if self.counts.outages:
            log.info(
                "redis is back: nodes hear each other again",
                outages=self.counts.outages,
                dropped=self.counts.dropped,
            )
        self._tell(Missed())

    def _fell(self, error: Exception) -> None:
        self.counts.outages += 1
        now = time.monotonic()
        tell = log.debug
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at, tell = now, log.warning
        tell(
            "redis cannot be used: nodes hear of each other's commits from the database, within"
            " a second; nothing is lost, and redis is used again when it is back",
            error=f"{type(error).__name__}: {error}",
        )

    # Saying

    async def _say(self, mouth: AbstractConnection) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_S):
                    await self._said.wait()
            self._said.clear()
            commands: list[tuple[bytes, ...]] = []
            size = 0
            while self._queue and len(commands) < _MOST_SENT:
                channel, data = self._queue.popleft()
                size += len(data)
                commands.append((b"PUBLISH", channel, data))
            said = len(commands)
            await mouth.send_packed_command(
                mouth.pack_commands(commands or [(b"PING",)]), check_health=False
            )
            for _ in range(max(1, said)):
                await mouth.read_response()
            self._queued -= size
            self.counts.sent += said
            if self._queue:
                self._said.set()
            else:
                self._all_sent.set()

    # Hearing

    async def _keep(self, ear: AbstractConnection) -> None:
        """Ask for signs of life, and for what is to be watched; the answers come to `_hear`."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_S):
                    await self._changed.wait()
            if self._changed.is_set():
                await self._renew(ear)
            else:
                await self._ask(ear, b"PING", [])

    async def _renew(self, ear: AbstractConnection) -> None:
        self._changed.clear()
        for command, names in (
            (b"UNSUBSCRIBE", self._asked - self._wanted),
            (b"SUBSCRIBE", self._wanted - self._asked),
        ):
            channels = [self._channel(name) for name in names]
            for first in range(0, len(channels), _MOST_WATCHED):
                await self._ask(ear, command, channels[first : first + _MOST_WATCHED])
        self._asked = set(self._wanted)

    @staticmethod
    async def _ask(ear: AbstractConnection, command: bytes, names: Iterable[bytes]) -> None:
        await ear.send_packed_command(ear.pack_command(command, *names), check_health=False)

    async def _hear(self, ear: AbstractConnection) -> None:
        turn = 0
        while True:
            self._heard(await ear.read_response())
            turn += 1
            if turn % _MOST_HEARD == 0:
                await asyncio.sleep(0)

    def _heard(self, answer: Any) -> bool:
        """Take in what came; say whether it confirms that a channel is heard."""
        kind, channel, *rest = answer
        if kind == b"message":
            self._take(rest[0])
        confirms = bool(kind == b"subscribe")
        if confirms and channel != self._channel(None):
            self._tell(Watched(channel[len(self._channel("")) :].decode()))
        return confirms

    def _take(self, data: bytes) -> None:
        if data.startswith(self._own):
            return
        if not data.startswith(_FORMAT):
            self._ignore("expected another format")
            return
        try:
            message = _decoder.decode(memoryview(data)[1 + _ORIGIN :])
        except msgspec.DecodeError as error:
            self._ignore(str(error))
            return
        self.counts.heard += 1
        self._tell(message)

    def _ignore(self, why: str) -> None:
        self.counts.unread += 1
        if self.counts.unread == 1:
            log.warning("a message on the bus is not one of ours: it is ignored", error=why)

    def _tell(self, message: Message | Missed | Watched) -> None:
        for listener in list(self._listeners):
            try:
                listener(message)
            except Exception:
                log.exception("a message from another node could not be taken in")

    def _channel(self, session_id: str | None) -> bytes:
        return self._prefix + (b"nodes" if session_id is None else b"s:" + session_id.encode())


async def _end(tasks: Iterable[asyncio.Task[None]], *, every: float) -> None:
    """Cancel tasks until they have ended.

    Once may not be enough: `asyncio.wait_for`, which redis-py uses, loses a cancellation that comes
    as the awaited thing ends (before Python 3.12).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=every)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Look at what a part of a life ended with: the one that counts is raised by `_live_once`.

    Not by whoever ends the parts, which may be cancelled once more before they have ended.
    """
    if not task.cancelled():
        task.exception()


def _pool(url: str) -> ConnectionPool:
    """Return what makes connections; it never keeps any."""
    try:
        return ConnectionPool.from_url(
            url,
            # Pub/sub in its plainest form: every answer on the connection that hears is a list.
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_SILENCE_S,
            socket_connect_timeout=_SILENCE_S,
            client_name="reattach",
        )
    except ValueError:
        # Neither the URL nor what is wrong in it: there may be a password.
        raise BadSetting(
            "expected the URL of a Redis or Valkey server: redis://host:6379/0, rediss://… (TLS) or"
            " unix://…; what is special in a user name or password has to be percent-encoded"
        ) from None
