"""Which nodes live, and who is connected to each, in the database that the nodes share.

For nodes that do not hear each other by a bus. All of it is true for seconds and may be lost at any
time, with the memory of the database's server. The law:

1. A node lives until its lease ends, by the database's clock, and so long the others have it as a
   `Neighbour`. One that has left is among them, too, until it is swept away.
2. What `seat` was given up to ``told`` is there whole, or is not counted as told. A session without
   a row of a node has nobody there, by all that the node said up to its ``told``.
3. A node of which rows may be missing (it is new, was swept away, or the rows were lost) is told so
   by `renew`, with 0, until it has written all of them.
4. `look` answers of one moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

__all__ = ["LEFT", "Neighbour", "Seated", "Seating"]

LEFT = -1
"""The ``told`` of a node that has left."""


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """Another node. ``lives_ms`` is how long its lease still lasts, 0 where it has left."""

    node: str
    lives_ms: int
    told: int


class Seated(msgspec.Struct, frozen=True, kw_only=True):
    """Who of a session is connected to a node; ``body`` is theirs to understand, None: nobody."""

    session_id: str
    node: str
    number: int
    body: bytes | None


class Seating(Protocol):
    """What nodes know of each other by their database. All raise `StoreUnavailable`."""

    async def renew(self, node: str, lease_ms: int) -> tuple[int, Sequence[Neighbour]]:
        """Live for so long from now on; return up to what number this node has told, and others."""

    async def seat(self, node: str, told: int, seats: Sequence[Seated]) -> None:
        """Write who is connected to this node, of sessions where that changed."""

    async def look(
        self, node: str, session_ids: Sequence[str]
    ) -> tuple[Sequence[Neighbour], Sequence[Seated]]:
        """Read who is connected to other nodes that live, in one statement, and these nodes."""

    async def leave(self, node: str) -> None:
        """Live no more."""

    async def sweep(self, dead_ms: int) -> None:
        """Remove all of nodes whose lease ended so long ago, or that are not known at all."""
