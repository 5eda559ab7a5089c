"""A bus between the nodes of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reattach.bus.base import Listener, Note

__all__ = ["LocalBus"]


class LocalBus:
    """Hands each note to every listener, in order."""

    def __init__(self) -> None:
        """Begin without listeners."""
        self._listeners: list[Listener] = []

    def publish(self, note: Note) -> None:
        """Tell every listener, soon."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.call_soon(listener, note)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; call what is returned to remove it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
