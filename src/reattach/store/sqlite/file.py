"""The file: who holds it, the connection that writes, those that read, what can go wrong."""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from reattach.errors import DatabaseHeld, StoreError, StoreRefused, StoreUnavailable
from reattach.store.base import (
    Append,
    Compaction,
    Outcome,
)
from reattach.store.migrations import VERSION_TABLE, is_newer, migrate_sqlite
from reattach.store.sqlite import sql
from reattach.store.sqlite.rows import (
    compact,
    ddl,
    remove_old_keys,
    transaction,
    write_parts,
)
from reattach.store.tables import REVISIONS

__all__ = [
    "File",
    "closed",
    "held",
    "lock_of",
]

_T = TypeVar("_T")

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


class File:
    """The file as its threads see it. `open`, `close`, `check`, `append`: in the writer's alone."""

    def __init__(self, path: Path, busy_timeout: float, now: Callable[[], int]) -> None:
        self.path = path
        self.now = now
        self._busy_timeout = busy_timeout
        self._lock: int | None = None
        self._inode: tuple[int, int] | None = None
        self._immutable = False
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
            _make_private(self.path)
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

    def look(self) -> str:
        """Return the identity of a file that is only read, having checked that we can read it."""
        self.path = self.path.resolve()
        if not self.path.is_file():
            raise StoreUnavailable(
                f"Expected a database at {self.path}, got no file: say where it is, or start a"
                " server, which makes one"
            )
        # Where nothing can be written, SQLite cannot make the files by which it follows a writer.
        # There is none, either: its log file would be there.
        self._immutable = not (os.access(self.path.parent, os.W_OK) or _log_of(self.path).exists())
        return self.read(self._identity)

    def _identity(self, db: sqlite3.Connection) -> str:
        tables = {row[0] for row in db.execute(sql.LIST_TABLES)}
        if "meta" not in tables:
            raise StoreError(
                f"Expected a database of Reattach at {self.path}, got one with the tables"
                f" {', '.join(sorted(tables)) or '(none)'}: say where its own is"
            )
        found = db.execute(sql.REVISION).fetchone() if "alembic_version" in tables else None
        revision = found[0] if found is not None else None
        if revision != REVISIONS[-1]:
            remedy = (
                "read it with the release that wrote it, or a newer one"
                if is_newer(revision)
                else "bring them to this release: reattach migrate"
            )
            raise StoreError(
                f"Expected tables of revision {REVISIONS[-1]} in {self.path}, got"
                f" {revision or 'none'}: {remedy}",
                code="not_migrated",
            )
        identity: str = db.execute(sql.READ_META, ("identity",)).fetchone()[0]
        return identity

    def announce(self, address: str) -> None:
        """Say in the lock file where the operators of this machine find whoever holds it."""
        if self._lock is not None:
            _say_who_holds(self._lock, address)

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
        """Create the tables where there are none, migrate older ones, return the identity."""
        with transaction(db):
            revision = self._set_up(db)
        if revision != REVISIONS[-1]:
            migrate_sqlite(self.path, self._connect)
        identity: str = db.execute(sql.READ_META, ("identity",)).fetchone()[0]
        return identity

    def _set_up(self, db: sqlite3.Connection) -> str:
        """Make of an empty file a database of ours; return the revision of the tables in it."""
        tables = {row[0] for row in db.execute(sql.LIST_TABLES)}
        if not tables:
            # What all migrations make together, without the time that they take.
            for statement in (*ddl(), VERSION_TABLE):
                db.execute(statement)
            db.execute(sql.STAMP, (REVISIONS[-1],))
            db.execute(sql.WRITE_META, ("identity", secrets.token_hex(16)))
        elif "meta" not in tables:
            raise StoreError(
                f"Expected a database of Reattach at {self.path}, got one with the tables "
                f"{', '.join(sorted(tables))}: give the server a file of its own"
            )
        elif "alembic_version" not in tables:
            # Written before there were revisions, when a number stood for them.
            number = int(db.execute(sql.READ_META, ("schema_version",)).fetchone()[0])
            db.execute(VERSION_TABLE)
            db.execute(sql.STAMP, (REVISIONS[number - 1],))
        found = db.execute(sql.REVISION).fetchone()
        revision: str | None = found[0] if found is not None else None
        if revision is None or is_newer(revision):
            raise StoreError(
                f"Expected tables of revision {REVISIONS[-1]} or older in {self.path}, got "
                f"{revision or 'none'}: run the release of Reattach that wrote the file, or a newer"
            )
        return revision

    # --- Writing

    def check(self) -> None:
        db = self._ready()
        try:
            db.execute(sql.CHECK, (str(self.now()),))
        except _FAILURES as error:
            self._roll_back(db)
            raise _unavailable(self.path, error) from error
        self._forget_erased(db)

    def compact(self, compaction: Compaction) -> bool:
        """Write a compaction, durably."""
        db = self._ready()
        try:
            with transaction(db):
                return compact(db, compaction)
        except _FAILURES as error:
            self._roll_back(db)
            raise _unavailable(self.path, error) from error

    def put(self, statement: str, row: tuple[Any, ...]) -> Any:
        """Write by one statement, durably; return what it gives back, None for nothing."""
        db = self._ready()
        try:
            with transaction(db):
                found = db.execute(statement, row).fetchone()
        except _FAILURES as error:
            self._roll_back(db)
            raise _unavailable(self.path, error) from error
        return None if found is None else found[0]

    def count(self, statement: str, row: tuple[Any, ...]) -> int:
        """Write by one statement, durably; return to how many rows."""
        db = self._ready()
        try:
            with transaction(db):
                written = db.execute(statement, row).rowcount
        except _FAILURES as error:
            self._roll_back(db)
            raise _unavailable(self.path, error) from error
        return written

    def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        if not batch:
            return []
        db = self._ready()
        try:
            outcomes = self._carry_out(db, batch)
            remove_old_keys(db, batch, self.now())
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
                    raise closed(self.path)
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
        if write_parts(db, batch) is Outcome.OK:
            return [Outcome.OK] * len(batch)
        db.execute("ROLLBACK")
        db.execute("BEGIN IMMEDIATE")
        outcomes = []
        for part in batch:
            db.execute("SAVEPOINT part")
            outcome = write_parts(db, [part])
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
            with transaction(db, "DEFERRED"):
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
            f"file:{quote(str(self.path))}?mode=ro{'&immutable=1' if self._immutable else ''}",
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


def _make_private(path: Path) -> None:
    """Make a new database one that its user alone can read; SQLite's own files beside it follow.

    One that is there keeps the mode that it was given, and is not opened here: closing it would
    end the locks that SQLite has on it in this process.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _take_lock(path: Path) -> int:
    """Lock ``<path>.lock`` for as long as this process lives and the descriptor is open."""
    lock = lock_of(path)
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace")
            os.close(descriptor)
            raise held(path, holder.partition("\n")[0]) from None
        # Somebody may have removed the file since we opened it: then this lock holds nobody off.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)
    # What is in it is for who may write the database: an older release left it for all to read.
    os.fchmod(descriptor, 0o600)
    _say_who_holds(descriptor)
    return descriptor


def _say_who_holds(lock: int, address: str = "") -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, "".join(f"{line}\n" for line in (os.getpid(), address) if line).encode(), 0)


def lock_of(path: Path) -> Path:
    """Return the file that is locked by whoever holds a database, and says who that is."""
    return path.with_name(path.name + ".lock")


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


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


def held(path: Path, holder: str) -> DatabaseHeld:
    if holder == str(os.getpid()):
        holder = f"this very process ({holder})"
    return DatabaseHeld(
        f"Expected to be the only server on {path}, but process {holder or 'unknown'} holds it: "
        "stop that one, or give this one another file"
    )


def closed(path: Path) -> StoreUnavailable:
    return StoreUnavailable(f"Expected {path} to be open, but it is not: call open() first")


def _unavailable(path: Path, error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(
        f"Expected {path} to do its work, got: {error}. "
        "See to the disk and to who else uses the file; the next attempt starts afresh"
    )
