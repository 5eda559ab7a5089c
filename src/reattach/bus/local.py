"""A bus between the nodes of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reattach.bus.base import Counts, Listener, Message

__all__ = ["LocalBus"]


class LocalBus:
    """Hands each message to every listener, in order."""

    live = True

    def __init__(self) -> None:
        """Begin without listeners."""
        self.counts = Counts()
        self._listeners: list[Listener] = []

    async def open(self, identity: str) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close: other nodes may go on."""

    def publish(self, message: Message) -> None:
        """Tell every listener, soon."""
        self.counts.sent += 1
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.call_soon(listener, message)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; call what is returned to remove it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def watch(self, session_id: str) -> None:
        """Everything is heard anyway."""

    def unwatch(self, session_id: str) -> None:
        """Everything is heard anyway."""
