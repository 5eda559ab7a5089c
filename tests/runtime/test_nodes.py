"""Who is where, over two nodes on one database and a bus: presence, devices, fencing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from reattach.bus.base import Beat, Message, Note, Roster, Whisper
from reattach.bus.local import LocalBus
from reattach.core.limits import Limits
from reattach.store.base import SessionRecord
from reattach.store.memory import MemoryStore
from tests.runtime.rig import USER, LineClient, Node, Work, inc, running, settle


class LossyBus(LocalBus):
    """Loses what `lost` says."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: tuple[type, ...] = ()
        self.said: list[Message] = []

    def publish(self, message: Message) -> None:
        self.said.append(message)
        if not isinstance(message, self.lost):
            super().publish(message)


async def nothing(_: Work) -> None:
    """The store stays open: the other node has it, too."""


@pytest.fixture
def bus() -> LossyBus:
    return LossyBus()


@pytest.fixture
async def nodes(bus: LossyBus) -> AsyncIterator[tuple[Node, Node]]:
    store = MemoryStore()
    async with running(store, bus=bus) as first, running(store, bus=bus) as second:
        # Ids of one process are random; those of hand clocks are not.
        first.registry.nodes.name, second.registry.nodes.name = "first", "second"
        second.store.next("close", nothing)
        yield first, second


async def later(nodes: tuple[Node, Node], ms: int) -> None:
    """Time passes on both nodes."""
    for _ in range(ms // 250):
        for node in nodes:
            await node.clock.pass_(250, step=250)


def online(client: LineClient) -> dict[str, bool]:
    """The devices, as a client was last told them."""
    told: list[dict[str, Any]] = client.welcomes[-1]["devices"]
    for frame in client.of_type("devices"):
        told = frame["devices"]
    return {device["id"]: device["online"] for device in told}


async def row(node: Node) -> SessionRecord:
    found = await node.store.inner.session("s")
    assert isinstance(found, SessionRecord)
    return found


async def test_presence_reaches_clients_of_other_nodes(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    one = await first.client(state={})
    near = await first.client(client_id="near")
    far = await second.client(client_id="far")
    one.feed({"type": "presence", "data": {"at": "/n"}})
    await settle()
    expected = [{"type": "presence", "device_id": "device-of-c", "data": {"at": "/n"}}]
    assert near.of_type("presence") == expected
    assert far.of_type("presence") == expected
    assert one.of_type("presence") == []


async def test_presence_by_http_does_not_come_back_to_its_client(nodes: tuple[Node, Node]) -> None:
    """Rule T41: the request may come to another node than the line."""
    first, second = nodes
    one = await first.client(state={})
    near = await first.client(client_id="near")
    far = await second.client(client_id="far")
    second.host().room.present(USER.id, "c", "device-of-c", 7, second.clock.now())
    second.host().flush()
    await settle()
    assert [frame["data"] for frame in near.of_type("presence")] == [7]
    assert [frame["data"] for frame in far.of_type("presence")] == [7]
    assert one.of_type("presence") == []


async def test_devices_of_all_nodes_are_online(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    one = await first.client(state={})
    far = await second.client(client_id="far")
    assert online(far) == {"device-of-c": True, "device-of-far": True}
    await later(nodes, 1_500)
    assert online(one) == {"device-of-c": True, "device-of-far": True}
    far.leave()
    await settle()
    await later(nodes, 1_500)
    assert online(one) == {"device-of-c": True, "device-of-far": False}


async def test_the_session_is_left_when_the_last_of_all_nodes_leaves(
    nodes: tuple[Node, Node],
) -> None:
    """H2: `disconnected_at` when it was the last."""
    first, second = nodes
    one = await first.client(state={})
    far = await second.client(client_id="far")
    one.leave()
    await settle()
    assert (await row(first)).disconnected_at is None
    await later(nodes, 500)
    far.leave()
    await settle()
    left = (await row(first)).disconnected_at
    assert left == second.clock.now()
    await later(nodes, 500)
    # The other node knows that everybody was gone.
    await one.connect()
    assert (await row(first)).reconnected_at == first.clock.now()
    assert (await row(first)).disconnected_at == left


async def test_a_newer_connection_on_another_node_fences_the_older_one(
    nodes: tuple[Node, Node],
) -> None:
    """F2: at once, by the bus."""
    first, second = nodes
    watcher = await first.client(client_id="watcher", state={"n": 0})
    older = await first.client()
    newer = await second.client()
    assert [code for code, _ in older.closes] == [4409]
    assert newer.closes == []
    # However late it closes, it cannot mark the newer one offline.
    older.leave()
    await later(nodes, 1_500)
    assert online(watcher) == {"device-of-watcher": True, "device-of-c": True}
    assert (await row(first)).disconnected_at is None
    # And back again.
    again = await first.client()
    assert [code for code, _ in newer.closes] == [4409]
    assert again.closes == []


async def test_the_newer_one_stands_although_the_clocks_of_nodes_differ(
    nodes: tuple[Node, Node],
) -> None:
    first, second = nodes
    await first.clock.pass_(60_000, step=1_000)
    older = await first.client(state={})
    newer = await second.client()
    assert [code for code, _ in older.closes] == [4409]
    assert newer.closes == []


async def test_an_old_list_that_comes_late_fences_nobody(
    nodes: tuple[Node, Node], bus: LossyBus
) -> None:
    first, second = nodes
    older = await first.client(state={})
    gone = await first.client(client_id="gone")
    late = [said for said in bus.said if isinstance(said, Roster) and said.seats][-1]
    assert len(late.seats) == 2
    older.leave()
    gone.leave()
    await settle()
    newer = await second.client()
    for _ in range(2):
        bus.publish(late)
        await settle()
    assert newer.closes == []
    await later(nodes, 1_500)
    assert online(newer) == {"device-of-c": True, "device-of-gone": False}


async def test_lists_of_a_session_that_was_forgotten_and_opened_again_are_newer(
    nodes: tuple[Node, Node],
) -> None:
    first, second = nodes
    far = await second.client(client_id="far", state={})
    for _ in range(5):
        one = await first.client()
        one.leave()
        await settle()
    await later(nodes, 90_000)
    assert "s" not in first.registry.hosts
    await first.client()
    await later(nodes, 1_500)
    assert online(far) == {"device-of-c": True, "device-of-far": True}


async def test_that_somebody_left_is_told_again(nodes: tuple[Node, Node], bus: LossyBus) -> None:
    first, second = nodes
    one = await first.client(state={})
    far = await second.client(client_id="far")
    await later(nodes, 2_500)
    bus.lost = (Roster, Note)
    far.leave()
    await settle()
    bus.lost = ()
    assert online(one)["device-of-far"] is True
    await later(nodes, 12_000)
    assert online(one)["device-of-far"] is False


async def test_lists_that_were_lost_are_told_again(nodes: tuple[Node, Node], bus: LossyBus) -> None:
    first, second = nodes
    watcher = await first.client(client_id="watcher", state={})
    older = await first.client()
    await later(nodes, 2_500)  # the nodes know of each other
    bus.lost = (Roster, Note)
    newer = await second.client()
    await second.client(client_id="far")
    bus.lost = ()
    await later(nodes, 1_500)
    assert online(watcher) == {"device-of-watcher": True, "device-of-c": True}
    assert older.closes == newer.closes == []
    await later(nodes, 62_000)
    everybody = {"device-of-watcher": True, "device-of-c": True, "device-of-far": True}
    assert online(watcher) == everybody
    assert [code for code, _ in older.closes] == [4409]
    assert newer.closes == []


async def test_a_node_that_dies_takes_its_connections_along(nodes: tuple[Node, Node]) -> None:
    """DESIGN: online means connected to a node whose lease is fresh."""
    first, second = nodes
    one = await first.client(state={})
    far = await second.client(client_id="far")
    await later(nodes, 2_500)
    await first.clock.pass_(5_000, step=250)  # the other stands still
    assert online(one)["device-of-far"] is True
    await first.clock.pass_(5_000, step=250)
    assert online(one) == {"device-of-c": True, "device-of-far": False}
    one.leave()
    await settle()
    assert (await row(first)).disconnected_at == first.clock.now()
    # It was only slow, and comes back.
    again = await first.client(client_id="again")
    await later(nodes, 12_000)
    assert online(again)["device-of-far"] is True
    assert far.closes == []


async def test_a_session_whose_last_connections_died_with_their_node_is_left(
    nodes: tuple[Node, Node],
) -> None:
    first, second = nodes
    one = await first.client(state={})
    await second.client(client_id="far")
    await later(nodes, 2_500)
    one.leave()
    await settle()
    assert (await row(first)).disconnected_at is None
    await first.clock.pass_(8_000, step=250)
    assert (await row(first)).disconnected_at is not None


async def test_a_node_that_stops_says_so(bus: LossyBus) -> None:
    store = MemoryStore()
    async with running(store, bus=bus) as first:
        first.registry.nodes.name = "first"
        one = await first.client(state={})
        async with running(store, bus=bus) as second:
            second.store.next("close", nothing)
            second.registry.nodes.name = "second"
            await second.client(client_id="far")
            await first.clock.pass_(1_500, step=250)
            assert online(one)["device-of-far"] is True
        await settle()
        assert Beat(node="second", leaves=True) in bus.said
        await first.clock.pass_(1_500, step=250)
        assert online(one)["device-of-far"] is False


async def test_while_the_bus_is_down_nobody_counts_as_gone(
    nodes: tuple[Node, Node], bus: LossyBus
) -> None:
    first, second = nodes
    one = await first.client(state={"n": 0})
    far = await second.client(client_id="far")
    await later(nodes, 2_500)
    bus.live, bus.lost = False, (Beat, Roster, Note, Whisper)
    await later(nodes, 20_000)
    assert online(one)["device-of-far"] is True
    # Commits come from the database, twice a second.
    for n in range(1, 6):
        far.change(inc())
        await settle()
        await later(nodes, 500)
        assert one.state == {"n": n}
        await later(nodes, 250)
    bus.live, bus.lost = True, ()
    told = len(one.of_type("devices"))
    await later(nodes, 20_000)
    assert online(one)["device-of-far"] is True
    assert len(one.of_type("devices")) == told, "not even for a moment"


async def test_a_list_tells_of_a_version_whose_note_was_lost(
    nodes: tuple[Node, Node], bus: LossyBus
) -> None:
    first, second = nodes
    one = await first.client(state={"n": 0})
    far = await second.client(client_id="far")
    bus.lost = (Note,)
    far.change(inc())
    await settle()
    assert one.state == {"n": 0}
    await second.client(client_id="other")
    assert one.state == {"n": 1}


async def test_a_node_alone_says_nothing_again_and_again(bus: LossyBus) -> None:
    async with running(bus=bus) as node:
        await node.client(state={})
        await node.clock.pass_(1_000, step=250)
        bus.said.clear()
        await node.clock.pass_(60_000, step=250)
        assert {type(said) for said in bus.said} == {Beat}


async def test_who_is_told_to_come_back_spreads_with_the_number_of_connections() -> None:
    """`reconnect_jitter_ms` grows with them."""
    async with running() as node:
        first = await node.client(state={})
        assert first.welcomes[-1]["reconnect_jitter_ms"] == 1_000
        for n in range(700):
            node.registry.connections.connect(first.line)
            del n
        last = await node.client(client_id="last")
        assert last.welcomes[-1]["reconnect_jitter_ms"] >= 1_400


async def test_connections_of_a_user_are_counted_over_all_nodes(bus: LossyBus) -> None:
    """Regression: each node let in as many. Who moves is not in their own way."""
    # Rule A5
    store, limits = MemoryStore(), Limits(heartbeat_timeout_ms=10**12, max_user_connections=3)
    async with (
        running(store, bus=bus, limits=limits) as first,
        running(store, bus=bus, limits=limits) as second,
    ):
        first.registry.nodes.name, second.registry.nodes.name = "first", "second"
        second.store.next("close", nothing)
        one = await first.client(state={})
        await first.client(client_id="two")
        await second.client(client_id="three")
        four = LineClient(second, "s", "four")
        await four.connect()
        assert four.closes[0][0] == 4429
        await one.move(second)
        assert one.greeted
