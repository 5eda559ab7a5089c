"""An event loop whose time is its own: it jumps to the next timer as soon as nothing else is left.

A minute of a story costs what happens in it, and one seed gives one order of events: there are no
sockets, no threads and no signals. The loop is asyncio's own `BaseEventLoop`, which asks a selector
how long it may sleep; this one does not sleep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any

__all__ = ["Asleep", "Owner", "VirtualLoop"]


class Asleep(RuntimeError):
    """Nothing is left that could ever happen: who still waits, waits for ever."""


class Owner:
    """Whose tasks end together: a process. Tasks that its tasks start are its own, too."""

    _current: ContextVar[Owner | None] = ContextVar("owner", default=None)

    def __init__(self) -> None:
        """Own nothing yet."""
        self.tasks: dict[asyncio.Task[Any], None] = {}

    def enter(self) -> None:
        """Make what the current context starts from now on its own."""
        self._current.set(self)

    def kill(self) -> None:
        """End all of its tasks, in the order in which they were started."""
        for task in list(self.tasks):
            task.cancel()

    @classmethod
    def adopt(cls, task: asyncio.Task[Any]) -> None:
        """Give a new task to the owner of the context that starts it."""
        owner = cls._current.get()
        if owner is not None:
            owner.tasks[task] = None
            task.add_done_callback(owner.tasks.pop)


class VirtualLoop(asyncio.BaseEventLoop):
    """Time starts at 0 s, and passes only when everybody waits."""

    def __init__(self) -> None:
        """Begin at 0."""
        super().__init__()
        self._seconds = 0.0
        self._clock_resolution = 1e-6
        # What BaseEventLoop expects of its subclasses: how to wait, and for what.
        self._selector = self
        self.set_task_factory(_owned)
        self.faults: list[dict[str, Any]] = []
        """What went wrong in callbacks and in tasks that nobody awaited."""
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        """Return the seconds since the loop was made."""
        return self._seconds

    def select(self, timeout: float | None) -> list[Any]:
        """Let the time until the next timer pass at once."""
        if timeout is None:
            raise Asleep("nothing is left that could happen, and somebody still waits")
        self._seconds += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none: nothing comes from outside."""

    def _write_to_self(self) -> None:
        """There are no other threads to be woken by."""


def _owned(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    Owner.adopt(task)
    return task
