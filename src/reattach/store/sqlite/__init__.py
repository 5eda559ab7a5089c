"""Sessions in one SQLite file, which one server holds and any number of programs may read.

One thread writes: a whole batch is one hop into it and one transaction, on disk (WAL,
``synchronous=FULL``) before `SQLiteStore.append` returns. It alone runs checkpoints, too, so that
the log file never starts over while somebody else copies from it. Reads have connections and
threads of their own and wait for nobody.

Guards are optimistic: a batch is written with ``UPDATE … WHERE`` it still stands, and the rows
that were changed are counted. Only where one is missing is the batch rolled back and done again
part by part, each in a savepoint, so that the ordinary batch pays nothing for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from reattach.store.base import (
    Activity,
    Append,
    CheckpointRecord,
    ClientRecord,
    CommitRecord,
    CommitSlot,
    Compaction,
    CredentialRecord,
    Decision,
    DeviceRecord,
    Everything,
    IdempotencyRecord,
    Loaded,
    MemberRecord,
    Outcome,
    Page,
    RefusalRecord,
    Search,
    SessionRecord,
    Standing,
    Tombstone,
)
from reattach.store.shared import (
    IDEMPOTENCY_LIFETIME_MS,
    MAX_INTEGER,
    aged,
    check_batch,
    entry_after,
    entry_mark,
    lease_value,
    place_after,
    place_mark,
    refusal_after,
    refusal_mark,
    text_range,
    to_checkpoint,
    to_commit,
    to_conflict,
    to_number,
    to_slot,
    wall_clock,
)
from reattach.store.sqlite import sql
from reattach.store.sqlite.file import File, closed, held
from reattach.store.sqlite.rows import (
    read_all_clients,
    read_all_refusals,
    read_checkpoint,
    read_client,
    read_credentials,
    read_decision,
    read_devices,
    read_everything,
    read_key,
    read_loaded,
    read_many,
    read_members,
    read_refusals,
    read_session,
    read_since,
    read_standing,
    to_session,
    weighed,
)

__all__ = [
    "SQLiteStore",
]

_T = TypeVar("_T")

READERS: Final = 2
"""Threads that read: a long page does not keep a short one waiting."""


class SQLiteStore:
    """The store in the SQLite file at ``path``, which is created when it is not there.

    ``busy_timeout`` is how long an append waits for another program's write lock, in seconds;
    ``now`` gives the time, ms since 1970. All methods but `append` and `open` raise
    `StoreUnavailable` alone.
    """

    seating: Final = None
    """One node holds a file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 5.0,
        now: Callable[[], int] = wall_clock,
    ) -> None:
        self._file = File(Path(path), busy_timeout, now)
        self._writer: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None

    async def open(self) -> str:
        """Create or check the tables, take hold of the file, and return its identity.

        Raises `DatabaseHeld` when another server holds it, `StoreError` when it is not ours or of
        another version, `StoreUnavailable` when it cannot be opened.
        """
        if self._writer is not None:
            raise held(self._file.path, str(os.getpid()))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="reattach-sqlite-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reattach-sqlite-reader")
        try:
            return await _hop(self._writer, self._file.open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what is under way and let go of the file."""
        writer, readers = self._writer, self._readers
        self._writer = self._readers = None
        if writer is None or readers is None:
            return

        def finish() -> None:
            readers.shutdown()
            self._file.close()

        # Behind all that was asked for before, and the thread's last work.
        finished = asyncio.get_running_loop().run_in_executor(writer, finish)
        writer.shutdown(wait=False)
        await asyncio.shield(finished)

    async def announce(self, address: str) -> None:
        """Say in the lock file, which only its owner can read, where operators find this server."""
        await self._write(lambda: self._file.announce(address))

    async def check(self) -> None:
        """Commit a tiny row, durably."""
        await self._write(self._file.check)

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Carry out a batch as `Store.append` says; goes on to its end when it is cancelled.

        Raises `StoreRefused` when nothing was done, `StoreUnavailable` when nobody knows.
        """
        check_batch(batch)
        return await self._write(lambda: self._file.append(batch))

    async def load(self, session_id: str) -> Loaded | None:
        """Read what is needed to open a session."""
        return await self._read(lambda db: read_loaded(db, session_id, None))

    async def load_many(
        self, session_ids: Sequence[str], max_bytes: int
    ) -> Mapping[str, Loaded | None]:
        """Read what is needed to open sessions, up to the one that makes it weigh too much.

        Here it is the hop into the reader's thread that costs: one by one is as quick.
        """
        return await self._read(lambda db: read_many(db, session_ids, max_bytes))

    async def load_at(self, session_id: str, version: int) -> Loaded | None:
        """Read the newest saved state at or below ``version`` and the log from there to it."""
        return await self._read(lambda db: read_loaded(db, session_id, version))

    async def session(self, session_id: str) -> SessionRecord | Tombstone | None:
        """Read a session's row, or what an erased one left."""
        return await self._read(lambda db: read_session(db, session_id))

    async def standings(
        self, asked: Sequence[tuple[str, str]]
    ) -> Sequence[Standing | Tombstone | None]:
        """Read what users are to sessions, or what erased ones left."""
        return await self._read(lambda db: [read_standing(db, *one) for one in asked])

    async def versions(self, session_ids: Sequence[str]) -> Mapping[str, tuple[str, int, int]]:
        """Read where sessions stand."""
        names = json.dumps(list(session_ids))
        return await self._read(
            lambda db: {
                name: (epoch, version, access_version)
                for name, epoch, version, access_version in db.execute(sql.READ_VERSIONS, (names,))
            }
        )

    async def sessions(self, user_id: str, after: str | None, limit: int) -> Page:
        """List the sessions of a user, newest activity first."""
        asked = (user_id, *place_after(after), limit + 1)
        return await self._read(
            lambda db: _page(db.execute(sql.LIST_SESSIONS, asked).fetchall(), limit)
        )

    async def search(self, search: Search, after: str | None, limit: int) -> Page:
        """List the sessions of all users that are looked for."""
        (at, name), (begin, end) = place_after(after), text_range(search.text)
        until = search.active_until
        statement = sql.SEARCH_SESSIONS if search.text is None else sql.SEARCH_SESSIONS_BY_NAME
        asked = {
            "at": at,
            "name": name,
            "since": to_number(search.active_since or 0),
            "until": MAX_INTEGER if until is None else to_number(until),
            "begins": search.begins,
            "user": search.user_id,
            "schema": search.schema_name,
            "within": None if search.within is None else json.dumps(list(search.within)),
            "without": None if search.without is None else json.dumps(list(search.without)),
            "text": begin,
            "end": end,
            "limit": limit + 1,
        }
        return await self._read(lambda db: _page(db.execute(statement, asked).fetchall(), limit))

    async def renew_epochs(self, epoch: str) -> int:
        """Begin another epoch in every session."""
        return await self._write(lambda: self._file.count(sql.RENEW_EPOCHS, (epoch,)))

    async def log(
        self,
        session_id: str,
        *,
        first: int,
        last: int | None = None,
        client_id: str | None = None,
        limit: int | None = None,
        max_bytes: int | None = None,
    ) -> Sequence[CommitRecord]:
        """Read commits in order."""
        bounds = (session_id, to_number(first), MAX_INTEGER if last is None else to_number(last))
        at_most = -1 if limit is None else limit

        def read(db: sqlite3.Connection) -> Sequence[CommitRecord]:
            if client_id is None:
                rows = db.execute(sql.READ_LOG, (*bounds, at_most))
            else:
                rows = db.execute(sql.READ_CLIENT_LOG, (*bounds, client_id, at_most))
            with closing(rows):
                return weighed(map(to_commit, rows), max_bytes)

        return await self._read(read)

    async def commit_slots(
        self, session_id: str, first: int, last: int, width: int
    ) -> Sequence[CommitSlot]:
        """Count commits in slots, by slot and client."""
        asked = (to_number(first), width, session_id, to_number(last))
        return await self._read(
            lambda db: [to_slot(row) for row in db.execute(sql.SLOTS_OF_COMMITS, asked)]
        )

    async def session_clients(self, session_id: str) -> Sequence[ClientRecord]:
        """Read all clients of a session, by id."""
        return await self._read(lambda db: read_all_clients(db, session_id))

    async def session_refusals(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the refusals of all clients of a session, newest change first."""
        place = refusal_after(after)

        def read(db: sqlite3.Connection) -> Page:
            items = read_all_refusals(db, session_id, place, limit + 1)
            following = refusal_mark(items[limit - 1]) if len(items) > limit else None
            return Page(items=items[:limit], next=following)

        return await self._read(read)

    async def client(self, session_id: str, client_id: str) -> ClientRecord | None:
        """Read a client's record."""
        return await self._read(lambda db: read_client(db, session_id, client_id))

    async def clients(
        self, asked: Sequence[tuple[str, str, int]]
    ) -> Sequence[tuple[ClientRecord | None, Sequence[RefusalRecord]]]:
        """Read clients' records, and their refusals above a number."""
        return await self._read(
            lambda db: [
                (
                    read_client(db, session_id, client_id),
                    read_refusals(db, session_id, client_id, n),
                )
                for session_id, client_id, n in asked
            ]
        )

    async def since(
        self, asked: Sequence[tuple[str, int]]
    ) -> Sequence[tuple[SessionRecord, Sequence[CommitRecord]] | None]:
        """Read sessions' rows, and the commits above a version of each."""
        return await self._read(
            lambda db: [read_since(db, session_id, after) for session_id, after in asked]
        )

    async def refusals(
        self, session_id: str, client_id: str, after: int
    ) -> Sequence[RefusalRecord]:
        """Read a client's refusals with ``seq > after``, in order."""
        return await self._read(lambda db: read_refusals(db, session_id, client_id, after))

    async def decision(self, session_id: str, client_id: str, seq: int) -> Decision | None:
        """Read what became of one number; None when it is not decided."""
        return await self._read(lambda db: read_decision(db, session_id, client_id, seq))

    async def conflicts(
        self, session_id: str, status: str | None, after: str | None, limit: int
    ) -> Page:
        """List conflicts, newest first."""
        place = place_after(after)

        def read(db: sqlite3.Connection) -> Page:
            if status is None:
                rows = db.execute(sql.LIST_CONFLICTS, (session_id, *place, limit + 1)).fetchall()
            else:
                rows = db.execute(
                    sql.LIST_CONFLICTS_BY_STATUS, (session_id, status, *place, limit + 1)
                ).fetchall()
            items = [to_conflict(row) for row in rows[:limit]]
            more = len(rows) > limit
            last = items[-1] if more else None
            return Page(
                items=items, next=place_mark(last.version, last.conflict_id) if last else None
            )

        return await self._read(read)

    async def checkpoints(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the marks, newest version first."""
        place = place_after(after)

        def read(db: sqlite3.Connection) -> Page:
            rows = db.execute(sql.LIST_CHECKPOINTS, (session_id, *place, limit + 1)).fetchall()
            items = [to_checkpoint(row) for row in rows[:limit]]
            last = items[-1] if len(rows) > limit else None
            return Page(
                items=items, next=place_mark(last.version, last.checkpoint_id) if last else None
            )

        return await self._read(read)

    async def checkpoint(
        self, session_id: str, checkpoint_id: str | None
    ) -> CheckpointRecord | None:
        """Read a mark; with None the newest that is not a ``before_restore``."""
        return await self._read(lambda db: read_checkpoint(db, session_id, checkpoint_id))

    async def activity(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the activity log, newest first."""
        before = entry_after(after)

        def read(db: sqlite3.Connection) -> Page:
            rows = db.execute(sql.LIST_ACTIVITY, (session_id, before, limit + 1)).fetchall()
            more = len(rows) > limit
            return Page(
                items=[
                    Activity(
                        activity_type=row[1],
                        at=row[2],
                        user_id=row[3],
                        device_id=row[4],
                        data=row[5],
                    )
                    for row in rows[:limit]
                ],
                next=entry_mark(rows[limit - 1][0]) if more else None,
            )

        return await self._read(read)

    async def devices(self, session_id: str) -> Sequence[DeviceRecord]:
        """Read the devices of a session, oldest first."""
        return await self._read(lambda db: read_devices(db, session_id))

    async def members(self, session_id: str) -> Sequence[MemberRecord]:
        """Read the members of a session by user id."""
        return await self._read(lambda db: read_members(db, session_id))

    async def credential(self, session_id: str, secret_hash: bytes) -> CredentialRecord | None:
        """Read the credential whose secret has this hash."""
        found = await self._read(lambda db: read_credentials(db, session_id, secret_hash))
        return found[0] if found else None

    async def credentials(self, session_id: str) -> Sequence[CredentialRecord]:
        """Read a session's credentials, oldest first."""
        return await self._read(lambda db: read_credentials(db, session_id))

    async def due_reactions(self, names: Sequence[str], limit: int) -> Sequence[tuple[str, str]]:
        """Read which reactions are due and held by nobody."""
        asked = (json.dumps(list(names)), limit)
        return await self._read(
            lambda db: db.execute(sql.DUE_REACTIONS, (self._file.now(), *asked)).fetchall()
        )

    async def lease_reaction(
        self, session_id: str, name: str, owner: str, lease_ms: int
    ) -> int | None:
        """Hold a reaction for so long, and return its cursor."""

        def write() -> int | None:
            now = self._file.now()
            row = (owner, now + lease_ms, session_id, name, owner, now)
            version: int | None = self._file.put(sql.LEASE_REACTION, row)
            return version

        return await self._write(write)

    async def advance_reaction(
        self, session_id: str, name: str, owner: str, version: int, lease_ms: int
    ) -> bool:
        """Move the cursor of a reaction that is held, and hold it on or let go of it."""

        def write() -> bool:
            until = self._file.now() + lease_ms if lease_ms else 0
            row = (version, owner if lease_ms else None, until, session_id, name, owner)
            return self._file.put(sql.ADVANCE_REACTION, row) is not None

        return await self._write(write)

    async def compact(self, compaction: Compaction) -> bool:
        """Carry out a compaction."""
        return await self._write(lambda: self._file.compact(compaction))

    async def saved_versions(self, session_id: str) -> Sequence[int]:
        """Read the versions whose states are saved, in order."""
        return await self._read(
            lambda db: [row[0] for row in db.execute(sql.READ_SAVED_VERSIONS, (session_id,))]
        )

    async def log_times(self, session_id: str, limit: int) -> Sequence[tuple[int, int]]:
        """Read which versions the log's oldest commits are, and from when."""
        asked = (session_id, limit)
        return await self._read(lambda db: db.execute(sql.READ_LOG_TIMES, asked).fetchall())

    async def aged_sessions(
        self, before: int, marks_before: int, after: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Look at sessions for what may be compacted."""
        asked = (to_number(before), to_number(marks_before), after, limit)
        return aged(await self._read(lambda db: db.execute(sql.READ_AGED, asked).fetchall()), limit)

    async def lease(self, name: str, owner: str, lease_ms: int) -> bool:
        """Hold something that one owner at a time may, for so long."""

        def write() -> bool:
            now = self._file.now()
            value = lease_value(owner, now + lease_ms)
            row = (f"lease.{name}", value, lease_value("", now + 1), owner)
            return self._file.put(sql.LEASE, row) is not None

        return await self._write(write)

    async def everything(self, session_id: str) -> Everything | None:
        """Read all of a session, of one moment; None when there is none."""
        return await self._read(lambda db: read_everything(db, session_id))

    async def trim_activity(self, before: int, limit: int) -> int:
        """Remove the oldest lines of all activity logs from before a time; return how many."""
        row = to_number(before), limit
        return await self._write(lambda: self._file.count(sql.REMOVE_OLD_ACTIVITY, row))

    async def idempotent(self, user_id: str, route: str, key: str) -> IdempotencyRecord | None:
        """Read what a key was answered, if it was within a day."""
        return await self._read(
            lambda db: read_key(db, user_id, route, key, self._file.now() - IDEMPOTENCY_LIFETIME_MS)
        )

    async def _write(self, work: Callable[[], _T]) -> _T:
        if self._writer is None:
            raise closed(self._file.path)
        return await _hop(self._writer, work)

    async def _read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._readers is None:
            raise closed(self._file.path)
        return await _hop(self._readers, lambda: self._file.read(work))


def _page(rows: Sequence[tuple[Any, ...]], limit: int) -> Page:
    """Make a page of the rows of sessions, of which one more than asked for were read."""
    items = [to_session(row) for row in rows[:limit]]
    last = items[-1] if len(rows) > limit else None
    return Page(items=items, next=place_mark(last.last_activity, last.session_id) if last else None)


async def _hop(executor: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    """Do ``work`` in the executor, to its end even when whoever waits for it is cancelled."""
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(executor, work))
