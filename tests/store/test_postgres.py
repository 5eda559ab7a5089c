from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from reattach.errors import StoreError, StoreRefused, StoreUnavailable
from reattach.store.base import Append, Compaction, Outcome
from reattach.store.migrations import migrate
from reattach.store.postgres import PostgresStore, rows, sql
from reattach.store.postgres.connections import Connection, connect
from reattach.store.tables import metadata
from reattach.testing.store import (
    DAY_MS,
    EPOCH,
    T0,
    USER,
    DurableStoreSuite,
    MakeStore,
    SeatingSuite,
    access,
    activity,
    advance,
    answer,
    change,
    conflict,
    creation,
    device,
    erasure,
    everything,
    member,
    refusal,
    row,
)
from tests.client.proxy import Proxy
from tests.support.postgres import PASSWORD, Postgres
from tests.support.waiting import until

OK, STALE, EXISTS = Outcome.OK, Outcome.STALE, Outcome.EXISTS

# A node in small, which stands still in the middle of a transaction.
STANDING_STILL = """
import asyncio, sys
from reattach.store.postgres.connections import connect

async def main(url):
    db = await connect(url, patience=10)
    await db.execute("BEGIN")
    await db.execute("SELECT * FROM sessions WHERE session_id = 's1' FOR UPDATE")
    print("locked", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
async def url(postgres: Postgres) -> str:
    return await postgres.database()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, timeout=5)
    await store.open()
    yield store
    await store.close()


@asynccontextmanager
async def other(url: str) -> AsyncIterator[Connection]:
    """Connects as another program would."""
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        await db.close(timeout=5)


async def waits_for_a_lock(db: Connection) -> None:
    async def waits() -> bool:
        return bool(
            await db.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'reattach' AND wait_event_type = 'Lock'"
            )
        )

    await until(waits, within=5, what="an append that waits for a lock")


class TestPostgresStore(DurableStoreSuite, SeatingSuite):
    @pytest.fixture
    def make_store(self, url: str) -> MakeStore:
        return lambda: PostgresStore(url)


# --- Statements


async def plans(url: str, statement: str) -> list[dict[str, Any]]:
    """What the server does for a statement, as a list of steps."""
    db = await connect(url, patience=5)
    try:
        await db.execute(f"PREPARE it AS {statement}")
        count = max(map(int, re.findall(r"\$([0-9]+)", statement)))
        values = ", ".join(["NULL"] * count)
        text: str = await db.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE it ({values})")
    finally:
        await db.close()
    steps: list[dict[str, Any]] = []
    waiting = [json.loads(text)[0]["Plan"]]
    while waiting:
        step = waiting.pop()
        steps.append(step)
        waiting += step.get("Plans", [])
    return steps


async def looks_up(url: str, name: str, statement: str) -> None:
    for step in await plans(url, statement):
        kind = step["Node Type"]
        where = (name, step)
        assert kind not in {"Seq Scan", "Hash Join", "Merge Join"}, where
        if kind in {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}:
            assert "Index Cond" in step, where
        if kind == "Sort" and name.startswith("LIST_"):
            assert not [one for one in step["Plans"] if "Scan" in one["Node Type"]], where


async def test_every_read_has_its_index(url: str) -> None:
    reads = {
        name: statement
        for name, statement in vars(sql).items()
        if name.startswith(("READ_", "LIST_", "FIND_", "REMOVE_")) and isinstance(statement, str)
    }
    assert len(reads) > 15
    for name, statement in reads.items():
        await looks_up(url, name, statement)
    for statement in (*sql.ERASE_REST, *sql.CLAIM):
        await looks_up(url, "rare", statement)


async def test_every_piece_of_an_append_has_its_index(url: str) -> None:
    for pieces in ((), *((piece,) for piece in rows.PIECES), rows.PIECES):
        await looks_up(url, "append", sql.append_statement(pieces))


def test_erase_names_every_table() -> None:
    of_sessions = {
        table.name
        for table in metadata.sorted_tables
        if "session_id" in table.columns and table.name not in {"sessions", "erased_sessions"}
    }
    assert {re.findall("FROM ([a-z_]+)", one)[0] for one in sql.ERASE_REST} == of_sessions


def test_every_key_starts_with_the_session() -> None:
    for table in metadata.sorted_tables:
        first = next(iter(table.primary_key)).name
        assert first == {"meta": "key", "nodes": "node"}.get(table.name, "session_id")


async def test_who_is_connected_is_looked_up(url: str) -> None:
    """Of a million sessions' seats only those that are asked for are read; nodes are few."""
    for statement in (sql.LOOK_AROUND, sql.WRITE_SEATS):
        for step in await plans(url, statement):
            if step.get("Relation Name") == "seats" and step["Node Type"] != "ModifyTable":
                assert "Scan" in step["Node Type"]
                assert "session_id" in step["Index Cond"], step


async def test_an_append_is_one_statement(store: PostgresStore) -> None:
    """Nothing is open between a node's words: an append is over when the server has heard it."""
    await store.append([creation("s1"), creation("s2")])
    part = change(
        "s1",
        0,
        refusals=[refusal(2)],
        clients=[advance(0, 2)],
        conflicts=[conflict("k1", 1)],
        devices=[device("d1")],
        activity=[activity(1)],
        idempotency=answer("k1"),
    )
    sent: list[str] = []
    assert store._writers is not None
    async with store._writers.use() as db:
        db.add_query_logger(lambda query: sent.append(query.query))
    assert list(await store.append([part, change("s2", 0)])) == [OK, OK]
    # And the keys that are too old, which are no part of it.
    await until(lambda: len(sent) > 1, within=5, what="the log of queries")
    assert [query.split()[0] for query in sent] == ["WITH", "DELETE"]


# --- Others on the database


async def test_locked_sessions_are_passed_over(url: str, store: PostgresStore) -> None:
    await store.append([creation(name) for name in ("s1", "s2", "s3")])
    async with other(url) as db:
        async with db.transaction():
            await db.execute("SELECT * FROM sessions WHERE session_id = 's2' FOR UPDATE")
            batch = [change("s3", 0), change("s2", 0), change("s1", 0)]
            assert list(await store.append(batch)) == [OK, STALE, OK]
            # Nor does it keep anybody from reading.
            assert await store.session("s2") == row("s2")
        assert list(await store.append([change("s2", 0)])) == [OK]


@pytest.mark.parametrize("commits", [True, False])
async def test_creation_waits_for_one_that_is_under_way(
    url: str, store: PostgresStore, commits: bool
) -> None:
    await store.append([creation("s1")])
    async with other(url) as db:
        transaction = db.transaction()
        await transaction.start()
        await db.execute(COPY)
        appending = asyncio.ensure_future(store.append([creation("s2"), change("s1", 0)]))
        await waits_for_a_lock(db)
        await (transaction.commit() if commits else transaction.rollback())
        assert list(await appending) == [EXISTS if commits else OK, OK]


COPY = """
INSERT INTO sessions SELECT 's2', user_id, epoch, epoch_version, version, access_version,
    schema_name, schema_version, created_at, last_activity, is_active, disconnected_at,
    reconnected_at
FROM sessions WHERE session_id = 's1'
"""

HOLD_KEY = """
INSERT INTO idempotency_keys (
    user_id, route, key, request, status, headers, body, created_at, session_id
) VALUES ($1, 'POST /session', 'k1', '', 200, '', '', $2, 'other')
"""


@asynccontextmanager
async def held_up(
    url: str, append: Callable[[], Awaitable[Any]]
) -> AsyncIterator[asyncio.Future[Any]]:
    """Holds up an append with the key ``k1`` after its statement began, until the end."""
    async with other(url) as db:
        transaction = db.transaction()
        await transaction.start()
        await db.execute(HOLD_KEY, USER, T0)
        task = asyncio.ensure_future(append())
        await waits_for_a_lock(db)
        yield task
        await transaction.rollback()
        await task


async def test_client_that_moved_after_the_statement_began(url: str, store: PostgresStore) -> None:
    await store.append([creation("s1"), creation("s2")])
    await store.append([change("s1", 0)])
    part = change("s1", 1, idempotency=answer("k1"))
    both = [part, change("s2", 0)]
    async with held_up(url, lambda: store.append(both)) as task, other(url) as db:
        await db.execute("UPDATE clients SET seq = 7 WHERE session_id = 's1'")
    assert task.result() == [STALE, OK]
    assert await store.session("s1") == row("s1", 1)
    assert await store.idempotent(USER, "POST /session", "k1") is None
    met = await store.client("s1", "c1")
    assert met is not None
    assert met.seq == 7


async def test_client_that_came_after_the_statement_began(url: str, store: PostgresStore) -> None:
    await store.append([creation("s1")])
    part = change("s1", 0, idempotency=answer("k1"))
    async with held_up(url, lambda: store.append([part])) as task, other(url) as db:
        await db.execute("INSERT INTO clients VALUES ('s1', 'c1', 'bob', 'd1', 0, NULL)")
    assert task.result() == [STALE]
    assert list(await store.log("s1", first=1)) == []


async def test_session_that_was_erased_after_the_statement_began(
    url: str, store: PostgresStore
) -> None:
    part = creation("s1")
    part.idempotency = answer("k1")
    async with held_up(url, lambda: store.append([part])) as task:
        second = PostgresStore(url)
        await second.open()
        assert list(await second.append([creation("s1")])) == [OK]
        assert list(await second.append([erasure("s1", 0)])) == [OK]
        await second.close()
    assert task.result() == [EXISTS]
    assert await store.load("s1") is None


async def test_what_was_written_while_it_is_erased_is_erased(
    url: str, store: PostgresStore
) -> None:
    """Rows that came after the statement began are not seen by it, and go nevertheless."""
    await store.append([creation("s1")])
    part = erasure("s1", 0)
    part.idempotency = answer("k1")
    async with held_up(url, lambda: store.append([part])) as task, other(url) as db:
        await db.execute(
            "INSERT INTO session_activity_log VALUES ('s1', 1, 'connected', 1, 'ann', 'd', '')"
        )
    assert task.result() == [OK]
    assert (await store.activity("s1", None, 10)).items == []


async def test_a_compaction_under_way_holds_up_erasures_and_no_commits(
    url: str, store: PostgresStore
) -> None:
    """A state that it saves is gone with the rest; whoever writes meanwhile finds nobody there."""
    await store.append([creation("s1"), creation("s2")])
    async with other(url) as db:
        async with db.transaction():
            await db.execute(sql.HOLD_HISTORY, "s1")
            assert await db.fetchval(sql.HAS_EPOCH, "s1", EPOCH)
            assert list(await store.append([change("s1", 0)])) == [OK]
            assert list(await store.append([erasure("s2", 0)])) == [OK]
            erasing = asyncio.create_task(store.append([erasure("s1", 1)]))
            await waits_for_a_lock(db)
            await db.execute(sql.KEEP_STATE, "s1", 9, b"{}", b"[]")
        assert list(await erasing) == [OK]
        assert await db.fetchval("SELECT count(*) FROM states") == 0
        compaction = Compaction(session_id="s1", epoch=EPOCH, floor=1)
        assert not await store.compact(compaction)


async def test_many_nodes_on_the_same_sessions(url: str) -> None:
    """In whatever order they name the sessions: nobody waits in a ring, and nothing is lost."""
    stores = [PostgresStore(url) for _ in range(4)]
    for store in stores:
        await store.open()
    names = [f"s{number}" for number in range(6)]
    await stores[0].append([creation(name) for name in names])

    async def work(store: PostgresStore, names: list[str]) -> None:
        done = dict.fromkeys(names, 0)
        while any(count < 5 for count in done.values()):
            wanted = [name for name in names if done[name] < 5]
            stands = await store.versions(wanted)
            parts = [change(name, stands[name][1]) for name in wanted]
            for name, outcome in zip(wanted, await store.append(parts), strict=True):
                done[name] += outcome is OK

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for number, store in enumerate(stores):
            turned = names[number:] + names[:number]
            group.create_task(work(store, turned if number % 2 else turned[::-1]))
    for name in names:
        found = await stores[0].load(name)
        assert found is not None
        assert found.session.version == len(stores) * 5
        assert [one.version for one in found.tail] == list(range(1, len(stores) * 5 + 1))
    for store in stores:
        await store.close()


async def test_trigger_that_aborts(url: str, store: PostgresStore) -> None:
    await store.append([creation("s1"), creation("s2")])
    async with other(url) as db:
        await db.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;"
            "CREATE TRIGGER guard BEFORE INSERT ON commits FOR EACH ROW"
            " WHEN (NEW.session_id = 's2') EXECUTE FUNCTION refuse()"
        )
        try:
            with pytest.raises(StoreRefused, match="not this one"):
                await store.append([change("s1", 0), change("s2", 0)])
            assert await store.session("s1") == row("s1")
            assert list(await store.append([change("s1", 0)])) == [OK]
            with pytest.raises(StoreRefused, match="not this one"):
                await store.append([change("s2", 0)])
        finally:
            await db.execute("DROP TRIGGER guard ON commits; DROP FUNCTION refuse()")


async def test_bug_leaves_no_transaction(store: PostgresStore) -> None:
    await store.append([creation("s1")])
    broken = access("s1", 0, 0, members=[member("bob")])
    broken.credentials_removed = [1]  # type: ignore[list-item]  # on purpose
    with pytest.raises(StoreRefused):
        await store.append([broken])
    assert list(await store.members("s1")) == []
    assert list(await store.append([change("s1", 0)])) == [OK]


async def test_old_idempotency_keys_are_removed_little_by_little(url: str) -> None:
    time = T0
    store = PostgresStore(url, now=lambda: time)
    await store.open()

    async def create(name: str) -> None:
        part = creation(name)
        part.idempotency = answer(name, created_at=time)
        await store.append([part])

    async with other(url) as db:
        for number in range(10):
            await create(f"old{number}")
        time = T0 + DAY_MS
        counts = []
        for number in range(4):
            await create(f"new{number}")
            counts.append(await db.fetchval("SELECT count(*) FROM idempotency_keys"))
    # The batch's own are not counted among the old: it is written when they go.
    assert counts == [7, 4, 3, 4]
    await store.close()


async def test_another_database_in_its_place(url: str, store: PostgresStore) -> None:
    await store.append([creation("s1")])
    async with other(url) as db:
        await db.execute("UPDATE meta SET value = 'another' WHERE key = 'identity'")
        await end_connections(db)

    async def noticed() -> bool:
        with pytest.raises(StoreUnavailable) as raised:
            await store.append([change("s1", 0)])
        return "another one in its place" in str(raised.value)

    await until(noticed, within=5, what="the store")


async def end_connections(db: Connection) -> None:
    await db.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'reattach' AND datname = current_database()"
    )


async def test_connections_that_end_are_made_anew(url: str, store: PostgresStore) -> None:
    await store.append([creation("s1")])
    async with other(url) as db:
        await end_connections(db)

        async def works() -> bool:
            try:
                return list(await store.append([change("s1", 0)])) in ([OK], [STALE])
            except StoreUnavailable:
                return False

        await until(works, within=5, what="the store")
    assert await store.session("s1") == row("s1", 1)


# --- What must not be used


async def test_commits_that_are_not_on_disk_are_refused(postgres: Postgres) -> None:
    url = await postgres.empty_database()
    await migrate(url)
    async with other(url) as db:
        name = url.rsplit("/", 1)[1]
        await db.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with pytest.raises(StoreError, match=r"got synchronous_commit = off: a power cut") as raised:
        await PostgresStore(url).open()
    assert raised.value.code == "not_durable"
    assert PASSWORD not in str(raised.value)


async def test_without_fsync_it_is_refused() -> None:
    async with Postgres({"fsync": "off"}) as postgres:
        url = await postgres.empty_database()
        await migrate(url)
        with pytest.raises(StoreError, match=r"got fsync = off: a power cut"):
            await PostgresStore(url).open()


async def test_nobody_is_told_a_password(url: str, postgres: Postgres) -> None:
    bad = [
        url.replace("reattach:", "nobody:"),
        url.replace(str(postgres.port), "1"),
        f"{url}?sslmode=nonsense",
        f"{url}?sslmode=verify-full&sslrootcert=/nowhere",
    ]
    for one in bad:
        with pytest.raises(StoreError) as raised:
            await PostgresStore(one).open()
        assert PASSWORD not in str(raised.value)
        assert "127.0.0.1" in str(raised.value)
    with pytest.raises(StoreError) as raised:
        PostgresStore(url.replace(PASSWORD, f"{PASSWORD}/{PASSWORD}"))
    assert PASSWORD not in str(raised.value)


# --- Failures of the server, of the network and of a node


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def doomed() -> AsyncIterator[Postgres]:
    """A PostgreSQL that tests may stop and kill."""
    async with Postgres() as postgres:
        yield postgres


@pytest.fixture
async def victim(doomed: Postgres) -> AsyncIterator[tuple[Postgres, PostgresStore]]:
    """That, and a store on it, which is empty."""
    store = PostgresStore(await doomed.database(), timeout=1)
    await store.open()
    yield doomed, store
    await store.close()


async def insist(store: PostgresStore, batch: list[Append]) -> list[Outcome]:
    """Append as a node does: again, when nobody knows."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return list(await store.append(batch))
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.01)


@pytest.mark.faults
async def test_server_killed_in_the_middle_of_appends(
    victim: tuple[Postgres, PostgresStore],
) -> None:
    postgres, store = victim
    names = [f"s{number}" for number in range(10)]
    await store.append([creation(name) for name in names])
    acknowledged = 0

    async def work() -> None:
        nonlocal acknowledged
        while True:
            stands = {(await store.versions(names))[name][1] for name in names}
            # Whole, whatever happened to it.
            assert len(stands) == 1
            version = stands.pop()
            assert acknowledged <= version <= acknowledged + 3
            outcomes = await store.append([change(name, version, count=3) for name in names])
            assert set(outcomes) == {OK}
            acknowledged = version + 3

    def is_beyond(version: int) -> bool:
        return acknowledged > version

    for _ in range(3):
        before = acknowledged
        working = asyncio.ensure_future(work())
        await until(partial(is_beyond, before + 30), within=20, what="appends")
        await postgres.kill()
        with pytest.raises(StoreUnavailable):
            await working
        with pytest.raises(StoreUnavailable):
            await store.check()
        await postgres.start()
        await store.check()
    for name in names:
        loaded = await store.load(name)
        assert loaded is not None
        assert acknowledged <= loaded.session.version <= acknowledged + 3
        assert [one.version for one in loaded.tail] == list(range(1, loaded.session.version + 1))


@pytest.mark.faults
async def test_server_that_stands_still(victim: tuple[Postgres, PostgresStore]) -> None:
    postgres, store = victim
    await store.append([creation("s1")])
    postgres.signal(signal.SIGSTOP)
    begun = time.monotonic()
    for work in (store.append([change("s1", 0)]), store.load("s1"), store.check()):
        with pytest.raises(StoreUnavailable, match=r"to answer within 1 s|to connect"):
            await work
    assert time.monotonic() - begun < 6
    postgres.signal(signal.SIGCONT)
    # What was asked for may be carried out yet, and then this is too late.
    assert await insist(store, [change("s1", 0)]) in ([OK], [STALE])
    assert await store.session("s1") == row("s1", 1)


@pytest.mark.faults
async def test_server_restarted(victim: tuple[Postgres, PostgresStore]) -> None:
    postgres, store = victim
    await store.append([creation("s1")])
    await postgres.stop()
    with pytest.raises(StoreUnavailable):
        await store.append([change("s1", 0)])
    await postgres.start()
    assert await insist(store, [change("s1", 0)]) == [OK]


@pytest.mark.faults
async def test_lost_answer(url: str, postgres: Postgres) -> None:
    """Law 3: the append was done, nobody heard so, and doing it again does no harm."""
    async with Proxy(postgres.port) as wire:
        store = PostgresStore(url.replace(str(postgres.port), str(wire.port)), timeout=0.5)
        await store.open()
        await store.append([creation("s1"), creation("s2")])
        # A statement is made known before it is used for the first time.
        await store.append([change("s2", 0)])
        wire.mute = True
        with pytest.raises(StoreUnavailable, match=r"to answer within 0\.5 s"):
            await store.append([change("s1", 0)])
        wire.mute = False
        wire.cut()
        before = await everything(store, "s1")
        assert before[0] == row("s1", 1)
        assert list(await store.append([change("s1", 0)])) == [STALE]
        assert await everything(store, "s1") == before
        # A connection that breaks off at once is no different.
        wire.refuse = True
        wire.cut()
        with pytest.raises(StoreUnavailable):
            await store.append([change("s1", 1)])
        wire.refuse = False
        assert await insist(store, [change("s1", 1)]) in ([OK], [STALE])
        await store.close()


@pytest.mark.faults
async def test_node_that_stands_still_holds_up_nobody_for_long(
    url: str, store: PostgresStore
) -> None:
    await store.append([creation("s1"), creation("s2")])
    process = subprocess.Popen(
        [sys.executable, "-c", STANDING_STILL, url],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout is not None
        assert (await asyncio.to_thread(process.stdout.readline)) == b"locked\n"
        process.send_signal(signal.SIGSTOP)
        # Other sessions go on, and in the same batch.
        begun = time.monotonic()
        assert list(await store.append([change("s1", 0), change("s2", 0)])) == [STALE, OK]
        assert time.monotonic() - begun < 1

        async def free() -> bool:
            return list(await store.append([change("s1", 0)])) == [OK]

        await until(free, within=8, what="the session that it had locked")
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
