"""The database behind a server's back, whichever of the two it is.

Tests name a database by the path of a file. With `REATTACH_TEST_STORE=postgres` each path stands
for a database of the tests' PostgreSQL, and the same tests hold the server on that. With
`REATTACH_TEST_STORE=full` it is the server of tests/support/full.py: two nodes, with a Valkey.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from reattach.store.tables import metadata
from tests.support.server import ServerProcess

_STORE = os.environ.get("REATTACH_TEST_STORE", "sqlite")
if _STORE not in {"sqlite", "postgres", "full"}:
    raise RuntimeError(
        f"expected REATTACH_TEST_STORE to be sqlite, postgres or full, got {_STORE!r}"
    )

ON_POSTGRES = _STORE != "sqlite"
ON_TWO_NODES = _STORE == "full"


class Database(Protocol):
    """Somebody else who uses the database of a server."""

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds; its parameters are written as `?`."""

    def execute(self, *statements: str) -> None:
        """Changes something, in one transaction."""

    def trap(self, table: str, column: str, word: str) -> None:
        """Refuses from now on whatever row of a table has a word in a column."""

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        """Keeps everybody else from writing, as a long transaction does, and changes nothing."""


def behind(server: ServerProcess) -> Database:
    """The database of a server, to look at or to change behind its back."""
    if server.database_url is not None:
        return PostgresDatabase(server.database_url)
    return SQLiteDatabase(server.database)


@asynccontextmanager
async def locked(database: Database) -> AsyncIterator[None]:
    """A `write_lock` for tests with a server in their own process, which may have to end a
    transaction first.
    """
    with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(thread, stack.enter_context, database.write_lock())
        # SQLite wants its connection to stay with its thread.
        release = stack.pop_all()
        try:
            yield
        finally:
            await loop.run_in_executor(thread, release.close)


class SQLiteDatabase:
    """A file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as db:
            return db.execute(statement, values).fetchall()

    def execute(self, *statements: str) -> None:
        with closing(sqlite3.connect(self._path, timeout=10)) as db, db:
            for statement in statements:
                db.execute(statement)

    def trap(self, table: str, column: str, word: str) -> None:
        self.execute(
            f"CREATE TRIGGER trap_{table} BEFORE INSERT ON {table}"
            f" WHEN instr(NEW.{column}, '{word}') BEGIN SELECT RAISE(ABORT, 'trapped'); END"
        )

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=5)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")


class PostgresDatabase:
    """A database of a PostgreSQL. It has an event loop of its own, and can be called anywhere."""

    def __init__(self, url: str) -> None:
        self._url = url

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connected() as (run, db):
            found = run(db.fetch(_numbered(statement), *values))
            return [tuple(row) for row in found]

    def execute(self, *statements: str) -> None:
        with self._connected() as (run, db):
            run(db.execute("; ".join(statements)))

    def trap(self, table: str, column: str, word: str) -> None:
        self.execute(
            "CREATE OR REPLACE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'trapped'; END $$",
            f"CREATE TRIGGER trap BEFORE INSERT ON {table} FOR EACH ROW"
            f" WHEN (strpos(encode(NEW.{column}::bytea, 'escape'), '{word}') > 0)"
            " EXECUTE FUNCTION trap()",
        )

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        with self._connected() as (run, db):
            run(db.execute(f"BEGIN; LOCK TABLE {names} IN SHARE MODE"))
            yield
            run(db.execute("ROLLBACK"))

    @contextmanager
    def row_lock(self, session_id: str) -> Iterator[None]:
        """Holds one session's row, as a node does that stands still in a transaction."""
        with self._connected() as (run, db):
            run(db.execute("BEGIN"))
            run(db.fetch("SELECT 1 FROM sessions WHERE session_id = $1 FOR UPDATE", session_id))
            yield
            run(db.execute("ROLLBACK"))

    @contextmanager
    def _connected(self) -> Iterator[tuple[Any, Any]]:
        with ThreadPoolExecutor(1) as thread, asyncio.Runner() as runner:

            def run(work: Any) -> Any:
                async def wait() -> Any:
                    return await work

                return thread.submit(runner.run, wait()).result()

            db = run(asyncpg.connect(self._url, timeout=10))
            try:
                yield run, db
            finally:
                run(db.close(timeout=5))
                thread.submit(runner.close).result()


def _numbered(statement: str) -> str:
    numbers = iter(range(1, 100))
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)
