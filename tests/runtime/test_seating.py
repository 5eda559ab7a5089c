"""Who is where, over two nodes that hear no bus, or one that fails: the database tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from structlog.testing import capture_logs

from reattach.bus.base import Message
from reattach.bus.local import LocalBus
from reattach.core.limits import Limits
from reattach.store.base import SessionRecord
from reattach.store.memory import MemoryStore
from tests.runtime.rig import HandClock, LineClient, Node, Work, down, running, settle

Nodes = tuple[Node, Node]

EVERYTHING = ("renew", "seat", "look", "leave", "sweep", "append", "check", "versions")


class FailingBus(LocalBus):
    """Loses everything while it is not live."""

    def fail(self) -> None:
        self.live = False

    def come_back(self) -> None:
        self.live = True

    def publish(self, message: Message) -> None:
        if self.live:
            super().publish(message)


async def nothing(_: Work) -> None:
    """The store stays open: the other node has it, too."""


@asynccontextmanager
async def two(
    bus: FailingBus | None = None, other_bus: FailingBus | None = None, **o: Any
) -> AsyncIterator[Nodes]:
    """Two nodes on one database, whose clock is the first one's."""
    clock, other_clock = HandClock("first"), HandClock("second")
    store = MemoryStore(now=clock.now)
    async with (
        running(store, bus=bus, shared=True, clock=clock, **o) as first,
        running(store, bus=other_bus or bus, shared=True, clock=other_clock, **o) as second,
    ):
        await settle()
        second.store.next("close", nothing)
        yield first, second


async def later(nodes: Nodes, ms: int) -> None:
    """Time passes on both nodes."""
    for _ in range(ms // 250):
        for node in nodes:
            await node.clock.pass_(250, step=250)


def online(client: LineClient) -> set[str]:
    """Whose device is online, as a client was last told."""
    told: list[dict[str, Any]] = client.welcomes[-1]["devices"]
    for frame in client.of_type("devices"):
        told = frame["devices"]
    return {device["id"].removeprefix("device-of-") for device in told if device["online"]}


def was_offline(client: LineClient, name: str, *, since: int = 0) -> bool:
    """Whether a client was ever told, after so many frames, that a device is not online."""
    return any(
        device["id"] == f"device-of-{name}" and not device["online"]
        for frame in client.of_type("devices")[since:]
        for device in frame["devices"]
    )


async def row(node: Node) -> SessionRecord:
    found = await node.store.inner.session("s")
    assert isinstance(found, SessionRecord)
    return found


async def test_devices_are_online_on_all_nodes() -> None:
    async with two() as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        far = await second.client(client_id="far")
        await later(nodes, 2_000)
        assert online(one) == online(far) == {"one", "far"}
        far.leave()
        await settle()
        await later(nodes, 2_000)
        assert online(one) == {"one"}


async def test_a_newer_connection_on_another_node_fences_the_older_one() -> None:
    """F2, within two seconds."""
    async with two() as nodes:
        first, _ = nodes
        watcher = await first.client(client_id="watcher", state={"n": 0})
        older = await first.client(client_id="moves")
        for node, other in (nodes[::-1], nodes, nodes[::-1]):
            newer = await node.client(client_id="moves")
            assert other is not node
            await later(nodes, 1_500)
            assert [code for code, _ in older.closes] == [4409]
            assert newer.closes == []
            older.leave()
            older = newer
        await later(nodes, 2_000)
        assert online(watcher) == {"watcher", "moves"}
        assert not was_offline(watcher, "moves")
        assert (await row(first)).disconnected_at is None


async def test_a_node_that_dies_takes_its_connections_along() -> None:
    """DESIGN: online means connected to a node whose lease is fresh."""
    async with two() as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        far = await second.client(client_id="far")
        await later(nodes, 4_000)
        await first.clock.pass_(4_500, step=250)  # the other stands still
        assert online(one) == {"one", "far"}
        await first.clock.pass_(4_000, step=250)
        assert online(one) == {"one"}
        one.leave()
        await settle()
        assert (await row(first)).disconnected_at == first.clock.now()
        # It was only slow, and comes back.
        again = await first.client(client_id="again")
        await later(nodes, 4_000)
        assert online(again) == {"again", "far"}
        assert far.closes == []


async def test_a_node_that_stops_says_so() -> None:
    clock = HandClock("first")
    store = MemoryStore(now=clock.now)
    async with running(store, shared=True, clock=clock) as first:
        one = await first.client(client_id="one", state={})
        async with running(store, shared=True, clock=HandClock("second")) as second:
            second.store.next("close", nothing)
            await second.client(client_id="far")
            await later((first, second), 2_000)
            assert online(one) == {"one", "far"}
        with capture_logs() as logs:
            await first.clock.pass_(1_500, step=250)
            assert online(one) == {"one"}
            await first.clock.pass_(10_000, step=250)
        assert logs == []


async def test_the_session_is_left_when_the_last_of_all_nodes_leaves() -> None:
    """H2: `disconnected_at` when it was the last."""
    async with two() as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        far = await second.client(client_id="far")
        await later(nodes, 1_500)
        one.leave()
        await later(nodes, 1_500)
        assert (await row(first)).disconnected_at is None
        far.leave()
        await settle()
        assert (await row(first)).disconnected_at == second.clock.now()


async def test_while_the_bus_is_there_nothing_is_read() -> None:
    """And a heartbeat, or time, writes nothing."""
    async with two(FailingBus()) as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        await second.client(client_id="far")
        await later(nodes, 3_000)
        for node in nodes:
            node.store.calls.clear()
        one.feed({"type": "heartbeat", "t": 1})
        await later(nodes, 30_000)
        for node in nodes:
            assert not {"look", "seat"} & set(node.store.calls)
            assert node.store.calls.count("renew") == 15


async def test_who_comes_is_gathered() -> None:
    """Of two hundred who come at once a few statements are made."""
    async with two() as nodes:
        first, other = nodes
        crowd = [await first.client(f"s{n}", f"c{n}", state={}) for n in range(200)]
        await later(nodes, 1_000)
        assert first.store.calls.count("seat") <= 3
        far = await other.client("s7", "far")
        await later(nodes, 1_750)
        assert online(far) == online(crowd[7]) == {"c7", "far"}


async def test_devices_are_right_when_the_bus_goes_and_when_it_comes_back() -> None:
    bus = FailingBus()
    async with two(bus) as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={"n": 0})
        far = await second.client(client_id="far")
        gone = await second.client(client_id="gone")
        await later(nodes, 3_000)
        bus.fail()
        gone.leave()
        older = await first.client(client_id="moves")
        await later(nodes, 2_000)
        assert online(one) == online(far) == {"one", "far", "moves"}
        newer = await second.client(client_id="moves")
        await later(nodes, 2_000)
        assert [code for code, _ in older.closes] == [4409]
        assert newer.closes == []
        assert not was_offline(one, "far")
        bus.come_back()
        await later(nodes, 4_000)
        for node in nodes:
            node.store.calls.clear()
        await later(nodes, 4_000)
        assert "look" not in first.store.calls + second.store.calls
        far.leave()
        await settle()
        await later(nodes, 1_000)
        assert online(one) == {"one", "moves"}
        assert not was_offline(one, "moves")


async def test_a_row_that_is_not_written_yet_is_no_sign_of_absence() -> None:
    """The bus told of somebody, and is gone before the database has heard of them."""
    bus = FailingBus()
    async with two(bus) as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        await later(nodes, 3_000)
        mend = second.store.spoil("seat", with_=down())
        await second.client(client_id="far")
        await later(nodes, 1_000)
        assert online(one) == {"one", "far"}
        bus.fail()
        await later(nodes, 3_000)
        mend()
        await later(nodes, 2_000)
        assert online(one) == {"one", "far"}
        assert not was_offline(one, "far")


async def test_a_node_on_another_bus_is_heard_by_the_database() -> None:
    """Its link to Redis is broken, or it was given another one."""
    async with two(FailingBus(), FailingBus()) as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        far = await second.client(client_id="far")
        await later(nodes, 20_000)
        assert online(one) == online(far) == {"one", "far"}
        assert not was_offline(one, "far")
        newer = await second.client(client_id="one")
        await later(nodes, 2_000)
        assert [code for code, _ in one.closes] == [4409]
        assert newer.closes == []


async def test_what_a_crash_of_the_database_took_is_written_again() -> None:
    """Its tables are unlogged. Nobody is taken for gone meanwhile."""
    async with two() as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        far = await second.client(client_id="far")
        quiet = await second.client("quiet", "far", state={})
        await later(nodes, 3_000)
        seating = first.store.inner.seating
        assert seating is not None
        told = [len(client.of_type("devices")) for client in (one, far)]
        await seating.sweep(-(10**9))  # everything
        await later(nodes, 12_000)
        assert online(one) == online(far) == {"one", "far"}
        assert not was_offline(one, "far", since=told[0])
        assert not was_offline(far, "one", since=told[1])
        late = await first.client("quiet", "late")
        await later(nodes, 1_750)
        assert online(late) == online(quiet) == {"late", "far"}


async def test_while_the_database_is_away_nobody_counts_as_gone() -> None:
    async with two() as nodes:
        first, second = nodes
        one = await first.client(client_id="one", state={})
        far = await second.client(client_id="far")
        await later(nodes, 3_000)
        mends = [node.store.spoil(*EVERYTHING, with_=down()) for node in nodes]
        gone = second.clients[-1]
        gone.leave()
        await later(nodes, 20_000)
        assert online(one) == {"one", "far"}
        for mend in mends:
            mend()
        await later(nodes, 3_000)
        assert online(one) == {"one"}
        await far.connect()
        await later(nodes, 2_000)
        assert online(one) == {"one", "far"}


async def test_connections_of_a_user_are_counted_over_all_nodes() -> None:
    """Rule A5."""
    limits = Limits(heartbeat_timeout_ms=10**12, max_user_connections=3)
    async with two(limits=limits) as nodes:
        first, second = nodes
        await first.client(client_id="one", state={})
        await first.client(client_id="two")
        await second.client(client_id="three")
        await later(nodes, 1_500)
        four = LineClient(second, "s", "four")
        await four.connect()
        assert four.closes[0][0] == 4429


async def test_what_dead_nodes_left_is_swept_away() -> None:
    async with two() as nodes:
        first, second = nodes
        await first.client(client_id="one", state={})
        await second.client(client_id="far")
        await later(nodes, 1_000)
        seating = first.store.inner.seating
        assert seating is not None
        assert len((await seating.look("", ["s"]))[1]) == 2
        await first.clock.pass_(130_000, step=500)  # the other is dead
        assert [one.node for one in (await seating.look("", ["s"]))[1]] == [
            first.registry.nodes.name
        ]
        assert (await seating.renew(second.registry.nodes.name, 1_000))[0] == 0
