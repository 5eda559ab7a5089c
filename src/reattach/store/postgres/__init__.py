"""Sessions in PostgreSQL, which any number of nodes use at once.

A batch is one statement and so one transaction (`sql`); none is left open while a node thinks, but
for batches in which sessions are created, erased or given to others. Reads are one statement each,
and so of one moment. Every commit is on disk before `PostgresStore.append` returns, or the server
is not used: ``fsync`` and ``synchronous_commit`` are looked at on each new connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import asyncpg

from reattach.errors import StoreError, StoreRefused, StoreUnavailable
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
from reattach.store.migrations import is_newer
from reattach.store.packing import packed, unpacked
from reattach.store.postgres import sql
from reattach.store.postgres.connections import (
    Connection,
    Connections,
    closed,
    connect,
    unavailable,
    where,
)
from reattach.store.postgres.rows import (
    Batch,
    plain,
    text,
    to_checkpoint,
    to_client,
    to_credential,
    to_device,
    to_key,
    to_loaded,
    to_members,
    to_refusal,
    to_session,
)
from reattach.store.postgres.seating import PostgresSeating
from reattach.store.shared import (
    IDEMPOTENCY_LIFETIME_MS,
    MAX_INTEGER,
    aged,
    changes_access,
    check_batch,
    entry_after,
    entry_mark,
    lease_value,
    place_after,
    place_mark,
    refusal_after,
    refusal_mark,
    text_range,
    to_commit,
    to_conflict,
    to_number,
    to_slot,
    to_tombstone,
    wall_clock,
)
from reattach.store.tables import REVISIONS

__all__ = ["PostgresStore"]

_Row = Any

WRITERS: Final = 2
"""Connections that write: one for the batch in flight, one to see whether the server can commit."""
READERS: Final = 8
"""Connections that read: a long page does not keep a short one waiting."""

OLDEST_SERVER: Final = 14
"""The oldest release of PostgreSQL that knows all of our settings."""

_ATTEMPTS: Final = 5
"""How often a statement is tried that another node's came between."""

# What the server says of what is in a batch, not of the state that it is in: the classes of
# constraints, values, limits and triggers (PostgreSQL's manual, appendix A).
_REFUSALS: Final = ("21", "22", "23", "44", "54", "P0")
# Two at once: of a serialization, of a deadlock.
_COLLISIONS: Final = ("40001", "40P01")


class PostgresStore:
    """The store in the PostgreSQL at ``url``, whose tables `reattach migrate` has made.

    ``timeout`` is how long anything may take, connecting included, in seconds; ``now`` gives the
    time, ms since 1970.
    """

    def __init__(
        self, url: str, *, timeout: float = 10.0, now: Callable[[], int] = wall_clock
    ) -> None:
        """Raises `StoreError` for a URL that cannot be a PostgreSQL's."""
        self.place = where(url)
        """The database, as it may be shown."""
        self._url = url
        self._timeout = timeout
        self._now = now
        self._identity: str | None = None
        self._writers: Connections | None = None
        self._readers: Connections | None = None
        self.seating = PostgresSeating(self._all)
        """Who is connected where."""

    async def open(self) -> str:
        """Look at the server and the tables, and return the database's identity.

        Raises `StoreError` when the tables are not there or not this release's, or when the server
        says that it does not write commits to disk; `StoreUnavailable` when it cannot be reached.
        """
        if self._writers is not None:
            raise StoreError(f"Expected {self.place} to be closed, but it is open already")
        self._identity = None
        self._writers = self._connections(WRITERS)
        self._readers = self._connections(READERS)
        try:
            async with self._writers.use() as db:
                await self._check_revision(db)
                await db.execute(sql.GIVE_IDENTITY, secrets.token_hex(16))
                self._identity = await db.fetchval(sql.IDENTITY)
        except asyncpg.PostgresError as error:
            await self.close()
            raise unavailable(self.place, error) from error
        except BaseException:
            await self.close()
            raise
        assert self._identity is not None
        return self._identity

    async def close(self) -> None:
        """Finish what is under way and let go of the server."""
        pools = self._writers, self._readers
        self._writers = self._readers = None
        for pool in pools:
            if pool is not None:
                await pool.close()

    async def check(self) -> None:
        """Commit a tiny row, durably."""
        if self._writers is None:
            raise closed(self.place)
        try:
            async with self._writers.use() as db:
                await db.execute(sql.CHECK, str(self._now()))
        except asyncpg.PostgresError as error:
            raise unavailable(self.place, error) from error

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Carry out a batch as `Store.append` says.

        Raises `StoreRefused` when nothing was done, `StoreUnavailable` when nobody knows.
        """
        check_batch(batch)
        writers = self._writers
        if writers is None:
            raise closed(self.place)
        if not batch:
            return []
        work = Batch(batch)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with writers.use() as db:
                    outcomes = await _carry_out(db, work)
            except asyncpg.PostgresError as error:
                # A row that is there already may be one that came after the statement had begun:
                # then the next one sees it, and that the session moved.
                again = _raced(error) or error.sqlstate in _COLLISIONS
                if again or (isinstance(error, asyncpg.UniqueViolationError) and attempt == 1):
                    continue
                if str(error.sqlstate)[:2] in _REFUSALS:
                    raise StoreRefused(
                        f"Expected a batch that the database takes, got: {error}. Nothing of it was"
                        " done: append the sessions one by one, to find the one that it refuses"
                    ) from error
                raise unavailable(self.place, error) from error
            except _Erased:
                continue
            await self._remove_old_keys(writers, batch)
            return outcomes
        raise StoreUnavailable(
            f"Expected a batch to be written in {_ATTEMPTS} attempts, but other nodes came between"
            " each time: load the sessions and decide again"
        )

    async def _remove_old_keys(self, writers: Connections, batch: Sequence[Append]) -> None:
        """Remove a few more idempotency keys than the parts bring, so that they do not pile up."""
        brought = len([part for part in batch if part.idempotency is not None])
        if brought:
            # The batch is written: nothing that happens here is of any matter to it.
            with suppress(StoreError, asyncpg.PostgresError):
                async with writers.use() as db:
                    since = self._now() - IDEMPOTENCY_LIFETIME_MS
                    await db.execute(sql.REMOVE_OLD_KEYS, since, 4 * brought)

    # --- Reading

    async def load(self, session_id: str) -> Loaded | None:
        """Read what is needed to open a session."""
        row = await self._one(sql.READ_LOADED, text(session_id), None)
        return None if row is None else to_loaded(row)

    async def load_many(
        self, session_ids: Sequence[str], max_bytes: int
    ) -> Mapping[str, Loaded | None]:
        """Read what is needed to open sessions, up to the one that makes it weigh too much."""
        # A row has its place instead of its id, which may have been written otherwise.
        rows = await self._all(
            sql.READ_MANY_LOADED, [text(name) for name in session_ids], to_number(max_bytes)
        )
        return {
            session_ids[row[20] - 1]: None if row[0] is None else to_loaded(row) for row in rows
        }

    async def load_at(self, session_id: str, version: int) -> Loaded | None:
        """Read the newest saved state at or below ``version`` and the log from there to it."""
        row = await self._one(sql.READ_LOADED, text(session_id), to_number(version))
        return None if row is None else to_loaded(row)

    async def session(self, session_id: str) -> SessionRecord | Tombstone | None:
        """Read a session's row, or what an erased one left."""
        row = await self._one(sql.READ_SESSION, text(session_id))
        assert row is not None, "it is asked for once, whatever there is"
        if row[0] is not None:
            return to_session(row)
        return None if row[13] is None else to_tombstone(row[13:])

    async def standings(
        self, asked: Sequence[tuple[str, str]]
    ) -> Sequence[Standing | Tombstone | None]:
        """Read what users are to sessions, or what erased ones left."""
        rows = await self._all(
            sql.READ_STANDINGS,
            [text(session_id) for session_id, _ in asked],
            [text(user_id) for _, user_id in asked],
        )
        return [_to_standing(row) for row in rows]

    async def versions(self, session_ids: Sequence[str]) -> Mapping[str, tuple[str, int, int]]:
        """Read where sessions stand."""
        rows = await self._all(sql.READ_VERSIONS, [text(name) for name in session_ids])
        return {row[0]: (row[1], row[2], row[3]) for row in rows}

    async def sessions(self, user_id: str, after: str | None, limit: int) -> Page:
        """List the sessions of a user, newest activity first."""
        at, name = place_after(after)
        rows = await self._all(sql.LIST_SESSIONS, text(user_id), at, text(name), limit + 1)
        return _page(rows, limit)

    async def search(self, search: Search, after: str | None, limit: int) -> Page:
        """List the sessions of all users that are looked for."""
        at, name = place_after(after)
        until = MAX_INTEGER if search.active_until is None else to_number(search.active_until)
        asked = [
            *(at, text(name), to_number(search.active_since or 0), until),
            *(text(search.begins), text(search.user_id), text(search.schema_name)),
            None if search.within is None else list(search.within),
            None if search.without is None else list(search.without),
            limit + 1,
        ]
        if search.text is None:
            return _page(await self._all(sql.SEARCH_SESSIONS, *asked), limit)
        named = map(text, text_range(search.text))
        return _page(await self._all(sql.SEARCH_SESSIONS_BY_NAME, *asked, *named), limit)

    async def renew_epochs(self, epoch: str) -> int:
        """Begin another epoch in every session."""
        if self._readers is None:
            raise closed(self.place)
        try:
            async with self._readers.use() as db:
                done: str = await db.execute(sql.RENEW_EPOCHS, epoch)
        except asyncpg.PostgresError as error:
            raise unavailable(self.place, error) from error
        return int(done.rpartition(" ")[2])

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
        bounds = (
            text(session_id),
            to_number(first),
            MAX_INTEGER if last is None else to_number(last),
            text(client_id),
            limit,
        )
        if max_bytes is None:
            rows = await self._all(sql.READ_LOG, *bounds)
        else:
            rows = await self._all(sql.READ_LOG_BY_WEIGHT, *bounds, to_number(max_bytes))
        return [to_commit(row) for row in rows]

    async def commit_slots(
        self, session_id: str, first: int, last: int, width: int
    ) -> Sequence[CommitSlot]:
        """Count commits in slots, by slot and client."""
        asked = to_number(first), width, text(session_id), to_number(last)
        return [to_slot(row) for row in await self._all(sql.SLOTS_OF_COMMITS, *asked)]

    async def session_clients(self, session_id: str) -> Sequence[ClientRecord]:
        """Read all clients of a session, by id."""
        return [to_client(row) for row in await self._all(sql.ALL_CLIENTS, text(session_id))]

    async def session_refusals(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the refusals of all clients of a session, newest change first."""
        at, client_id, seq = refusal_after(after)
        place = text(session_id), at, text(client_id), seq
        rows = await self._all(sql.PAGE_OF_REFUSALS, *place, limit + 1)
        items = [to_refusal(row) for row in rows[:limit]]
        following = refusal_mark(items[-1]) if len(rows) > limit else None
        return Page(items=items, next=following)

    async def client(self, session_id: str, client_id: str) -> ClientRecord | None:
        """Read a client's record."""
        row = await self._one(sql.READ_CLIENT, text(session_id), text(client_id))
        return None if row is None else to_client(row)

    async def clients(
        self, asked: Sequence[tuple[str, str, int]]
    ) -> Sequence[tuple[ClientRecord | None, Sequence[RefusalRecord]]]:
        """Read clients' records, and their refusals above a number."""
        rows = await self._all(
            sql.READ_CLIENTS,
            [text(session_id) for session_id, _, _ in asked],
            [text(client_id) for _, client_id, _ in asked],
            [to_number(after) for _, _, after in asked],
        )
        return [
            (None if row[0] is None else to_client(row), [to_refusal(one) for one in row[5]])
            for row in rows
        ]

    async def since(
        self, asked: Sequence[tuple[str, int]]
    ) -> Sequence[tuple[SessionRecord, Sequence[CommitRecord]] | None]:
        """Read sessions' rows, and the commits above a version of each."""
        rows = await self._all(
            sql.READ_SINCE,
            [text(session_id) for session_id, _ in asked],
            [to_number(after) for _, after in asked],
        )
        return [
            None if row[0] is None else (to_session(row), [to_commit(one) for one in row[13]])
            for row in rows
        ]

    async def refusals(
        self, session_id: str, client_id: str, after: int
    ) -> Sequence[RefusalRecord]:
        """Read a client's refusals with ``seq > after``, in order."""
        whose = text(session_id), text(client_id)
        return [
            to_refusal(row) for row in await self._all(sql.READ_REFUSALS, *whose, to_number(after))
        ]

    async def decision(self, session_id: str, client_id: str, seq: int) -> Decision | None:
        """Read what became of one number; None when it is not decided."""
        seq = to_number(seq)
        row = await self._one(sql.READ_DECISION, text(session_id), text(client_id), seq)
        if row is None or row[1] is None:
            return None
        return Decision(seq=seq, client_at=row[1], refusal=row[0])

    async def conflicts(
        self, session_id: str, status: str | None, after: str | None, limit: int
    ) -> Page:
        """List conflicts, newest first."""
        version, name = place_after(after)
        bounds = (text(session_id), version, text(name), limit + 1)
        if status is None:
            rows = await self._all(sql.LIST_CONFLICTS, *bounds)
        else:
            rows = await self._all(sql.LIST_CONFLICTS_BY_STATUS, *bounds, text(status))
        items = [to_conflict(row) for row in rows[:limit]]
        last = items[-1] if len(rows) > limit else None
        return Page(items=items, next=place_mark(last.version, last.conflict_id) if last else None)

    async def checkpoints(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the marks, newest version first."""
        version, name = place_after(after)
        bounds = (text(session_id), version, text(name), limit + 1)
        rows = await self._all(sql.LIST_CHECKPOINTS, *bounds)
        items = [to_checkpoint(row) for row in rows[:limit]]
        last = items[-1] if len(rows) > limit else None
        following = place_mark(last.version, last.checkpoint_id) if last else None
        return Page(items=items, next=following)

    async def checkpoint(
        self, session_id: str, checkpoint_id: str | None
    ) -> CheckpointRecord | None:
        """Read a mark; with None the newest that is not a ``before_restore``."""
        if checkpoint_id is None:
            row = await self._one(sql.READ_LATEST_CHECKPOINT, text(session_id))
        else:
            row = await self._one(sql.READ_CHECKPOINT, text(session_id), text(checkpoint_id))
        return None if row is None else to_checkpoint(row)

    async def activity(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the activity log, newest first."""
        before = entry_after(after)
        rows = await self._all(sql.LIST_ACTIVITY, text(session_id), before, limit + 1)
        return Page(
            items=[
                Activity(
                    activity_type=row[1],
                    at=row[2],
                    user_id=plain(row[3]),
                    device_id=row[4],
                    data=row[5],
                )
                for row in rows[:limit]
            ],
            next=entry_mark(rows[limit - 1][0]) if len(rows) > limit else None,
        )

    async def devices(self, session_id: str) -> Sequence[DeviceRecord]:
        """Read the devices of a session, oldest first."""
        return [to_device(row) for row in await self._all(sql.READ_DEVICES, text(session_id))]

    async def members(self, session_id: str) -> Sequence[MemberRecord]:
        """Read the members of a session by user id."""
        return to_members(await self._all(sql.READ_MEMBERS, text(session_id)))

    async def credential(self, session_id: str, secret_hash: bytes) -> CredentialRecord | None:
        """Read the credential whose secret has this hash."""
        row = await self._one(sql.READ_CREDENTIAL, text(session_id), secret_hash)
        return None if row is None else to_credential(row)

    async def credentials(self, session_id: str) -> Sequence[CredentialRecord]:
        """Read a session's credentials, oldest first."""
        rows = await self._all(sql.READ_CREDENTIALS, text(session_id))
        return [to_credential(row) for row in rows]

    async def due_reactions(self, names: Sequence[str], limit: int) -> Sequence[tuple[str, str]]:
        """Read which reactions are due and held by nobody."""
        rows = await self._all(sql.DUE_REACTIONS, self._now(), list(names), limit)
        return [(row[0], row[1]) for row in rows]

    async def lease_reaction(
        self, session_id: str, name: str, owner: str, lease_ms: int
    ) -> int | None:
        """Hold a reaction for so long, and return its cursor."""
        # Not by the connections of batches, which are few and have more important things to do.
        whose = text(session_id), text(name), owner
        row = await self._one(sql.LEASE_REACTION, *whose, self._now(), lease_ms)
        return None if row is None else row[0]

    async def advance_reaction(
        self, session_id: str, name: str, owner: str, version: int, lease_ms: int
    ) -> bool:
        """Move the cursor of a reaction that is held, and hold it on or let go of it."""
        whose = text(session_id), text(name), owner
        until = self._now() + lease_ms if lease_ms else 0
        by = owner if lease_ms else None
        row = await self._one(sql.ADVANCE_REACTION, *whose, to_number(version), by, until)
        return row is not None

    async def compact(self, compaction: Compaction) -> bool:
        """Carry out a compaction."""
        # Not by the connections of batches, which have more important things to do.
        if self._readers is None:
            raise closed(self.place)
        name, floor = text(compaction.session_id), compaction.floor
        try:
            async with self._readers.use() as db, db.transaction():
                await db.execute(sql.HOLD_HISTORY, name)
                if await db.fetchval(sql.HAS_EPOCH, name, compaction.epoch) is None:
                    return False
                for one in map(packed, compaction.states):
                    await db.execute(sql.KEEP_STATE, name, one.version, one.state, one.index)
                await db.execute(sql.COMPACT_LOG, name, floor)
                await db.execute(sql.COMPACT_STATES, name, floor, list(compaction.kept))
                removed = list(compaction.checkpoints_removed)
                await db.execute(sql.REMOVE_CHECKPOINTS, name, removed)
        except asyncpg.PostgresError as error:
            raise unavailable(self.place, error) from error
        return True

    async def saved_versions(self, session_id: str) -> Sequence[int]:
        """Read the versions whose states are saved, in order."""
        return [row[0] for row in await self._all(sql.READ_SAVED_VERSIONS, text(session_id))]

    async def log_times(self, session_id: str, limit: int) -> Sequence[tuple[int, int]]:
        """Read which versions the log's oldest commits are, and from when."""
        rows = await self._all(sql.READ_LOG_TIMES, text(session_id), limit)
        return [(row[0], row[1]) for row in rows]

    async def aged_sessions(
        self, before: int, marks_before: int, after: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Look at sessions for what may be compacted."""
        times = to_number(before), to_number(marks_before)
        return aged(await self._all(sql.READ_AGED, *times, text(after), limit), limit)

    async def lease(self, name: str, owner: str, lease_ms: int) -> bool:
        """Hold something that one owner at a time may, for so long."""
        now = self._now()
        value = lease_value(owner, now + lease_ms)
        key = f"lease.{name}"
        return await self._one(sql.LEASE, key, value, lease_value("", now + 1), owner) is not None

    async def everything(self, session_id: str) -> Everything | None:
        """Read all of a session, of one moment; None when there is none."""
        if self._readers is None:
            raise closed(self.place)
        name = text(session_id)
        try:
            async with (
                self._readers.use() as db,
                db.transaction(isolation="repeatable_read", readonly=True),
            ):

                async def every(statement: str, *more: int) -> list[_Row]:
                    return list(await db.fetch(statement, name, *more))

                (row,) = await every(sql.READ_SESSION)
                oldest = await every(sql.ALL_STATE)
                if row[0] is None or not oldest:
                    return None
                return Everything(
                    session=to_session(row),
                    saved=unpacked(*oldest[0]),
                    kept=[unpacked(*one) for one in await every(sql.ALL_KEPT_STATES, oldest[0][0])],
                    commits=[to_commit(one) for one in await every(sql.ALL_COMMITS)],
                    clients=[to_client(one) for one in await every(sql.ALL_CLIENTS)],
                    refusals=[to_refusal(one) for one in await every(sql.ALL_REFUSALS)],
                    conflicts=[to_conflict(one) for one in await every(sql.ALL_CONFLICTS)],
                    checkpoints=[to_checkpoint(one) for one in await every(sql.ALL_CHECKPOINTS)],
                    devices=[to_device(one) for one in await every(sql.READ_DEVICES)],
                    members=to_members(await every(sql.READ_MEMBERS)),
                    activity=[
                        Activity(
                            activity_type=one[0],
                            at=one[1],
                            user_id=plain(one[2]),
                            device_id=one[3],
                            data=one[4],
                        )
                        for one in await every(sql.ALL_ACTIVITY)
                    ],
                )
        except asyncpg.PostgresError as error:
            raise unavailable(self.place, error) from error

    async def trim_activity(self, before: int, limit: int) -> int:
        """Remove the oldest lines of all activity logs from before a time; return how many."""
        return len(await self._all(sql.REMOVE_OLD_ACTIVITY, to_number(before), limit))

    async def idempotent(self, user_id: str, route: str, key: str) -> IdempotencyRecord | None:
        """Read what a key was answered, if it was within a day."""
        since = self._now() - IDEMPOTENCY_LIFETIME_MS
        row = await self._one(sql.READ_KEY, text(user_id), text(route), text(key), since)
        return None if row is None else to_key(row)

    async def _all(self, statement: str, *arguments: Any) -> Sequence[_Row]:
        if self._readers is None:
            raise closed(self.place)
        try:
            async with self._readers.use() as db:
                return await db.fetch(statement, *arguments)
        except asyncpg.PostgresError as error:
            raise unavailable(self.place, error) from error

    async def _one(self, statement: str, *arguments: Any) -> _Row | None:
        rows = await self._all(statement, *arguments)
        return rows[0] if rows else None

    # --- Connecting

    def _connections(self, size: int) -> Connections:
        return Connections(self._connect, self.place, size=size, timeout=self._timeout)

    async def _connect(self) -> Connection:
        db = await connect(self._url, patience=self._timeout)
        try:
            await self._look_at(db)
        except BaseException:
            db.terminate()
            raise
        return db

    async def _look_at(self, db: Connection) -> None:
        """Raise where the server must not be used, or is not the one that was opened."""
        found = await db.fetchrow(sql.SERVER)
        assert found is not None
        fsync, synchronous, is_standby, version, is_set_up = found
        for name, value in (("fsync", fsync), ("synchronous_commit", synchronous)):
            if value == "off":
                raise StoreError(
                    f"Expected {self.place} to have a commit on disk before it says so, got"
                    f" {name} = off: a power cut would lose what people were told is saved. Set"
                    f" {name} = on there",
                    code="not_durable",
                )
        if is_standby:
            raise StoreUnavailable(
                f"Expected {self.place} to take writes, got a standby: give the primary's address,"
                " or all of them with target_session_attrs=read-write"
            )
        if version < OLDEST_SERVER * 10_000:
            raise StoreError(
                f"Expected PostgreSQL {OLDEST_SERVER} or later at {self.place}, got"
                f" {version // 10_000}: upgrade the server"
            )
        if not is_set_up:
            raise StoreError(
                f"Expected the tables of Reattach at {self.place}, got none: run `reattach migrate`"
                " with this --database",
                code="not_migrated",
            )
        if self._identity is not None and await db.fetchval(sql.IDENTITY) != self._identity:
            raise StoreUnavailable(
                f"Expected the database that was opened at {self.place}, got another one in its"
                " place: put it back, or restart the server"
            )

    async def _check_revision(self, db: Connection) -> None:
        revision: str | None = await db.fetchval(sql.REVISION)
        if is_newer(revision):
            raise StoreError(
                f"Expected tables of revision {REVISIONS[-1]} at {self.place}, got {revision} of a"
                " later release: serve with that release, or a later one",
                code="not_migrated",
            )
        if revision != REVISIONS[-1]:
            raise StoreError(
                f"Expected tables of revision {REVISIONS[-1]} at {self.place}, got"
                f" {revision or 'none'}: run `reattach migrate` with this --database; nodes of the"
                " release before go on meanwhile",
                code="not_migrated",
            )


class _Erased(Exception):
    """A session was erased between the statement's beginning and its making it anew."""


async def _carry_out(db: Connection, work: Batch) -> list[Outcome]:
    """Write a batch, or raise with nothing written."""
    rare = [part for part in work.parts if _is_rare(part)]
    if not rare:
        return await _write(db, work)
    async with db.transaction():
        outcomes = await _write(db, work)
        became = dict(zip([part.session_id for part in work.given], outcomes, strict=True))
        done = [part for part in rare if became[part.session_id] is Outcome.OK]
        created = [part.session_id for part in done if part.expected is None]
        if created and await db.fetch(sql.FIND_ERASED, created):
            raise _Erased
        for part in done:
            await _write_rare(db, part)
    return outcomes


async def _write(db: Connection, work: Batch) -> list[Outcome]:
    row = await db.fetchrow(work.statement, *work.arguments)
    assert row is not None
    return work.outcomes(row[0], row[1])


def _page(rows: Sequence[_Row], limit: int) -> Page:
    """Make a page of the rows of sessions, of which one more than asked for were read."""
    items = [to_session(row) for row in rows[:limit]]
    last = items[-1] if len(rows) > limit else None
    return Page(items=items, next=place_mark(last.last_activity, last.session_id) if last else None)


def _to_standing(row: _Row) -> Standing | Tombstone | None:
    if row[0] is not None:
        return Standing(session=to_session(row), role=row[16])
    return None if row[13] is None else to_tombstone(row[13:16])


def _is_rare(part: Append) -> bool:
    """Say whether a part needs more than its statement: what is as of its locks, and is seldom."""
    return part.expected is None or part.erase is not None or changes_access(part)


async def _write_rare(db: Connection, part: Append) -> None:
    name, row = part.session_id, part.session
    if part.erase is not None:
        await db.execute(sql.HOLD_HISTORY, name)
        for statement in sql.ERASE_REST:
            await db.execute(statement, name)
        return
    if not changes_access(part):
        return
    assert row is not None, "check_batch has seen to it"
    gone = [*part.members_removed, *([] if part.claim is None else [part.claim.after])]
    if gone:
        await db.execute(sql.REMOVE_MEMBERS, name, [text(user_id) for user_id in gone])
    for member in part.members:
        await db.execute(sql.PUT_MEMBER, name, row.last_activity, text(member.user_id), member.role)
    if part.credentials_removed:
        await db.execute(sql.REMOVE_CREDENTIALS, name, part.credentials_removed)
    for one in part.credentials:
        await db.execute(
            sql.PUT_CREDENTIAL,
            *(name, one.secret_hash, one.kind, text(one.user_id), one.role),
            *(one.device_id, one.created_at, one.expires_at),
        )
    if part.claim is not None:
        for statement in sql.CLAIM:
            await db.execute(statement, name, text(part.claim.before), text(part.claim.after))


def _raced(error: asyncpg.PostgresError) -> bool:
    return error.sqlstate == "22P02" and sql.RACED in str(error)
