"""Nobody hears of a commit before it is durable: another program holds the write lock."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.conftest import Serve
from tests.support.database import behind
from tests.support.server import ServerProcess
from tests.support.waiting import until
from tests.support.wire_client import Frame, WireClient

pytestmark = pytest.mark.faults

HELD = 0.7
"""Seconds that a server which tells too early has to do so."""


@asynccontextmanager
async def write_lock(server: ServerProcess) -> AsyncIterator[None]:
    """Holds the database's write lock, as another program does in a long transaction."""
    with behind(server).write_lock():
        yield


class Events:
    """A reader by Server-Sent Events."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.ids: list[str] = []

    async def follow(self, server: ServerProcess, session_id: str, **headers: str) -> None:
        url = f"{server.url}/api/v0/session/{session_id}/events"
        async with (
            httpx.AsyncClient(timeout=30, trust_env=False) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    self.frames.append(json.loads(line.removeprefix("data:")))
                if line.startswith("id:"):
                    self.ids.append(line.removeprefix("id:").strip())

    def versions(self) -> list[int]:
        return [frame["version"] for frame in self.frames if "version" in frame]


async def test_nothing_of_a_commit_is_shown_before_it_is_durable(serve: Serve) -> None:
    server = await serve(app=None)
    url = f"{server.url}/api/v0/session/s"
    async with (
        WireClient(server.ws_url, "s", "a", create={"n": 0}) as a,
        WireClient(server.ws_url, "s", "b") as b,
        httpx.AsyncClient(timeout=30, trust_env=False) as http,
        asyncio.TaskGroup() as group,
    ):
        await a.change({"op": "inc", "path": "/n", "by": 1})
        await a.settled()
        await b.at(1)
        early, late = Events(), Events()
        reading = [group.create_task(early.follow(server, "s"))]
        await until(lambda: early.versions() == [1], within=10, what="the first event")

        async with write_lock(server):
            await a.change({"op": "inc", "path": "/n", "by": 1})
            await a.change({"op": "set", "path": "/no/such/parent", "value": 1})
            # Frames are taken in order: with the echo the server has the changes, too.
            await a.echo()
            begun = time.monotonic()
            newcomer = WireClient(server.ws_url, "s", "c")
            joining = group.create_task(newcomer.connect())
            getting = [group.create_task(http.get(url)) for _ in range(2)]
            history = group.create_task(http.get(f"{url}/history"))
            reading.append(group.create_task(late.follow(server, "s")))
            while time.monotonic() < begun + HELD:
                await a.echo()
                await b.echo()
                await asyncio.sleep(0.02)
            assert set(a.outbox) == {2, 3}
            assert not a.of_type("rejected", "error")
            assert a.version == b.version == 1
            assert early.versions() == [1]
            # These may wait, or show what was there before.
            assert not newcomer.welcomes or newcomer.version == 1
            assert set(late.versions()) <= {1}
            for one in getting:
                assert not one.done() or one.result().json()["version"] == 1
            if history.done():
                assert [item["version"] for item in history.result().json()["items"]] == [1]

        await a.settled()
        await b.at(2)
        assert list(a.rejected) == [3]
        await joining
        await newcomer.at(2)
        for one in getting:
            assert (await one).status_code == 200
        await until(lambda: early.versions() == [1, 2], within=10, what="the commit by SSE")
        await until(lambda: late.versions()[-1:] == [2], within=10, what="the other's, too")
        assert (await http.get(url)).json()["state"] == a.state == b.state == {"n": 2}
        await newcomer.close()
        for task in reading:
            task.cancel()


async def test_a_lock_that_outlasts_the_servers_patience_loses_nothing(serve: Serve) -> None:
    """The batch times out; its clients are told that it waits, and then that it is saved."""
    server = await serve(app=None, environment={"REATTACH_STORE_TIMEOUT_MS": "300"})
    async with (
        WireClient(server.ws_url, "s", "a", create={"n": 0}) as a,
        WireClient(server.ws_url, "s", "b") as b,
    ):
        async with write_lock(server):
            for _ in range(3):
                await a.change({"op": "inc", "path": "/n", "by": 1})
                await b.change({"op": "inc", "path": "/n", "by": 10})
            await b.change({"op": "set", "path": "/no/such/parent", "value": 1})
            told = await a.told(lambda f: f["type"] == "error", what="that the database is away")
            assert told["code"] == "unavailable"
            assert told["retry_after_ms"] > 0
            assert a.version == b.version == 0
        await a.settled()
        await b.settled()
        await a.at(6)
        assert a.state == b.state == {"n": 33}
        assert list(b.rejected) == [4]
        assert len(a.welcomes) == len(b.welcomes) == 1
