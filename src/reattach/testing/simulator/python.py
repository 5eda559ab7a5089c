"""The Python client's core with its disk, as a `Peer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import msgspec

from reattach.client.core import ClientCore
from reattach.client.effects import (
    AskHistory,
    Closed,
    Connect,
    Decided,
    Disconnect,
    Effect,
    Event,
    FrameReceived,
    History,
    Kept,
    Loaded,
    Network,
    Opened,
    Row,
    SendFrame,
    SetTimer,
    Store,
    Stored,
    StoreFailed,
    TimerFired,
)
from reattach.errors import ChangeRefused
from reattach.testing.simulator.peers import Effects, Look, Refused, View

__all__ = ["PythonPeer"]


class PythonPeer:
    """A client in this process. Its rows are kept as bytes, as a file would keep them."""

    def __init__(self, name: str, *, seed: int, create: Any) -> None:
        """Make one with an empty disk."""
        self.view = View()
        self._name = name
        self._create = create
        self._chance = Random(seed)
        self._rows: dict[str, bytes] = {}
        self._copies: dict[str, dict[str, bytes]] = {}
        self._writing: Sequence[Row] = ()
        self._boots = self._ids = 0
        self._core: ClientCore | None = None
        self._shown: tuple[str | None, int | None] = (None, None)

    def boot(self, now: int) -> Effects:
        """Start a core from the disk."""
        self._boots += 1
        self._ids = 0
        self._writing = ()
        self._shown = (None, None)
        self._core = ClientCore(
            new_id=self._new_id, random=self._chance.random, create=self._create
        )
        rows = {key: msgspec.json.decode(value) for key, value in self._rows.items()}
        return self._told(self._core.step(Loaded(rows or None, self._name), now))

    def step(self, given: Mapping[str, Any], now: int) -> Effects:
        """Give it an input."""
        make = _INPUTS.get(given["type"])
        if make is None:
            return ()
        return self._told(self._running.step(make(given), now))

    def change(self, ops: Sequence[Mapping[str, Any]], ref: str, now: int) -> Effects:
        """Have its user make a change."""
        try:
            effects = self._running.change(ops, ref, now)
        except ChangeRefused as refused:
            raise Refused(refused.code) from None
        return self._told(effects)

    def take(self, now: int) -> None:
        """Begin a transaction: what it writes was said when it was asked for."""

    def commit(self) -> None:
        """Have it on the disk."""
        for key, value in self._writing:
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = msgspec.json.encode(value)
        self._writing = ()

    def save(self, copy: str) -> None:
        """Copy the disk."""
        self._copies[copy] = dict(self._rows)

    def put_back(self, copy: str) -> None:
        """Make the disk that of then."""
        self._rows = dict(self._copies[copy])

    def look(self) -> Look:
        """Look at the screen."""
        core = self._running
        shown = msgspec.json.decode(msgspec.json.encode(core.state)) if core.known else None
        return Look(shown, list(core.conflicts))

    @property
    def _running(self) -> ClientCore:
        assert self._core is not None, "expected a core that was started"
        return self._core

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self._name}.{self._boots}.{self._ids}"

    def _told(self, effects: Sequence[Effect]) -> Effects:
        core = self._running
        self.view = view = View(
            core.client_id,
            core.status.connection,
            core.epoch if core.known else None,
            core.version if core.known else None,
            [(one.ref, one.change["seq"], one.stored) for one in core.pending],
            list(core.rejected),
        )
        stands = view.epoch, view.version
        if stands != self._shown:
            self._shown = stands
            view.state = msgspec.json.decode(msgspec.json.encode(core.confirmed_state))
        told = [self._plain(effect) for effect in effects]
        return [one for one in told if one is not None]

    def _plain(self, effect: Effect) -> dict[str, Any] | None:
        if type(effect) is SendFrame:
            return {"type": "send", "frame": effect.frame, "ref": self._ref(effect.frame)}
        if type(effect) is SetTimer:
            return {"type": "timer", "name": effect.name, "ms": effect.ms}
        if type(effect) is Store:
            # Rows are made to bytes at once: what the core does to them later is not in them.
            self._writing = [
                (key, None if value is None else msgspec.Raw(msgspec.json.encode(value)))
                for key, value in effect.writes
            ]
            return {"type": "store"}
        if type(effect) is Connect:
            return {"type": "connect"}
        if type(effect) is Disconnect:
            return {"type": "disconnect"}
        if type(effect) is AskHistory:
            return {
                "type": "history",
                "clientId": effect.client_id,
                "from": effect.from_version,
            }
        if type(effect) is Kept:
            return {"type": "kept", "ref": effect.ref, "durable": effect.durable}
        if type(effect) is Decided:
            return {"type": "decided", "ref": effect.ref, "error": effect.error}
        if type(effect) is Event:
            return {"type": "event", "event": {"type": effect.type, "detail": effect.detail}}
        return None

    def _ref(self, frame: Mapping[str, Any]) -> str | None:
        if frame["type"] != "change":
            return None
        pending = self._running.pending
        return next((one.ref for one in pending if one.change["seq"] == frame["seq"]), None)


_INPUTS: Mapping[str, Any] = {
    "opened": lambda _: Opened(),
    "frame": lambda given: FrameReceived(given["frame"]),
    "closed": lambda given: Closed(given["code"], given["reason"]),
    "timer": lambda given: TimerFired(given["name"]),
    "stored": lambda _: Stored(),
    "store_failed": lambda given: StoreFailed(given["message"]),
    "history": lambda given: History(given["commits"]),
    "network": lambda given: Network(given["online"]),
}
