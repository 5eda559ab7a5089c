"""A simulated device: one client's core with its disk, its clock and its user.

It carries out what the core wants, as the real shells do: connections, timers, transactions on the
disk that take a moment. It can be killed at any moment and started again from its disk, as that is
or as it once was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from random import Random
from typing import Any, Protocol

import msgspec

from reattach.testing.simulator.network import Link
from reattach.testing.simulator.peers import Effects, Peer

__all__ = ["Device", "Surroundings"]


class Surroundings(Protocol):
    """What a device needs of the world."""

    def dial(self, device: Device) -> Link | None:
        """Connect to some node; None where that is refused."""

    def history(self, device: Device, client_id: str, first: int) -> None:
        """Ask for a client's commits; ``history`` is fed when they are there."""

    def stepped(self, device: Device, effects: Effects) -> None:
        """The core has taken a step; look at it before anybody else does."""


class Device:
    """One device. ``now`` is its clock."""

    def __init__(
        self,
        name: str,
        peer: Peer,
        world: Surroundings,
        chance: Random,
        now: Callable[[], int],
    ) -> None:
        """Make one that does not run yet."""
        self.name = name
        self.peer = peer
        self.now = now
        self.offset = 0
        """By how much its clock is wrong, ms."""
        self.link: Link | None = None
        self.links: list[Link] = []
        """Its connections that somebody may still think to stand."""
        self.running = False
        self.kept: set[str] = set()
        """The changes that it was told to be on its disk, and that are not decided."""
        self.jumped: set[str] = set()
        """What was pending when it was last welcomed with a state in place of the commits."""
        self.decided: dict[str, str | None] = {}
        """The changes that it was told to be decided, with the code of a refusal."""
        self.disk_faults = 0
        """How many of its next transactions fail."""
        self.went_back = False
        """Whether its disk was once put back to an older copy."""
        self.disk_failed = False
        """Whether a transaction on its disk ever failed."""
        self.has_copy = False
        self.looked_at_until = 0.0
        """Until then (s), its user changes nothing."""
        self.life = 0
        """+1 with each start and end."""
        self._world = world
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._home = copy_context()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._storing = False
        self._again = False

    # Power

    def start(self) -> None:
        """Start the core from the disk."""
        self.running = True
        self.life += 1
        self._storing = self._again = False
        self._run(self.peer.boot(self.clock()))

    def kill(self) -> None:
        """End it at once; what it had begun to write may be on the disk, or not."""
        self.running = False
        self.life += 1
        if self._storing and self._chance.random() < 0.5:
            self.peer.commit()
        self._storing = self._again = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        link, self.link = self.link, None
        if link is not None and not link.device_gone:
            link.device_gone = True
            # Its machine may live on and say so, or not.
            if self._chance.random() < 0.5:
                link.hang_up()
            else:
                link.cut(None, self._chance.choice([None, 3.0, 9.0]))

    def save(self) -> None:
        """Copy the disk."""
        self.peer.save("copy")
        self.has_copy = True

    def put_back(self) -> None:
        """Have the disk as it was when it was copied; only while it does not run."""
        self.peer.put_back("copy")
        self.went_back = True
        self.has_copy = False
        # What the older disk does not know of is lost with the newer one.
        self.kept.clear()

    def clock(self) -> int:
        """Return its time, ms since 1970."""
        return self.now() + self.offset

    # Its user

    def change(self, ops: Sequence[Mapping[str, Any]], ref: str, at: int | None = None) -> None:
        """Make a change; ``at`` is a lie about when. Raises `Refused`."""
        self._run(self.peer.change(ops, ref, self.clock() if at is None else at))

    def feed(self, given: Mapping[str, Any]) -> None:
        """Give the core an input."""
        if self.running:
            self._run(self.peer.step(given, self.clock()))

    # Its connection

    def opened(self, link: Link) -> None:
        """The connection stands."""
        if link is self.link:
            self.feed({"type": "opened"})

    def received(self, link: Link, frame: bytes) -> None:
        """A frame came."""
        if link is self.link:
            self.feed({"type": "frame", "frame": msgspec.json.decode(frame)})

    def ended(self, link: Link, code: int, reason: str) -> None:
        """The connection is gone."""
        if link is self.link:
            self.link = None
            self.feed({"type": "closed", "code": code, "reason": reason})

    # What the core wants

    def _run(self, effects: Effects) -> None:
        self._world.stepped(self, effects)
        for effect in effects:
            kind = effect["type"]
            if kind == "send":
                if self.link is not None:
                    self.link.push(msgspec.json.encode(effect["frame"]))
            elif kind == "timer":
                self._set_timer(effect["name"], effect["ms"])
            elif kind == "store":
                self._store()
            elif kind == "connect":
                self._connect()
            elif kind == "disconnect":
                link, self.link = self.link, None
                if link is not None:
                    link.hang_up()
            elif kind == "history":
                self._world.history(self, effect["clientId"], effect["from"])

    def _connect(self) -> None:
        old, self.link = self.link, self._world.dial(self)
        self.feed({"type": "dialing"})
        if old is not None:
            old.hang_up()
        if self.link is None:
            self._soon(self._chance.uniform(0.001, 0.05), self._not_connected)
        else:
            self.links = [link for link in self.links if not link.over]
            self.links.append(self.link)

    def _not_connected(self) -> None:
        if self.link is None:
            self.feed({"type": "closed", "code": 1006, "reason": "not connected"})

    def _set_timer(self, name: str, ms: float | None) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        if ms is not None:
            self._timers[name] = self._soon(ms / 1000, self._timer, name)

    def _timer(self, name: str) -> None:
        self._timers.pop(name, None)
        self.feed({"type": "timer", "name": name})

    def _store(self) -> None:
        if self._storing:
            self._again = True
            return
        self._storing = True
        self._soon(self._chance.uniform(0.0, 0.001), self._begin)

    def _begin(self) -> None:
        self.peer.take(self.clock())
        self._soon(self._chance.uniform(0.0005, 0.01), self._end)

    def _end(self) -> None:
        failed = self.disk_faults > 0
        if failed:
            self.disk_faults -= 1
            self.disk_failed = True
        else:
            self.peer.commit()
        self._storing, again, self._again = False, self._again, False
        if failed:
            self.feed({"type": "store_failed", "message": "the disk is full"})
        else:
            self.feed({"type": "stored"})
        if again:
            self._store()

    def _soon(self, delay: float, act: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        life = self.life

        def run() -> None:
            if life == self.life:
                act(*args)

        return self._loop.call_later(delay, run, context=self._home)
