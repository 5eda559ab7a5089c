"""Who is connected to a session on other nodes, as these tell it, by a bus or by the database.

Nodes tell each other their whole list (`Seat`s) whenever it changes, with a number that grows, so
that lists may be lost, late and repeated, and come by both ways. A client that is connected twice
is the newer one's: each seat has the moment since which it is taken, and a node gives one out that
is later than all it knows of that client. Where clocks differ and a list was lost, the wrong one of
the two may be sent away; it comes back, and is then the newer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

__all__ = ["Elsewhere", "Seat"]


class Seat(msgspec.Struct, frozen=True, array_like=True):
    """One client's connection: ``since`` is ms since 1970, by its node's clock or later."""

    client_id: str
    device_id: str
    since: int


class Elsewhere:
    """The newest list of each other node."""

    def __init__(self) -> None:
        """Begin knowing of nobody."""
        self._lists: dict[str, tuple[int, Sequence[Seat]]] = {}

    def __bool__(self) -> bool:
        """Whether anybody is connected there."""
        return any(seats for _, seats in self._lists.values())

    @property
    def shared(self) -> bool:
        """Whether another node is known to have the session open, or to have had it."""
        return bool(self._lists)

    def nodes(self) -> set[str]:
        """Return the nodes that are known to have the session open, or to have had it."""
        return set(self._lists)

    def hear(self, node: str, number: int, seats: Sequence[Seat]) -> bool:
        """Take in a node's list; False where a newer one came before."""
        if number <= self._lists.get(node, (-1, ()))[0]:
            return False
        self._lists[node] = number, seats
        return True

    def drop(self, node: str) -> bool:
        """Forget a node that is gone; say whether anybody was connected there."""
        _, seats = self._lists.pop(node, (0, ()))
        return bool(seats)

    def clients(self) -> dict[str, str]:
        """Return the clients that are connected there, each with its device."""
        return {
            seat.client_id: seat.device_id for _, seats in self._lists.values() for seat in seats
        }

    def devices(self) -> set[str]:
        """Return the devices that are connected there."""
        return {seat.device_id for _, seats in self._lists.values() for seat in seats}

    def since(self, client_id: str) -> int:
        """Return since when a client is connected there; 0 where it is not."""
        return max(
            (
                seat.since
                for _, seats in self._lists.values()
                for seat in seats
                if seat.client_id == client_id
            ),
            default=0,
        )
