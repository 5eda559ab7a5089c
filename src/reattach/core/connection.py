"""One connection's states, from its hello to its end.

    GREETING ──hello──► JOINING ──welcome──► LIVE
        │                  │                   │
        └──────────────────┴────── close ──────┴──► CLOSED

What a frame means in a state is in `TRANSITIONS`; what is not there is a bad frame (4400). A
connection that joins holds what comes meanwhile, so that its client need not wait for the welcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from reattach.core.limits import Limits
from reattach.wire import (
    Change,
    Frame,
    Heartbeat,
    Hello,
    Presence,
    RequestSync,
    SaveCheckpoint,
)

__all__ = ["TRANSITIONS", "Act", "Close", "Connection", "Phase", "Role"]


class Phase(Enum):
    """Where a connection stands."""

    # Each frame is looked up by it: by the member's identity, not by its name.
    __hash__ = object.__hash__

    GREETING = "greeting"
    JOINING = "joining"
    LIVE = "live"
    CLOSED = "closed"


class Act(Enum):
    """What is to be done with a frame."""

    JOIN = "join"
    HOLD = "hold"
    CHANGE = "change"
    ECHO = "echo"
    SYNC = "sync"
    CHECKPOINT = "checkpoint"
    PRESENCE = "presence"


TRANSITIONS: dict[tuple[Phase, type], Act] = {
    (Phase.GREETING, Hello): Act.JOIN,
    (Phase.JOINING, Change): Act.HOLD,
    (Phase.JOINING, Heartbeat): Act.ECHO,
    (Phase.JOINING, RequestSync): Act.HOLD,
    (Phase.JOINING, SaveCheckpoint): Act.HOLD,
    (Phase.JOINING, Presence): Act.HOLD,
    (Phase.LIVE, Change): Act.CHANGE,
    (Phase.LIVE, Heartbeat): Act.ECHO,
    (Phase.LIVE, RequestSync): Act.SYNC,
    (Phase.LIVE, SaveCheckpoint): Act.CHECKPOINT,
    (Phase.LIVE, Presence): Act.PRESENCE,
}


class Close:
    """The close codes of `docs/protocol.md`, section 5."""

    BAD_FRAME = 4400
    NOT_AUTHENTICATED = 4401
    FORBIDDEN = 4403
    NO_SESSION = 4404
    NO_HEARTBEAT = 4408
    SUPERSEDED = 4409
    ENDED = 4410
    TOO_LARGE = 4413
    TOO_FAST = 4429
    RESTART = 1012


class Role:
    """What a user may do with a session."""

    OWNER = "owner"
    EDITOR = "editor"
    VIEWER = "viewer"


class Connection:
    """One line to one client. ``line`` is the shell's own, handed back in effects."""

    __slots__ = (
        "came_from",
        "client_id",
        "device_id",
        "gap_told",
        "heard_at",
        "held",
        "jitter_ms",
        "line",
        "offset",
        "outdated",
        "paused",
        "phase",
        "pinged_at",
        "presence",
        "presences",
        "role",
        "since",
        "user",
        "user_id",
        "waiting",
        "weight",
    )

    def __init__(self, line: Any, now: int) -> None:
        self.line = line
        self.phase = Phase.GREETING
        self.heard_at = now
        self.pinged_at = now
        self.held: list[tuple[Frame, int]] = []
        """Frames that came before the welcome, with their sizes in bytes."""
        self.came_from: Mapping[str, str] = {}
        """Its address and user agent, where these are to be told of."""
        self.client_id = ""
        self.device_id = ""
        self.user: Any = None
        """Who is there, as whoever let it in knows them."""
        self.user_id = ""
        self.role = Role.VIEWER
        self.offset = 0
        """What to add to the client's clock to get the server's, ms."""
        self.since = 0
        """When it joined, ms since 1970: later than all earlier ones of its client."""
        self.jitter_ms = 0
        """Within which random part of this its client comes back from a restart."""
        self.waiting = 0
        """Its changes that wait for their decision."""
        self.weight = 0
        """What they weigh, in bytes of their frames."""
        self.paused = False
        self.outdated = False
        """Whether its client is too old for the session's schema, and may only read."""
        self.gap_told = False
        """Whether it was told of a gap in its numbers that still stands."""
        self.presences = 0
        """How often it told of its presence since the last tick."""
        self.presence: bytes | None = None
        """What it told last, where that was too often to be passed on at once."""

    def silence(self, now: int, limits: Limits) -> str | None:
        """Return what its silence asks for: ``close``, ``ping`` or nothing. Call once a second."""
        if self.phase is Phase.GREETING:
            return "close" if now - self.heard_at >= limits.hello_timeout_ms else None
        if now - self.heard_at >= limits.heartbeat_timeout_ms:
            return "close"
        last = max(self.heard_at, self.pinged_at)
        if now - last >= limits.heartbeat_interval_ms:
            self.pinged_at = now
            return "ping"
        return None
