"""The other nodes: their signs of life, what they tell, and what the database has of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import structlog

from reattach.bus.base import Beat, Bus, Message, Missed, Note, Roster, Watched, Whisper
from reattach.core.room import Room
from reattach.errors import StoreError, Unavailable
from reattach.runtime.clock import Clock
from reattach.runtime.host import Host
from reattach.runtime.loader import Loader
from reattach.runtime.seating import BEAT_MS, LEASE_MS, Places
from reattach.runtime.tasks import Tasks
from reattach.store.base import Store
from reattach.store.seating import Neighbour

__all__ = ["Nodes"]

log = structlog.get_logger("reattach.nodes")

_HURRY_MS: Final = 500
"""How often the open sessions are compared with the database while no bus tells of them."""
_ANNOUNCE_MS: Final = 10_000
"""How often it is told again who is connected to a session that other nodes have open, too."""
_ANNOUNCE_ALONE_MS: Final = 60_000
"""How often where none is known to have: most sessions are open on one node."""
_PATIENCE_S: Final = 0.25
"""How long a request may wait to hear from the database what others did."""
_ATTEMPTS: Final = 10
"""How often a session is compared again while others write to it faster than it is read."""


class Nodes:
    """What this node knows of the others, and keeps its open sessions level with them."""

    def __init__(
        self,
        name: str,
        hosts: dict[str, Host],
        store: Store,
        loader: Loader,
        clock: Clock,
        tasks: Tasks,
        bus: Bus | None,
        *,
        timeout_ms: int,
    ) -> None:
        self.name = name
        """What this node is called on the bus."""
        self._hosts = hosts
        self._store = store
        self._loader = loader
        self._clock = clock
        self._tasks = tasks
        self._bus = bus
        self._timeout_ms = timeout_ms
        self._unsubscribe: Callable[[], None] | None = None
        self._comparing = False
        self._lives_until: dict[str, int] = {}
        """The other nodes, and how long they count as living by their last sign of life."""
        self._beats: dict[str, int] = {}
        """When those that are heard on the bus, since it is there, last gave one on it."""
        self._beat_at = 0
        self._number = 0
        self._places: Places | None = None
        if store.seating is not None:
            self._places = Places(
                name,
                hosts,
                store.seating,
                clock,
                timeout_ms=timeout_ms,
                number=self._next_number,
                meet=self._meet,
                apart=self._is_apart,
                deaf=self._is_deaf,
            )

    async def start(self, identity: str) -> None:
        """Begin to hear of what others do with the database that has this identity."""
        if self._bus is not None:
            self._unsubscribe = self._bus.subscribe(self._hear)
            await self._bus.open(identity)
        self._tasks.spawn(self._hurry())
        if self._places is not None:
            self._tasks.spawn(self._places.run())

    def hear_no_more(self) -> None:
        """Let what others do be theirs: this node is about to stop."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def stop(self) -> None:
        """Say goodbye."""
        if self._places is not None:
            await self._places.stop()
        if self._bus is not None:
            self._bus.publish(Beat(node=self.name, leaves=True))
            await self._bus.close()

    def tell(self, message: Message) -> None:
        """Tell the others something, where there is a bus."""
        if self._bus is not None:
            self._bus.publish(message)

    def seated(self, host: Host) -> None:
        """Somebody came to a session here, or left: tell the other nodes."""
        if self._places is not None:
            self._places.changed(host.session_id)
        self.announce(host)

    def announce(self, host: Host, *, asks: bool = False) -> None:
        """Tell by the bus who of a session is here; with ``asks`` the others are to tell, too."""
        host.announced = self._next_number()
        host.announced_at = self._clock.monotonic()
        recorded = host.room.recorded
        self.tell(
            Roster(
                session_id=recorded.session_id,
                node=self.name,
                number=host.announced,
                epoch=recorded.epoch,
                version=recorded.version,
                seats=host.room.seats(),
                asks=asks,
            )
        )

    def look_after(self) -> None:
        """Do what is due every second: compare, give signs of life and miss those of others."""
        self._compare_soon()
        self._look_after_nodes()
        if self._beats:
            self._announce_again()

    def _announce_again(self) -> None:
        now = self._clock.monotonic()
        for host in list(self._hosts.values()):
            shared = host.room.elsewhere.shared
            if now - host.announced_at >= (_ANNOUNCE_MS if shared else _ANNOUNCE_ALONE_MS):
                self.announce(host, asks=not shared)

    def _next_number(self) -> int:
        """Return a number greater than all that this node gave to a list before."""
        self._number = max(self._number + 1, self._clock.monotonic())
        return self._number

    async def keep_up(self, host: Host) -> None:
        """Do as `level`, for somebody who sees what is at hand where that takes its time.

        So whoever was answered by another node finds here what they were told there.
        """
        with contextlib.suppress(TimeoutError, StoreError, OSError, Unavailable):
            async with asyncio.timeout(_PATIENCE_S):
                await self.level(host)

    async def level(self, host: Host) -> None:
        """Have a session stand where the database has it, at least as it is now."""
        for _ in range(_ATTEMPTS):
            seen = host.stands
            found = await self._loader.version(host.session_id)
            if found == host.stands:
                return
            await host.at_rest(partial(_compared, host, seen, found))
            stands = await host.at_rest(lambda _: host.stands)
            if found is None or found[0] != stands[0] or found[1] <= stands[1]:
                return

    def _hear(self, message: Message | Missed | Watched) -> None:
        if isinstance(message, Missed):
            # Whatever was said meanwhile: read it, and ask the others who is there.
            self._beats.clear()
            self._compare_soon()
            for host in self._hosts.values():
                self.announce(host, asks=True)
        elif isinstance(message, Beat):
            self._live(message.node, leaves=message.leaves)
        else:
            self._hear_of(message)

    def _hear_of(self, message: Note | Whisper | Roster | Watched) -> None:
        if isinstance(message, Roster):
            self._live(message.node)
        host = self._hosts.get(message.session_id)
        if host is None or (isinstance(message, Roster | Whisper) and message.node == self.name):
            return
        if isinstance(message, Roster):
            host.hear_roster(message)
            if message.asks and not host.closed:
                self.announce(host)
        elif isinstance(message, Whisper):
            host.hear_whisper(message)
        elif isinstance(message, Watched):
            self.announce(host, asks=True)
        else:
            host.hear(message)

    def _live(self, node: str, *, leaves: bool = False) -> None:
        """A node gave a sign of life on the bus, or its last."""
        if node == self.name:
            return
        if leaves:
            self._lose(node)
        else:
            self._beats[node] = self._clock.monotonic()
            self._lives_until[node] = self._beats[node] + LEASE_MS

    def _meet(self, others: Iterable[Neighbour]) -> None:
        """The database tells of other nodes."""
        now = self._clock.monotonic()
        for other in others:
            if other.lives_ms:
                until = self._lives_until.get(other.node, 0)
                self._lives_until[other.node] = max(until, now + other.lives_ms)
            else:
                self._lose(other.node)

    def _is_deaf(self) -> bool:
        """Whether no bus tells of the others."""
        return self._bus is None or not self._bus.live

    def _is_apart(self) -> bool:
        """Whether there is a node that lives and cannot be heard on the bus."""
        if self._is_deaf():
            return bool(self._lives_until)
        missed = self._clock.monotonic() - LEASE_MS
        return any(self._beats.get(node, missed) <= missed for node in self._lives_until)

    def _lose(self, node: str) -> None:
        self._beats.pop(node, None)
        if self._lives_until.pop(node, None) is not None:
            for host in list(self._hosts.values()):
                host.lose_node(node)

    def _look_after_nodes(self) -> None:
        """Give signs of life, and find out who gives none any more."""
        now = self._clock.monotonic()
        if self._bus is not None and self._bus.live:
            if now - self._beat_at >= BEAT_MS:
                self._beat_at = now
                self._bus.publish(Beat(node=self.name))
        elif self._places is None or self._places.silent:
            # Nobody can be heard: nobody is known to be gone.
            self._lives_until = dict.fromkeys(self._lives_until, now + LEASE_MS)
            return
        for node, until in list(self._lives_until.items()):
            if now >= until:
                log.warning("a node has given no sign of life, and counts as gone", node=node)
                self._lose(node)

    def _compare_soon(self) -> None:
        if self._hosts and not self._comparing:
            self._comparing = True
            self._tasks.spawn(self._compare())

    async def _compare(self) -> None:
        """Compare where the open sessions stand with the database: news may have been lost."""
        seen = {name: (host, host.stands) for name, host in self._hosts.items()}
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                found = await self._store.versions(list(seen))
        except (TimeoutError, StoreError, OSError) as error:
            log.debug("sessions could not be compared with the database", error=str(error))
            return
        finally:
            self._comparing = False
        for name, (host, stood) in seen.items():
            host.compare(stood, found.get(name))

    async def _hurry(self) -> None:
        while True:
            await self._clock.sleep(_HURRY_MS)
            if self._is_deaf():
                self._compare_soon()


def _compared(
    host: Host, seen: tuple[str, int, int], found: tuple[str, int, int] | None, _: Room
) -> None:
    host.compare(seen, found)
