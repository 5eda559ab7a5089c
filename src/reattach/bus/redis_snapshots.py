"""Hot snapshots in Redis or Valkey: a hash for each session, for ten minutes after its last one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from reattach.bus.snapshots import GET_MS, Snapshot, pack, unpack

__all__ = ["RedisSnapshots"]

log = structlog.get_logger("reattach.snapshots")

_LIFETIME_MS: Final = 600_000
_MOST_WAITING: Final = 32 * 1024 * 1024
"""Bytes of states that may wait to be stored; beyond it a snapshot is not taken."""
_PUT_S: Final = 2.0
_LAST_WORDS_S: Final = 0.5
_REST_S: Final = 1.0
"""How long nothing is asked for after something failed."""

_PUT: Final = """
if redis.call('HEXISTS', KEYS[1], 'gone') == 1 then
  return 0
end
local version = 'v:' .. ARGV[1]
local held = redis.call('HGET', KEYS[1], version)
if held and tonumber(held) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], version, ARGV[2], 'd:' .. ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""

_DROP: Final = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'gone', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""


class RedisSnapshots:
    """What a Redis holds of the sessions of one database."""

    def __init__(self, url: str) -> None:
        """Describe it; the URL is one that `RedisBus` takes."""
        self._redis: Redis = Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_PUT_S,
            socket_connect_timeout=_PUT_S,
            client_name="reattach-snapshots",
        )
        self._put_script: Any = self._redis.register_script(_PUT)
        self._drop_script: Any = self._redis.register_script(_DROP)
        self._prefix = ""
        self._waiting: dict[tuple[str, str], Snapshot] = {}
        self._weight = 0
        self._news = asyncio.Event()
        self._all_stored = asyncio.Event()
        self._all_stored.set()
        self._rests_until = 0.0
        self._warned = False
        self._task: asyncio.Task[None] | None = None

    async def open(self, identity: str) -> None:
        """Begin; returns at once, whether the server is there or not."""
        self._prefix = f"reattach:{identity}:snapshot:"
        self._task = asyncio.create_task(self._store(), name="reattach snapshots")

    async def close(self) -> None:
        """Store what waits, for a moment, and end."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._all_stored.wait()
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_LAST_WORDS_S)
        self._task = None
        await self._redis.aclose()

    async def get(self, session_id: str) -> Sequence[Snapshot]:
        """Return what is held of a session: at most one for each epoch."""
        if time.monotonic() < self._rests_until:
            return []
        try:
            async with asyncio.timeout(GET_MS / 1000):
                held: dict[Any, Any] = await self._redis.hgetall(self._prefix + session_id)
        except (RedisError, OSError) as error:  # a timeout is one
            self._rest(error)
            return []
        found = (self._read(session_id, data) for name, data in held.items() if name[:2] == b"d:")
        return [snapshot for snapshot in found if snapshot is not None]

    def put(self, snapshot: Snapshot) -> None:
        """Hold a snapshot, unless a newer one of its epoch is held, or too much waits already."""
        weight = len(snapshot.saved.state) + len(snapshot.saved.index)
        if time.monotonic() < self._rests_until or self._weight + weight > _MOST_WAITING:
            return
        # One that is replaced here counts until all is stored: it is a bound, no account.
        self._weight += weight
        self._waiting[snapshot.session_id, snapshot.epoch] = snapshot
        self._all_stored.clear()
        self._news.set()

    async def drop(self, session_id: str) -> None:
        """Hold nothing of a session any more, and say so where it is not certain."""
        for place in [place for place in self._waiting if place[0] == session_id]:
            del self._waiting[place]
        try:
            await self._drop_script(keys=[self._prefix + session_id], args=[_LIFETIME_MS])
        except (RedisError, OSError) as error:
            self._rest(error)
            log.warning(
                "a session was erased, and redis could not be told: it may hold its snapshot for"
                " ten minutes more",
                session=session_id,
            )

    async def _store(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                (session_id, epoch), snapshot = next(iter(self._waiting.items()))
                data = await asyncio.to_thread(pack, snapshot)
                try:
                    await self._put_script(
                        keys=[self._prefix + session_id],
                        args=[epoch, snapshot.saved.version, data, _LIFETIME_MS],
                    )
                except (RedisError, OSError) as error:
                    self._rest(error)
                    self._waiting.clear()
                else:
                    if self._waiting.get((session_id, epoch)) is snapshot:
                        del self._waiting[session_id, epoch]
            self._weight = 0
            self._all_stored.set()

    def _read(self, session_id: str, data: bytes) -> Snapshot | None:
        try:
            snapshot = unpack(data)
            if snapshot.session_id != session_id:
                raise ValueError("expected a snapshot of this session")  # noqa: TRY301 - so are both
        except ValueError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "a snapshot in redis is damaged or not one of ours: it is ignored, and the"
                    " session is opened from the database",
                    session=session_id,
                    error=str(error),
                )
            return None
        return snapshot

    def _rest(self, error: Exception) -> None:
        # The bus, which is on the same server, warns.
        self._rests_until = time.monotonic() + _REST_S
        log.debug("snapshots are not used for a moment", error=f"{type(error).__name__}: {error}")
