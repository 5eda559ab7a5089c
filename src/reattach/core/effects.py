"""What a room wants done, and what it can be asked for from beside its connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from reattach.core.connection import Connection
from reattach.core.session import Proposal, Session
from reattach.errors import ReattachError
from reattach.store.base import (
    CheckpointRecord,
    CommitRecord,
    IdempotencyRecord,
    RefusalRecord,
)

__all__ = [
    "Announce",
    "Confirm",
    "Effect",
    "Fault",
    "Hang",
    "LookUp",
    "PassOn",
    "Pause",
    "Recall",
    "Request",
    "Result",
    "Send",
    "SequenceGap",
    "Settle",
]


class Send(msgspec.Struct, frozen=True):
    """Send frames, in order."""

    connection: Connection
    frames: Sequence[bytes]


class Hang(msgspec.Struct, frozen=True):
    """Close a connection with a code."""

    connection: Connection
    code: int
    reason: str


class Pause(msgspec.Struct, frozen=True):
    """Stop reading from a connection, or go on."""

    connection: Connection
    paused: bool


class LookUp(msgspec.Struct, frozen=True):
    """Read what became of a number from the database, then call `Room.looked_up`."""

    connection: Connection
    client_id: str
    seq: int
    at: int


class Confirm(msgspec.Struct, frozen=True):
    """Read a mark back, which may be older than the one that was written now, then call
    `Room.confirmed`. ``connection`` asked for it, and calls it ``ref``.
    """

    written: CheckpointRecord
    connection: Connection | None
    ref: str | None


class Recall(msgspec.Struct, frozen=True):
    """Look up the state that a restore is about, then call `Inbox.recalled`."""

    proposal: Proposal


class Fault(msgspec.Struct, frozen=True):
    """Tell whoever looks after the server of an error that is ours."""

    error: BaseException


class PassOn(msgspec.Struct, frozen=True):
    """Have other nodes send a frame to whoever is connected to the session there.

    But for the client whose it is, which may have its line there.
    """

    frame: bytes
    client_id: str | None = None


class Announce(msgspec.Struct, frozen=True):
    """Tell other nodes who is connected here (`Room.seats`)."""


class Settle(msgspec.Struct, frozen=True):
    """Answer a request: its effect is durable, or it had none."""

    request: Request
    result: Result | ReattachError


Effect: TypeAlias = (
    Send | Hang | Pause | LookUp | Recall | Confirm | Settle | Fault | PassOn | Announce
)


# What waits to be decided


class Result(msgspec.Struct, frozen=True):
    """What a request came to: the version after it, and its decision."""

    version: int
    decision: CommitRecord | RefusalRecord | CheckpointRecord | None


class Request(msgspec.Struct, kw_only=True, eq=False):
    """A change that did not come over a connection: from HTTP or from the server's own code.

    Where ``proposal.seq`` is 0 it is the server's: it takes its client's next number when it is
    decided (``number``, and when: ``at``), and leaves nothing behind when it is refused.
    ``unless`` may refuse it on the state at hand. ``record`` makes the row for its idempotency key,
    and ``key`` (user, route and key) is where that row goes. Where the session's access version is
    not ``proposal.access_version`` any more, nothing is decided: its author has to be let in anew.
    """

    proposal: Proposal
    number: int = 0
    at: int = 0
    unless: Callable[[Session], ReattachError | None] | None = None
    record: Callable[[Session], IdempotencyRecord] | None = None
    key: tuple[str, str, str] | None = None


class SequenceGap(ReattachError):
    """A client's number came before the one that goes before it: send ``expected`` first."""

    code = "sequence_gap"
    status = 409

    def __init__(self, message: str, expected: int) -> None:
        super().__init__(message)
        self.expected = expected
