"""The line to the server: when to connect, when to ask for a sign of life, when to give up and for
how long.

    idle ──► opening ──► greeting ──► live
                ▲            │          │
                └─ waiting ◄─┴──────────┤
                      asking ◄──────────┘

- ``idle``: the client's name is not in the outbox yet
- ``opening``: a connection is being made; ``greeting``: ``hello`` was sent
- ``live``: welcomed; frames flow
- ``waiting``: for the next attempt
- ``asking``: the history is being read for what became of this client's changes
- ``closed``: for good
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

from reattach.client.effects import (
    Connect,
    Disconnect,
    Effect,
    Event,
    SendFrame,
    SetTimer,
    TimerName,
)

__all__ = ["Line"]

At: TypeAlias = Literal["idle", "opening", "greeting", "live", "waiting", "asking", "closed"]
Connection: TypeAlias = Literal["connecting", "online", "reconnecting", "offline", "closed"]

GREETING_MS: Final = 15_000
GOOD_MS: Final = 5_000
"""A connection that stood this long was a good one: the next attempt is a first one."""

# Full jitter (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), so that
# clients which lost one server do not come back together.
FIRST_MS: Final = 500
LONGEST_MS: Final = 30_000
MANY_ATTEMPTS: Final = 10
"""After so many that failed the application is told, and the next ones come more slowly."""
SLOWLY_MS: Final = 60_000

_TIMERS: Final[tuple[TimerName, ...]] = ("connect", "greet", "beat", "resend")
_CONNECTED: Final = frozenset({"opening", "greeting", "live"})


class Line:
    """Where a client's connection is in its life. ``random`` answers in [0, 1)."""

    def __init__(self, random: Callable[[], float], emit: Callable[[Effect], None]) -> None:
        self.at: At = "idle"
        self.network = True
        self.was = False
        """It was live once."""
        self.interval_ms = 5_000
        self.timeout_ms = 15_000
        self.attempts = 0
        """How many attempts failed one after another."""
        self._since = 0
        self._last_in = 0
        self._last_out = 0
        self._probed: int | None = None
        """When a sign of life was first asked for; None when one has come since."""
        self._random = random
        self._emit = emit

    @property
    def connection(self) -> Connection:
        """What the status calls it."""
        if self.at == "live":
            return "online"
        if self.at == "closed":
            return "closed"
        if not self.network:
            return "offline"
        return "reconnecting" if self.was or self.attempts > 0 else "connecting"

    def timer(self, name: TimerName, ms: float | None) -> None:
        """Set or forget a timer."""
        self._emit(SetTimer(name, ms))

    def send(self, frame: dict[str, Any], now: int) -> None:
        """Send a frame."""
        self._last_out = now
        self._emit(SendFrame(frame))

    def connect(self) -> None:
        """Begin an attempt."""
        self.at = "opening"
        self.timer("connect", None)
        self._emit(Connect())

    def greet(self) -> None:
        """From here on it is the other side that is waited for."""
        self.at = "greeting"
        self.timer("greet", GREETING_MS)

    def welcomed(self, now: int) -> None:
        """A welcome came."""
        self.timer("greet", None)
        self.timer("beat", self.interval_ms)
        self.was = True
        if self.at == "live":
            return
        self.at = "live"
        self._since = self._last_in = self._last_out = now
        self._probed = None

    def hang_up(
        self,
        at: Literal["idle", "waiting", "asking", "closed"],
        now: int,
        *,
        closed: bool = False,
    ) -> None:
        """End the connection, where there is one. ``closed``: it ended by itself."""
        before = self.at
        if not closed and before in _CONNECTED:
            self._emit(Disconnect())
        if before == "live" and now - self._since >= GOOD_MS:
            self.attempts = 0
        for name in _TIMERS:
            self.timer(name, None)
        self.at = at

    def wait(self, ms: float, now: int) -> None:
        """Try again after a while."""
        self.hang_up("waiting", now)
        self.timer("connect", ms)

    def back_off(self, now: int) -> None:
        """Try again after a random part of a bound that doubles."""
        self.hang_up("waiting", now)
        longest = LONGEST_MS if self.attempts < MANY_ATTEMPTS else SLOWLY_MS
        bound = min(longest, FIRST_MS * 2 ** min(self.attempts, 16))
        self.attempts += 1
        self.timer("connect", self._random() * bound)
        if self.attempts == MANY_ATTEMPTS:
            self._emit(Event("maxReconnectAttemptsReached", {"attempts": self.attempts}))

    def heard(self, now: int) -> None:
        """Any frame is a sign of life."""
        self._last_in = now
        self._probed = None

    def _set_back(self, now: int) -> None:
        """A clock that was set back must not make the line look fresh until it is that late."""
        self._last_in = min(self._last_in, now)
        self._last_out = min(self._last_out, now)
        if self._probed is not None:
            self._probed = min(self._probed, now)

    def probe(self, now: int) -> None:
        """Ask for a sign of life at once."""
        if self._probed is None:
            self._probed = now
        self.send({"type": "heartbeat", "t": now}, now)

    def beat(self, now: int) -> bool:
        """Look at the line; False: it is dead."""
        patience = self.timeout_ms - self.interval_ms
        self._set_back(now)
        # A process that was stopped has asked for no sign of life: its silence proves nothing.
        if self._probed is not None and now - self._probed >= patience:
            return False
        if now - self._quiet() >= self.interval_ms:
            self.probe(now)
        due = self._quiet() + self.interval_ms
        if self._probed is not None:
            due = min(due, self._probed + patience)
        self.timer("beat", max(1, due - now))
        return True

    def _quiet(self) -> int:
        """Since when one side has said nothing; while an answer is due, only this side counts."""
        return min(self._last_in, self._last_out) if self._probed is None else self._last_out
