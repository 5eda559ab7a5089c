"""A server node: the production registry, committer and hosts, on a clock and a bus of its own.

It is killed as a process is: all its tasks at once. What it had asked the database for may still
happen, and nobody hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from random import Random

from reattach.bus.base import Counts, Listener, Message, Missed, Note, Watched
from reattach.core.limits import Limits
from reattach.runtime.registry import Registry
from reattach.schema import ModelSchema
from reattach.testing.simulator.database import Database, Handle
from reattach.testing.simulator.document import Paper
from reattach.testing.simulator.loop import Owner

__all__ = ["BadBus", "Node", "NodeClock"]

STORE_TIMEOUT_MS = 2_000


class NodeClock:
    """A node's time: the loop's, wrong by some offset that may jump."""

    def __init__(self, name: str, epoch_ms: int) -> None:
        """``epoch_ms`` is what a right clock shows when the loop starts."""
        self.offset = 0
        self.latest = 0
        """The latest time that it has shown."""
        self._name = name
        self._epoch_ms = epoch_ms
        self._loop = asyncio.get_running_loop()
        self._ids = 0

    def now(self) -> int:
        """Return the time, ms since 1970."""
        now = self._epoch_ms + self.monotonic() + self.offset
        self.latest = max(self.latest, now)
        return now

    def monotonic(self) -> int:
        """Return milliseconds that only grow."""
        return int(self._loop.time() * 1000)

    async def sleep(self, ms: int) -> None:
        """Wait."""
        await asyncio.sleep(ms / 1000)

    def new_id(self) -> str:
        """Return an id that no other is."""
        self._ids += 1
        return f"{self._name}-{self._ids}"


class BadBus:
    """A bus between nodes that loses, delays, repeats and reorders as it is told."""

    def __init__(self, chance: Random) -> None:
        """Begin as a good one."""
        self.lose = self.delay = self.repeat = 0.0
        """How likely each is. What is delayed is overtaken by what comes later."""
        self.met: dict[str, int] = {}
        self._chance = chance
        self._listeners: dict[str, Listener] = {}

    def heal(self) -> None:
        """Be a good one again."""
        self.lose = self.delay = self.repeat = 0.0

    def add(self, name: str, listener: Listener) -> None:
        """Take the listener of a node."""
        self._listeners[name] = listener

    def drop(self, name: str) -> None:
        """Forget the listener of a node that died."""
        self._listeners.pop(name, None)

    def carry(self, sender: str, note: Note) -> None:
        """Bring a note to every other node, or not."""
        loop = asyncio.get_running_loop()
        for name, listener in self._listeners.items():
            if name == sender:
                continue
            if self._chance.random() < self.lose:
                self._meet("note dropped")
                continue
            copies = 1
            if self._chance.random() < self.repeat:
                self._meet("note repeated")
                copies = 3
            for _ in range(copies):
                after = self._chance.uniform(0.0005, 0.003)
                if self._chance.random() < self.delay:
                    self._meet("note delayed")
                    after = self._chance.uniform(0.01, 2.0)
                loop.call_later(after, self._deliver, name, listener, note)

    def _meet(self, fault: str) -> None:
        self.met[fault] = self.met.get(fault, 0) + 1

    def _deliver(self, name: str, listener: Listener, note: Note) -> None:
        if self._listeners.get(name) is listener:
            listener(note)


class _NodeBus:
    """One node's end of the bus. It carries commits alone: whether they come is what is played."""

    live = True

    def __init__(self, node: Node, bus: BadBus) -> None:
        self.counts = Counts()
        self._node = node
        self._bus = bus

    async def open(self, identity: str) -> None:
        """The world has it."""

    async def close(self) -> None:
        """The world keeps it."""

    def publish(self, message: Message) -> None:
        if isinstance(message, Note) and message.commits:
            self._bus.carry(self._node.name, message)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        context, loop = self._node.context, asyncio.get_running_loop()

        def hear(message: Message | Missed | Watched) -> None:
            loop.call_soon(listener, message, context=context)

        name = self._node.name
        self._bus.add(name, hear)
        return lambda: self._bus.drop(name)

    def watch(self, session_id: str) -> None:
        """Everything is heard anyway."""

    def unwatch(self, session_id: str) -> None:
        """Everything is heard anyway."""


class Node:
    """One node, from one of its starts to its death."""

    def __init__(self, name: str, database: Database, bus: BadBus, clock: NodeClock) -> None:
        """Start it."""
        self.name = name
        self.owner = Owner()
        self.context = copy_context()
        self.context.run(self.owner.enter)
        self.handle = Handle(database)
        self._bus = bus
        self.registry: Registry = self.context.run(
            lambda: Registry(
                self.handle,
                Limits(max_change_operations=8, saved_state_floor_bytes=4_096),
                clock,
                store_timeout_ms=STORE_TIMEOUT_MS,
                idle_session_ms=20_000,
                bus=_NodeBus(self, bus),
                schemas=[ModelSchema(Paper)],
            )
        )
        self.context.run(self._begin)

    def _begin(self) -> None:
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        while True:
            try:
                await self.registry.start()
            except Exception:  # noqa: BLE001 - whatever supervises it starts it again
                await asyncio.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """End it at once."""
        self.handle.dead = True
        self._bus.drop(self.name)
        self.owner.kill()
