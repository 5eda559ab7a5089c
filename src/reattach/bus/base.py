"""What a bus must do. It carries news between nodes that serve one database.

The law that every bus keeps, and that nobody may ask more of:

1. A note says what is durable already. Nothing is published before.
2. A note may be lost, late, repeated or out of order, also for one listener only. Whoever hears one
   takes from it what follows on what it has, and reads the database for the rest; and once a second
   it compares what it has open with the database anyway.
3. `publish` neither waits nor fails. A listener is called on the event loop, never from within
   `publish`; what it is told is not to be altered.

So a bus that is down costs others up to a second, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from reattach.store.base import CommitRecord, SessionRecord

__all__ = ["Bus", "Listener", "Note"]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """One session's part of a batch: the row as it stands now, and the commits that led there."""

    session: SessionRecord
    commits: Sequence[CommitRecord]


Listener = Callable[[Note], None]


class Bus(Protocol):
    """A way to the other nodes."""

    def publish(self, note: Note) -> None:
        """Tell the other nodes. Its own node may hear it, too."""

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a listener called with what others publish, until what is returned is called."""
