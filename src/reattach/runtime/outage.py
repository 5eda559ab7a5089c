"""Whether a node's database answers, found out by one who asks for all.

A session that could not write or read does not try again and again by itself: with twenty thousand
of them that would keep the node busy with nothing else. It says so here (`Outage.suspect`) and
waits (`Outage.over`); one task asks the database to commit something, at most a second after the
last time, and lets all go on at once when it has.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from reattach.errors import StoreError
from reattach.runtime.clock import Clock
from reattach.store.base import Store

__all__ = ["LAST_RETRY_MS", "Outage"]

log = structlog.get_logger("reattach.database")

_FIRST_RETRY_MS: Final = 50
LAST_RETRY_MS: Final = 1_000
"""How long after the last attempt, at most, the database is asked again."""

_PATIENCE_MS: Final = 2_000
"""How long the first attempt may take; each one after it twice as long."""

_ODD: Final = 3
"""Failures in a row that may happen to a database which is there."""


class Outage:
    """One node's database, as far as it is away."""

    def __init__(self, store: Store, clock: Clock, *, timeout_ms: int) -> None:
        """Take it for present."""
        self.times = 0
        """How often it was away."""
        self.worked_at = clock.monotonic()
        """When it wrote something last, for whomever."""
        self._store = store
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._present = asyncio.Event()
        self._present.set()
        self._since: int | None = None
        self._failures = 0
        """How often in a row something failed, since something was last written."""
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    @property
    def suspected(self) -> bool:
        """Whether it is away, or has not been asked yet since something failed."""
        return self.away or not self._present.is_set()

    @property
    def away(self) -> bool:
        """Whether it does not commit what it is asked to."""
        return self._since is not None

    def suspect(self, error: Exception | None = None) -> None:
        """Something failed, or takes long, that a database which is there would have done."""
        if self._present.is_set() and not self._stopped:
            self._present.clear()
            self._failures += 1
            self._task = asyncio.create_task(self._ask(error), name="reattach database")

    def works(self) -> None:
        """What there was to write was written."""
        self._failures = 0
        self.worked_at = self._clock.monotonic()
        if self._present.is_set():
            self._is_back()

    async def over(self) -> None:
        """Return when it commits; at once where nothing failed."""
        await self._present.wait()

    def stop(self) -> None:
        """Ask no more, and keep nobody waiting."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
        self._present.set()

    async def _ask(self, error: Exception | None) -> None:
        if self._failures > _ODD:
            # It commits what it is asked for here, and nothing else: its disk may be full.
            self._is_away(error)
        if self._failures > 1:
            times = min(self._failures - 2, 5)
            await self._clock.sleep(min(_FIRST_RETRY_MS << times, LAST_RETRY_MS))
        delay, patience = _FIRST_RETRY_MS, _PATIENCE_MS
        while True:
            try:
                async with asyncio.timeout(min(patience, self._timeout_ms) / 1000):
                    await self._store.check()
            except (StoreError, OSError) as away:  # a timeout is one
                self._is_away(away)
                await self._clock.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_MS)
                # One that is slow, and no more, is not to be given up again and again.
                patience = 2 * patience
            else:
                break
        if self._failures <= _ODD:
            self._is_back()
        self._present.set()

    def _is_back(self) -> None:
        if self._since is not None:
            seconds = (self._clock.monotonic() - self._since) / 1000
            log.warning("the database is back: what waited goes on", seconds=round(seconds, 1))
            self._since = None

    def _is_away(self, error: Exception | None) -> None:
        if self._since is None:
            self.times += 1
            self._since = self._clock.monotonic()
            log.error(
                "the database does not answer: connections stay, what clients send waits, and goes"
                " on by itself when the database is back",
                error=str(error) or type(error).__name__,
                outages=self.times,
            )
