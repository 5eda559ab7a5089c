"""Which nodes live and who is connected to each, in tables that PostgreSQL keeps no log of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from reattach.store.postgres import sql
from reattach.store.postgres.rows import text
from reattach.store.seating import Neighbour, Seated

__all__ = ["PostgresSeating"]

_Ask = Callable[..., Awaitable[Sequence[Any]]]


class PostgresSeating:
    """See `reattach.store.seating`; ``ask`` carries out a statement and returns its rows."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    async def renew(self, node: str, lease_ms: int) -> tuple[int, Sequence[Neighbour]]:
        """Live for so long from now on."""
        ((told,),) = await self._ask(sql.RENEW_NODE, node, lease_ms)
        return told, list(map(_neighbour, await self._ask(sql.NEIGHBOURS, node)))

    async def seat(self, node: str, told: int, seats: Sequence[Seated]) -> None:
        """Write who is connected to this node."""
        rows = [(text(one.session_id), one.number, one.body) for one in seats]
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        await self._ask(sql.WRITE_SEATS, node, told, *columns)

    async def look(
        self, node: str, session_ids: Sequence[str]
    ) -> tuple[Sequence[Neighbour], Sequence[Seated]]:
        """Read who is connected to other nodes that live, and these nodes."""
        rows = await self._ask(sql.LOOK_AROUND, node, [text(name) for name in session_ids])
        others = [_neighbour(row) for row in rows if row[3] is None]
        seats = [
            # A row has its place instead of its id, which may have been written otherwise.
            Seated(session_id=session_ids[row[3] - 1], node=row[0], number=row[4], body=row[5])
            for row in rows
            if row[3] is not None
        ]
        return others, seats

    async def leave(self, node: str) -> None:
        """Live no more."""
        await self._ask(sql.LEAVE_NODE, node)

    async def sweep(self, dead_ms: int) -> None:
        """Remove all of nodes whose lease ended so long ago, or that are not known at all."""
        await self._ask(sql.SWEEP_NODES, dead_ms)


def _neighbour(row: Sequence[Any]) -> Neighbour:
    return Neighbour(node=row[0], lives_ms=row[1], told=row[2])
