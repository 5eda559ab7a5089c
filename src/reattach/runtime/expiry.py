"""Ends sessions that nobody has used for long, and says so before.

Off unless a setting says how long. Nodes that share a database take turns by a lease; each look is
safe to repeat. What was said before stands in the activity log, and nowhere else: whoever uses the
session after it has it begin anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import structlog

from reattach.core.retention import DAY_MS
from reattach.errors import ReattachError
from reattach.runtime.host import Host
from reattach.store.base import Activity, Search, SessionRecord
from reattach.store.shared import place_mark
from reattach.wire import encode

if TYPE_CHECKING:
    from reattach.runtime.registry import Registry

__all__ = ["Expiring", "Expiry"]

log = structlog.get_logger("reattach.expiry")

Expiring: TypeAlias = Callable[[str, str, int], Awaitable[None]]
"""Called with a session's id, its owner and when it will be ended, in ms since 1970."""

_EVERY_MS: Final = 60 * 60 * 1000
_LEASE: Final = "expiry"
_PAGE: Final = 500
_NOTICE_MS: Final = 7 * DAY_MS
"""How long before, or half of the time that a session may lie unused, if that is less."""
_ROSTERS_MS: Final = 1_000
"""How long other nodes have to say who is there."""
_LAST_ID: Final = "~" * 128
"""After every id of a session."""


class Expiry:
    """One node's part of it: sessions may lie unused for so many days, 0: for ever."""

    def __init__(self, registry: Registry, *, days: int, listeners: Sequence[Expiring]) -> None:
        self._registry = registry
        self._clock = registry.clock
        self._idle_ms = days * DAY_MS
        self._notice_ms = min(_NOTICE_MS, self._idle_ms // 2)
        self._listeners = listeners

    async def run(self) -> None:
        """Look again and again, whenever it is this node's turn."""
        owner = self._registry.nodes.name
        while self._idle_ms:
            await self._clock.sleep(_EVERY_MS // 6)
            try:
                if await self._registry.store.lease(_LEASE, owner, _EVERY_MS // 6):
                    await self.sweep()
            except ReattachError as error:
                log.warning("idle sessions were not looked at, they will be", error=error.message)

    async def sweep(self) -> None:
        """Look at every session that nobody has used for nearly so long."""
        before = self._clock.now() - self._idle_ms + self._notice_ms
        after: str | None = place_mark(before, _LAST_ID)
        while after is not None:
            page = await self._registry.store.search(Search(), after, _PAGE)
            for record in page.items:
                if not record.is_active:
                    continue
                try:
                    await self._look_at(record)
                except ReattachError as error:
                    log.info("an idle session is looked at later", error=error.message)
                except Exception:
                    # One that somebody's code fails on keeps no other waiting.
                    log.exception("an idle session failed", session=record.session_id)
            after = page.next

    async def _look_at(self, record: SessionRecord) -> None:
        name, now = record.session_id, self._clock.now()
        told_at = await self._told_at(record)
        ends_at = max(record.last_activity + self._idle_ms, (told_at or now) + self._notice_ms)
        if told_at is not None and now < ends_at:
            return
        host = await self._registry.open(name)
        if self._registry.bus is not None:
            await self._clock.sleep(_ROSTERS_MS)
        # Whoever is connected uses it, however silent.
        if host.closed or host.room.online() or host.room.everybody():
            return
        if host.room.recorded.last_activity != record.last_activity:
            return
        if told_at is None:
            await self._tell(host, record, now, ends_at)
        else:
            host.room.tell(Activity(activity_type="expired", at=now))
            request = await self._registry.request(host)
            request.proposal = msgspec.structs.replace(request.proposal, ends=True)
            await host.submit(request)
            log.info("a session that nobody used was ended", session=name)

    async def _tell(self, host: Host, record: SessionRecord, now: int, ends_at: int) -> None:
        for listener in self._listeners:
            await listener(record.session_id, record.user_id, ends_at)
        data = encode({"ends_at": ends_at})
        line = Activity(activity_type="expiring", at=now, data=data)
        await host.at_rest(lambda room: room.tell(line))
        host.flush()

    async def _told_at(self, record: SessionRecord) -> int | None:
        """Return when it was said that the session will be ended, if nobody has used it since."""
        page = await self._registry.store.activity(record.session_id, None, 100)
        told = [one.at for one in page.items if one.activity_type == "expiring"]
        return told[0] if told and told[0] >= record.last_activity else None
