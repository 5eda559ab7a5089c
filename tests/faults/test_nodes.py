"""Two servers on one PostgreSQL, one with two workers, while Valkey and servers come and go.

The seed is in the test's output when it fails; `REATTACH_TEST_SEED` repeats its choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Serve, Witnesses
from tests.support.load import Worker, acknowledged, check
from tests.support.postgres import Postgres
from tests.support.server import ServerProcess
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until
from tests.support.wire_client import Frame, WireClient, all_settled

pytestmark = pytest.mark.faults

SESSIONS = 6


@pytest.fixture
async def url(postgres: Postgres) -> str:
    return await postgres.database()


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with ValkeyServer(tmp_path) as server:
        yield server


@pytest.fixture
async def servers(serve: Serve, url: str, valkey: ValkeyServer) -> list[ServerProcess]:
    arguments = ["--database", url, "--redis", valkey.url]
    # Workers begin when their parent has begun: on a busy machine that takes its time twice.
    crew = serve(app=None, arguments=[*arguments, "--workers", "2"], ready_within=60.0)
    return list(await asyncio.gather(serve(app=None, arguments=arguments), crew))


def online(client: WireClient) -> set[str]:
    """The devices that are online, as a client was last told."""
    told = client.of_type("devices")
    return {one["id"] for one in told[-1]["devices"] if one["online"]} if told else set()


async def committed(url: str, session_id: str) -> list[tuple[int, str, int]]:
    db = await asyncpg.connect(url)
    try:
        rows = await db.fetch(
            "SELECT version, client_id, seq FROM commits WHERE session_id = $1 ORDER BY version",
            session_id,
        )
    finally:
        await db.close()
    return [(row[0], row[1], row[2]) for row in rows]


@pytest.mark.timeout(180)
async def test_nothing_is_lost_while_redis_and_servers_come_and_go(
    servers: list[ServerProcess], valkey: ValkeyServer, url: str, witnesses: Witnesses
) -> None:
    seed = os.environ.get("REATTACH_TEST_SEED", str(random.randrange(2**32)))
    witnesses.append(("seed", lambda: seed))
    chance = random.Random(seed)

    def somewhere() -> str:
        return chance.choice(servers).ws_url

    workers = [
        Worker(somewhere, f"s{n}", f"s{n}-{name}", f"{seed} {n} {name}")
        for n in range(SESSIONS)
        for name in "ab"
    ]
    clients = [worker.client for worker in workers]

    async def work(more: int) -> None:
        await acknowledged(workers, sum(len(worker.told) for worker in workers) + more)

    async with asyncio.TaskGroup() as group:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        load = [group.create_task(worker.run()) for worker in workers]
        await work(100)
        await valkey.kill()
        await work(100)
        await valkey.start()
        await work(50)
        valkey.stop()
        stopped = time.monotonic()
        await work(100)
        await servers[0].kill()
        await work(50)
        await asyncio.sleep(max(0.0, stopped + 2 - time.monotonic()))
        valkey.go_on()
        await servers[0].start()
        await work(50)
        # Good-bye of both workers, while they are used.
        assert await servers[1].stop() == 0
        await servers[1].start()
        await work(50)
        for task in load:
            task.cancel()
    await all_settled(clients, within=30)
    for client in clients:
        await client.close()
    for number in range(SESSIONS):
        mine = [one for one in workers if one.client.session_id == f"s{number}"]
        await check(somewhere(), mine, await committed(url, f"s{number}"))


async def test_who_is_where_over_servers_and_workers(servers: list[ServerProcess]) -> None:
    """F2, and the rows `devices` and `presence` of section 5, between processes."""
    first, second = (server.ws_url for server in servers)
    state: Frame = {"n": 0}

    async with (
        WireClient(first, "s", "one", create=state) as one,
        WireClient(second, "s", "two") as two,
        WireClient(second, "s", "three") as three,
    ):
        everybody = {"device-of-one", "device-of-two", "device-of-three"}
        for client in (one, two, three):
            await until(
                lambda client=client: online(client) == everybody,  # type: ignore[misc]
                within=5,
                what="everybody to be online",
            )
        await one.send(type="presence", data={"at": "/n"})
        for client in (two, three):
            await client.told(lambda frame: frame["type"] == "presence", what="presence")
        older = WireClient(first, "s", "moves")
        await older.connect()
        newer = WireClient(second, "s", "moves")
        begun = time.monotonic()
        await newer.connect()
        assert (await older.closed())[0] == 4409
        assert time.monotonic() - begun < 1
        await newer.change({"op": "inc", "path": "/n", "by": 1})
        await newer.settled()
        await until(lambda: one.state["n"] == 1, within=5, what="the change")
        await newer.close()


async def test_a_server_that_is_killed_takes_its_connections_along(
    servers: list[ServerProcess],
) -> None:
    first, second = (server.ws_url for server in servers)
    async with WireClient(first, "s", "one", create={}) as one:
        two = WireClient(second, "s", "two")
        await two.connect()

        both = {"device-of-one", "device-of-two"}
        await until(lambda: online(one) == both, within=5, what="both to be online")
        servers[1].signal(signal.SIGKILL)
        await until(
            lambda: online(one) == {"device-of-one"}, within=12, what="the node's lease to end"
        )
        await two.close()


async def fences(older: WireClient, newer: WireClient, *, within: float) -> None:
    """The second connection of a client closes the first, on whichever node, in time."""
    async with older, newer:
        begun = time.monotonic()
        assert (await older.closed())[0] == 4409
        assert time.monotonic() - begun < within
        assert newer.live


@pytest.mark.timeout(120)
async def test_who_is_where_while_redis_is_gone(
    servers: list[ServerProcess], valkey: ValkeyServer
) -> None:
    """Within two seconds by the database, a dead node's after its lease; then by Redis again."""
    first, second = (server.ws_url for server in servers)

    async def all_see(*names: str, within: float) -> None:
        devices = {f"device-of-{name}" for name in names}
        for client in clients:
            await until(
                lambda client=client: online(client) == devices,  # type: ignore[misc]
                within=within,
                what=f"{client.client_id} to see {sorted(devices)}",
            )

    async with (
        WireClient(first, "s", "one", create={"n": 0}) as one,
        WireClient(first, "s", "two") as two,
    ):
        clients = [one, two]
        three = WireClient(second, "s", "three")
        await three.connect()
        clients.append(three)
        await all_see("one", "two", "three", within=5)
        told = len(one.of_type("devices"))
        await valkey.kill()
        four = WireClient(second, "s", "four")
        await four.connect()
        clients.append(four)
        await all_see("one", "two", "three", "four", within=2)
        later = [device for frame in one.of_type("devices")[told:] for device in frame["devices"]]
        assert all(device["online"] for device in later), "not even for a moment"
        await four.close()
        clients.remove(four)
        await all_see("one", "two", "three", within=2)
        await fences(WireClient(first, "s", "moves"), WireClient(second, "s", "moves"), within=2)
        servers[1].signal(signal.SIGKILL)
        clients.remove(three)
        await all_see("one", "two", within=12)
        await servers[1].start()
        await valkey.start()
        await three.connect()
        await all_see("one", "two", "three", within=5)
        await fences(WireClient(first, "s", "last"), WireClient(second, "s", "last"), within=1)
        await three.close()
