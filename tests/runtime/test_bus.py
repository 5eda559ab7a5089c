"""Two nodes on one database tell each other what became durable, and need not be believed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from reattach.bus.base import Message, Missed, Note, Watched
from reattach.bus.local import LocalBus
from reattach.core.connection import Phase
from reattach.store.base import Append, Expected, SessionRecord
from reattach.store.memory import MemoryStore
from tests.runtime.rig import (
    USER,
    BareLine,
    LineClient,
    Node,
    Work,
    down,
    inc,
    put,
    running,
    settle,
)


class HandBus(LocalBus):
    """Delivers what `hold` does not keep back."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Note] | None = None
        self.last: list[Note] = []

    def publish(self, message: Message) -> None:
        if not isinstance(message, Note) or not message.commits:
            super().publish(message)
            return
        self.last.append(message)
        if self.held is None:
            super().publish(message)
        else:
            self.held.append(message)


async def nothing(_: Work) -> None:
    """The store stays open: the other node has it, too."""


@pytest.fixture
def bus() -> HandBus:
    return HandBus()


@pytest.fixture
async def nodes(bus: HandBus) -> AsyncIterator[tuple[Node, Node]]:
    store = MemoryStore()
    async with running(store, bus=bus) as first, running(store, bus=bus) as second:
        second.store.next("close", nothing)
        yield first, second


def at(node: Node) -> int:
    return node.host().room.session.version


async def test_what_is_durable_on_one_node_comes_to_the_other(nodes: tuple[Node, Node]) -> None:
    """DESIGN "Redis is speed": nobody reads the database for it."""
    first, second = nodes
    one = await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    second.store.calls.clear()
    one.change(inc())
    one.change(inc())
    await settle()
    assert other.state == {"n": 2}
    assert not {"log", "since"} & set(second.store.calls)
    other.change(inc(5))
    await settle()
    assert one.state == other.state == {"n": 7}


async def test_notes_that_come_twice_late_or_in_another_order(
    nodes: tuple[Node, Node], bus: HandBus
) -> None:
    first, second = nodes
    one = await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    bus.held = []
    for _ in range(4):
        one.change(inc())
        await settle()
    notes, bus.held = bus.held, None
    assert len(notes) == 4
    assert other.state == {"n": 0}
    for note in (notes[1], notes[0], notes[1], notes[3], notes[2], notes[3], notes[0]):
        bus.publish(note)
        await settle()
    assert other.state == {"n": 4}
    assert at(second) == 4


async def test_a_lost_note_is_made_up_for_within_a_second(
    nodes: tuple[Node, Node], bus: HandBus
) -> None:
    """DESIGN: no lost last message leaves a quiet session stale."""
    first, second = nodes
    one = await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    bus.held = []
    one.change(inc())
    await settle()
    assert other.state == {"n": 0}
    second.store.next("versions", down())
    await second.clock.pass_(1_000, step=250)
    assert other.state == {"n": 0}
    await second.clock.pass_(1_000, step=250)
    assert other.state == {"n": 1}


async def test_a_note_that_comes_while_something_is_being_written(
    nodes: tuple[Node, Node], bus: HandBus
) -> None:
    first, second = nodes
    one = await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    bus.held = []
    one.change(inc())
    await settle()
    # Decided on what stood before: the database says so, and it is decided again.
    other.change(inc(10))
    bus.publish(bus.held.pop())
    second.host().hear(bus.last[-1])
    await settle()
    bus.held = None
    one.change(inc(100))
    await settle()
    assert one.state == other.state == {"n": 111}


async def test_numbers_that_were_decided_elsewhere_are_known(nodes: tuple[Node, Node]) -> None:
    """X1: a client that moved goes on with its next number."""
    first, second = nodes
    one = await first.client(state={"n": 0})
    moved = await second.client(client_id="m")
    # What it left behind on the other node is decided there, after it came here.
    ghost = await first.client(client_id="m")
    number = moved.put(inc())
    ghost.given, ghost.outbox = number, dict(moved.outbox)
    ghost.feed(moved.outbox[number])
    await settle()
    assert not moved.outbox
    ghost.leave()
    moved.change(inc(2))
    await settle()
    assert not moved.of_type("error")
    assert one.state == {"n": 3}


async def test_another_epoch_begun_elsewhere_sends_everybody_away(
    nodes: tuple[Node, Node],
) -> None:
    """E3."""
    _, second = nodes
    other = await second.client(client_id="d", state={"n": 0})
    store = second.store.inner
    row = await store.session("s")
    assert isinstance(row, SessionRecord)
    expected = Expected(version=row.version, epoch=row.epoch, access_version=row.access_version)
    fresh = msgspec.structs.replace(row, epoch="another")
    await store.append([Append(session_id="s", expected=expected, session=fresh)])
    await second.clock.pass_(1_000, step=250)
    assert [code for code, _ in other.closes] == [1012]


async def test_a_session_that_ended_elsewhere_is_closed(nodes: tuple[Node, Node]) -> None:
    """O8."""
    first, second = nodes
    one = await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    one.change({"op": "end"})
    await settle()
    assert [code for code, _ in other.closes] == [4410]
    assert second.host().room.ended


async def test_a_node_that_stopped_hears_nothing(bus: HandBus) -> None:
    async with running(bus=bus) as node:
        await node.client(state={"n": 0})
    heard: list[Message | Missed | Watched] = []
    stop: Callable[[], None] = bus.subscribe(heard.append)
    bus.publish(bus_note())
    await settle()
    assert len(heard) == 1
    stop()
    bus.publish(bus_note())
    await settle()
    assert len(heard) == 1


def bus_note() -> Note:
    row = SessionRecord(
        session_id="s",
        user_id="u",
        epoch="e",
        epoch_version=0,
        version=0,
        created_at=0,
        last_activity=0,
    )
    return Note(session=row, commits=[])


@pytest.mark.parametrize("seen", [0, 1])
async def test_a_reader_who_saw_more_on_another_node_is_not_set_back(
    nodes: tuple[Node, Node], bus: HandBus, seen: int
) -> None:
    # Rule T12: exactly the commits after its version, wherever it comes to
    first, second = nodes
    writer = await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    bus.held = []
    writer.change(inc())
    await settle()
    assert (writer.version, other.version) == (1, 0)
    # With 0 the log has more than this node has heard of, with 1 the reader has.
    reader = LineClient(second, "s", "")
    reader.line = BareLine(reader)
    connection = second.registry.connections.connect(reader.line)
    connection.phase = Phase.JOINING
    await second.registry.connections.observe(
        connection, "s", USER, epoch=writer.epoch, version=seen, backlog=10**6
    )
    reader._greeted, reader.epoch, reader.version = True, writer.epoch, seen
    reader.state = {"n": seen}
    bus.held = None
    writer.change(inc())
    await settle()
    assert [frame["type"] for frame in reader.frames] == ["state_update"] * (2 - seen)
    assert reader.state == {"n": 2}
    assert reader.lie is None


async def test_who_is_connected_when_another_node_erases_is_told_so(
    nodes: tuple[Node, Node],
) -> None:
    # Rule T20: it was erased, and there is nothing to come back to
    first, second = nodes
    await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    await first.registry.erase("s")
    await second.clock.pass_(1_000)
    assert [code for code, _ in other.closes] == [4410]


async def test_presence_of_the_same_version_is_no_reason_to_read(
    nodes: tuple[Node, Node],
) -> None:
    """Who comes and goes is no commit: the comparison finds nothing."""
    first, second = nodes
    await first.client(state={"n": 0})
    other = await second.client(client_id="d")
    other.change(put("/n", 3))
    await settle()
    second.store.calls.clear()
    await second.clock.pass_(3_000, step=250)
    assert second.store.calls.count("versions") == 3
    assert "since" not in second.store.calls
