"""Everything at once, from a seed: lost batches and reads, dropped lines, restarts, neighbours.

A seed that fails is printed with the test's name; it is repeated by running that parameter alone.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from reattach.errors import ReattachError, StoreRefused
from reattach.wire import StateUpdate
from tests.runtime.rig import (
    Fault,
    LineClient,
    Node,
    answer_lost,
    done_in_silence,
    down,
    inc,
    put,
    running,
    settle,
    silent,
)

SESSIONS = ("s", "t", "u")
TIMEOUT_MS = 50
"""Of real time, in which a read has to be possible where the machine does other things, too."""


def some_fault(chance: random.Random) -> Fault:
    if chance.random() < 0.1:
        return chance.choice([silent, done_in_silence])()
    return chance.choice([down(), answer_lost(), answer_lost(), down(OSError("disk"))])


class Story:
    def __init__(self, node: Node, seed: int) -> None:
        self.node = node
        self.chance = random.Random(seed)
        self.added: dict[tuple[str, str, int], int] = {}
        self.updates: list[tuple[str, int, asyncio.Task[StateUpdate]]] = []

    async def step(self, clients: list[LineClient]) -> None:
        chance, node = self.chance, self.node
        client = chance.choice(clients)
        match chance.randrange(12):
            case 0:
                node.store.next(
                    "append", *(some_fault(chance) for _ in range(chance.randint(1, 3)))
                )
            case 1:
                node.store.next(chance.choice(["since", "log", "load_many"]), some_fault(chance))
                node.store.next(chance.choice(["clients", "decision"]), down())
            case 2:
                client.leave()
            case 3:
                client.leave()
                await client.connect(**self.hello())
            case 4:
                await node.clock.pass_(chance.randint(1, 300), step=50)
            case 5:
                name = chance.choice(SESSIONS)
                by = chance.randint(1, 9)
                task = asyncio.create_task(node.sessions.update(name, [inc(by)]))
                self.updates.append((name, by, task))  # type: ignore[arg-type]
            case 6:
                await settle(chance.randint(1, 40))
            case 7 if chance.random() < 0.2:
                node.store.next("append", down(StoreRefused("of some trigger")))
            case _:
                self.change(client)

    def hello(self) -> dict[str, object]:
        return {"epoch": None, "version": None} if self.chance.random() < 0.3 else {}

    def change(self, client: LineClient) -> None:
        by = self.chance.randint(1, 9)
        ops = [inc(by), put(f"/last-{client.client_id}", client.given + 1)]
        if self.chance.random() < 0.15:
            ops.append(put("/no/such/parent", 1))
        number = client.change(*ops)
        self.added[client.session_id, client.client_id, number] = by

    async def end(self, clients: list[LineClient]) -> None:
        for faults in self.node.store._faults.values():
            faults.clear()
        async with asyncio.timeout(30):
            while any(one.outbox for one in clients) or not all(t.done() for *_, t in self.updates):
                await asyncio.sleep(0.002)
                await self.node.clock.pass_(200, step=100)
                for client in clients:
                    gone = client.connection not in self.node.registry.connections
                    if gone or client.closes:
                        await client.connect()
                    if client.lie is not None:
                        raise client.lie


@pytest.mark.parametrize("seed", range(30))
async def test_any_story_ends_well(seed: int) -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        clients = [
            await node.client(name, f"{name}{n}", state={"n": 0})
            for name in SESSIONS
            for n in range(2)
        ]
        for client in clients:
            # Loading may take longer than the database has here, as where garbage is collected; and
            # what is put before the first welcome is of no epoch.
            while not client.greeted:
                await client.connect()
        story = Story(node, seed)
        for _ in range(120):
            await story.step(clients)
        await story.end(clients)
        node.honest()
        for name in SESSIONS:
            await check(node, story, name, [one for one in clients if one.session_id == name])


async def check(node: Node, story: Story, name: str, clients: list[LineClient]) -> None:
    for client in clients:
        if client.closes or client.connection not in node.registry.connections:
            await client.connect()
    await settle()
    version, log = await node.durable(name)
    assert len(set(log)) == len(log), "a change was committed twice"
    total = 0
    for client in clients:
        refused = set(client.rejected)
        mine = {seq for who, seq in log if who == client.client_id}
        assert mine | refused == set(range(1, client.given + 1))
        assert not mine & refused
        total += sum(story.added[name, client.client_id, seq] for seq in mine)
        assert client.version == version
    server = [seq for who, seq in log if who == node.registry.server_client]
    assert server == sorted(server)
    # What was answered took effect; what was not answered did so at most once.
    done = [(by, task) for where, by, task in story.updates if where == name]
    certain = sum(by for by, task in done if task.exception() is None)
    doubtful = [by for by, task in done if isinstance(task.exception(), ReattachError)]
    answered = len(done) - len(doubtful)
    assert answered <= len(server) <= len(done)
    state = await node.fresh(name)
    assert certain <= state["n"] - total <= certain + sum(doubtful)
    for client in clients:
        assert client.state == state
