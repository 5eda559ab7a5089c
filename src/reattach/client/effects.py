"""What goes into the client's core and what comes out of it. The core itself does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = [
    "AskHistory",
    "Changed",
    "Closed",
    "Connect",
    "Decided",
    "Disconnect",
    "Effect",
    "Event",
    "EventType",
    "FrameReceived",
    "History",
    "Input",
    "Kept",
    "Loaded",
    "Network",
    "Opened",
    "Row",
    "SendFrame",
    "SetTimer",
    "Status",
    "Stop",
    "Store",
    "StoreFailed",
    "Stored",
    "TimerFired",
    "TimerName",
]

TimerName: TypeAlias = Literal["connect", "greet", "beat", "resend", "store"]
"""Until the next attempt; until a welcome must have come; until the line is to be looked at; until
the server wants to hear a change again; until the disk is tried again."""

Row: TypeAlias = tuple[str, Any]
"""A key and its JSON value, or None: the key is to be removed."""

EventType: TypeAlias = Literal[
    "initialStateReceived",
    "stateUpdateReceived",
    "sessionRestored",
    "changeRejected",
    "conflictDetected",
    "maxReconnectAttemptsReached",
    "upgradeRequired",
    "historyLost",
    "saved",
    "checkpointSaved",
    "presence",
]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a session stands, as its user should be told."""

    connection: Literal["connecting", "online", "reconnecting", "offline", "closed"]
    """``connecting`` until the first connection stands or fails; ``offline``: not online, and there
    is no network; ``closed``: for good, by `close` or by the server (see ``error``)."""
    pending: int
    """How many changes the server has not decided."""
    saved_on_device: bool
    """Every change is in the outbox's file, and would survive the end of this process."""
    saved: bool
    """Every change is in the server's database. Refused ones are in ``rejected`` instead."""
    storage: Literal["durable", "memory"]
    """``memory``: changes that the server has not taken are lost when this process ends."""
    read_only: bool
    """The session's schema has become too new for this program (see ``schema_version``): the server
    takes none of its changes. They stay here until a newer program sends them."""
    error: tuple[str, str] | None
    """The code and the message of why the session is not online, or not durable."""


# Inputs


class Loaded(msgspec.Struct, frozen=True):
    """What the outbox holds, None where it is new. Not ``durable``: there is none, only memory."""

    rows: dict[str, Any] | None
    device_id: str
    durable: bool = True


class Opened(msgspec.Struct, frozen=True):
    """A connection stands; ``token`` is what the application gave for it, ``user_id`` who the
    outbox belongs to.
    """

    token: str | None = None
    user_id: str | None = None


class FrameReceived(msgspec.Struct, frozen=True):
    """The server said something."""

    frame: dict[str, Any]


class Closed(msgspec.Struct, frozen=True):
    """The connection ended, or could not be made (1006)."""

    code: int
    reason: str = ""


class TimerFired(msgspec.Struct, frozen=True):
    """A timer's time has come."""

    name: TimerName


class Stored(msgspec.Struct, frozen=True):
    """The transaction under way is durable."""


class StoreFailed(msgspec.Struct, frozen=True):
    """The transaction under way had no effect."""

    message: str


class History(msgspec.Struct, frozen=True):
    """A client's commits, each with ``by`` and ``client_at``; None where they could not be had."""

    commits: Sequence[dict[str, Any]] | None


class Network(msgspec.Struct, frozen=True):
    """The network came or went."""

    online: bool


class Stop(msgspec.Struct, frozen=True):
    """The application is done with the session."""


Input: TypeAlias = (
    Loaded
    | Opened
    | FrameReceived
    | Closed
    | TimerFired
    | Stored
    | StoreFailed
    | History
    | Network
    | Stop
)

# Effects


class Connect(msgspec.Struct, frozen=True):
    """Open a connection; then comes `Opened`, or `Closed`."""


class SendFrame(msgspec.Struct, frozen=True):
    """Send a frame, behind those before it."""

    frame: dict[str, Any]


class Disconnect(msgspec.Struct, frozen=True):
    """Give up the connection, or the attempt at one; nothing of it is heard any more."""


class Store(msgspec.Struct, frozen=True):
    """Write these rows in one transaction; then comes `Stored` or `StoreFailed`.

    No other `Store` comes before that.
    """

    writes: list[Row]


class SetTimer(msgspec.Struct, frozen=True):
    """Set a timer anew; ``ms`` None: forget it."""

    name: TimerName
    ms: float | None


class AskHistory(msgspec.Struct, frozen=True):
    """Read which changes of a client were committed, from a version on; then comes `History`."""

    client_id: str
    from_version: int


class Event(msgspec.Struct, frozen=True):
    """Tell the application. ``detail`` is the frame, or what its type says of it."""

    type: EventType
    detail: dict[str, Any]


class Kept(msgspec.Struct, frozen=True):
    """A change is in the outbox; not ``durable``: it will only ever be in memory."""

    ref: str
    durable: bool = True


class Decided(msgspec.Struct, frozen=True):
    """The server decided a change; ``error`` (``code``, ``message``, ``path``?): why it refused."""

    ref: str
    error: dict[str, Any] | None = None


class Changed(msgspec.Struct, frozen=True):
    """The state, the status or a list may be another one now."""


Effect: TypeAlias = (
    Connect
    | SendFrame
    | Disconnect
    | Store
    | SetTimer
    | AskHistory
    | Event
    | Kept
    | Decided
    | Changed
)
