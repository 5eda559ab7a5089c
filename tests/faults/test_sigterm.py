"""SIGTERM under load: the batch in flight is finished, everybody hears 1012, it ends in time."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.conftest import Serve
from tests.faults.test_durable_first import write_lock
from tests.support.waiting import until
from tests.support.wire_client import WireClient

pytestmark = pytest.mark.faults


async def test_sigterm_under_load(serve: Serve) -> None:
    server = await serve(app=None)
    clients = [
        WireClient(server.ws_url, f"s{n}", f"s{n}-{name}", create={"n": 0}, stay=True)
        for n in range(10)
        for name in "ab"
    ]

    async def load(client: WireClient) -> None:
        while True:
            await client.wait(
                lambda: client.live and len(client.outbox) < 20, within=60, what="room"
            )
            await client.change({"op": "inc", "path": "/n", "by": 1})
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        tasks = [group.create_task(load(client)) for client in clients]
        for _ in range(3):
            told = sum(len(client.versions) for client in clients)
            await until(
                lambda n=told + 300: sum(len(client.versions) for client in clients) >= n,  # type: ignore[misc]
                within=20,
                what="acknowledgements",
            )
            closes = [len(client.closes) for client in clients]
            live = [client.live for client in clients]
            begun = time.monotonic()
            assert await server.stop(within=5) == 0
            assert time.monotonic() - begun < 5
            for client, before, was_live in zip(clients, closes, live, strict=True):
                if was_live:
                    await client.wait(lambda c=client, n=before: len(c.closes) > n, what="a close")  # type: ignore[misc]
                    assert client.closes[before][0] == 1012, client.closes
            await server.start()
        for task in tasks:
            task.cancel()
    for client in clients:
        await client.settled()
        assert not client.rejected
    for n in range(10):
        a, b = clients[2 * n : 2 * n + 2]
        version = a.given + b.given
        await a.at(version)
        await b.at(version)
        # Exactly: everything that was acknowledged is there, and what was not was sent again.
        assert a.state == b.state == {"n": version}
    for client in clients:
        await client.close()


async def test_sigterm_while_the_batch_waits_for_the_database(serve: Serve) -> None:
    """It is written while the server stops, and found by the client that comes back."""
    server = await serve(app=None)
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as client:
        async with write_lock(server):
            await client.change({"op": "inc", "path": "/n", "by": 1})
            await client.echo()
            stopping = asyncio.create_task(server.stop(within=5))
            assert (await client.closed())[0] == 1012
            assert not stopping.done()
        assert await stopping == 0
        await server.start()
        welcome = await client.connect(send=False)
        assert (welcome["version"], welcome["seq"]) == (1, 1)
        assert client.state == {"n": 1}


async def test_sigterm_while_the_database_never_answers(serve: Serve) -> None:
    server = await serve(app=None)
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as client:
        async with write_lock(server):
            await client.change({"op": "inc", "path": "/n", "by": 1})
            await client.echo()
            begun = time.monotonic()
            assert await server.stop(within=5) == 0
            assert time.monotonic() - begun < 5
        assert client.closes[-1][0] == 1012
        await server.start()
        await client.connect()
        await client.settled()
        assert client.state == {"n": 1}
