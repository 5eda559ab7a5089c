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
import fcntl
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec.structs import astuple
from sqlalchemy.dialects import sqlite as dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from reattach.errors import DatabaseHeld, StoreError, StoreRefused, StoreUnavailable
from reattach.store.base import (
    Activity,
    Append,
    ClientRecord,
    CommitRecord,
    ConflictRecord,
    Decision,
    DeviceRecord,
    IdempotencyRecord,
    Loaded,
    Outcome,
    Page,
    RefusalRecord,
    SavedState,
    SessionRecord,
    Tombstone,
)
from reattach.store.shared import (
    IDEMPOTENCY_LIFETIME_MS,
    MAX_INTEGER,
    check_batch,
    entry_after,
    entry_mark,
    place_after,
    place_mark,
    wall_clock,
)
from reattach.store.tables import SCHEMA_VERSION, metadata

__all__ = ["SQLiteStore"]

_T = TypeVar("_T")
_Row = tuple[Any, ...]

# --- How a connection is set up -------------------------------------------------------------------

WRITER_PRAGMAS: Final = (
    # A commit is one append to the log file, and readers go on meanwhile.
    ("journal_mode", "wal"),
    # Every commit is fsynced. On macOS only F_FULLFSYNC reaches the disk; elsewhere it is nothing.
    ("synchronous", 2),
    ("fullfsync", 1),
    ("checkpoint_fullfsync", 1),
    # Other programs can read the file while we hold it.
    ("locking_mode", "normal"),
    # What is removed is overwritten with zeros: erased means erased.
    ("secure_delete", 1),
    # 16 MiB between checkpoints: a page that many commits touch is copied into the database once.
    ("wal_autocheckpoint", 4_000),
    # The log file shrinks to this again after a burst.
    ("journal_size_limit", 64 * 1024 * 1024),
    # Pages in memory, in KiB when negative.
    ("cache_size", -32 * 1024),
    # Sorting leaves no files behind.
    ("temp_store", 2),
)

READER_PRAGMAS: Final = (
    ("query_only", 1),
    ("cache_size", -8 * 1024),
    ("temp_store", 2),
)

# --- SQL: guards; each changes one row where all stands as expected -------------------------------

CREATE_SESSION: Final = """
INSERT INTO sessions (
    session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM erased_sessions WHERE session_id = ?)
ON CONFLICT (session_id) DO NOTHING
"""

UPDATE_SESSION: Final = """
UPDATE sessions SET
    user_id = ?, epoch = ?, epoch_version = ?, version = ?, access_version = ?, schema_name = ?,
    schema_version = ?, created_at = ?, last_activity = ?, is_active = ?, disconnected_at = ?,
    reconnected_at = ?
WHERE session_id = ? AND version = ? AND epoch = ? AND access_version = ?
"""

SESSION_STANDS: Final = """
SELECT 1 FROM sessions WHERE session_id = ? AND version = ? AND epoch = ? AND access_version = ?
"""

ERASE_SESSION: Final = """
DELETE FROM sessions WHERE session_id = ? AND version = ? AND epoch = ? AND access_version = ?
"""

MEET_CLIENT: Final = """
INSERT INTO clients (session_id, client_id, user_id, device_id, seq, at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, client_id) DO UPDATE SET seq = clients.seq
WHERE clients.user_id = excluded.user_id
"""

START_CLIENT: Final = """
INSERT INTO clients (session_id, client_id, user_id, device_id, seq, at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, client_id)
DO UPDATE SET device_id = excluded.device_id, seq = excluded.seq, at = excluded.at
WHERE clients.user_id = excluded.user_id AND clients.seq = 0
"""

ADVANCE_CLIENT: Final = """
UPDATE clients SET device_id = ?, seq = ?, at = ?
WHERE session_id = ? AND client_id = ? AND user_id = ? AND seq = ?
"""

RECORD_KEY: Final = """
INSERT INTO idempotency_keys (
    user_id, route, key, request, status, headers, body, created_at, session_id
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (user_id, route, key) DO UPDATE SET
    request = excluded.request, status = excluded.status, headers = excluded.headers,
    body = excluded.body, created_at = excluded.created_at, session_id = excluded.session_id
WHERE idempotency_keys.created_at <= ?
"""

# --- SQL: what goes with them ---------------------------------------------------------------------

INSERT_COMMIT: Final = """
INSERT INTO commits (session_id, version, body, writes, at, client_id, seq, client_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

INSERT_REFUSAL: Final = """
INSERT INTO refusals (session_id, client_id, seq, client_at, body) VALUES (?, ?, ?, ?, ?)
"""

PUT_CONFLICT: Final = """
INSERT INTO conflicts (session_id, conflict_id, path, status, version, body)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, conflict_id) DO UPDATE SET
    path = excluded.path, status = excluded.status, version = excluded.version,
    body = excluded.body
"""

PUT_DEVICE: Final = """
INSERT INTO session_devices (
    session_id, device_id, user_id, name, info, is_primary, created_at, last_activity
) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (session_id, device_id) DO UPDATE SET
    user_id = excluded.user_id, name = excluded.name, info = excluded.info,
    is_primary = excluded.is_primary, last_activity = excluded.last_activity
"""

INSERT_ACTIVITY: Final = """
INSERT INTO session_activity_log (
    session_id, entry, activity_type, at, user_id, device_id, data
)
SELECT ?, COALESCE(MAX(entry), 0) + 1, ?, ?, ?, ?, ?
FROM session_activity_log WHERE session_id = ?
"""

PUT_STATE: Final = """
INSERT INTO states (session_id, version, state, last_writers) VALUES (?, ?, ?, ?)
ON CONFLICT (session_id, version) DO UPDATE SET
    state = excluded.state, last_writers = excluded.last_writers
"""

# Everything of a session but its row, which its guard has removed.
ERASE_REST: Final = (
    "DELETE FROM commits WHERE session_id = ?",
    "DELETE FROM states WHERE session_id = ?",
    "DELETE FROM clients WHERE session_id = ?",
    "DELETE FROM refusals WHERE session_id = ?",
    "DELETE FROM conflicts WHERE session_id = ?",
    "DELETE FROM session_devices WHERE session_id = ?",
    "DELETE FROM session_activity_log WHERE session_id = ?",
    "DELETE FROM session_checkpoints WHERE session_id = ?",
    "DELETE FROM idempotency_keys WHERE session_id = ?",
)

INSERT_TOMBSTONE: Final = """
INSERT INTO erased_sessions (session_id, erased_at, salt, members) VALUES (?, ?, ?, ?)
"""

# The index gives the oldest at once, and the limit bounds what one batch has to remove.
REMOVE_OLD_KEYS: Final = """
DELETE FROM idempotency_keys WHERE rowid IN (
    SELECT rowid FROM idempotency_keys WHERE created_at <= ? ORDER BY created_at LIMIT ?
)
"""

CHECK: Final = """
INSERT INTO meta (key, value) VALUES ('checked_at', ?)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""

# --- SQL: reads -----------------------------------------------------------------------------------

READ_SESSION: Final = """
SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
FROM sessions WHERE session_id = ?
"""

READ_TOMBSTONE: Final = "SELECT erased_at, salt, members FROM erased_sessions WHERE session_id = ?"

LIST_SESSIONS: Final = """
SELECT session_id, user_id, epoch, epoch_version, version, access_version, schema_name,
    schema_version, created_at, last_activity, is_active, disconnected_at, reconnected_at
FROM sessions WHERE user_id = ? AND (last_activity, session_id) < (?, ?)
ORDER BY last_activity DESC, session_id DESC LIMIT ?
"""

READ_STATE: Final = """
SELECT version, state, last_writers FROM states WHERE session_id = ? AND version <= ?
ORDER BY version DESC LIMIT 1
"""

READ_LOG: Final = """
SELECT version, body, writes, at, client_id, seq, client_at FROM commits
WHERE session_id = ? AND version BETWEEN ? AND ? ORDER BY version LIMIT ?
"""

READ_CLIENT_LOG: Final = """
SELECT version, body, writes, at, client_id, seq, client_at FROM commits
WHERE session_id = ? AND version BETWEEN ? AND ? AND client_id = ? ORDER BY version LIMIT ?
"""

READ_CLIENT: Final = """
SELECT client_id, user_id, device_id, seq, at FROM clients WHERE session_id = ? AND client_id = ?
"""

READ_REFUSALS: Final = """
SELECT client_id, seq, client_at, body FROM refusals
WHERE session_id = ? AND client_id = ? AND seq > ? ORDER BY seq
"""

READ_REFUSAL: Final = """
SELECT client_at, body FROM refusals WHERE session_id = ? AND client_id = ? AND seq = ?
"""

COUNT_REFUSALS: Final = """
SELECT COUNT(*) FROM refusals WHERE session_id = ? AND client_id = ? AND seq < ?
"""

FIND_COMMIT: Final = """
SELECT client_at FROM commits
WHERE session_id = ? AND version >= ? AND client_id = ? AND seq = ? ORDER BY version LIMIT 1
"""

LIST_CONFLICTS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = ? AND (version, conflict_id) < (?, ?)
ORDER BY version DESC, conflict_id DESC LIMIT ?
"""

LIST_CONFLICTS_BY_STATUS: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = ? AND status = ? AND (version, conflict_id) < (?, ?)
ORDER BY version DESC, conflict_id DESC LIMIT ?
"""

READ_UNRESOLVED: Final = """
SELECT conflict_id, path, status, version, body FROM conflicts
WHERE session_id = ? AND status IN ('auto', 'open') ORDER BY version, conflict_id
"""

LIST_ACTIVITY: Final = """
SELECT entry, activity_type, at, user_id, device_id, data FROM session_activity_log
WHERE session_id = ? AND entry < ? ORDER BY entry DESC LIMIT ?
"""

READ_DEVICES: Final = """
SELECT device_id, user_id, name, info, is_primary, created_at, last_activity FROM session_devices
WHERE session_id = ? ORDER BY created_at, device_id
"""

READ_KEY: Final = """
SELECT user_id, route, key, request, status, headers, body, created_at FROM idempotency_keys
WHERE user_id = ? AND route = ? AND key = ? AND created_at > ?
"""

READ_META: Final = "SELECT value FROM meta WHERE key = ?"
WRITE_META: Final = "INSERT INTO meta (key, value) VALUES (?, ?)"
LIST_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table'"

# -------------------------------------------------------------------------------------------------

READERS: Final = 2
"""Threads that read: a long page does not keep a short one waiting."""

# Raised for what is in the batch, not for the state that the database is in: a constraint or a
# trigger, a value that it cannot hold or that Python cannot hand over.
_REFUSALS: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)
_FAILURES: Final = (sqlite3.Error, OSError, MemoryError)


class SQLiteStore:
    """The store in the SQLite file at ``path``, which is created when it is not there.

    ``busy_timeout`` is how long an append waits for another program's write lock, in seconds;
    ``now`` gives the time, ms since 1970. All methods but `append` and `open` raise
    `StoreUnavailable` alone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 5.0,
        now: Callable[[], int] = wall_clock,
    ) -> None:
        self._file = _File(Path(path), busy_timeout, now)
        self._writer: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None

    async def open(self) -> str:
        """Create or check the tables, take hold of the file, and return its identity.

        Raises `DatabaseHeld` when another server holds it, `StoreError` when it is not ours or of
        another version, `StoreUnavailable` when it cannot be opened.
        """
        if self._writer is not None:
            raise _held(self._file.path, str(os.getpid()))
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
        return await self._read(lambda db: _load(db, session_id, None))

    async def load_at(self, session_id: str, version: int) -> Loaded | None:
        """Read the newest saved state at or below ``version`` and the log from there to it."""
        return await self._read(lambda db: _load(db, session_id, version))

    async def session(self, session_id: str) -> SessionRecord | Tombstone | None:
        """Read a session's row, or what an erased one left."""
        return await self._read(lambda db: _session_or_tombstone(db, session_id))

    async def sessions(self, user_id: str, after: str | None, limit: int) -> Page:
        """List a user's sessions, newest activity first."""
        place = place_after(after)

        def read(db: sqlite3.Connection) -> Page:
            rows = db.execute(LIST_SESSIONS, (user_id, *place, limit + 1)).fetchall()
            items = [_session(row) for row in rows[:limit]]
            more = len(rows) > limit
            last = items[-1] if more else None
            return Page(
                items=items, next=place_mark(last.last_activity, last.session_id) if last else None
            )

        return await self._read(read)

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
        bounds = (session_id, _column(first), MAX_INTEGER if last is None else _column(last))
        at_most = -1 if limit is None else limit

        def read(db: sqlite3.Connection) -> Sequence[CommitRecord]:
            if client_id is None:
                rows = db.execute(READ_LOG, (*bounds, at_most))
            else:
                rows = db.execute(READ_CLIENT_LOG, (*bounds, client_id, at_most))
            with closing(rows):
                return _weighed(map(_commit, rows), max_bytes)

        return await self._read(read)

    async def client(self, session_id: str, client_id: str) -> ClientRecord | None:
        """Read a client's record."""
        return await self._read(lambda db: _client(db, session_id, client_id))

    async def refusals(
        self, session_id: str, client_id: str, after: int
    ) -> Sequence[RefusalRecord]:
        """Read a client's refusals with ``seq > after``, in order."""
        return await self._read(
            lambda db: [
                RefusalRecord(client_id=row[0], seq=row[1], client_at=row[2], body=row[3])
                for row in db.execute(READ_REFUSALS, (session_id, client_id, _column(after)))
            ]
        )

    async def decision(self, session_id: str, client_id: str, seq: int) -> Decision | None:
        """Read what became of one number; None when it is not decided."""
        return await self._read(lambda db: _decision(db, session_id, client_id, seq))

    async def conflicts(
        self, session_id: str, status: str | None, after: str | None, limit: int
    ) -> Page:
        """List conflicts, newest first."""
        place = place_after(after)

        def read(db: sqlite3.Connection) -> Page:
            if status is None:
                rows = db.execute(LIST_CONFLICTS, (session_id, *place, limit + 1)).fetchall()
            else:
                rows = db.execute(
                    LIST_CONFLICTS_BY_STATUS, (session_id, status, *place, limit + 1)
                ).fetchall()
            items = [_conflict(row) for row in rows[:limit]]
            more = len(rows) > limit
            last = items[-1] if more else None
            return Page(
                items=items, next=place_mark(last.version, last.conflict_id) if last else None
            )

        return await self._read(read)

    async def activity(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the activity log, newest first."""
        before = entry_after(after)

        def read(db: sqlite3.Connection) -> Page:
            rows = db.execute(LIST_ACTIVITY, (session_id, before, limit + 1)).fetchall()
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
        return await self._read(lambda db: _devices(db, session_id))

    async def idempotent(self, user_id: str, route: str, key: str) -> IdempotencyRecord | None:
        """Read what a key was answered, if it was within a day."""
        return await self._read(
            lambda db: _idempotent(
                db, user_id, route, key, self._file.now() - IDEMPOTENCY_LIFETIME_MS
            )
        )

    async def _write(self, work: Callable[[], _T]) -> _T:
        if self._writer is None:
            raise _closed(self._file.path)
        return await _hop(self._writer, work)

    async def _read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._readers is None:
            raise _closed(self._file.path)
        return await _hop(self._readers, lambda: self._file.read(work))


async def _hop(executor: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    """Do ``work`` in the executor, to its end even when whoever waits for it is cancelled."""
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(executor, work))


class _File:
    """The file as its threads see it. `open`, `close`, `check`, `append`: in the writer's alone."""

    def __init__(self, path: Path, busy_timeout: float, now: Callable[[], int]) -> None:
        self.path = path
        self.now = now
        self._busy_timeout = busy_timeout
        self._lock: int | None = None
        self._inode: tuple[int, int] | None = None
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self._of_thread = threading.local()
        # What a process that was killed had erased may still be in the log file.
        self._log_holds_erased = True

    # --- Opening and closing

    def open(self) -> str:
        try:
            # One file has one lock, by whatever way it is reached.
            self.path = self.path.resolve()
            self._lock = _take_lock(self.path)
            self._writer = self._connect()
            identity = self._prepare(self._writer)
            # A new file is there after a power cut only when its directory was written, too.
            _sync_directory(self.path.parent)
            self._forget_erased(self._writer)
        except _FAILURES as error:
            raise StoreUnavailable(
                f"Expected to open the database {self.path}, got: {error}. "
                "See that its directory is there and may be written, and that it is a database"
            ) from error
        return identity

    def close(self) -> None:
        # The writer goes last: the last connection takes the log file along, and only it can.
        connections = [*self._readers, *([self._writer] if self._writer is not None else [])]
        self._readers, self._writer = [], None
        self._of_thread = threading.local()
        for connection in connections:
            with suppress(sqlite3.Error):
                connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=self._busy_timeout,
            isolation_level=None,
            cached_statements=256,
            check_same_thread=False,
        )
        try:
            for name, value in WRITER_PRAGMAS:
                connection.execute(f"PRAGMA {name} = {value}")
            _check_journal(connection, self.path)
        except BaseException:
            connection.close()
            raise
        self._inode = _inode(self.path)
        return connection

    def _prepare(self, db: sqlite3.Connection) -> str:
        """Create the tables where there are none, check their version, return the identity."""
        with _transaction(db):
            tables = {row[0] for row in db.execute(LIST_TABLES)}
            if not tables:
                for statement in _ddl():
                    db.execute(statement)
                db.execute(WRITE_META, ("schema_version", str(SCHEMA_VERSION)))
                db.execute(WRITE_META, ("identity", secrets.token_hex(16)))
            elif "meta" not in tables:
                raise StoreError(
                    f"Expected a database of Reattach at {self.path}, got one with the tables "
                    f"{', '.join(sorted(tables))}: give the server a file of its own"
                )
            found = db.execute(READ_META, ("schema_version",)).fetchone()
            if found is None or found[0] != str(SCHEMA_VERSION):
                raise StoreError(
                    f"Expected tables of version {SCHEMA_VERSION} in {self.path}, got version "
                    f"{found[0] if found else 'unknown'}: run the release of Reattach that wrote "
                    "the file, or one that can migrate it"
                )
            identity: str = db.execute(READ_META, ("identity",)).fetchone()[0]
        return identity

    # --- Writing

    def check(self) -> None:
        db = self._ready()
        try:
            db.execute(CHECK, (str(self.now()),))
        except _FAILURES as error:
            self._roll_back(db)
            raise _unavailable(self.path, error) from error
        self._forget_erased(db)

    def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        if not batch:
            return []
        db = self._ready()
        try:
            outcomes = self._carry_out(db, batch)
            _remove_old_keys(db, batch, self.now())
        except _REFUSALS as error:
            self._roll_back(db)
            raise StoreRefused(
                f"Expected a batch that the database takes, got: {error}. Nothing of it was done: "
                "append the sessions one by one, to find the one that it refuses"
            ) from error
        except _FAILURES as error:
            self._roll_back(db)
            raise _unavailable(self.path, error) from error
        except BaseException:
            self._roll_back(db)
            raise
        try:
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(db)
            raise _unavailable(self.path, error) from error
        if any(part.erase is not None for part in batch):
            self._log_holds_erased = True
        self._forget_erased(db)
        return outcomes

    def _ready(self) -> sqlite3.Connection:
        """Return the connection, a new one if the old one failed, to the file that we hold."""
        try:
            if self._writer is None:
                if self._lock is None:
                    raise _closed(self.path)
                self._writer = self._connect()
            found = _inode(self.path)
        except _FAILURES as error:
            raise _unavailable(self.path, error) from error
        if found != self._inode:
            # SQLite would go on writing to a file that has lost its name, and all would be gone.
            raise StoreUnavailable(
                f"Expected the file that was opened at {self.path}, got another one in its place: "
                "put it back, or restart the server"
            )
        return self._writer

    def _roll_back(self, db: sqlite3.Connection) -> None:
        """Leave no transaction behind, if need be by giving up the connection."""
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            self._writer = None
            with suppress(sqlite3.Error):
                db.close()

    @staticmethod
    def _carry_out(db: sqlite3.Connection, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Begin a transaction and write in it what can be written; the caller commits it."""
        db.execute("BEGIN IMMEDIATE")
        if _write(db, batch) is Outcome.OK:
            return [Outcome.OK] * len(batch)
        db.execute("ROLLBACK")
        db.execute("BEGIN IMMEDIATE")
        outcomes = []
        for part in batch:
            db.execute("SAVEPOINT part")
            outcome = _write(db, [part])
            if outcome is not Outcome.OK:
                db.execute("ROLLBACK TO part")
            db.execute("RELEASE part")
            outcomes.append(outcome)
        return outcomes

    def _forget_erased(self, db: sqlite3.Connection) -> None:
        """Empty the log file of what was erased; while a reader needs it, later."""
        if not self._log_holds_erased:
            return
        with suppress(sqlite3.Error):
            # Not waiting: appends are behind us in the queue.
            db.execute("PRAGMA busy_timeout = 0")
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._log_holds_erased = bool(busy)
        with suppress(sqlite3.Error):
            db.execute(f"PRAGMA busy_timeout = {round(self._busy_timeout * 1000)}")

    # --- Reading

    def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do ``work`` in a reader's thread, on a snapshot of one moment."""
        db: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        try:
            if db is None:
                db = self._of_thread.connection = self._connect_reader()
            with _transaction(db, "DEFERRED"):
                return work(db)
        except (*_FAILURES, *_REFUSALS) as error:
            # Whatever state it is in, the next read has a new one.
            self._of_thread.connection = None
            if db is not None:
                self._readers.remove(db)
                db.close()
            raise _unavailable(self.path, error) from error

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=ro",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            cached_statements=64,
            check_same_thread=False,
        )
        for name, value in READER_PRAGMAS:
            connection.execute(f"PRAGMA {name} = {value}")
        self._readers.append(connection)
        return connection


def _check_journal(db: sqlite3.Connection, path: Path) -> None:
    mode = db.execute("PRAGMA journal_mode").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"Expected a file system on which SQLite can keep a write-ahead log beside {path}, "
            f"got journal mode {mode!r}: use a local disk"
        )


# --- The file system ------------------------------------------------------------------------------


def _take_lock(path: Path) -> int:
    """Lock ``<path>.lock`` for as long as this process lives and the descriptor is open."""
    lock = path.with_name(path.name + ".lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise _held(path, holder) from None
        # Somebody may have removed the file since we opened it: then this lock holds nobody off.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Errors ---------------------------------------------------------------------------------------


def _held(path: Path, holder: str) -> DatabaseHeld:
    if holder == str(os.getpid()):
        holder = f"this very process ({holder})"
    return DatabaseHeld(
        f"Expected to be the only server on {path}, but process {holder or 'unknown'} holds it: "
        "stop that one, or give this one another file"
    )


def _closed(path: Path) -> StoreUnavailable:
    return StoreUnavailable(f"Expected {path} to be open, but it is not: call open() first")


def _unavailable(path: Path, error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(
        f"Expected {path} to do its work, got: {error}. "
        "See to the disk and to who else uses the file; the next attempt starts afresh"
    )


# --- Writing --------------------------------------------------------------------------------------


def _ddl() -> Iterator[str]:
    """Write out the tables and indexes in SQLite's words."""
    for table in metadata.sorted_tables:
        yield str(CreateTable(table).compile(dialect=dialect.dialect()))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield str(CreateIndex(index).compile(dialect=dialect.dialect()))


@contextmanager
def _transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    db.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _write(db: sqlite3.Connection, parts: Sequence[Append]) -> Outcome:
    """Write the parts, all guards first; stop at the first kind of guard that one does not pass.

    Then what was written has to be rolled back, and the outcome is the part's, if it was one.
    """
    outcome = _pass_guards(db, parts)
    if outcome is Outcome.OK:
        _write_rows(db, parts)
    return outcome


def _pass_guards(db: sqlite3.Connection, parts: Sequence[Append]) -> Outcome:
    creations: list[_Row] = []
    updates: list[_Row] = []
    erasures: list[tuple[Append, Tombstone]] = []
    for part in parts:
        expected = part.expected
        if expected is None:
            if part.session is not None:
                creations.append((*astuple(part.session), part.session_id))
            continue
        stands = (part.session_id, expected.version, expected.epoch, expected.access_version)
        if part.erase is not None:
            if not _all_change(db, ERASE_SESSION, [stands]):
                return Outcome.STALE
            erasures.append((part, part.erase))
        elif part.session is not None:
            updates.append((*astuple(part.session)[1:], *stands))
        elif db.execute(SESSION_STANDS, stands).fetchone() is None:
            return Outcome.STALE
    if not _all_change(db, CREATE_SESSION, creations):
        return Outcome.EXISTS
    if not _all_change(db, UPDATE_SESSION, updates):
        return Outcome.STALE
    for part, tombstone in erasures:
        _erase(db, part, tombstone)
    if _clients_advance(db, parts) and _keys_are_free(db, parts):
        return Outcome.OK
    return Outcome.STALE


def _all_change(db: sqlite3.Connection, guard: str, rows: Sequence[_Row]) -> bool:
    return not rows or db.executemany(guard, rows).rowcount == len(rows)


def _clients_advance(db: sqlite3.Connection, parts: Sequence[Append]) -> bool:
    met: list[_Row] = []
    started: list[_Row] = []
    advanced: list[_Row] = []
    for part in parts:
        name = part.session_id
        for advance in part.clients if part.erase is None else ():
            client = advance.client
            if advance.before != 0:
                advanced.append(
                    (
                        client.device_id,
                        client.seq,
                        client.at,
                        name,
                        client.client_id,
                        client.user_id,
                        advance.before,
                    )
                )
            elif client.seq == 0:
                met.append((name, *astuple(client)))
            else:
                started.append((name, *astuple(client)))
    # In this order, because one part may take a client through all three.
    return (
        _all_change(db, MEET_CLIENT, met)
        and _all_change(db, START_CLIENT, started)
        and _all_change(db, ADVANCE_CLIENT, advanced)
    )


def _keys_are_free(db: sqlite3.Connection, parts: Sequence[Append]) -> bool:
    return _all_change(
        db,
        RECORD_KEY,
        [
            (*astuple(key), part.session_id, key.created_at - IDEMPOTENCY_LIFETIME_MS)
            for part in parts
            if (key := part.idempotency) is not None
        ],
    )


def _erase(db: sqlite3.Connection, part: Append, tombstone: Tombstone) -> None:
    for statement in ERASE_REST:
        db.execute(statement, (part.session_id,))
    members = msgspec.msgpack.encode(list(tombstone.members))
    db.execute(INSERT_TOMBSTONE, (part.session_id, tombstone.erased_at, tombstone.salt, members))


def _write_rows(db: sqlite3.Connection, parts: Sequence[Append]) -> None:
    """Write what needs no guard: one statement for each table, over all parts."""
    commits: list[_Row] = []
    refusals: list[_Row] = []
    conflicts: list[_Row] = []
    devices: list[_Row] = []
    activity: list[_Row] = []
    states: list[_Row] = []
    for part in parts:
        if part.erase is not None:
            continue
        name = part.session_id
        # The columns of these statements stand in the order of the records' fields. Most parts have
        # commits and nothing else, so it pays to look first.
        if part.commits:
            commits += [(name, *astuple(commit)) for commit in part.commits]
        if part.refusals:
            refusals += [(name, *astuple(refusal)) for refusal in part.refusals]
        if part.conflicts:
            conflicts += [
                (name, one.conflict_id, one.path.encode(), one.status, one.version, one.body)
                for one in part.conflicts
            ]
        if part.devices:
            devices += [(name, *astuple(device)) for device in part.devices]
        if part.activity:
            activity += [(name, *astuple(line), name) for line in part.activity]
        if part.state is not None:
            states.append((name, *astuple(part.state)))
    for statement, rows in (
        (INSERT_COMMIT, commits),
        (INSERT_REFUSAL, refusals),
        (PUT_CONFLICT, conflicts),
        (PUT_DEVICE, devices),
        (INSERT_ACTIVITY, activity),
        (PUT_STATE, states),
    ):
        if rows:
            db.executemany(statement, rows)


def _remove_old_keys(db: sqlite3.Connection, parts: Sequence[Append], now: int) -> None:
    """Remove a few more idempotency keys than the parts bring, so that old ones do not pile up."""
    brought = len([part for part in parts if part.idempotency is not None])
    if brought:
        db.execute(REMOVE_OLD_KEYS, (now - IDEMPOTENCY_LIFETIME_MS, 4 * brought))


# --- Reading --------------------------------------------------------------------------------------


def _session(row: _Row) -> SessionRecord:
    return SessionRecord(
        session_id=row[0],
        user_id=row[1],
        epoch=row[2],
        epoch_version=row[3],
        version=row[4],
        access_version=row[5],
        schema_name=row[6],
        schema_version=row[7],
        created_at=row[8],
        last_activity=row[9],
        is_active=bool(row[10]),
        disconnected_at=row[11],
        reconnected_at=row[12],
    )


def _commit(row: _Row) -> CommitRecord:
    return CommitRecord(
        version=row[0],
        body=row[1],
        writes=row[2],
        at=row[3],
        client_id=row[4],
        seq=row[5],
        client_at=row[6],
    )


def _conflict(row: _Row) -> ConflictRecord:
    return ConflictRecord(
        conflict_id=row[0], path=row[1].decode(), status=row[2], version=row[3], body=row[4]
    )


def _weighed(commits: Iterable[CommitRecord], max_bytes: int | None) -> list[CommitRecord]:
    """Take commits up to the one with which their bodies weigh more than ``max_bytes``."""
    if max_bytes is None:
        return list(commits)
    taken: list[CommitRecord] = []
    weight = 0
    for commit in commits:
        taken.append(commit)
        weight += len(commit.body)
        if weight > max_bytes:
            break
    return taken


def _session_or_tombstone(
    db: sqlite3.Connection, session_id: str
) -> SessionRecord | Tombstone | None:
    row = db.execute(READ_SESSION, (session_id,)).fetchone()
    if row is not None:
        return _session(row)
    row = db.execute(READ_TOMBSTONE, (session_id,)).fetchone()
    if row is None:
        return None
    members = msgspec.msgpack.decode(row[2], type=list[bytes])
    return Tombstone(erased_at=row[0], salt=row[1], members=members)


def _load(db: sqlite3.Connection, session_id: str, version: int | None) -> Loaded | None:
    row = db.execute(READ_SESSION, (session_id,)).fetchone()
    if row is None:
        return None
    session = _session(row)
    end = session.version if version is None else _column(version)
    row = db.execute(READ_STATE, (session_id, end)).fetchone()
    if row is None:
        return None
    saved = SavedState(version=row[0], state=row[1], index=row[2])
    tail = db.execute(READ_LOG, (session_id, saved.version + 1, end, -1))
    return Loaded(
        session=session,
        saved=saved,
        tail=[_commit(row) for row in tail],
        conflicts=[_conflict(row) for row in db.execute(READ_UNRESOLVED, (session_id,))],
        devices=_devices(db, session_id),
    )


def _client(db: sqlite3.Connection, session_id: str, client_id: str) -> ClientRecord | None:
    row = db.execute(READ_CLIENT, (session_id, client_id)).fetchone()
    if row is None:
        return None
    return ClientRecord(client_id=row[0], user_id=row[1], device_id=row[2], seq=row[3], at=row[4])


def _decision(db: sqlite3.Connection, session_id: str, client_id: str, seq: int) -> Decision | None:
    seq = _column(seq)
    client = _client(db, session_id, client_id)
    if client is None or client.seq < seq:
        return None
    row = db.execute(READ_REFUSAL, (session_id, client_id, seq)).fetchone()
    if row is not None:
        return Decision(seq=seq, client_at=row[0], refusal=row[1])
    # A number that was no refusal is a commit, and so were those before it that were none: that
    # many versions lie below it. The log is read from there, and in a session with one writer the
    # first row is the one. From its beginning only where numbers came without their decisions.
    refused: int = db.execute(COUNT_REFUSALS, (session_id, client_id, seq)).fetchone()[0]
    for first in (seq - refused, 0):
        row = db.execute(FIND_COMMIT, (session_id, first, client_id, seq)).fetchone()
        if row is not None:
            return Decision(seq=seq, client_at=row[0], refusal=None)
    return None


def _devices(db: sqlite3.Connection, session_id: str) -> list[DeviceRecord]:
    return [
        DeviceRecord(
            device_id=row[0],
            user_id=row[1],
            name=row[2],
            info=row[3],
            is_primary=bool(row[4]),
            created_at=row[5],
            last_activity=row[6],
        )
        for row in db.execute(READ_DEVICES, (session_id,))
    ]


def _idempotent(
    db: sqlite3.Connection, user_id: str, route: str, key: str, since: int
) -> IdempotencyRecord | None:
    row = db.execute(READ_KEY, (user_id, route, key, since)).fetchone()
    if row is None:
        return None
    return IdempotencyRecord(
        user_id=row[0],
        route=row[1],
        key=row[2],
        request=row[3],
        status=row[4],
        headers=row[5],
        body=row[6],
        created_at=row[7],
    )


def _column(number: int) -> int:
    """Bring a number that somebody asked for into the range of a column."""
    return max(-MAX_INTEGER, min(number, MAX_INTEGER))
