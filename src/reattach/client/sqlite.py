"""The outbox as a file: one client's rows in SQLite, held by one process.

A thread of its own does the work: the event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from reattach.client.effects import Row
from reattach.errors import OutboxHeld, StoreError
from reattach.wire import encode

__all__ = ["SQLiteOutbox"]

_T = TypeVar("_T")

FORMAT: Final = 1
"""``PRAGMA user_version`` of the files that this code reads and writes."""

_PRAGMAS: Final = (
    # A commit is one append to the log file, fsynced.
    "PRAGMA journal_mode = wal",
    "PRAGMA synchronous = full",
    # On macOS only F_FULLFSYNC reaches the disk; elsewhere it is nothing.
    "PRAGMA fullfsync = on",
)
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
)
_ABOUT: Final = "INSERT INTO about VALUES (?, ?) ON CONFLICT DO NOTHING"
_PUT: Final = "INSERT INTO rows VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
_DELETE: Final = "DELETE FROM rows WHERE key = ?"

_FAILURES: Final = (sqlite3.Error, OSError)


class SQLiteOutbox:
    """One session's outbox in a file. `open` comes first; `close` lets go of the file.

    A transaction is durable (WAL, ``synchronous=FULL``) when `write` returns.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._thread = ThreadPoolExecutor(1, "reattach-outbox")
        self._lock: int | None = None
        self._db: sqlite3.Connection | None = None

    async def open(
        self, session_id: str, user: str | None, device_id: str
    ) -> tuple[dict[str, Any] | None, str]:
        """Return the rows, None where the file is new, and the device's id, which stays that of
        the first time.

        Raises `OutboxHeld` while another process has it, `StoreError` where it cannot be opened or
        belongs to another session or user.
        """
        return await self._in_thread(lambda: self._open(session_id, user, device_id))

    async def write(self, writes: Sequence[Row]) -> None:
        """Write rows in one transaction; raises `StoreError` where nothing of it was done."""
        # Encoded here: the values are what they are now, whatever is done to them afterwards.
        packed = [(key, None if value is None else encode(value)) for key, value in writes]
        await self._in_thread(lambda: self._write(packed))

    async def belong_to(self, user: str) -> None:
        """Make it another user's, who has claimed its session; raises `StoreError`."""
        await self._in_thread(lambda: self._belong_to(user))

    async def close(self) -> None:
        """Let go of the file."""
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _open(
        self, session_id: str, user: str | None, device_id: str
    ) -> tuple[dict[str, Any] | None, str]:
        try:
            self.path = self.path.resolve()
            self._lock = _take_lock(self.path)
            self._db = db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
            self._check_format(db)
            for statement in _PRAGMAS:
                db.execute(statement)
            about = self._describe(db, session_id, user, device_id)
            rows = db.execute("SELECT key, value FROM rows").fetchall()
        except _FAILURES as error:
            self._close()
            raise StoreError(
                f"expected to open the outbox {self.path}, got: {error}. See that its directory is"
                " there and may be written, and that the file is an outbox"
            ) from error
        except StoreError:
            self._close()
            raise
        found_rows = {key: msgspec.json.decode(value) for key, value in rows}
        return found_rows or None, about["device"]

    def _check_format(self, db: sqlite3.Connection) -> None:
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in {0, FORMAT}:
            raise StoreError(
                f"expected an outbox of format {FORMAT}, got format {found} in {self.path}:"
                " it was written by another version of reattach, or is no outbox"
            )

    def _describe(
        self, db: sqlite3.Connection, session_id: str, user: str | None, device_id: str
    ) -> dict[str, str]:
        """Write whose outbox this is, or find out that it is somebody else's."""
        db.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            db.execute(statement)
        mine = {"session": session_id, "user": user or "", "device": device_id}
        db.executemany(_ABOUT, mine.items())
        about: dict[str, str] = dict(db.execute("SELECT name, value FROM about").fetchall())
        for name in ("session", "user"):
            if about[name] != mine[name]:
                db.execute("ROLLBACK")
                raise StoreError(
                    f"expected the outbox of {name} {mine[name]!r}, got that of {about[name]!r} in"
                    f" {self.path}: give each session of each user a file of its own"
                )
        db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("COMMIT")
        _sync_directory(self.path.parent)
        return about

    def _write(self, packed: Sequence[tuple[str, bytes | None]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.executemany(_DELETE, [(key,) for key, value in packed if value is None])
            db.executemany(_PUT, [row for row in packed if row[1] is not None])

        self._transact(write)

    def _belong_to(self, user: str) -> None:
        self._transact(
            lambda db: db.execute("UPDATE about SET value = ? WHERE name = 'user'", (user,))
        )

    def _transact(self, write: Callable[[sqlite3.Connection], object]) -> None:
        db = self._db
        if db is None:
            raise StoreError(f"expected {self.path} to be open: it was closed")
        try:
            db.execute("BEGIN IMMEDIATE")
            write(db)
            db.execute("COMMIT")
        except _FAILURES as error:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise StoreError(
                f"expected to write the outbox {self.path}, got: {error}. See to the disk; it is"
                " tried again"
            ) from error

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _take_lock(path: Path) -> int:
    """Lock ``<path>.lock`` for as long as this process lives and the descriptor is open."""
    lock = path.with_name(f"{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        mine = " (this very process)" if holder == str(os.getpid()) else ""
        raise OutboxHeld(
            f"expected to be the only one on the outbox {path}, but process"
            f" {holder or 'unknown'}{mine} holds it: stop that one, or give this one another file"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _sync_directory(directory: Path) -> None:
    # A new file is there after a power cut only when its directory was written, too.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
