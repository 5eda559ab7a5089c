"""The server is killed again and again under load: what it acknowledged is there, once, in order.

The seed is in the test's output when it fails; `REATTACH_TEST_SEED` repeats its choices.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from tests.conftest import Serve, Witnesses
from tests.support.database import behind
from tests.support.load import Worker, acknowledged, check
from tests.support.server import ServerProcess
from tests.support.wire_client import all_settled

pytestmark = pytest.mark.faults

KILLS = 20
SESSIONS = 20


@pytest.mark.timeout(180)
async def test_twenty_kills_under_the_load_of_forty_clients(
    serve: Serve, witnesses: Witnesses
) -> None:
    seed = os.environ.get("REATTACH_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
    witnesses.append(("seed", lambda: f"REATTACH_TEST_SEED={seed}"))
    chance = random.Random(seed)
    server = await serve(app=None)
    workers = [
        Worker(server.ws_url, f"s{n}", f"s{n}-{name}", f"{seed} {n} {name}")
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
                told = sum(len(worker.told) for worker in workers)
                target = told + chance.randint(1, 150)
                await acknowledged(workers, target)
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
        mine = [one for one in workers if one.client.session_id == f"s{number}"]
        await check(server.ws_url, mine, committed(server, f"s{number}"))


def committed(server: ServerProcess, session_id: str) -> list[tuple[int, str, int]]:
    rows = behind(server).rows(
        "SELECT version, client_id, seq FROM commits WHERE session_id = ? ORDER BY version",
        session_id,
    )
    return [(version, client_id, seq) for version, client_id, seq in rows]
