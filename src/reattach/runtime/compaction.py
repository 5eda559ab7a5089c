"""Keeps history within its bounds: thins automatic marks, and takes away the log's old beginning.

A session is compacted in steps, each one transaction after which all holds that is promised of
versions and checkpoints. Nodes that share a database take turns by a lease; none leads, and one
that dies leaves nothing but its lease, which ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from reattach.core.limits import Limits
from reattach.core.retention import DAY_MS, old_end, thinned
from reattach.core.session import Session, schema_version_of
from reattach.errors import ReattachError
from reattach.runtime.clock import Clock
from reattach.store.base import (
    CheckpointRecord,
    Compaction,
    SavedState,
    SessionRecord,
    Store,
)

__all__ = ["Compacted", "Compactor"]

log = structlog.get_logger("reattach.compaction")

_STEP: Final = 1_000
"""Commits that one transaction takes away at most."""
_PAGE: Final = 1_000
"""Sessions that are looked at by one statement."""
_EVERY_MS: Final = 60 * 60 * 1000
"""How often somebody goes through all sessions."""
_LEASE: Final = "compaction"


class Compacted(msgspec.Struct):
    """What was taken away."""

    commits: int = 0
    checkpoints: int = 0


class Compactor:
    """Compacts sessions of a store; ``owner`` is what this node is called."""

    def __init__(
        self, store: Store, clock: Clock, limits: Limits, owner: str, *, history_days: int
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._owner = owner
        self._history_ms = history_days * DAY_MS

    async def run(self) -> None:
        """Go through all sessions again and again, whenever it is this node's turn."""
        swept_at: int | None = None
        while True:
            await self._clock.sleep(_EVERY_MS // 6)
            if swept_at is not None and self._clock.monotonic() - swept_at < _EVERY_MS:
                continue  # the lease of whoever holds it would only be renewed
            try:
                if await self._store.lease(_LEASE, self._owner, _EVERY_MS):
                    swept_at = self._clock.monotonic()
                    await self.sweep()
            except ReattachError as error:
                log.warning("history was not compacted, it is tried again", error=error.message)
            except Exception:
                log.exception("history could not be compacted")

    async def sweep(self, progress: Callable[[int], None] = lambda _: None) -> Compacted:
        """Compact every session that has something old; ``progress`` is told how many are done."""
        total, seen = Compacted(), 0
        now = self._clock.now()
        after: str | None = ""
        while after is not None:
            names, after = await self._store.aged_sessions(
                now - self._history_ms, now - DAY_MS, after, _PAGE
            )
            for name in names:
                seen += 1
                progress(seen)
                try:
                    done = await self.compact(name)
                except AssertionError:
                    # One whose log is broken, or that was erased meanwhile, keeps no other waiting.
                    log.exception("a session could not be compacted", session=name)
                    continue
                total.commits += done.commits
                total.checkpoints += done.checkpoints
        return total

    async def compact(self, session_id: str) -> Compacted:
        """Compact one session, step by step."""
        done = Compacted()
        while True:
            record = await self._store.session(session_id)
            if not isinstance(record, SessionRecord):
                return done
            now = self._clock.now()
            marks = await self._marks(session_id)
            removed = thinned(marks, now)
            first = await self._store.log_times(session_id, _STEP)
            floor = old_end(first, now - self._history_ms)
            if not removed and not floor:
                return done
            gone = set(removed)
            kept = sorted({one.version for one in marks if one.checkpoint_id not in gone})
            compaction = Compaction(
                session_id=session_id,
                epoch=record.epoch,
                floor=floor,
                states=await self._states(session_id, kept, floor) if floor else (),
                kept=kept,
                checkpoints_removed=removed,
            )
            if not await self._store.compact(compaction):
                return done
            done.checkpoints += len(removed)
            done.commits += sum(version <= floor for version, _ in first)
            if len(first) < _STEP or floor < first[-1][0]:
                return done

    async def _marks(self, session_id: str) -> list[CheckpointRecord]:
        marks: list[CheckpointRecord] = []
        after: str | None = None
        while True:
            page = await self._store.checkpoints(session_id, after, _PAGE)
            marks += page.items
            if page.next is None:
                return marks
            after = page.next

    async def _states(self, session_id: str, kept: list[int], floor: int) -> list[SavedState]:
        """Make the states that are still to be read when the log up to the floor is gone."""
        saved = set(await self._store.saved_versions(session_id))
        wanted = {version for version in kept if version < floor} | {floor}
        return [await self._state(session_id, version) for version in sorted(wanted - saved)]

    async def _state(self, session_id: str, version: int) -> SavedState:
        loaded = await self._store.load_at(session_id, version)
        if loaded is None:
            raise AssertionError(f"expected a state at or below version {version}, got none")
        session = Session(loaded, self._limits)
        if session.version != version:
            raise AssertionError(f"expected the log up to {version}, got it to {session.version}")
        # As it was then: a state is saved by each upgrade.
        schema_version = schema_version_of(loaded.saved.index)
        session.record = msgspec.structs.replace(session.record, schema_version=schema_version)
        return session.save()
