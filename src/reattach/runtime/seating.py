"""Who is where, by the database: what nodes tell each other there, for when they hear no bus.

That somebody comes or leaves is written whether a bus carries it or not, gathered for a quarter of
a second into one statement (`docs/adr/0012-who-is-connected-in-the-database.md`). It is read, twice
a second and in one statement, only while another node that lives is not heard on the bus. Each node
has a lease, and renews it every two seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
import structlog

from reattach.core.elsewhere import Seat
from reattach.errors import StoreError
from reattach.runtime.clock import Clock
from reattach.runtime.host import Host
from reattach.store.seating import Neighbour, Seated, Seating

__all__ = ["BEAT_MS", "LEASE_MS", "Places"]

log = structlog.get_logger("reattach.nodes")

BEAT_MS: Final = 2_000
LEASE_MS: Final = 7_000
"""How long a node counts as living after its last sign of life."""
_GATHER_MS: Final = 250
_LOOK_MS: Final = 500
_SWEEP_MS: Final = 60_000
"""How often what dead nodes left is removed, and how long they have to be dead for it."""
_SILENCE_MS: Final = 2 * BEAT_MS
"""How long after its last answer the database counts as away: before a lease can have ended."""
_FAREWELL_S: Final = 0.5

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Seat])


class Places:
    """One node's part of it.

    ``number`` gives numbers that grow with each list that this node tells. ``meet`` is told of
    other nodes; ``apart`` says whether one is known that cannot be heard on a bus, and ``deaf``
    whether none could be.
    """

    def __init__(  # noqa: PLR0913 - what it is told by, and asks
        self,
        node: str,
        hosts: dict[str, Host],
        seating: Seating,
        clock: Clock,
        *,
        timeout_ms: int,
        number: Callable[[], int],
        meet: Callable[[Iterable[Neighbour]], None],
        apart: Callable[[], bool],
        deaf: Callable[[], bool],
    ) -> None:
        self._node = node
        self._hosts = hosts
        self._seating = seating
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._number = number
        self._meet = meet
        self._apart = apart
        self._deaf = deaf
        self._unwritten: set[str] = set()
        """Sessions of which it changed who is connected here."""
        self._is_new = True
        """Whether the database has not got all that there is to tell."""
        self._renewed_at: int | None = None
        self._swept_at = clock.monotonic()
        self._answered_at: int | None = None
        self._looked_at = clock.monotonic()

    @property
    def silent(self) -> bool:
        """Whether the database has told nothing of the others for long."""
        answered_at = self._answered_at
        return answered_at is None or self._clock.monotonic() - answered_at > _SILENCE_MS

    def changed(self, session_id: str) -> None:
        """Take note that somebody came to a session here, or left."""
        self._unwritten.add(session_id)

    async def run(self) -> None:
        """Do what is due."""
        while True:
            try:
                async with asyncio.timeout(self._timeout_ms / 1000):
                    await self._take_turn()
            except (TimeoutError, StoreError, OSError) as error:
                # Who misses the database says so elsewhere.
                log.debug("who is where could not be told by the database", error=str(error))
            await self._clock.sleep(_GATHER_MS)

    async def stop(self) -> None:
        """Say that those who were connected here are not, and that this node is gone."""
        try:
            async with asyncio.timeout(_FAREWELL_S):
                if self._unwritten:
                    await self._write()
                await self._seating.leave(self._node)
        except (TimeoutError, StoreError, OSError) as error:
            log.debug("a lease is left to end by itself", error=str(error))

    async def _take_turn(self) -> None:
        now = self._clock.monotonic()
        if self._renewed_at is None or now - self._renewed_at >= BEAT_MS:
            told, others = await self._seating.renew(self._node, LEASE_MS)
            self._renewed_at = now
            self._is_new = self._is_new or told == 0
            self._hear(others)
        if self._is_new:
            connected = (name for name, host in self._hosts.items() if host.room.connections)
            self._unwritten.update(connected)
        if self._unwritten or self._is_new:
            await self._write()
        if now - self._looked_at >= _LOOK_MS:
            self._looked_at = now
            if self._deaf() and not self._apart():
                await self._look([])  # somebody may have come
            if self._apart():
                await self._read()
        if now - self._swept_at >= _SWEEP_MS:
            self._swept_at = now
            await self._seating.sweep(_SWEEP_MS)

    async def _write(self) -> None:
        changed, self._unwritten = self._unwritten, set()
        told = self._number()  # what was announced before is in this statement, or was in one
        seats = [self._seats(session_id) for session_id in changed]
        try:
            await self._seating.seat(self._node, told, seats)
        except BaseException:
            self._unwritten |= changed
            raise
        self._is_new = False

    def _seats(self, session_id: str) -> Seated:
        host = self._hosts.get(session_id)
        seats = [] if host is None else host.room.seats()
        return Seated(
            session_id=session_id,
            node=self._node,
            number=0 if host is None else host.announced,
            body=_encoder.encode(seats) if seats else None,
        )

    async def _read(self) -> None:
        hosts = dict(self._hosts)
        others, found = await self._look(list(hosts))
        told = {other.node: other.told for other in others if other.lives_ms}
        seats: dict[str, list[Seated]] = {}
        for one in found:
            seats.setdefault(one.session_id, []).append(one)
        for session_id, host in hosts.items():
            _tell(host, seats.get(session_id, ()), told)

    async def _look(
        self, session_ids: Sequence[str]
    ) -> tuple[Sequence[Neighbour], Sequence[Seated]]:
        others, found = await self._seating.look(self._node, session_ids)
        self._hear(others)
        return others, found

    def _hear(self, others: Sequence[Neighbour]) -> None:
        self._answered_at = self._clock.monotonic()
        self._meet(others)


def _tell(host: Host, found: Sequence[Seated], told: dict[str, int]) -> None:
    """Tell a session's host who is connected to it elsewhere, and who is not any more."""
    for one in found:
        host.hear_seats(one.node, one.number, _decoder.decode(one.body or b"\x90"))
    for node in host.room.elsewhere.nodes() - {one.node for one in found}:
        if node in told:
            host.hear_seats(node, told[node], ())
