"""A core with a simulated line and outbox: what it sends is kept, what the server says is fed by
the test, frame by frame; a clock that stands still; ids and random numbers that are known.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from reattach.client.core import ClientCore
from reattach.client.effects import (
    AskHistory,
    Changed,
    Closed,
    Connect,
    Decided,
    Disconnect,
    Effect,
    Event,
    FrameReceived,
    History,
    Input,
    Kept,
    Loaded,
    Opened,
    SendFrame,
    SetTimer,
    Store,
    Stored,
    StoreFailed,
    TimerFired,
)

Frame = dict[str, Any]
Rows = dict[str, Any]

_names = (f"d{number}" for number in itertools.count(1))


def set_(path: str, value: Any) -> Frame:
    return {"op": "set", "path": path, "value": value}


def inc(path: str, by: float = 1) -> Frame:
    return {"op": "inc", "path": path, "by": by}


def splice(path: str, index: int, delete: int, insert: str) -> Frame:
    return {"op": "splice", "path": path, "index": index, "delete": delete, "insert": insert}


def replaced(path: str, value: Any) -> Frame:
    return {"op": "replace", "path": path, "value": value}


def added(path: str, value: Any) -> Frame:
    return {"op": "add", "path": path, "value": value}


def commit(version: int, *patch: Frame, by: Mapping[str, Any] | None = None, **more: Any) -> Frame:
    return {
        "type": "state_update",
        "version": version,
        "patch": list(patch),
        "by": {"client_id": "other", "seq": 1, **(by or {})},
        "at": 1,
        **more,
    }


class Device:
    """`rows` is its outbox; another `Device` on the same rows is the same client, started anew."""

    def __init__(self, rows: Rows | None = None, *, durable: bool = True, **options: Any) -> None:
        self.name = next(_names)
        self.rows = {} if rows is None else rows
        self.durable = durable
        self.now = 1_000_000
        self.random = 0.5
        self.failing = ""
        """The outbox's own answer, for a while: what it fails with."""
        self.slow = False
        """Transactions do not end by themselves: `finish` ends them."""
        self.connected = False
        self.connects = 0
        self.sent: list[Frame] = []
        self.events: list[Event] = []
        self.kept: list[tuple[str, bool]] = []
        self.decided: list[tuple[str, str | None]] = []
        self.asked: AskHistory | None = None
        self.timers: dict[str, float] = {}
        self.transactions = 0
        self._writing: list[tuple[str, Any]] | None = None
        self._refs = itertools.count(1)
        ids = itertools.count(1)
        self.core = ClientCore(
            new_id=lambda: f"{self.name}-id{next(ids)}", random=lambda: self.random, **options
        )

    def start(self) -> Self:
        rows = json.loads(json.dumps(self.rows)) if self.rows else None
        self.feed(Loaded(rows, self.name, durable=self.durable))
        return self

    def join(self, state: Frame | None = None, **welcome: Any) -> Self:
        """Connects, and is welcomed with a state."""
        self.start()
        self.open()
        self.welcome(state or {}, **welcome)
        return self

    def open(self, token: str | None = None) -> None:
        assert self.connected, "expected a connection to be wanted"
        self.feed(Opened(token))

    def reopen(self) -> None:
        """Lets the clock run until the next attempt, and lets that one succeed."""
        self.advance(max(0, self.timers.get("connect", self.now) - self.now))
        self.open()

    def welcome(self, state: Frame, **welcome: Any) -> None:
        self.frame(
            {
                "type": "initial_state",
                "epoch": "E",
                "version": 0,
                "state": state,
                "seq": 0,
                "seq_at": None,
                "reconnect_jitter_ms": 1_000,
                "heartbeat": {"interval_ms": 5_000, "timeout_ms": 15_000},
                **welcome,
            }
        )

    def resumed(self, *commits: Frame, **welcome: Any) -> None:
        version = commits[-1]["version"] if commits else self.core.version
        frame = {"type": "resumed", "epoch": "E", "version": version, "seq": 0, "seq_at": None}
        self.frame({**frame, "commits": list(commits), **welcome})

    def frame(self, frame: Frame) -> None:
        self.feed(FrameReceived(copy.deepcopy(frame)))

    def acknowledge(self, version: int, seq: int, *patch: Frame) -> None:
        """Commits a change of this client with this patch."""
        self.frame(commit(version, *patch, by={"client_id": self.core.client_id, "seq": seq}))

    def change(self, *ops: Frame) -> str:
        ref = f"{self.name}-r{next(self._refs)}"
        self.run(self.core.change(ops, ref, self.now))
        return ref

    def feed(self, given: Input) -> None:
        self.run(self.core.step(given, self.now))

    def close(self, code: int, reason: str = "") -> None:
        self.connected = False
        self.feed(Closed(code, reason))

    def history(self, *commits: Frame) -> None:
        self.feed(History(list(commits)))

    def advance(self, ms: float) -> None:
        """Lets the clock run; timers go off in their order."""
        until = self.now + ms
        while due := [name for name, at in self.timers.items() if at <= until]:
            name = min(due, key=lambda one: self.timers[one])
            self.now = max(self.now, int(self.timers.pop(name)))
            self.feed(TimerFired(name))  # type: ignore[arg-type] # the core's own name
        self.now = int(until)

    def run(self, effects: Sequence[Effect]) -> None:
        stored = False
        for effect in effects:
            match effect:
                case Connect():
                    self.connected = True
                    self.connects += 1
                case Disconnect():
                    self.connected = False
                case SendFrame(frame):
                    self.sent.append(copy.deepcopy(frame))
                case SetTimer(name, None):
                    self.timers.pop(name, None)
                case SetTimer(name, ms):
                    assert ms is not None
                    self.timers[name] = self.now + ms
                case Event():
                    self.events.append(copy.deepcopy(effect))
                case Kept(ref, durable):
                    self.kept.append((ref, durable))
                case Decided(ref, error):
                    self.decided.append((ref, None if error is None else error["code"]))
                case AskHistory():
                    self.asked = effect
                case Store(writes):
                    assert self._writing is None, "two transactions at a time"
                    self._writing = json.loads(json.dumps(writes))
                    self.transactions += 1
                    stored = not self.slow
                case Changed():
                    pass
        if stored:
            self.finish()

    def finish(self) -> None:
        """Ends the transaction under way."""
        writes, self._writing = self._writing, None
        assert writes is not None
        if self.failing:
            self.feed(StoreFailed(self.failing))
            return
        for key, value in writes:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        self.feed(Stored())

    def linked(self) -> bool:
        """Whether it has a connection, or is making one."""
        return self.connected

    def connection(self) -> str:
        return self.core.status.connection

    @property
    def changes(self) -> list[Frame]:
        return [frame for frame in self.sent if frame["type"] == "change"]

    @property
    def hello(self) -> Frame:
        return next(frame for frame in reversed(self.sent) if frame["type"] == "hello")

    @property
    def shown(self) -> Frame:
        return copy.deepcopy(self.core.state)

    @property
    def confirmed(self) -> Frame:
        return copy.deepcopy(self.core.confirmed_state)

    def events_of(self, kind: str) -> list[Any]:
        return [event.detail for event in self.events if event.type == kind]


def has(given: Mapping[str, Any], **wanted: Any) -> bool:
    """Whether a frame has these members."""
    return all(given.get(name) == value for name, value in wanted.items())
