"""Time and chance, handed to all that needs them, so that a simulator can hand in its own."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the runtime needs from the world beside the database."""

    def now(self) -> int:
        """Return the time, in milliseconds since 1970."""

    def monotonic(self) -> int:
        """Return milliseconds that only grow, from some start."""

    async def sleep(self, ms: int) -> None:
        """Wait."""

    def new_id(self) -> str:
        """Return a random id."""


class SystemClock:
    """The machine's own."""

    def now(self) -> int:
        """Return the time, in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> int:
        """Return milliseconds that only grow, from some start."""
        return time.monotonic_ns() // 1_000_000

    async def sleep(self, ms: int) -> None:
        """Wait."""
        await asyncio.sleep(ms / 1000)

    def new_id(self) -> str:
        """Return a random UUID."""
        return str(uuid.uuid4())
