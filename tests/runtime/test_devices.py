"""Devices over two nodes on one database: what people make of them holds on each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from reattach.bus.local import LocalBus
from reattach.runtime import devices
from reattach.runtime.access import User
from reattach.store.memory import MemoryStore
from tests.runtime.rig import LineClient, Node, Work, inc, running, settle


async def nothing(_: Work) -> None:
    """The store stays open: the other node has it, too."""


@pytest.fixture(params=["bus", "no bus"])
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Node, Node]]:
    store, bus = MemoryStore(), LocalBus() if request.param == "bus" else None
    async with running(store, bus=bus) as first, running(store, bus=bus) as second:
        first.registry.nodes.name, second.registry.nodes.name = "first", "second"
        second.store.next("close", nothing)
        yield first, second


async def later(nodes: tuple[Node, Node], ms: int) -> None:
    for _ in range(ms // 250):
        for node in nodes:
            await node.clock.pass_(250, step=250)


def named(client: LineClient, device_id: str) -> str | None:
    """What a device is called, as a client was last told."""
    told = [*client.welcomes[-1:], *client.of_type("devices")][-1]
    names: dict[str, str | None] = {one["id"]: one["name"] for one in told["devices"]}
    return names[device_id]


async def test_a_device_is_revoked_on_every_node_within_a_second(
    nodes: tuple[Node, Node],
) -> None:
    # Rule D4
    first, second = nodes
    stays = await first.client(state={"n": 0})
    goes = await second.client(client_id="far")
    await devices.revoke(first.registry, "s", "device-of-far", by="ann")
    await later(nodes, 1_000)
    assert goes.closes == [(4403, goes.closes[0][1])]
    again = await second.client(client_id="other", device_id="device-of-far")
    assert [code for code, _ in again.closes] == [4403]
    stays.change(inc())
    await later(nodes, 1_000)
    assert not stays.closes
    assert (await first.durable())[0] == 1


async def test_what_a_revoked_device_had_in_line_is_refused(nodes: tuple[Node, Node]) -> None:
    # Rule D4
    first, second = nodes
    await first.client(state={"n": 0})
    goes = await second.client(client_id="far")
    await devices.revoke(first.registry, "s", "device-of-far", by="ann")
    # It has not heard of it, and finds its batch stale.
    goes.change(inc())
    await settle()
    await later(nodes, 1_000)
    assert [code for code, _ in goes.closes] == [4403]
    assert (await first.durable())[0] == 0
    refused = await first.store.inner.refusals("s", "far", 0)
    assert [one.seq for one in refused] == [1], "its client keeps it"
    assert b'"forbidden"' in refused[0].body


async def test_what_another_node_writes_of_a_device_leaves_what_people_made_of_it(
    nodes: tuple[Node, Node],
) -> None:
    # Rules D2, D3, D4
    first, second = nodes
    one = await first.client(state={})
    far = await second.client(client_id="far")
    await devices.change(
        first.registry, "s", "device-of-far", by="ann", given_name="Fon", is_primary=True
    )
    far.leave()  # which is written, by a node that has not heard of it
    await settle()
    await later(nodes, 2_000)
    found = {device.device_id: device for device in await first.store.inner.devices("s")}
    assert found["device-of-far"].given_name == "Fon"
    assert [name for name, device in found.items() if device.is_primary] == ["device-of-far"]
    assert named(one, "device-of-far") == "Fon"


async def test_two_first_devices_at_once_are_one_primary(nodes: tuple[Node, Node]) -> None:
    # Rule D3
    first, second = nodes
    await first.registry.create(User("u"), session_id="s", state={})
    one = LineClient(first, "s", "a")
    other = LineClient(second, "s", "b")
    one.begin()
    other.begin()
    await settle()
    await later(nodes, 2_000)
    for node in nodes:
        (await node.registry.open("s")).check()
    await settle()
    shown = [
        [device.is_primary for device in node.host().room.devices.everyone()] for node in nodes
    ]
    assert [sum(all_) for all_ in shown] == [1, 1]
