"""The other nodes: their signs of life, what they tell, and what the database has of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from reattach.bus.base import Beat, Bus, Message, Missed, Note, Roster, Watched, Whisper
from reattach.core.room import Room
from reattach.errors import StoreError, Unavailable
from reattach.runtime.clock import Clock
from reattach.runtime.host import Host
from reattach.runtime.loader import Loader
from reattach.runtime.tasks import Tasks
from reattach.store.base import Store

__all__ = ["Nodes"]

log = structlog.get_logger("reattach.nodes")

_BEAT_MS: Final = 2_000
_LEASE_MS: Final = 7_000
"""How long a node counts as living after its last sign of life."""
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
        self._heard_at: dict[str, int] = {}
        """The other nodes, and when they last gave a sign of life."""
        self._beat_at = 0

    async def start(self, identity: str) -> None:
        """Begin to hear of what others do with the database that has this identity."""
        if self._bus is not None:
            self._unsubscribe = self._bus.subscribe(self._hear)
            await self._bus.open(identity)
        self._tasks.spawn(self._hurry())

    def hear_no_more(self) -> None:
        """Let what others do be theirs: this node is about to stop."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def stop(self) -> None:
        """Say goodbye."""
        if self._bus is not None:
            self._bus.publish(Beat(node=self.name, leaves=True))
            await self._bus.close()

    def tell(self, message: Message) -> None:
        """Tell the others something, where there is a bus."""
        if self._bus is not None:
            self._bus.publish(message)

    def look_after(self) -> None:
        """Do what is due every second: compare, give signs of life and miss those of others."""
        self._compare_soon()
        self._look_after_nodes()
        for host in list(self._hosts.values()):
            since = self._clock.monotonic() - host.announced_at
            shared = host.room.elsewhere.shared
            if self._heard_at and since >= (_ANNOUNCE_MS if shared else _ANNOUNCE_ALONE_MS):
                host.announce(asks=not shared)

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
            self._compare_soon()
            for host in self._hosts.values():
                host.announce(asks=True)
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
        elif isinstance(message, Whisper):
            host.hear_whisper(message)
        elif isinstance(message, Watched):
            host.announce(asks=True)
        else:
            host.hear(message)

    def _live(self, node: str, *, leaves: bool = False) -> None:
        """A node gave a sign of life, or its last."""
        if node == self.name:
            return
        if not leaves:
            self._heard_at[node] = self._clock.monotonic()
        elif self._heard_at.pop(node, None) is not None:
            self._lose(node)

    def _lose(self, node: str) -> None:
        for host in list(self._hosts.values()):
            host.lose_node(node)

    def _look_after_nodes(self) -> None:
        """Give signs of life, and find out who gives none any more."""
        if self._bus is None:
            return
        now = self._clock.monotonic()
        if not self._bus.live:
            # Nobody can be heard: nobody is known to be gone.
            self._heard_at = dict.fromkeys(self._heard_at, now)
            return
        if now - self._beat_at >= _BEAT_MS:
            self._beat_at = now
            self._bus.publish(Beat(node=self.name))
        for node, heard_at in list(self._heard_at.items()):
            if now - heard_at >= _LEASE_MS:
                del self._heard_at[node]
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
            if self._bus is None or not self._bus.live:
                self._compare_soon()


def _compared(
    host: Host, seen: tuple[str, int, int], found: tuple[str, int, int] | None, _: Room
) -> None:
    host.compare(seen, found)
