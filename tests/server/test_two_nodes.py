"""Two servers on one PostgreSQL that do not know each other: the database is all they share."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from functools import partial

import httpx
import pytest
import pytest_asyncio

from tests.conftest import Witnesses
from tests.support.database import PostgresDatabase
from tests.support.load import Worker, acknowledged, check
from tests.support.postgres import Postgres
from tests.support.server import ServerProcess
from tests.support.waiting import until
from tests.support.wire_client import Frame, WireClient, all_settled

Nodes = tuple[ServerProcess, ServerProcess]


LOG = "SELECT version, client_id, seq FROM commits WHERE session_id = ? ORDER BY version"


def reached(database: PostgresDatabase, version: int) -> bool:
    return len(database.rows(LOG, "moved")) == version


def inc() -> Frame:
    return {"op": "inc", "path": "/n", "by": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Nodes, PostgresDatabase]]:
    """Both, for all tests of this page: each has a session of its own."""
    url = await postgres.database()
    folder = tmp_path_factory.mktemp("nodes")
    one, other = (
        ServerProcess(folder / name, database_url=url, app=None) for name in ("one", "other")
    )
    async with one, other:
        yield (one, other), PostgresDatabase(url)


@pytest.fixture
def nodes(running: tuple[Nodes, PostgresDatabase], witnesses: Witnesses) -> Nodes:
    for node in running[0]:
        witnesses.append((f"server log {node.url}", node.log_tail))
    return running[0]


@pytest.fixture
def database(running: tuple[Nodes, PostgresDatabase]) -> PostgresDatabase:
    return running[1]


async def test_a_write_on_one_is_seen_on_the_other_within_a_second(nodes: Nodes) -> None:
    one, other = nodes
    async with (
        WireClient(one.ws_url, "seen", "a", create={"n": 0}) as a,
        WireClient(other.ws_url, "seen", "b") as b,
    ):
        for version in range(1, 4):
            writer, reader = (a, b) if version % 2 else (b, a)
            await writer.change(inc())
            await writer.settled()
            begun = time.monotonic()
            await reader.at(version)
            # Once a second they look; the rest is for a busy machine.
            assert time.monotonic() - begun < 1.5
        assert a.state == b.state == {"n": 3}


async def test_writes_on_both_at_once_are_one_history(nodes: Nodes) -> None:
    one, other = nodes
    async with (
        WireClient(one.ws_url, "both", "a", create={"n": 0}) as a,
        WireClient(other.ws_url, "both", "b") as b,
    ):
        for _ in range(30):
            await a.change(inc())
            await b.change(inc())
        await asyncio.gather(a.settled(), b.settled())
        await asyncio.gather(a.at(60), b.at(60))
        assert a.state == b.state == {"n": 60}
        assert not a.rejected
        assert not b.rejected


async def test_a_client_that_moves_goes_on_with_its_numbers(
    nodes: Nodes, database: PostgresDatabase
) -> None:
    """A welcome never counts as decided what it does not show, however late the node is with it."""
    one, other = nodes
    at = one
    async with (
        WireClient(lambda: at.ws_url, "moved", "a", create={"n": 0}) as a,
        # So the session is open on both, and the one that a moves to hears of it late.
        WireClient(one.ws_url, "moved", "b") as b,
        WireClient(other.ws_url, "moved", "c") as c,
    ):
        for version in range(2, 9, 2):
            await a.change(inc())
            await a.settled()
            # What it has sent and was not answered, too.
            await a.change(inc())
            await a.disconnect()
            await until(
                partial(reached, database, version),
                within=10,
                what="the change in the log",
            )
            at = other if at is one else one
            await a.connect()
            await a.settled()
        await asyncio.gather(b.at(8), c.at(8))
        assert a.state == b.state == c.state == {"n": 8}
        async with httpx.AsyncClient(trust_env=False) as http:
            for node in nodes:
                found = (await http.get(f"{node.url}/api/v0/session/moved")).json()
                assert (found["version"], found["state"]) == (8, {"n": 8})


async def test_a_request_finds_what_another_node_was_asked_before(nodes: Nodes) -> None:
    # Rule T21
    """Regression: for a second a node answered as before, and refused the newest ETag (412)."""
    async with (
        WireClient(nodes[0].ws_url, "asked", "a", create={"n": 0}),
        WireClient(nodes[1].ws_url, "asked", "b"),
        httpx.AsyncClient(trust_env=False, timeout=10) as http,
    ):
        patch = {"Content-Type": "application/merge-patch+json"}
        tag = "*"
        for version in range(1, 7):
            one, other = (f"{node.url}/api/v0/session/asked" for node in nodes[:: (-1) ** version])
            written = await http.patch(one, json={"n": version}, headers={**patch, "If-Match": tag})
            assert (written.status_code, written.json()["version"]) == (200, version)
            tag = written.headers["etag"]
            found = await http.get(other)
            assert (found.headers["etag"], found.json()["state"]) == (tag, {"n": version})


async def test_a_session_whose_row_somebody_holds_waits_with_patience(
    nodes: Nodes, database: PostgresDatabase
) -> None:
    one, _ = nodes
    async with WireClient(one.ws_url, "held", "a", create={"n": 0}) as a:
        await a.change(inc())
        await a.settled()
        before = one.log.read_text().count("held")
        with database.row_lock("held"):
            await a.change(inc())
            # Time enough for hundreds of attempts.
            begun = time.monotonic()
            while time.monotonic() < begun + 1:
                await a.echo()
                assert a.version == 1
        await a.settled()
        assert a.state == {"n": 2}
        assert one.log.read_text().count("held") <= before + 1


@pytest.mark.faults
@pytest.mark.timeout(120)
async def test_one_that_stands_still_and_is_killed_under_load_loses_nothing(
    nodes: Nodes, database: PostgresDatabase
) -> None:
    """The other goes on with the sessions that they share, and nothing acknowledged is gone."""
    one, other = nodes
    workers = [
        Worker(node.ws_url, f"s{number}", f"s{number}-{name}", f"{number} {name}")
        for number in range(6)
        for name, node in (("a", one), ("b", other))
    ]
    clients = [worker.client for worker in workers]
    chance = random.Random(7)
    theirs = workers[1::2]
    async with asyncio.TaskGroup() as group:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        load = [group.create_task(worker.run()) for worker in workers]
        for round_ in range(3):
            await acknowledged(workers, sum(len(one.told) for one in workers) + 60)
            await asyncio.sleep(chance.uniform(0, 0.02))
            one.signal(signal.SIGSTOP)
            # Sessions that a stopped node had locked are free after two seconds at most.
            await acknowledged(theirs, sum(len(one.told) for one in theirs) + 30)
            if round_ == 1:
                await one.kill()
                await one.start()
            one.signal(signal.SIGCONT)
        for task in load:
            task.cancel()
    await all_settled(clients, within=30)
    for client in clients:
        await client.close()
    for number in range(6):
        mine = [one for one in workers if one.client.session_id == f"s{number}"]
        log = database.rows(LOG, f"s{number}")
        await check(other.ws_url, mine, [(version, name, seq) for version, name, seq in log])
