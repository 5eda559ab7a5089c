"""What the database will not have: one poisoned change in a batch fails alone."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import Serve
from tests.faults.test_durable_first import write_lock
from tests.support.database import behind
from tests.support.wire_client import Frame, WireClient, all_settled

pytestmark = pytest.mark.faults


def inc() -> Frame:
    return {"op": "inc", "path": "/n", "by": 1}


def poison() -> Frame:
    return {"op": "set", "path": "/poison", "value": "poisoned"}


async def test_one_poisoned_change_fails_alone(serve: Serve) -> None:
    # Rule L6
    server = await serve(app=None)
    clients = [
        WireClient(server.ws_url, f"s{session}", f"s{session}-{name}", create={"n": 0})
        for session in range(4)
        for name in "ab"
    ]
    for client in clients:
        await client.connect()
    behind(server).trap("commits", "body", "poisoned")
    victim = clients[0]
    async with write_lock(server):
        # The first change's transaction waits for the lock: the others gather to one batch.
        await clients[-1].change(inc())
        await clients[-1].echo()
        for client in clients:
            await client.change(inc())
            if client is victim:
                await client.change(inc(), poison())
            await client.change(inc())
            await client.echo()
    await all_settled(clients)
    assert list(victim.rejected) == [2]
    assert victim.rejected[2]["code"] == "store_refused"
    for client in clients:
        assert client is victim or not client.rejected
        assert len(client.welcomes) == 1
        assert not client.closes
    for first, second in zip(clients[::2], clients[1::2], strict=True):
        version = 5 if second is clients[-1] else 4
        await first.at(version)
        await second.at(version)
        assert first.state == second.state == {"n": version}

    # The refusal is as durable as a commit is.
    await server.restart()
    victim.outbox, victim.rejected = {}, {}
    welcome = await victim.connect(seq=1, epoch=None, version=None)
    assert [(one["seq"], one["code"]) for one in welcome["rejected"]] == [(2, "store_refused")]
    assert welcome["seq"] == 3
    await victim.change(inc())
    await victim.settled()
    assert victim.state == {"n": 5}
    for client in clients:
        await client.close()


async def test_many_poisoned_changes_among_sound_ones(serve: Serve) -> None:
    server = await serve(app=None)
    async with (
        WireClient(server.ws_url, "s", "a", create={"n": 0}) as a,
        WireClient(server.ws_url, "s", "b") as b,
    ):
        behind(server).trap("commits", "body", "poisoned")
        for number in range(20):
            for client in (a, b):
                await client.change(inc(), *([poison()] if number % 3 == 0 else []))
        await asyncio.gather(a.settled(), b.settled())
        poisoned = [number + 1 for number in range(20) if number % 3 == 0]
        assert list(a.rejected) == list(b.rejected) == poisoned
        assert {one["code"] for one in a.rejected.values()} == {"store_refused"}
        await a.at(26)
        await b.at(26)
        assert a.state == b.state == {"n": 26}


async def test_a_database_that_refuses_its_bookkeeping_still_takes_changes(serve: Serve) -> None:
    """Devices and activity are not worth a change: the server gives them up and goes on."""
    server = await serve(app=None)
    async with (
        WireClient(server.ws_url, "s", "a", create={"n": 0}) as a,
        WireClient(server.ws_url, "t", "b", create={"n": 0}) as b,
    ):
        await a.change(inc())
        await a.settled()
        for table in ("session_activity_log", "session_devices", "clients"):
            behind(server).trap(table, "session_id", "s")
        twin = WireClient(server.ws_url, "s", "c")
        await twin.connect()
        await b.change(inc())
        await b.settled()
        # It has given up what it wanted to write, instead of trying for ever.
        before = server.log.stat().st_size
        await asyncio.gather(*(one.echo() for one in (a, b, twin) for _ in range(20)))
        assert server.log.stat().st_size - before < 4_000
        await a.change(inc())
        await a.settled()
        assert not a.rejected
        assert not a.closes
        assert a.state == {"n": 2}
        await twin.close()
