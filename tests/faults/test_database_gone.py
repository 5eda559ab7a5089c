"""The database is killed, stopped, full or locked, and comes back: nobody touches anything else.

Clients keep their connections and what they sent waits, they are told so once, the server says that
it is not ready, and when the database is back everything is written within a breath.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Serve, Witnesses
from tests.support.database import ON_POSTGRES, PostgresDatabase, behind
from tests.support.load import Worker, acknowledged, check
from tests.support.postgres import Postgres
from tests.support.server import ServerProcess
from tests.support.waiting import until
from tests.support.wire_client import Frame, WireClient, all_settled

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

log = logging.getLogger(__name__)
"""Figures: `-o log_cli=true --log-cli-level=INFO` shows them."""

SESSIONS = 3
DRAINS_WITHIN_S = 3.0
"""A second until the database is asked again, and the rest for a busy machine."""
KIB = 1024

LOG = "SELECT version, client_id, seq FROM commits WHERE session_id = ? ORDER BY version"


@pytest.fixture
async def own_postgres(witnesses: Witnesses) -> AsyncIterator[Postgres]:
    """One that may be killed."""
    async with Postgres() as server:
        witnesses.append(("postgres", server.log_tail))
        yield server


@pytest.fixture
async def server(serve: Serve, own_postgres: Postgres) -> ServerProcess:
    return await serve(app=None, database_url=await own_postgres.database())


def complaints(client: WireClient) -> list[Frame]:
    """What a client was told of the database."""
    return [one for one in client.of_type("error") if one["code"] == "unavailable"]


async def answers(server: ServerProcess, path: str) -> int:
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
        return (await http.get(f"{server.url}{path}")).status_code


async def stays_so(workers: Sequence[Worker], seconds: float) -> None:
    """Sees for a while that lines are answered on, and that nobody is told twice."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for worker in workers:
            await worker.client.echo()
            assert len(complaints(worker.client)) == 1
            assert worker.client.closes == []
        await asyncio.sleep(0.05)


def largest(folder: Path) -> int:
    """The size of the largest file of a database there."""
    return max(one.stat().st_size for one in folder.glob("full.db*"))


def rss(server: ServerProcess) -> int:
    """Memory of the node that takes the most."""
    return max(int(psutil.Process(node.pid).memory_info().rss) for node in server.nodes)


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_clients_stay_are_told_and_go_on_by_themselves(
    server: ServerProcess, own_postgres: Postgres, how: str
) -> None:
    workers = [
        Worker(server.ws_url, f"s{number}", f"s{number}-{name}", f"{number} {name}")
        for number in range(SESSIONS)
        for name in "ab"
    ]
    clients = [worker.client for worker in workers]
    late = Worker(server.ws_url, "s0", "s0-late", "late")
    everybody = [*workers, late]
    async with asyncio.TaskGroup() as group:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        load = [group.create_task(worker.run()) for worker in workers]
        await acknowledged(workers, 60)
        if how == "killed":
            await own_postgres.kill()
        else:
            own_postgres.signal(signal.SIGSTOP)
        for client in clients:
            await client.wait(
                lambda client=client: bool(complaints(client)),  # type: ignore[misc]
                within=6,
                what="to be told of the database",
            )
            assert complaints(client)[0]["retry_after_ms"] <= 1_000
        assert await answers(server, "/healthz") == 200
        assert await answers(server, "/readyz") == 503
        opening = asyncio.create_task(late.client.__aenter__())
        await stays_so(workers, 3)
        assert all(client.outbox for client in clients)
        assert not late.client.welcomes
        await until(
            lambda: "the database does not answer" in server.log.read_text(),
            within=5,
            what="the operator to be told",
        )
        told = [len(worker.told) for worker in workers]

        if how == "killed":
            await own_postgres.start()
        else:
            own_postgres.signal(signal.SIGCONT)
        back = time.monotonic()
        await until(
            lambda: all(len(one.told) > n for one, n in zip(workers, told, strict=True)),
            within=DRAINS_WITHIN_S,
            what="everybody's work to be written",
        )
        log.info("%s: written again %.2f s after it was back", how, time.monotonic() - back)
        await opening
        load.append(group.create_task(late.run()))
        await acknowledged(everybody, sum(told) + 60)
        await acknowledged([late], 1)
        for task in load:
            task.cancel()
    await all_settled([one.client for one in everybody])
    assert all(client.closes == [] for client in clients)
    assert all(len(complaints(client)) == 1 for client in clients)
    assert await answers(server, "/readyz") == 200
    for one in everybody:
        await one.client.close()
    database = PostgresDatabase(own_postgres.url("shared"))
    for number in range(SESSIONS):
        mine = [one for one in everybody if one.client.session_id == f"s{number}"]
        rows = database.rows(LOG, f"s{number}")
        await check(server.ws_url, mine, [(version, name, seq) for version, name, seq in rows])
    said = server.log.read_text()
    nodes = len(server.nodes)
    assert said.count("the database does not answer") == nodes, "once for each"
    assert said.count("the database is back: ") == nodes


async def test_memory_is_bounded_by_not_reading(serve: Serve, own_postgres: Postgres) -> None:
    """What floods waits at its sender, and all of it is written in the end."""
    server = await serve(
        app=None,
        database_url=await own_postgres.database(),
        environment={"REATTACH_MAX_BACKLOG_BYTES": str(2048 * KIB)},
    )
    floods = [
        WireClient(server.ws_url, f"s{number}", f"c{number}", create={"text": ""})
        for number in range(6)
    ]
    many, text = 400, "x" * 24 * KIB
    await asyncio.gather(*(client.connect() for client in floods))

    async def flood(client: WireClient) -> None:
        for number in range(many):
            await client.change({"op": "set", "path": "/text", "value": f"{number}{text}"})

    await own_postgres.kill()
    before, most = rss(server), 0
    async with asyncio.TaskGroup() as group:
        flooding = [group.create_task(flood(client)) for client in floods]
        begun = time.monotonic()
        while time.monotonic() < begun + 4:
            most = max(most, rss(server) - before)
            await asyncio.sleep(0.05)
        assert not all(task.done() for task in flooding), "expected somebody to be held up"
        # Signs of life pass, for whom nothing is read from.
        assert all(client.live for client in floods)
        await own_postgres.start()
    await all_settled(floods, within=60)
    weight = many * len(text) * len(floods)
    log.info("flooded with %.0f MiB: grew by %.1f MiB", weight / 2**20, most / 2**20)
    assert most < 24 * 2**20 < weight / 2
    for client in floods:
        assert client.version == many
        await client.close()


async def test_sqlite_that_another_process_has_locked(serve: Serve) -> None:
    server = await serve(app=None)
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as client:
        with behind(server).write_lock():
            await client.change({"op": "inc", "path": "/n", "by": 1})
            await client.wait(
                lambda: bool(complaints(client)), within=20, what="to be told of the database"
            )
            assert await answers(server, "/readyz") == 503
            await client.echo()
            assert client.version == 0
        await client.settled(within=DRAINS_WITHIN_S)
        assert client.state == {"n": 1}
        assert len(complaints(client)) == 1
        assert client.closes == []


@pytest.mark.skipif(ON_POSTGRES, reason="it is a file that cannot grow")
async def test_sqlite_on_a_disk_that_is_full(serve: Serve, tmp_path: Path) -> None:
    """No file may grow any more: as on a full disk, writes fail and everything else goes on."""
    server = await serve(tmp_path / "full.db", app=None)
    async with WireClient(server.ws_url, "s", "a", create={"text": ""}) as client:
        await client.change({"op": "set", "path": "/text", "value": "before"})
        await client.settled()
        size = largest(tmp_path)
        before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 1, before[1]))
        await client.change({"op": "set", "path": "/text", "value": "x" * 100 * KIB})
        await client.wait(
            lambda: bool(complaints(client)), within=20, what="to be told of the database"
        )
        assert client.state == {"text": "before"}
        assert not client.rejected
        await until(
            lambda: "the database does not answer" in server.log.read_text(),
            within=5,
            what="the operator to be told",
        )
        assert await answers(server, "/readyz") == 503
        # Not again and again: it is tried once a second, and told once.
        seen = server.log.read_text().count("\n")
        begun = time.monotonic()
        while time.monotonic() < begun + 2:
            await client.echo()
            await asyncio.sleep(0.05)
        assert server.log.read_text().count("\n") == seen
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)
        await client.settled(within=DRAINS_WITHIN_S)
        assert len(client.state["text"]) == 100 * KIB
        assert len(complaints(client)) == 1
        assert client.closes == []
