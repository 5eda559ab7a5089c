"""Waiting for a condition, with a deadline and a reason. No test sleeps and hopes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(
    condition: Callable[[], bool | Awaitable[bool]],
    *,
    within: float,
    what: str,
    every: float = 0.01,
) -> None:
    """Returns as soon as `condition` holds; TimeoutError naming `what` after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if not isinstance(answer, bool):
            answer = await answer
        if answer:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within} s for {what}")
        await asyncio.sleep(every)
