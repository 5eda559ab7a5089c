"""The tables are what their migrations make together, on both databases."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from alembic.script import ScriptDirectory
from msgspec.structs import astuple
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from reattach.errors import StoreError, StoreUnavailable
from reattach.store import migrations
from reattach.store.base import Outcome
from reattach.store.postgres import PostgresStore
from reattach.store.sqlite import SQLiteStore
from reattach.store.tables import REVISIONS, metadata
from reattach.testing.store import answer, change, creation, row
from tests.support.paths import BIN
from tests.support.postgres import PASSWORD, Postgres

# Tables, columns, keys and indexes, in no order: a column that comes later stands at the end.
CATALOGUE = """
SELECT 'column', concat_ws(' ', table_name, column_name, data_type, collation_name, is_nullable,
    column_default) FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT 'table', concat_ws(' ', relname, relpersistence) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
UNION ALL SELECT 'index', indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'constraint', conrelid::regclass || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
"""


def test_revisions_are_those_of_the_folder() -> None:
    folder = Path(migrations.__file__).parent
    found = [one.revision for one in ScriptDirectory(str(folder)).walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS


# --- SQLite


def at_revision(path: Path, revision: str) -> None:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    with engine.begin() as connection:
        migrations.upgrade(connection, revision)


def form(path: Path) -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as db:
        found = {("table", *one) for one in db.execute("SELECT name, sql FROM sqlite_master")}
        form = {(name, *sorted(" ".join(sql.split()).split(", "))) for _, name, sql in found if sql}
        columns = {
            (table, *map(str, column[1:]))
            for _, table, _ in found
            for column in db.execute(f"PRAGMA table_info({table})")
        }
    return form | columns


async def test_sum_of_migrations_on_sqlite(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "new.db")
    await store.open()
    await store.close()
    await asyncio.to_thread(at_revision, tmp_path / "migrated.db", "head")
    assert form(tmp_path / "migrated.db") == form(tmp_path / "new.db")
    assert len(form(tmp_path / "new.db")) > len(metadata.sorted_tables)


@pytest.mark.parametrize("numbered", [False, True], ids=["revision", "number"])
async def test_older_file_is_migrated_when_it_is_opened(tmp_path: Path, numbered: bool) -> None:
    path = tmp_path / "sessions.db"
    await asyncio.to_thread(at_revision, path, REVISIONS[0])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO meta VALUES ('identity', 'here')")
        db.execute(
            "INSERT INTO sessions VALUES ('s1', 'ann', 'epoch-1', 0, 0, 0, NULL, NULL, 1, 1, 1,"
            " NULL, NULL)"
        )
        if numbered:
            db.execute("DROP TABLE alembic_version")
            db.execute("INSERT INTO meta VALUES ('schema_version', '1')")
    store = SQLiteStore(path)
    assert await store.open() == "here"
    found = row("s1", created_at=1, last_activity=1)
    assert await store.session("s1") == found
    assert list(await store.members("s1")) == []
    part = change("s1", 0)
    assert list(await store.append([part, creation("s2")])) == [Outcome.OK, Outcome.OK]
    await store.close()
    fresh = SQLiteStore(tmp_path / "new.db")
    await fresh.open()
    await fresh.close()
    assert form(path) == form(tmp_path / "new.db")


async def test_keys_of_requests_stay_when_their_table_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    await asyncio.to_thread(at_revision, path, "0004")
    kept = answer("k1")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO meta VALUES ('identity', 'here')")
        db.execute(
            "INSERT INTO idempotency_keys (user_id, route, key, request, status, headers, body,"
            " created_at, session_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 's1')",
            astuple(kept),
        )
    store = SQLiteStore(path)
    await store.open()
    assert await store.idempotent(kept.user_id, kept.route, kept.key) == kept
    await store.close()


async def test_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    await asyncio.to_thread(at_revision, path, REVISIONS[0])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO meta VALUES ('identity', 'here')")
        db.execute("CREATE TABLE credentials (in_the_way TEXT)")
    before = form(path)
    for _ in range(2):
        with pytest.raises(StoreError, match="credentials already exists"):
            await SQLiteStore(path).open()
    assert form(path) == before


# --- PostgreSQL


@pytest.fixture
async def url(postgres: Postgres) -> str:
    return await postgres.empty_database()


async def catalogue(url: str) -> set[tuple[str, str]]:
    db = await asyncpg.connect(url)
    try:
        return {tuple(found) for found in await db.fetch(CATALOGUE)}
    finally:
        await db.close()


async def synchronously(url: str, work: Callable[[Connection], None]) -> None:
    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(url)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(work)


async def execute(url: str, *statements: str) -> None:
    db = await asyncpg.connect(url)
    for statement in statements:
        await db.execute(statement)
    await db.close()


async def test_sum_of_migrations_on_postgres(postgres: Postgres, url: str) -> None:
    await migrations.migrate(url)
    wanted = await postgres.empty_database()
    await synchronously(wanted, metadata.create_all)
    await execute(wanted, migrations.VERSION_TABLE)
    found = await catalogue(url)
    assert found == await catalogue(wanted)
    assert len(found) > len(metadata.sorted_tables)
    assert {what[:-2] for kind, what in found if kind == "table" and what.endswith(" u")} == {
        *("nodes", "seats")
    }
    # Ids are compared by their bytes, whatever language the server is set to.
    texts = [what for kind, what in found if kind == "column" and " text " in what]
    assert texts
    assert all(" C " in what for what in texts)


async def test_tables_that_are_missing_or_older(url: str) -> None:
    store = PostgresStore(url)
    with pytest.raises(StoreError, match="got none: run `reattach migrate`") as raised:
        await store.open()
    assert PASSWORD not in str(raised.value)
    with pytest.raises(StoreUnavailable, match="to be open"):
        await store.check()
    await synchronously(url, lambda connection: migrations.upgrade(connection, REVISIONS[-2]))
    with pytest.raises(StoreError, match=f"got {REVISIONS[-2]}: run `reattach migrate`"):
        await store.open()
    await migrations.migrate(url)
    identity = await store.open()
    await store.close()
    # Once more is nothing.
    await migrations.migrate(url)
    assert await store.open() == identity
    await store.close()


async def test_tables_of_a_later_release(url: str) -> None:
    await migrations.migrate(url)
    await execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=f"revision {REVISIONS[-1]} .* got 9999 of a later"):
        await PostgresStore(url).open()
    with pytest.raises(StoreError, match="9999"):
        await migrations.migrate(url)


async def test_who_runs_already_goes_on_when_later_tables_come(url: str) -> None:
    await migrations.migrate(url)
    store = PostgresStore(url)
    await store.open()
    await store.append([creation("s1")])
    await execute(
        url,
        "UPDATE alembic_version SET version_num = '9999'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'reattach' AND datname = current_database()",
    )
    assert await store.session("s1") == row("s1")
    await store.close()


async def test_several_migrate_at_once(url: str) -> None:
    command = [str(BIN / "reattach"), "migrate", "--database", url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in running:
        said, _ = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0
        assert f"revision {REVISIONS[-1]}" in said.decode()
    store = PostgresStore(url)
    await store.open()
    await store.close()


async def test_table_in_the_way(url: str) -> None:
    await execute(url, "CREATE TABLE commits (mine text)")
    with pytest.raises(
        StoreError, match=r'relation "commits" already exists.* Nothing was changed'
    ):
        await migrations.migrate(url)
    assert not [what for kind, what in await catalogue(url) if what.startswith("sessions")]
