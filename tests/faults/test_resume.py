"""Coming back costs what was missed; the state when that is less; and nothing is missing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Serve
from tests.support.database import behind
from tests.support.server import ServerProcess
from tests.support.wire_client import Frame, WireClient

pytestmark = pytest.mark.faults


def put(key: str, value: Any) -> Frame:
    return {"op": "set", "path": f"/{key}", "value": value}


def rows(server: ServerProcess, sql: str) -> list[Any]:
    return behind(server).rows(sql)


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_missed_comes_in_order_or_else_the_state(
    serve: Serve, *, restarted: bool
) -> None:
    server = await serve(app=None)
    async with (
        WireClient(server.ws_url, "s", "a", create={"large": "x" * 5_000}) as a,
        WireClient(server.ws_url, "s", "b") as b,
        WireClient(server.ws_url, "s", "c") as c,
    ):
        await a.change(put("n", 0))
        await b.at(1)
        await c.at(1)
        await b.disconnect()
        for n in range(1, 8):
            await a.change(put("n", n))
        await a.settled()
        if restarted:
            await a.disconnect()
            await c.disconnect()
            await server.restart()
            await a.connect()
        welcome = await b.connect()
        assert welcome["type"] == "resumed"
        assert [commit["version"] for commit in welcome["commits"]] == list(range(2, 9))
        assert [commit["patch"][0]["value"] for commit in welcome["commits"]] == list(range(1, 8))
        assert b.state == a.state
        # With nothing missed there is nothing to send.
        await b.disconnect()
        welcome = await b.connect()
        assert (welcome["type"], welcome["commits"]) == ("resumed", [])
        # The same on a connection that stays.
        await b.send(type="request_sync", epoch=b.epoch, version=b.version)
        await b.wait(lambda: len(b.welcomes) == 4, what="a sync")
        assert b.welcomes[-1]["type"] == "resumed"
        # Now the commits weigh more than the state.
        await b.disconnect()
        for n in range(40):
            await a.change(put("n", n))
        await a.settled()
        if restarted:
            await a.disconnect()
            await server.restart()
            await a.connect()
        welcome = await b.connect()
        assert welcome["type"] == "initial_state"
        assert b.state == a.state
        # Another epoch, or none: the state.
        await b.disconnect()
        b.version = None
        assert (await b.connect(epoch="other", version=3))["type"] == "initial_state"


async def test_states_are_saved_by_cost_and_loading_gives_the_same(serve: Serve) -> None:
    server = await serve(app=None, environment={"REATTACH_SAVED_STATE_FLOOR_BYTES": "4000"})
    async with (
        WireClient(server.ws_url, "s", "a", create={"items": [], "text": ""}) as a,
        WireClient(server.ws_url, "s", "b") as b,
    ):
        for n in range(120):
            await a.change(
                {"op": "insert", "path": "/items", "value": {"id": f"i{n}", "n": n}},
                put(f"key{n % 7}", "v" * (n % 50)),
            )
            await b.change({"op": "inc", "path": "/n", "by": n})
            if n % 10 == 9:
                await b.change({"op": "unset", "path": f"/items/#i{n - 5}"})
                await b.change({"op": "move", "path": f"/items/#i{n - 3}", "after": None})
            await a.settled()
        await b.settled()
        version = max(a.version or 0, b.version or 0)
        await a.at(version)
        await b.at(version)
        assert a.state == b.state
        saved = [row[0] for row in rows(server, "SELECT version FROM states ORDER BY version")]
        assert saved[0] == 0
        assert 3 <= len(saved) <= version / 5, saved
        log: int = rows(server, "SELECT SUM(LENGTH(body)) FROM commits")[0][0]
        states: int = rows(server, "SELECT SUM(LENGTH(state)) FROM states")[0][0]
        assert states < 2 * log, "saving states costs more than what they save"
        live = dict(a.state)
        await server.kill()
        await server.start()
        welcome = await a.connect()
        assert welcome["version"] == version
        async with WireClient(server.ws_url, "s", "c") as c:
            assert c.welcomes[0]["type"] == "initial_state"
            assert c.state == a.state == live
        # From the newest one only: what is before it is not read to open the session.
        await server.kill()
        below = f"DELETE FROM commits WHERE version <= {saved[-1]}"  # noqa: S608  # a number
        behind(server).execute(below)
        await server.start()
        async with WireClient(server.ws_url, "s", "d") as d:
            assert d.state == live


async def test_refusals_above_what_the_client_knows_come_with_the_welcome(serve: Serve) -> None:
    server = await serve(app=None)
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as a:
        for _ in range(3):
            await a.change({"op": "inc", "path": "/n", "by": 1})
            await a.change(put("no/parent", 1))
        await a.settled()
        for restarted in (False, True):
            await a.disconnect()
            if restarted:
                await server.restart()
            for known in (0, 2, 3, 6):
                a.outbox = {seq: {} for seq in a.rejected if seq > known}
                welcome = await a.connect(seq=known)
                told = [one["seq"] for one in welcome["rejected"]]
                assert told == [seq for seq in (2, 4, 6) if seq > known]
                assert all(one["type"] == "rejected" for one in welcome["rejected"])
                assert all(one["path"] == "/no/parent" for one in welcome["rejected"])
                await a.disconnect()
            await a.connect()


async def test_fencing_over_the_network(serve: Serve) -> None:
    """The older connection is closed with 4409, and the device stays online for the others."""
    server = await serve(app=None)
    async with (
        WireClient(server.ws_url, "s", "a", create={"n": 0}) as a,
        WireClient(server.ws_url, "s", "watcher") as watcher,
    ):
        newer = WireClient(server.ws_url, "s", "a")
        await newer.connect()
        assert (await a.closed())[0] == 4409
        await newer.send(type="presence", data={"here": True})
        await watcher.told(lambda f: f["type"] == "presence", what="presence")
        await newer.change({"op": "inc", "path": "/n", "by": 1})
        await newer.settled()
        for _ in range(2):
            known = len(watcher.of_type("devices"))
            visitor = WireClient(server.ws_url, "s", f"visitor-{known}")
            await visitor.connect()
            await watcher.wait(
                lambda n=known: len(watcher.of_type("devices")) > n,  # type: ignore[misc]
                what="devices",
            )
            await visitor.close()
        for frame in watcher.of_type("devices"):
            assert {"id": a.device_id, "online": True} in [
                {"id": one["id"], "online": one["online"]} for one in frame["devices"]
            ]
        await newer.close()
