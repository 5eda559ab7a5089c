"""The server is killed again and again under load: what it acknowledged is there, once, in order.

The seed is in the test's output when it fails; `REATTACH_TEST_SEED` repeats its choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.conftest import Serve, Witnesses
from tests.support.server import ServerProcess
from tests.support.wire_client import Frame, WireClient, all_settled

pytestmark = pytest.mark.faults

KILLS = 20
SESSIONS = 20
IN_FLIGHT = 6


class Worker:
    """One client and its load: it changes the session whenever few of its changes are undecided."""

    def __init__(self, server: ServerProcess, session_id: str, name: str, seed: str) -> None:
        self.client = WireClient(
            server.ws_url,
            session_id,
            name,
            create={"n": 0, "items": [], "refused": 0, "last": {}},
            stay=True,
        )
        self.random = random.Random(seed)
        self.added: dict[int, int] = {}
        """What each of its changes adds to `n`."""
        self.told: dict[int, int] = {}
        """Its acknowledged changes and their versions, noted when the acknowledgement came."""
        self.client.on_frame = self._note

    def _note(self, frame: Frame) -> None:
        if frame["type"] == "state_update" and frame["by"]["client_id"] == self.client.client_id:
            self.told[frame["by"]["seq"]] = frame["version"]

    async def run(self) -> None:
        client = self.client
        while True:
            await client.wait(
                lambda: client.live and len(client.outbox) < IN_FLIGHT,
                within=60,
                what="a line and few undecided changes",
            )
            number, by = client.given + 1, self.random.randint(1, 5)
            ops: list[Frame] = [
                {"op": "inc", "path": "/n", "by": by},
                {
                    "op": "insert",
                    "path": "/items",
                    "value": {"id": f"{client.client_id}.{number}"},
                },
                {"op": "set", "path": f"/last/{client.client_id}", "value": number},
            ]
            if self.random.random() < 0.1:
                ops.append({"op": "set", "path": "/no/such/parent", "value": 1})
                by = 0
            self.added[number] = by
            await client.change(*ops)
            await asyncio.sleep(self.random.uniform(0, 0.04))


@pytest.mark.timeout(180)
async def test_twenty_kills_under_the_load_of_forty_clients(
    serve: Serve, witnesses: Witnesses
) -> None:
    seed = os.environ.get("REATTACH_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
    witnesses.append(("seed", lambda: f"REATTACH_TEST_SEED={seed}"))
    chance = random.Random(seed)
    server = await serve(app=None)
    workers = [
        Worker(server, f"s{n}", f"s{n}-{name}", f"{seed} {n} {name}")
        for n in range(SESSIONS)
        for name in "ab"
    ]
    clients = [worker.client for worker in workers]
    async with asyncio.TaskGroup() as group:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        load = [group.create_task(worker.run()) for worker in workers]
        for kill in range(KILLS):
            if kill % 4 == 3:
                # In its first moments, or before it listens.
                await asyncio.sleep(chance.uniform(0, 0.8))
            else:
                acknowledged = sum(len(worker.told) for worker in workers)
                target = acknowledged + chance.randint(1, 150)
                await wait_for_acknowledgements(workers, target)
                await asyncio.sleep(chance.uniform(0, 0.02))
            await server.kill()
            await server.start(ready=False)
        await server.ready()
        for task in load:
            task.cancel()
    await all_settled(clients, within=30)
    for client in clients:
        await client.close()

    told = sum(len(worker.told) for worker in workers)
    assert told > KILLS * SESSIONS, "there was hardly any load"
    assert sum(len(client.closes) for client in clients) >= KILLS * SESSIONS / 2
    for number in range(SESSIONS):
        await check(server, [one for one in workers if one.client.session_id == f"s{number}"])


async def wait_for_acknowledgements(workers: list[Worker], target: int) -> None:
    async with asyncio.timeout(20):
        while sum(len(worker.told) for worker in workers) < target:
            for worker in workers:
                if worker.client.lie is not None:
                    raise worker.client.lie
            await asyncio.sleep(0.002)


async def check(server: ServerProcess, workers: list[Worker]) -> None:
    session_id = workers[0].client.session_id
    log = committed(server, session_id)
    assert [version for version, _, _ in log] == list(range(1, len(log) + 1))
    decided = {(name, seq): version for version, name, seq in log}
    assert len(decided) == len(log), "a change was committed twice"
    for worker in workers:
        client = worker.client
        for seq, version in worker.told.items():
            assert decided.get((client.client_id, seq)) == version, "acknowledged, and missing"
        refused = {seq for seq, by in worker.added.items() if by == 0}
        assert set(client.rejected) == refused
        assert {seq for name, seq in decided if name == client.client_id} == (
            set(worker.added) - refused
        )
    async with WireClient(server.ws_url, session_id, f"{session_id}-reader") as reader:
        state: dict[str, Any] = reader.state
        assert state["n"] == sum(sum(worker.added.values()) for worker in workers)
        items = [item["id"] for item in state["items"]]
        assert len(items) == len(set(items))
        # The log's order: each client's own inserts stand in the order of their numbers.
        assert items == [f"{name}.{seq}" for _, name, seq in log]
        for worker in workers:
            client = worker.client
            last = max(seq for seq, by in worker.added.items() if by)
            assert state["last"][client.client_id] == last
            if client.version == reader.version:
                assert client.state == state


def committed(server: ServerProcess, session_id: str) -> list[tuple[int, str, int]]:
    with closing(sqlite3.connect(f"file:{server.database}?mode=ro", uri=True)) as db:
        return db.execute(
            "SELECT version, client_id, seq FROM commits WHERE session_id = ? ORDER BY version",
            (session_id,),
        ).fetchall()
