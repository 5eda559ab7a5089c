"""The law of `reattach.bus.base`, as tests that any bus must pass.

A bus joins with one fixture, which makes ends of it, one for each node::

    class TestMyBus(BusSuite):
        @pytest.fixture
        def make_bus(self, server: MyServer) -> MakeBus:
            return lambda: MyBus(server.url)

The tests are coroutines, run by pytest-asyncio. They are of a bus that is well: what one does that
is not, its own tests have to show.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from reattach.bus.base import Beat, Bus, Message, Missed, Note, Roster, Watched, Whisper
from reattach.core.elsewhere import Seat
from reattach.store.base import CommitRecord, DeviceRecord, SessionRecord

__all__ = ["BusSuite", "Ear", "MakeBus", "note"]

MakeBus = Callable[[], Bus]

T0 = 1_764_000_000_000
AWKWARD = (b"", b"\x00\xff\xfe", '{"k":"\u0000\U0001f600"}'.encode(), bytes(range(256)) * 4096)
WITHIN_S = 5.0


def note(session_id: str, version: int = 1, body: bytes = b"{}") -> Note:
    """Make a note of one commit."""
    row = SessionRecord(
        session_id=session_id,
        user_id="ann",
        epoch="e",
        epoch_version=0,
        version=version,
        created_at=T0,
        last_activity=T0,
    )
    commit = CommitRecord(version=version, body=body, writes=b"[]", at=T0, client_id="c", seq=1)
    device = DeviceRecord(device_id="d", user_id="ann", created_at=T0, last_activity=T0)
    return Note(session=row, commits=[commit], devices=[device])


class Ear:
    """One node's end, and what it has heard from others."""

    def __init__(self, bus: Bus) -> None:
        """Listen."""
        self.bus = bus
        self.heard: list[Message] = []
        self.watched: set[str] = set()
        self.missed = 0
        self.stop = bus.subscribe(self._hear)
        self._news = asyncio.Event()

    def _hear(self, message: Message | Missed | Watched) -> None:
        if isinstance(message, Watched):
            self.watched.add(message.session_id)
        elif isinstance(message, Missed):
            self.missed += 1
        else:
            self.heard.append(message)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that was heard makes it so."""
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def hears(self, *messages: Message) -> None:
        """Wait until these were heard, and nothing else but them."""
        await self.until(lambda: len(self.heard) >= len(messages))
        assert self.heard == [*messages]
        self.heard.clear()

    async def watch(self, session_id: str, speaker: Bus) -> None:
        """Hear of a session, and return when what a speaker says of it comes here."""
        self.bus.watch(session_id)
        probe = Whisper(session_id=session_id, node="n", frame=b"probe")
        async with asyncio.timeout(WITHIN_S):
            while probe not in self.heard:
                speaker.publish(probe)
                await asyncio.sleep(0.01)
        # Probes that are still under way come before this.
        speaker.publish(Whisper(session_id=session_id, node="n", frame=b"last"))
        await self.until(
            lambda: Whisper(session_id=session_id, node="n", frame=b"last") in self.heard
        )
        self.heard.clear()


class BusSuite:
    """What every bus must pass."""

    @pytest.fixture
    def make_bus(self) -> MakeBus:
        """Return a function that makes an end of the bus, for a node of its own."""
        raise NotImplementedError("a suite for a bus has to have a fixture make_bus")

    @pytest_asyncio.fixture
    async def ends(self, make_bus: MakeBus) -> AsyncIterator[tuple[Bus, Ear]]:
        """Two nodes: one that says, and one that hears."""
        mouth, other = make_bus(), make_bus()
        await mouth.open("database")
        await other.open("database")
        yield mouth, Ear(other)
        await mouth.close()
        await other.close()

    async def test_what_one_says_the_other_hears_as_it_was(self, ends: tuple[Bus, Ear]) -> None:
        """Bytes come back as they went in, whatever they are."""
        mouth, ear = ends
        await ear.watch("s", mouth)
        messages: list[Message] = [note("s", n, body) for n, body in enumerate(AWKWARD)]
        messages += [Whisper(session_id="s", node="n", frame=body) for body in AWKWARD]
        seats = [Seat("c", "d", T0), Seat("c2", "d", T0 + 1)]
        messages.append(
            Roster(session_id="s", node="n", number=3, epoch="e", version=2, seats=seats, asks=True)
        )
        for message in messages:
            mouth.publish(message)
        await ear.hears(*messages)

    async def test_all_nodes_hear_a_beat(self, ends: tuple[Bus, Ear]) -> None:
        """It is about no session."""
        mouth, ear = ends
        await ear.watch("s", mouth)
        mouth.publish(Beat(node="n"))
        mouth.publish(Beat(node="n", leaves=True))
        await ear.hears(Beat(node="n"), Beat(node="n", leaves=True))

    async def test_a_listener_is_never_called_from_within_publish(
        self, ends: tuple[Bus, Ear]
    ) -> None:
        """Law 3."""
        mouth, ear = ends
        await ear.watch("s", mouth)
        mouth.publish(note("s"))
        assert ear.heard == []
        await ear.hears(note("s"))

    async def test_who_stopped_listening_is_told_nothing(self, ends: tuple[Bus, Ear]) -> None:
        """Nor does it keep others from hearing."""
        mouth, ear = ends
        other = Ear(ear.bus)
        await ear.watch("s", mouth)
        other.heard.clear()
        other.stop()
        mouth.publish(note("s"))
        await ear.hears(note("s"))
        assert other.heard == []

    async def test_several_sessions_are_heard_each(self, ends: tuple[Bus, Ear]) -> None:
        """Also one that is watched again after it was not."""
        mouth, ear = ends
        for name in ("s", "t.u:v~w-1"):
            await ear.watch(name, mouth)
        ear.bus.unwatch("s")
        ear.bus.watch("s")
        await ear.watch("s", mouth)
        mouth.publish(note("t.u:v~w-1"))
        mouth.publish(note("s"))
        await ear.until(lambda: len(ear.heard) == 2)
        assert {heard.session_id for heard in ear.heard if isinstance(heard, Note)} == {
            "s",
            "t.u:v~w-1",
        }

    async def test_many_at_once(self, ends: tuple[Bus, Ear]) -> None:
        """In a bus that is well and has room for them, none is lost, nor out of order."""
        mouth, ear = ends
        await ear.watch("s", mouth)
        notes = [note("s", n) for n in range(3_000)]
        for one in notes:
            mouth.publish(one)
        await ear.hears(*notes)

    async def test_publishing_never_fails(self, make_bus: MakeBus) -> None:
        """Not before the bus is open, nor when it is closed."""
        bus = make_bus()
        bus.publish(note("s"))
        bus.watch("s")
        await bus.open("database")
        bus.publish(note("s"))
        await bus.close()
        bus.publish(note("s"))
        bus.unwatch("s")
