"""Everything fails in turn under load, once, or for as long as it is let (`make soak`).

`REATTACH_SOAK_SECONDS` says how long; `REATTACH_TEST_SEED` repeats the choices of a run.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.conftest import Witnesses
from tests.support.load import Worker, check
from tests.support.server import ServerProcess
from tests.support.stack import Stack
from tests.support.wire_client import WireClient, all_settled

pytestmark = pytest.mark.faults

SECONDS = int(os.environ.get("REATTACH_SOAK_SECONDS", "60"))
SHARED, OWN = 45, 5
"""Sessions whose clients move between the nodes, and sessions of the first node alone."""
CLIENTS = 4
"""For each session."""
STOPPED = 10.0
"""Seconds that a part stands still."""
PAUSE = 2.0
PING = 4.0

Fault = Callable[[], Awaitable[None]]


@pytest.mark.timeout(SECONDS + 180)
async def test_nothing_is_lost_while_everything_fails_in_turn(
    tmp_path: Path, witnesses: Witnesses
) -> None:
    seed = os.environ.get("REATTACH_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
    witnesses.append(("seed", lambda: f"REATTACH_TEST_SEED={seed}"))
    chance = random.Random(seed)
    async with Stack(tmp_path, app=None, chance=chance) as stack:
        witnesses.append(("logs", stack.logs))
        first = stack.nodes[0]
        workers = [
            Worker(
                stack.anywhere if n < SHARED else first.ws_url,
                f"s{n}",
                f"s{n}-{name}",
                f"{seed} {n} {name}",
                pause=PAUSE,
                ping=PING,
            )
            for n in range(SHARED + OWN)
            for name in range(CLIENTS)
        ]
        clients = [worker.client for worker in workers]
        quiet: list[tuple[float, float]] = []
        """When the second node stood still, and the first had all that it needs."""
        memory: list[int] = []
        async with asyncio.TaskGroup() as group:
            await asyncio.gather(*(client.__aenter__() for client in clients))
            load = [group.create_task(worker.run()) for worker in workers]
            end = time.monotonic() + SECONDS
            for fault in itertools.cycle(faults(stack, quiet)):
                await everybody_goes_on(workers)
                memory.append(sum(resident(node) for node in stack.nodes))
                if time.monotonic() >= end and len(memory) > len(faults(stack, quiet)):
                    break
                await fault()
            for task in load:
                task.cancel()
        await all_settled(clients, within=30)
        told = sum(len(worker.told) for worker in workers)
        assert told > SECONDS * len(workers) / 4, "there was hardly any load"

        for n in range(SHARED + OWN):
            mine = [one for one in workers if one.client.session_id == f"s{n}"]
            log = await stack.committed(f"s{n}")
            await check(stack.nodes[n % 2].ws_url, mine, log)
            await agree([one.client for one in mine], len(log))
        for client in clients:
            await client.close()
        for begun, ended in quiet:
            held_up = [
                seconds
                for worker in workers[SHARED * CLIENTS :]
                for made, seconds in worker.waited
                if begun <= made <= ended
            ]
            assert held_up, "nobody wrote on the first node while the second stood still"
            assert max(held_up) < 2, "a node that stands still held up what it does not share"
        witnesses.append(("memory", lambda: str(memory)))
        assert memory[-1] < memory[0] * 1.5 + 32 * 2**20, "memory is not level"


def faults(stack: Stack, quiet: list[tuple[float, float]]) -> list[Fault]:
    """One after the other, each part dies and stands still."""
    postgres, valkey = stack.postgres, stack.valkey
    first, second = stack.nodes

    async def kill_the_first_node() -> None:
        await first.kill()
        await first.start()

    async def stop_the_second_node() -> None:
        begun = time.monotonic()
        await stands_still(
            partial(second.signal, signal.SIGSTOP), partial(second.signal, signal.SIGCONT)
        )
        # What is under way at the end may have waited for something else.
        quiet.append((begun, time.monotonic() - 2))

    async def restart_the_second_node() -> None:
        await second.stop()
        await second.start()

    async def kill_valkey() -> None:
        await valkey.kill()
        await asyncio.sleep(2)
        await valkey.start()

    async def stop_valkey() -> None:
        await stands_still(valkey.stop, valkey.go_on)

    async def kill_postgres() -> None:
        await postgres.kill()
        await asyncio.sleep(2)
        await postgres.start()

    async def stop_postgres() -> None:
        await stands_still(
            partial(postgres.signal, signal.SIGSTOP), partial(postgres.signal, signal.SIGCONT)
        )

    return [
        kill_the_first_node,
        stop_the_second_node,
        kill_valkey,
        kill_postgres,
        restart_the_second_node,
        stop_valkey,
        stop_postgres,
    ]


async def stands_still(stop: Callable[[], None], go_on: Callable[[], None]) -> None:
    stop()
    try:
        await asyncio.sleep(STOPPED)
    finally:
        go_on()


async def everybody_goes_on(workers: list[Worker]) -> None:
    """Waits until each client was acknowledged something that it made from now on."""
    begun = time.monotonic()
    for worker in workers:
        await worker.client.wait(
            lambda one=worker: any(made > begun for made, _ in reversed(one.waited)),  # type: ignore[misc]
            within=30,
            what="an acknowledgement after the fault",
        )


async def agree(clients: list[WireClient], version: int) -> None:
    for client in clients:
        await client.at(version)
    assert all(client.state == clients[0].state for client in clients)


def resident(node: ServerProcess) -> int:
    """Bytes of memory that a node takes."""
    return int(psutil.Process(node.pid).memory_info().rss)
