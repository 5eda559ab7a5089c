"""Reading sessions that are to be opened."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog

from reattach.bus.snapshots import Snapshot, Snapshots, proof
from reattach.errors import SessionNotFound, StoreError, StoreUnavailable, Unavailable
from reattach.runtime.counts import Counts
from reattach.runtime.gathering import Gathering
from reattach.runtime.outage import Outage
from reattach.runtime.tasks import Tasks
from reattach.store.base import (
    ClientRecord,
    CommitRecord,
    Loaded,
    RefusalRecord,
    SessionRecord,
    Standing,
    Store,
    Tombstone,
)

__all__ = ["Loader"]

log = structlog.get_logger("reattach.loader")

_MOST: Final = 1_000
"""What is read by one statement, at most, of what weighs little."""
_MOST_SESSIONS: Final = 250
_MOST_BYTES: Final = 16 * 1024 * 1024
"""What the sessions weigh, more or less, that are read by one statement."""


class Loader:
    """Reads what is needed to let somebody in, for many at a time.

    Sessions are read from the database, or on from a snapshot that is of its history.
    """

    def __init__(
        self,
        store: Store,
        snapshots: Snapshots | None,
        tasks: Tasks,
        *,
        timeout_ms: int,
        counts: Counts,
        outage: Outage,
    ) -> None:
        self.store = store
        self._tasks = tasks
        self._outage = outage
        self._asking = False
        """Whether the database is being asked if it is there at all."""
        self._snapshots = snapshots
        self._timeout_ms = timeout_ms
        self._counts = counts
        few: Any = {"most": _MOST, "timeout_ms": timeout_ms}
        self._sessions = Gathering(self._load, tasks, most=_MOST_SESSIONS, timeout_ms=timeout_ms)
        self._standings = Gathering(self._read_standings, tasks, **few)
        self._clients = Gathering(self._read_clients, tasks, **few)
        self._versions = Gathering(self._read_versions, tasks, **few)
        self._since = Gathering(self._read_since, tasks, most=_MOST_SESSIONS, timeout_ms=timeout_ms)

    async def load(self, session_id: str) -> tuple[Loaded, int]:
        """Read a session.

        With it comes what the log weighs between the newest state in the database and the one
        that was found. Raises `SessionNotFound`, or `Unavailable`.
        """
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                loaded, log_bytes = await self._read(session_id)
        except (TimeoutError, StoreError) as error:
            self._counts.loads_failed += 1
            raise self._not_loaded(session_id, error) from error
        if loaded is None:
            raise SessionNotFound("there is no such session")
        self._counts.loads += 1
        return loaded, log_bytes

    async def standing(self, session_id: str, user_id: str) -> Standing | Tombstone | None:
        """Read what a user is to a session; raises `Unavailable`."""
        try:
            return await self._standings.get((session_id, user_id))
        except StoreError as error:
            raise self._not_loaded(session_id, error) from error

    async def client(
        self, session_id: str, client_id: str, after: int
    ) -> tuple[ClientRecord | None, Sequence[RefusalRecord]]:
        """Read a client's record and its refusals with ``seq > after``, of one moment."""
        return await self._clients.get((session_id, client_id, after))

    async def version(self, session_id: str) -> tuple[str, int, int] | None:
        """Read where a session stands: epoch, version, access version."""
        return await self._versions.get(session_id)

    async def since(
        self, session_id: str, after: int
    ) -> tuple[SessionRecord, Sequence[CommitRecord]] | None:
        """Read a session's row and the commits above a version, of one moment."""
        return await self._since.get((session_id, after))

    async def _load(self, asked: Sequence[str]) -> Mapping[str, Loaded | None]:
        return await self.store.load_many(asked, _MOST_BYTES)

    async def _read_standings(
        self, asked: Sequence[tuple[str, str]]
    ) -> Mapping[tuple[str, str], Standing | Tombstone | None]:
        return dict(zip(asked, await self.store.standings(asked), strict=True))

    async def _read_clients(
        self, asked: Sequence[tuple[str, str, int]]
    ) -> Mapping[tuple[str, str, int], tuple[ClientRecord | None, Sequence[RefusalRecord]]]:
        return dict(zip(asked, await self.store.clients(asked), strict=True))

    async def _read_versions(
        self, asked: Sequence[str]
    ) -> Mapping[str, tuple[str, int, int] | None]:
        found = await self.store.versions(asked)
        return {session_id: found.get(session_id) for session_id in asked}

    async def _read_since(
        self, asked: Sequence[tuple[str, int]]
    ) -> Mapping[tuple[str, int], tuple[SessionRecord, Sequence[CommitRecord]] | None]:
        return dict(zip(asked, await self.store.since(asked), strict=True))

    async def _read(self, session_id: str) -> tuple[Loaded | None, int]:
        """Read a session, from a snapshot on if there is one that is worth it."""
        held = [] if self._snapshots is None else await self._snapshots.get(session_id)
        for snapshot in held:
            loaded = await self._read_on(snapshot)
            if loaded is not None:
                self._counts.snapshots_used += 1
                return loaded, snapshot.log_bytes
        if self._snapshots is not None:
            self._counts.snapshots_missed += 1
        return await self._sessions.get(session_id), 0

    async def _read_on(self, snapshot: Snapshot) -> Loaded | None:
        """Read what came after a snapshot; None where it is not of the history in the database.

        The session's row is read first: what came after it is found by the next comparison.
        """
        session_id, version = snapshot.session_id, snapshot.saved.version
        record = await self.store.session(session_id)
        if not isinstance(record, SessionRecord) or record.epoch != snapshot.epoch:
            return None
        commits = await self.store.log(session_id, first=version, last=record.version)
        if len(commits) != record.version - version + 1 or proof(commits[0].body) != snapshot.proof:
            return None
        return Loaded(
            session=record,
            saved=snapshot.saved,
            tail=commits[1:],
            conflicts=snapshot.conflicts,
            devices=await self.store.devices(session_id),
            members=await self.store.members(session_id),
        )

    def _not_loaded(self, session_id: str, error: Exception) -> Unavailable:
        if not isinstance(error, (TimeoutError, StoreUnavailable)):
            _report(session_id, error)
        elif not self._outage.suspected and not self._asking:
            self._asking = True
            self._tasks.spawn(self._report_alone(session_id, error))
        return Unavailable("the session cannot be loaded now: nothing was lost")

    async def _report_alone(self, session_id: str, error: Exception) -> None:
        """Report it where the database does all else: that it is away is said once for all."""
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                await self.store.check()
        except (StoreError, OSError) as away:  # a timeout is one
            self._outage.suspect(away)
        else:
            _report(session_id, error)
        finally:
            self._asking = False


def _report(session_id: str, error: Exception) -> None:
    log.error(
        "a session could not be loaded",
        session=session_id,
        error=str(error) or type(error).__name__,
    )
