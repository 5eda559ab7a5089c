"""A client that moves to a node which has not heard yet of what another one decided."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from reattach.bus.local import LocalBus
from reattach.store.memory import MemoryStore
from tests.bus.nodes import node_on
from tests.runtime.rig import USER, LineClient, Node, Work
from tests.support.waiting import until
from tests.support.wire_client import Frame

INC: Frame = {"op": "inc", "path": "/n", "by": 1}
WRONG: Frame = {"op": "set", "path": "/no/such/parent", "value": 1}


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[Node, Node]]:
    """Two that hear nothing of each other but from the database, once a second."""
    store = MemoryStore()
    await store.open()
    async with AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(node_on(store, LocalBus())) for _ in "ab"]
        yield here, there


async def settled(client: LineClient) -> None:
    await until(lambda: not client.outbox or client.lie is not None, within=10, what="decisions")
    assert client.lie is None


class Late:
    """A change that reaches the first node on the client's old line, when the second one reads."""

    def __init__(self, node: Node, client: LineClient, change: Frame) -> None:
        self.node, self.connection = node, client.connection
        self.session_id, self.change = client.session_id, change
        self.client_id = client.client_id

    async def __call__(self, work: Work) -> Any:
        async def identify(_: str | None) -> Any:
            return USER

        assert self.connection is not None
        data = json.dumps(self.change).encode()
        self.node.registry.connections.feed(self.connection, self.session_id, identify, data)
        store, seq = self.node.store.inner, self.change["seq"]

        async def decided() -> bool:
            return await store.decision(self.session_id, self.client_id, seq) is not None

        await until(decided, within=10, what="the late change to be decided")
        return await work()


@pytest.mark.parametrize("op", [INC, WRONG], ids=["committed", "refused"])
async def test_what_another_node_decides_while_a_client_moves_is_told_whole(
    nodes: tuple[Node, Node], op: Frame
) -> None:
    here, there = nodes
    client = await here.client(state={"n": 0})
    client.change(INC)
    await settled(client)
    other = await there.client(client_id="other")  # the second node has the session open
    number = client.put(op)
    there.store.next("clients", Late(here, client, client.outbox[number]))
    await client.move(there)
    await settled(client)
    assert (number in client.rejected) == (op is WRONG)
    client.change(INC)
    await settled(client)
    await until(lambda: other.version == client.version, within=10, what="one version")
    assert client.state == other.state == {"n": 2 if op is WRONG else 3}


async def test_a_client_that_is_ahead_of_a_node_begins_no_epoch_and_sends_nobody_away(
    nodes: tuple[Node, Node],
) -> None:
    here, there = nodes
    client = await here.client(state={"n": 0})
    other = await there.client(client_id="other")
    epoch = other.epoch
    client.change(INC)
    await settled(client)
    await client.move(there)
    assert client.epoch == epoch
    client.change(INC)
    await settled(client)
    assert other.closes == []
    await until(lambda: other.state == {"n": 2}, within=10, what="both changes")


@pytest.mark.parametrize("stranger", [False, True], ids=["known", "not known"])
async def test_what_another_node_decides_after_it_was_read_sends_its_client_back_once(
    stranger: bool,
) -> None:
    # What was refused of it is not known here: to be welcomed would be to lose the refusal. Nor may
    # the welcome hold commits of a client of which the node had not known (seed 254854208 of the
    # soak): what it does next says that it knows all decisions before them.
    store, bus = MemoryStore(), LocalBus()
    await store.open()
    async with node_on(store, bus) as here, node_on(store, bus) as there:
        client = await (here if stranger else there).client(state={"n": 0})
        if stranger:
            await there.client(client_id="other")  # so that the second node has the session open
        else:
            await client.move(here)
        client.change(INC)
        await settled(client)
        refused, committed = client.put(WRONG), client.put(INC)
        late = [Late(here, client, client.outbox[one]) for one in (refused, committed)]

        async def too_early(work: Work) -> Any:
            read = await work()
            for one in late:
                await one(work)
            room = there.host().room
            await until(lambda: room.session.version == 2, within=10, what="the bus's word")
            return read

        there.store.next("clients", too_early)
        await client.move(there)
        await until(lambda: bool(client.closes), within=10, what="its line to end")
        assert client.closes == [
            (1012, "another node decided changes of yours meanwhile: come back")
        ]
        await client.connect()
        await settled(client)
        assert set(client.rejected) == {refused}
        assert client.state == {"n": 2}
