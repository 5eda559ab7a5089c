"""Group commit without timers: while one transaction is in flight, the next batch gathers.

Members say that they `want` to write; when the database is free they are asked for their parts, all
at once, and told what became of them. Nobody hears of anything before that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from reattach.errors import StoreError, StoreRefused
from reattach.runtime.clock import Clock
from reattach.runtime.counts import Counts
from reattach.runtime.outage import Outage
from reattach.store.base import Append, Outcome, Store

__all__ = ["Committer", "Member"]

log = structlog.get_logger("reattach.committer")

_LATE_S: Final = 2.0
"""Seconds after which a batch that is not written has the database asked whether it is there."""


class Member(Protocol):
    """Somebody with something to write."""

    @property
    def session_id(self) -> str:
        """The session that its part is about."""

    def cut(self) -> Append | None:
        """Return the part to be written now, if there is one. One of the next three follows."""

    def landed(self, outcome: Outcome) -> None:
        """The transaction is durable, and this became of the part."""

    def lost(self, error: BaseException) -> None:
        """Whether the part was written is not known."""

    def refused(self, error: StoreRefused) -> None:
        """The database refuses this part, alone as it stood; nothing of it was written."""

    def broken(self, error: Exception) -> None:
        """One of the above failed, which is a fault of ours: give up what is in memory."""


class Committer:
    """The one writer of a node."""

    def __init__(
        self, store: Store, clock: Clock, *, timeout_ms: int, counts: Counts | None = None
    ) -> None:
        self.outage = Outage(store, clock, timeout_ms=timeout_ms)
        """Whether the database is away: nothing is cut meanwhile."""
        self._counts = Counts() if counts is None else counts
        self._store = store
        self._timeout_ms = timeout_ms
        self._wanting: dict[Member, None] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin writing."""
        self._task = asyncio.create_task(self._run(), name="reattach committer")

    async def stop(self) -> None:
        """Write what waits, then stop."""
        try:
            await self._idle.wait()
        finally:
            self.outage.stop()
            if self._task is not None:
                self._task.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def want(self, member: Member) -> None:
        """Ask a member for its part when the next transaction begins."""
        self._wanting[member] = None
        self._idle.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._wanting:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            await self.outage.over()
            wanting, self._wanting = self._wanting, {}
            parts: list[tuple[Member, Append]] = []
            sessions: set[str] = set()
            for member in wanting:
                if member.session_id in sessions:
                    self.want(member)  # a batch has one part for each session
                    continue
                sessions.add(member.session_id)
                with _Contained(member):
                    part = member.cut()
                    if part is not None:
                        parts.append((member, part))
            if parts:
                await self._write(parts)

    async def _write(self, parts: Sequence[tuple[Member, Append]]) -> None:
        begun = time.perf_counter()
        late = asyncio.get_running_loop().call_later(_LATE_S, self.outage.suspect)
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                outcomes = await self._store.append([part for _, part in parts])
        except StoreRefused as refused:
            if len(parts) == 1:
                member = parts[0][0]
                with _Contained(member):
                    member.refused(refused)
                return
            log.warning("batch refused, trying each session alone", sessions=len(parts))
            for one in parts:
                await self._write([one])
        except (StoreError, TimeoutError, OSError) as error:
            self._lose(parts, error)
        else:
            self.outage.works()
            self._counts.wrote([part for _, part in parts], outcomes, time.perf_counter() - begun)
            for (member, _), outcome in zip(parts, outcomes, strict=True):
                with _Contained(member):
                    member.landed(outcome)
        finally:
            late.cancel()

    def _lose(self, parts: Sequence[tuple[Member, Append]], error: Exception) -> None:
        self._counts.lost += 1
        # How it goes on is told by whoever asks the database now.
        known = self.outage.away
        self.outage.suspect(error)
        tell = log.debug if known else log.warning
        tell(
            "the outcome of a batch is unknown; loading its sessions again",
            sessions=len(parts),
            error=str(error) or type(error).__name__,
        )
        for member, _ in parts:
            with _Contained(member):
                member.lost(error)


class _Contained:
    """Keeps a fault in one session from ending the writer of all.

    A class, since a generator made into one costs ten times as much, twice for each part.
    """

    __slots__ = ("_member",)

    def __init__(self, member: Member) -> None:
        self._member = member

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        log.error("a session failed inside the server and is opened anew", exc_info=error)
        self._member.broken(error)
        return True
