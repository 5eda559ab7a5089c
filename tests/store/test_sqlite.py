from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from reattach.errors import DatabaseHeld, StoreError, StoreRefused, StoreUnavailable
from reattach.store.base import Outcome
from reattach.store.sqlite import SQLiteStore, file, sql
from reattach.store.tables import REVISIONS, metadata
from reattach.testing.store import (
    DAY_MS,
    T0,
    USER,
    DurableStoreSuite,
    MakeStore,
    answer,
    change,
    commit,
    creation,
    erasure,
    row,
)

OK, STALE = Outcome.OK, Outcome.STALE
STRACE = shutil.which("strace")

# A server in small: opens the store, then appends until it is killed, saying so after each time.
APPENDER = """
import asyncio, os, sys
from reattach.store.sqlite import SQLiteStore
from reattach.testing.store import change, creation

async def main(path, names, batches):
    store = SQLiteStore(path)
    await store.open()
    await store.append([creation(name) for name in names if await store.session(name) is None])
    os.write(1, b"open\\n")
    starts = [(await store.session(name)).version for name in names]
    for number in range(batches):
        os.write(1, b"start\\n")
        await store.append([
            change(name, start + 3 * number, count=3) for name, start in zip(names, starts)
        ])
        os.write(1, b"done %d\\n" % (starts[0] + 3 * (number + 1)))

asyncio.run(main(sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, busy_timeout=0.2)
    await store.open()
    yield store
    await store.close()


@contextmanager
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect to the file as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection


def start(path: Path, names: str, batches: int, *wrapper: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", APPENDER, str(path), names, str(batches)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def read_until(process: subprocess.Popen[bytes], wanted: bytes) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(wanted):
            return
    pytest.fail(f"the process ended with {process.wait()} before it said {wanted!r}")


def kill(process: subprocess.Popen[bytes]) -> bytes:
    """Kill it and return what it had said and nobody had read."""
    assert process.stdout is not None
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.stdout.close()
    process.wait()
    return rest


class TestSQLiteStore(DurableStoreSuite):
    @pytest.fixture
    def make_store(self, path: Path) -> MakeStore:
        return lambda: SQLiteStore(path)


# --- The file


async def test_pragmas(path: Path, store: SQLiteStore) -> None:
    writer = store._file._writer
    assert writer is not None
    for name, wanted in file.WRITER_PRAGMAS:
        assert writer.execute(f"PRAGMA {name}").fetchone() == (wanted,)
    assert writer.execute("PRAGMA busy_timeout").fetchone() == (200,)
    await store.load("s1")
    for name, wanted in file.READER_PRAGMAS:
        assert store._file._readers[0].execute(f"PRAGMA {name}").fetchone() == (wanted,)
    with other(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_tables_are_those_of_the_metadata(path: Path, store: SQLiteStore) -> None:
    await store.check()
    with other(path) as connection:
        for table in metadata.sorted_tables:
            found = connection.execute(f"PRAGMA table_info({table.name})").fetchall()
            assert [column[1] for column in found] == [column.name for column in table.columns]
            key = [column[1] for column in sorted(found, key=lambda c: c[5]) if column[5]]
            assert key == [column.name for column in table.primary_key]


async def test_erase_names_every_table() -> None:
    of_sessions = {
        table.name
        for table in metadata.sorted_tables
        if "session_id" in table.columns and table.name not in {"sessions", "erased_sessions"}
    }
    assert {re.findall("FROM ([a-z_]+)", one)[0] for one in sql.ERASE_REST} == of_sessions


async def test_every_read_has_its_index(path: Path, store: SQLiteStore) -> None:
    await store.check()
    reads = {
        name: statement
        for name, statement in vars(sql).items()
        if name.startswith(("READ_", "LIST_", "FIND_", "COUNT_", "REMOVE_"))
        and isinstance(statement, str)
        and name != "LIST_TABLES"
    }
    assert len(reads) > 15
    with other(path) as connection:
        for name, statement in reads.items():
            numbered = set(re.findall(r"\?[0-9]", statement))
            parameters = (1,) * (len(numbered) or statement.count("?"))
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            # Going through what was asked for is no search, nor is a row of constants.
            harmless = ("SCAN json_each", "SCAN CONSTANT ROW")
            steps = [step[3] for step in plan if not step[3].startswith(harmless)]
            assert not [step for step in steps if step.startswith("SCAN")], (name, steps)
            # A handful of rows each.
            if name not in {"READ_DEVICES", "READ_UNRESOLVED", "READ_CREDENTIALS"}:
                assert not [step for step in steps if "TEMP B-TREE" in step], (name, steps)


async def test_tables_of_a_later_release(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await store.close()
    with other(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(
        StoreError, match=f"Expected tables of revision {REVISIONS[-1]} .* got 9999"
    ):
        await store.open()
    with other(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (REVISIONS[-1],))
    await store.open()
    await store.close()


async def test_file_of_something_else(path: Path) -> None:
    with other(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreError, match="recipes"):
        await SQLiteStore(path).open()
    note = path.with_name("note.txt")
    await asyncio.to_thread(note.write_bytes, b"no database at all" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        await SQLiteStore(note).open()
    with pytest.raises(StoreUnavailable, match="No such file or directory"):
        await SQLiteStore(path.parent / "nowhere" / "sessions.db").open()


async def test_file_replaced_while_open(path: Path, store: SQLiteStore) -> None:
    await store.append([creation("s1")])
    aside = path.with_name("aside.db")
    await asyncio.to_thread(path.rename, aside)
    with pytest.raises(StoreUnavailable, match="No such file"):
        await store.append([change("s1", 0)])
    await asyncio.to_thread(path.touch)
    with pytest.raises(StoreUnavailable, match="another one in its place"):
        await store.append([change("s1", 0)])
    await asyncio.to_thread(aside.rename, path)
    assert list(await store.append([change("s1", 0)])) == [OK]


# --- One server


async def test_held_in_this_process(path: Path, store: SQLiteStore) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    for way in (path, path.parent / "." / path.name, link):
        with pytest.raises(DatabaseHeld, match=rf"this very process \({os.getpid()}\)"):
            await SQLiteStore(way).open()
    with pytest.raises(DatabaseHeld):
        await store.open()
    assert list(await store.append([creation("s1")])) == [OK]


async def test_held_by_another_process_until_it_is_killed(path: Path) -> None:
    process = start(path, "s1", 1_000_000)
    store = SQLiteStore(path)
    try:
        read_until(process, b"done")
        with pytest.raises(DatabaseHeld, match=f"process {process.pid} holds it"):
            await store.open()
        # A refused server has disturbed nobody.
        read_until(process, b"done")
    finally:
        kill(process)
    await store.open()
    assert list(await store.append([creation("s2")])) == [OK]
    await store.close()


async def test_lock_file_names_the_holder(path: Path, store: SQLiteStore) -> None:
    await store.check()
    assert path.with_name(path.name + ".lock").read_text() == f"{os.getpid()}\n"


def modes_in(folder: Path) -> dict[str, int]:
    return {one.name: one.stat().st_mode & 0o777 for one in folder.iterdir()}


async def test_nobody_else_may_read_a_new_file(path: Path) -> None:
    before = os.umask(0o022)
    try:
        store = SQLiteStore(path)
        await store.open()
        await store.append([creation("s")])
        modes = modes_in(path.parent)
        await store.close()
    finally:
        os.umask(before)
    assert f"{path.name}-wal" in modes
    assert set(modes.values()) == {0o600}


@pytest.fixture
def given(path: Path) -> Path:
    path.touch()
    path.chmod(0o640)
    return path


async def test_a_file_keeps_the_mode_that_it_was_given(given: Path) -> None:
    store = SQLiteStore(given)
    await store.open()
    await store.close()
    assert modes_in(given.parent)[given.name] == 0o640


async def test_lock_file_removed_while_it_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = path.with_name(path.name + ".lock")
    flock = fcntl.flock

    def flock_too_late(descriptor: int, operation: int) -> None:
        # The file that was opened loses its name before it is locked, once.
        monkeypatch.setattr(fcntl, "flock", flock)
        lock.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    store = SQLiteStore(path)
    await store.open()
    with pytest.raises(DatabaseHeld):
        await SQLiteStore(path).open()
    await store.close()


# --- Other programs on the file


async def test_others_read_while_it_is_held(path: Path, store: SQLiteStore) -> None:
    await store.append([creation("s1")])
    with other(path) as connection:
        assert connection.execute("SELECT session_id FROM sessions").fetchall() == [("s1",)]
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM commits").fetchall()
        # Nor does a reader in the middle of it hold up an append, or see it.
        assert list(await store.append([change("s1", 0)])) == [OK]
        assert connection.execute("SELECT * FROM commits").fetchall() == []
        connection.execute("COMMIT")
        assert len(connection.execute("SELECT * FROM commits").fetchall()) == 1


async def test_read_is_of_one_moment(store: SQLiteStore) -> None:
    await store.append([creation("s1")])
    begun, appended = threading.Event(), threading.Event()

    def look_twice(db: sqlite3.Connection) -> list[tuple[int]]:
        first = db.execute("SELECT version FROM sessions").fetchone()
        begun.set()
        assert appended.wait(30)
        return [first, db.execute("SELECT version FROM sessions").fetchone()]

    looking = asyncio.ensure_future(store._read(look_twice))
    await asyncio.to_thread(begun.wait)
    assert list(await store.append([change("s1", 0)])) == [OK]
    # The other reader is free, and sees it already.
    assert await store.session("s1") == row("s1", 1)
    appended.set()
    assert await looking == [(0,), (0,)]


async def test_append_waits_for_the_write_lock(path: Path) -> None:
    store = SQLiteStore(path, busy_timeout=30)
    await store.open()
    await store.append([creation("s1")])
    with other(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        appending = asyncio.ensure_future(store.append([change("s1", 0)]))
        for _ in range(5):
            # Reads go on, and see nothing of it.
            assert await store.session("s1") == row("s1")
            assert list(await store.log("s1", first=1)) == []
            assert not appending.done()
        connection.execute("COMMIT")
        assert list(await appending) == [OK]
    assert await store.session("s1") == row("s1", 1)
    await store.close()


async def test_append_gives_up_on_the_write_lock(path: Path, store: SQLiteStore) -> None:
    await store.append([creation("s1")])
    with other(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.append([change("s1", 0)])
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.check()
        connection.execute("COMMIT")
    await store.check()
    assert list(await store.append([change("s1", 0)])) == [OK]


async def test_trigger_that_aborts(path: Path, store: SQLiteStore) -> None:
    await store.append([creation("s1"), creation("s2")])
    with other(path) as connection:
        connection.execute(
            "CREATE TRIGGER guard BEFORE INSERT ON commits WHEN NEW.session_id = 's2'"
            " BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    with pytest.raises(StoreRefused, match="not this one"):
        await store.append([change("s1", 0), change("s2", 0)])
    assert await store.session("s1") == row("s1")
    assert list(await store.append([change("s1", 0)])) == [OK]
    with pytest.raises(StoreRefused, match="not this one"):
        await store.append([change("s2", 0)])


async def test_full_disk(store: SQLiteStore) -> None:
    await store.append([creation("s1")])
    writer = store._file._writer
    assert writer is not None
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}")
    large = change("s1", 0, commits=[replace(commit(1), body=bytes(1 << 20))])
    with pytest.raises(StoreUnavailable, match="full"):
        await store.append([large])
    assert await store.session("s1") == row("s1")
    writer.execute(f"PRAGMA max_page_count = {pages + 1_000}")
    assert list(await store.append([large])) == [OK]


async def test_value_too_large(store: SQLiteStore) -> None:
    writer = store._file._writer
    assert writer is not None
    writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
    await store.append([creation("s1")])
    with pytest.raises(StoreRefused, match="too big"):
        await store.append([change("s1", 0, commits=[replace(commit(1), body=bytes(1 << 20))])])
    assert list(await store.append([change("s1", 0)])) == [OK]


# --- Failures


class Failing:
    """A connection that fails at a statement as often as it is told."""

    def __init__(self, connection: sqlite3.Connection, *statements: str) -> None:
        self._connection = connection
        self._statements = list(statements)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, statement: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        if self._statements and statement.startswith(self._statements[0]):
            self._statements.pop(0)
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, parameters)


@pytest.mark.parametrize(
    "statements", [["COMMIT"], ["COMMIT", "ROLLBACK"], ["BEGIN"], ["SAVEPOINT", "ROLLBACK"]]
)
async def test_failing_statement(
    path: Path, store: SQLiteStore, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append([creation("s1"), creation("s2")])
    failing = Failing(store._file._writer, *statements)  # type: ignore[arg-type]
    monkeypatch.setattr(store._file, "_writer", failing)
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        await store.append([change("s1", 0), change("s2", 1)])
    # Nothing of it is left, neither in the way of this connection nor of another one.
    assert list(await store.append([change("s1", 0), change("s2", 1)])) == [OK, STALE]
    assert failing._statements == []
    with other(path) as connection:
        connection.execute("BEGIN IMMEDIATE")


async def test_failing_guard_costs_the_neighbours_nothing(store: SQLiteStore) -> None:
    await store.append([creation("s1"), creation("s2"), creation("s3")])
    batch = [change("s1", 0), change("s2", 4), erasure("s3", 0)]
    assert list(await store.append(batch)) == [OK, STALE, OK]


async def test_bug_leaves_no_transaction(store: SQLiteStore) -> None:
    await store.append([creation("s1")])
    broken = change("s1", 0, conflicts=["not a conflict"])
    with pytest.raises(AttributeError):
        await store.append([broken])
    assert list(await store.append([change("s1", 0)])) == [OK]


async def test_failing_read(path: Path, store: SQLiteStore) -> None:
    await store.append([creation("s1")])
    with other(path) as connection:
        connection.execute("ALTER TABLE session_devices RENAME TO elsewhere")
        with pytest.raises(StoreUnavailable, match="session_devices"):
            await store.load("s1")
        connection.execute("ALTER TABLE elsewhere RENAME TO session_devices")
    assert await store.load("s1") is not None


async def test_cancelled_append_is_carried_out(path: Path, store: SQLiteStore) -> None:
    await store.append([creation("s1"), creation("s2")])
    with other(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        # The first is under way, the second waits behind it.
        tasks = [asyncio.ensure_future(store.append([change(name, 0)])) for name in ("s1", "s2")]
        await store.session("s1")
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        connection.execute("COMMIT")
    await store.check()
    assert await store.session("s1") == row("s1", 1)
    assert await store.session("s2") == row("s2", 1)


async def test_close_finishes_what_is_under_way(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    appends = [store.append([creation(f"s{number}")]) for number in range(20)]
    reads = [store.session("s19") for _ in range(20)]
    tasks = [asyncio.ensure_future(one) for one in (*appends, *reads)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*tasks)
    await store.open()
    assert len((await store.sessions(USER, None, 100)).items) == 20
    await store.close()
    assert not path.with_name(path.name + "-wal").exists()


# --- Keys and erasing


async def test_old_idempotency_keys_are_removed_little_by_little(path: Path) -> None:
    time = T0
    store = SQLiteStore(path, now=lambda: time)
    await store.open()

    async def create(name: str) -> None:
        part = creation(name)
        part.idempotency = answer(name, created_at=time)
        await store.append([part])

    def count() -> int:
        with other(path) as connection:
            found: int = connection.execute("SELECT COUNT(*) FROM idempotency_keys").fetchone()[0]
            return found

    for number in range(10):
        await create(f"old{number}")
    time = T0 + DAY_MS
    counts = []
    for number in range(4):
        await create(f"new{number}")
        counts.append(count())
    assert counts == [7, 4, 3, 4]
    await store.close()


def secret_in(path: Path) -> list[str]:
    """Name the files beside the database, itself included, that hold the word."""
    files = path.parent.glob(path.name + "*")
    return [file.name for file in files if b"SECRET" in file.read_bytes()]


async def test_erased_is_gone_from_the_disk(path: Path, store: SQLiteStore) -> None:
    await store.append([creation("s1", state=b"SECRET" * 2_000), creation("s2")])
    await store.append([change("s1", 0, commits=[replace(commit(1), body=b"SECRET" * 100)])])
    assert secret_in(path)
    await store.append([erasure("s1", 1)])
    assert secret_in(path) == []


async def test_erased_is_gone_from_the_disk_when_readers_let_go(
    path: Path, store: SQLiteStore
) -> None:
    await store.append([creation("s1", state=b"SECRET" * 2_000), creation("s2")])
    with other(path) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM states").fetchall()
        # The reader holds up the cleaning, but not the erasing.
        assert list(await store.append([erasure("s1", 0)])) == [OK]
        assert secret_in(path) == ["sessions.db-wal"]
        connection.execute("COMMIT")
    await store.append([change("s2", 0)])
    assert secret_in(path) == []
    assert store._file._writer is not None
    assert store._file._writer.execute("PRAGMA busy_timeout").fetchone() == (200,)


# --- Durability


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(5))
async def test_killed_in_the_middle_of_appends(path: Path, seed: int) -> None:
    names = [f"s{number}" for number in range(12)]
    said = random.Random(seed).randrange(1, 40)
    acknowledged = 0
    for _ in range(2):
        process = start(path, ",".join(names), 1_000_000)
        for _ in range(said):
            read_until(process, b"done")
        last = re.findall(rb"done (\d+)\n", kill(process))
        acknowledged = int(last[-1]) if last else acknowledged + 3 * said
        store = SQLiteStore(path)
        await store.open()
        # Whole: the same version everywhere, three commits and one step of the client at a time.
        versions = set()
        for name in names:
            loaded = await store.load(name)
            assert loaded is not None
            version = loaded.session.version
            versions.add(version)
            assert [one.version for one in loaded.tail] == list(range(1, version + 1))
            client = await store.client(name, "c1")
            assert (client.seq if client is not None else 0) == version
        assert len(versions) == 1
        found = versions.pop()
        assert found % 3 == 0
        assert acknowledged <= found <= acknowledged + 3
        acknowledged = found
        await store.close()
    with other(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.faults
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
async def test_append_returns_after_an_fsync(path: Path, tmp_path: Path) -> None:
    assert STRACE is not None
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,write,pwrite64"
    process = start(path, "s1,s2", 20, STRACE, "-f", "-y", "-s16", "-e", calls, "-o", str(trace))
    read_until(process, b"done 60")
    assert process.wait() == 0
    assert process.stdout is not None
    process.stdout.close()
    synced = dirty = False
    appends = 0
    syncing: set[str] = set()
    for line in trace.read_text().splitlines():
        thread = line.split()[0]
        if '"start' in line:
            synced = dirty = False
        elif '"done' in line:
            assert synced, "an append returned before the log file was synced"
            assert not dirty, "an append wrote to the log file after it was synced"
            appends += 1
        elif "-wal>" in line and "write" in line:
            dirty = True
        elif "-wal>" in line and "sync(" in line and "unfinished" in line:
            syncing.add(thread)
        elif ("-wal>" in line and "sync(" in line) or (thread in syncing and "resumed" in line):
            assert line.endswith("= 0")
            syncing.discard(thread)
            synced, dirty = True, False
    assert appends == 20
    assert re.search(rf"fsync\(\d+<{re.escape(str(path.parent))}>", trace.read_text())
