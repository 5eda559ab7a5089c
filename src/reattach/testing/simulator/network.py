"""The network between devices and nodes: bytes that take their time, in order, or not at all.

A `Link` is one connection. To its node it is the `Line` of the runtime; its device is called back.
Either side learns of its end on its own, the node perhaps long after the device has another one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from random import Random
from typing import Any, Protocol

from reattach.core.connection import Connection
from reattach.runtime.access import User
from reattach.runtime.registry import Registry

__all__ = ["USER", "Heard", "Link", "LinkWitness"]

USER = User("u")
_CLOSE_TIMEOUT_S = 5.0
_TICK_S = 1e-6
"""What lies between two frames: timers of one moment go off in no order."""


class Heard(Protocol):
    """The device's side of a link."""

    def opened(self, link: Link) -> None:
        """The connection stands."""

    def received(self, link: Link, frame: bytes) -> None:
        """A frame came."""

    def ended(self, link: Link, code: int, reason: str) -> None:
        """The connection is gone."""


class LinkWitness(Protocol):
    """Who sees every frame that a node sends, at that moment."""

    def told(self, link: Link, frame: bytes) -> None:
        """A node sends a frame."""


class Link:
    """One connection between a device and a node; a `Line` of the runtime."""

    def __init__(
        self,
        device: Heard,
        registry: Registry,
        context: Context,
        session_id: str,
        chance: Random,
        witness: LinkWitness,
    ) -> None:
        """Begin to connect."""
        self.session_id = session_id
        self.last: int | None = None
        """The version that the node brought this line to."""
        self.epoch: str | None = None
        self.connection: Connection | None = None
        self.hello: dict[str, Any] = {}
        """What its device said first."""
        self.client_id = ""
        self.devices: list[dict[str, Any]] = []
        """The session's devices, as the node last told them."""
        self._device = device
        self._registry = registry
        self._context = context
        self._home = copy_context()
        self._witness = witness
        self._delay = chance.uniform(0.001, 0.03)
        self._loop = asyncio.get_running_loop()
        self._up_free_at = self._down_free_at = 0.0
        """Before that, nothing more arrives in this direction: bytes do not overtake each other."""
        self._paused = False
        self._waiting: deque[bytes] = deque()
        self.device_gone = False
        self.node_gone = False
        self._closing = False
        self._severed = False
        self._later(0.0, self._accept)

    # Device to node

    def _accept(self) -> None:
        if self.node_gone or self.device_gone:
            return
        self.connection = self._registry.connections.connect(self)
        self._down(self._stands)

    def _stands(self) -> None:
        if not self.device_gone:
            self._device.opened(self)

    def push(self, frame: bytes) -> None:
        """Send a frame to the node."""
        self._up(self._arrive, frame)

    def _arrive(self, frame: bytes) -> None:
        if self.node_gone or self._closing or self._severed:
            return
        if self._paused or self._waiting:
            self._waiting.append(frame)
        else:
            self._feed(frame)

    def _feed(self, frame: bytes) -> None:
        if self.connection is not None:
            self._registry.connections.feed(self.connection, self.session_id, _identify, frame)

    def hang_up(self) -> None:
        """The device closes the connection; the node hears of it in its turn."""
        self.device_gone = True
        self._up(self._left, "closed by the client")

    def _left(self, why: str) -> None:
        if not self.node_gone and self.connection is not None:
            self.node_gone = True
            self._registry.connections.disconnected(self.connection, why)

    # Node to device: what the registry calls

    def send(self, frames: Sequence[bytes]) -> None:
        """Send frames to the device."""
        if self._closing or self.node_gone:
            return
        for frame in frames:
            self._witness.told(self, frame)
            self._down(self._deliver, frame)

    def _deliver(self, frame: bytes) -> None:
        if not self.device_gone and not self._severed:
            self._device.received(self, frame)

    def close(self, code: int, reason: str) -> None:
        """Close behind what was sent; the node hears that it is done in its turn."""
        if self._closing or self.node_gone:
            return
        self._closing = True
        self._down(self._closed, code, reason)
        self._later(_CLOSE_TIMEOUT_S, self._left, "cut off")

    def _closed(self, code: int, reason: str) -> None:
        if self._severed:
            return
        gone, self.device_gone = self.device_gone, True
        self._up(self._left, "closed")
        if not gone:
            self._device.ended(self, code, reason)

    def pause(self, paused: bool) -> None:
        """Stop reading from the device, or go on."""
        self._paused = paused
        if not paused and self._waiting:
            self._later(0.0, self._catch_up)

    def _catch_up(self) -> None:
        while self._waiting and not self._paused and not self.node_gone:
            self._feed(self._waiting.popleft())

    def ping(self) -> None:
        """Ask the device's machine for a sign of life: no application answers."""
        self._down(self._pong)

    def _pong(self) -> None:
        if not self.device_gone:
            self._up(self._alive)

    def _alive(self) -> None:
        if not self.node_gone and self.connection is not None:
            self._registry.connections.heard(self.connection)

    # What befalls it

    def cut(self, device_after: float | None, node_after: float | None) -> None:
        """Lose what is under way; each side hears of it after so many seconds, or None: never."""
        self._severed = True
        self._up_free_at = self._down_free_at = float("inf")
        if device_after is not None:
            self._loop.call_later(device_after, self._lost_to_device, context=self._home)
        if node_after is not None:
            self._later(node_after, self._left, "connection lost")

    def _lost_to_device(self) -> None:
        gone, self.device_gone = self.device_gone, True
        if not gone:
            self._device.ended(self, 1006, "connection lost")

    def stall(self, seconds: float, *, up: bool, down: bool) -> None:
        """Deliver nothing for so long, in one direction or both."""
        until = self._loop.time() + seconds
        if up:
            self._up_free_at = max(self._up_free_at, until)
        if down:
            self._down_free_at = max(self._down_free_at, until)

    @property
    def severed(self) -> bool:
        """Whether nothing goes through it any more, whoever knows of that."""
        return self._severed

    @property
    def over(self) -> bool:
        """Whether both sides know that it is gone."""
        return self.device_gone and self.node_gone

    # Inside

    def _up(self, act: Callable[..., None], *args: object) -> None:
        self._up_free_at = at = max(self._up_free_at + _TICK_S, self._loop.time() + self._delay)
        if at != float("inf"):
            self._loop.call_at(at, act, *args, context=self._context)

    def _down(self, act: Callable[..., None], *args: object) -> None:
        self._down_free_at = at = max(self._down_free_at + _TICK_S, self._loop.time() + self._delay)
        if at != float("inf"):
            self._loop.call_at(at, act, *args, context=self._home)

    def _later(self, delay: float, act: Callable[..., None], *args: object) -> None:
        self._loop.call_later(delay, act, *args, context=self._context)


async def _identify(_: str | None) -> User:
    return USER
