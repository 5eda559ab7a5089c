"""What a bus must do. It carries news between nodes that serve one database.

The law that every bus keeps, that `reattach.testing.bus` checks, and that nobody may ask more of:

1. A note says what is durable already. Nothing is published before.
2. A message may be lost, late, repeated or out of order, also for one listener only. Whoever hears
   a note takes from it what follows on what it has, and reads the database for the rest; and it
   compares what it has open with the database anyway: once a second, twice while the bus is down.
3. `publish` neither waits nor fails, and what waits to be sent is bounded: beyond that it is lost.
   A listener is called on the event loop, never from within `publish`; what it is told is not to
   be altered.
4. A node hears of the sessions that it watches, and may hear of others and of itself, too. When a
   bus that was down is back, its listeners hear `Missed`.

So a bus that is down costs others up to a second, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import msgspec

from reattach.core.elsewhere import Seat
from reattach.store.base import CommitRecord, DeviceRecord, SessionRecord

__all__ = [
    "Beat",
    "Bus",
    "Counts",
    "Listener",
    "Message",
    "Missed",
    "Note",
    "Roster",
    "Watched",
    "Whisper",
]


class Note(msgspec.Struct, frozen=True, kw_only=True, tag="note"):
    """One session's part of a batch.

    The row as it stands now, the commits that led there, and the devices that were written.
    """

    session: SessionRecord
    commits: Sequence[CommitRecord]
    devices: Sequence[DeviceRecord] = ()

    @property
    def session_id(self) -> str:
        """The session that it is about."""
        return self.session.session_id


class Whisper(msgspec.Struct, frozen=True, kw_only=True, tag="whisper"):
    """A frame for whoever is connected to a session on other nodes; it is stored nowhere.

    ``client_id`` is whose it is, and who does not get it.
    """

    session_id: str
    node: str
    frame: bytes
    client_id: str | None = None


class Roster(msgspec.Struct, frozen=True, kw_only=True, tag="roster"):
    """Who is connected to a session on one node: the one with the highest ``number`` holds.

    ``epoch`` and ``version`` are where the session stands there. With ``asks`` the others are
    asked for theirs.
    """

    session_id: str
    node: str
    number: int
    epoch: str
    version: int
    seats: Sequence[Seat]
    asks: bool = False


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag="beat"):
    """A sign of life of a node, every `BEAT_MS`; ``leaves`` is its last."""

    node: str
    leaves: bool = False


class Missed(msgspec.Struct, frozen=True, tag="missed"):
    """From the bus itself: it was down, and anything may have been said meanwhile."""


class Watched(msgspec.Struct, frozen=True, tag="watched"):
    """From the bus itself: from now on what others say of a session is heard."""

    session_id: str


Message: TypeAlias = Note | Whisper | Roster | Beat
"""What nodes tell each other."""

Listener = Callable[[Message | Missed | Watched], None]


class Counts(msgspec.Struct):
    """What a bus has done since it was opened, in messages; ``outages`` in times."""

    sent: int = 0
    heard: int = 0
    dropped: int = 0
    """Not sent: the bus was down, or too much waited."""
    unread: int = 0
    """Heard and not understood: from a node of another version, or from somebody else."""
    outages: int = 0


class Bus(Protocol):
    """A way to the other nodes."""

    @property
    def counts(self) -> Counts:
        """What it has done."""

    @property
    def live(self) -> bool:
        """Whether others are reached, as far as is known: False while it is down."""

    async def open(self, identity: str) -> None:
        """Begin to carry messages between the nodes of one database, which ``identity`` names.

        Does not wait for others, nor fail where they cannot be reached.
        """

    async def close(self) -> None:
        """Send what waits, for a moment, and end."""

    def publish(self, message: Message) -> None:
        """Tell the other nodes. Its own node may hear it, too."""

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a listener called with what others publish, until what is returned is called."""

    def watch(self, session_id: str) -> None:
        """Begin to hear of a session."""

    def unwatch(self, session_id: str) -> None:
        """Hear of a session no more."""
