"""Several processes behind one address, each a node of its own (``reattach serve --workers``).

They share the listening sockets, so whichever is free takes the next connection, and one that
stands still takes none. The parent serves nothing: it starts them, starts again what died, and
passes on the wish to end. If the parent is killed, they end in good order, too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

import structlog

__all__ = ["Work", "Workers"]

log = structlog.get_logger("reattach.workers")

Work = Callable[[int, Sequence[socket.socket], Callable[[], None]], int]
"""What a worker does, given its number (from 1), the sockets and whom to tell that it serves:
returns its exit code.

It has to be picklable: it is called in a new process.
"""

_FIRST_PAUSE_S: Final = 0.5
_LAST_PAUSE_S: Final = 10.0
"""How long it takes, at most, until one that dies again and again is started anew."""
_STEADY_S: Final = 30.0
"""Whoever lived so long did not die of its start."""


class Workers:
    """The parent. ``grace`` is how many seconds a worker has to end, once it is asked to."""

    def __init__(
        self,
        count: int,
        work: Work,
        sockets: Sequence[socket.socket],
        *,
        ready: Callable[[], None],
        grace: float,
    ) -> None:
        """Describe them; ``ready`` is called once, when all of them serve."""
        self._work = work
        self._sockets = sockets
        self._ready = ready
        self._grace = grace
        self._workers = [_Worker(number + 1) for number in range(count)]
        self._told = False
        self._ending = False

    def run(self) -> int:
        """Run until a signal comes, and return the exit code; no worker is left behind."""
        with _signals() as woken:
            try:
                for worker in self._workers:
                    worker.start(self._work, self._sockets)
                return self._look_after(woken)
            finally:
                self._end()

    def _look_after(self, woken: int) -> int:
        while True:
            due = [worker.due for worker in self._workers if worker.process is None]
            timeout = max(0.0, min(due) - time.monotonic()) if due else None
            waiting = [one for worker in self._workers for one in worker.waiting()]
            happened = wait([woken, *waiting], timeout)
            if woken in happened:
                return 0
            for worker in self._workers:
                code = worker.look()
                if code is not None and not self._told:
                    # It said itself what is in the way.
                    return code or 1
                if worker.process is None and worker.due <= time.monotonic():
                    worker.start(self._work, self._sockets)
            if not self._told and all(worker.serves for worker in self._workers):
                self._told = True
                self._ready()

    def _end(self) -> None:
        for worker in self._workers:
            worker.terminate()
        deadline = time.monotonic() + self._grace
        for worker in self._workers:
            worker.join(deadline)


class _Worker:
    """One of them, over all its lives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: BaseProcess | None = None
        self.serves = False
        self.due = 0.0
        """When it is to be started again, where it does not live."""
        self._news: Connection | None = None
        self._begun = 0.0
        self._pause = _FIRST_PAUSE_S

    def start(self, work: Work, sockets: Sequence[socket.socket]) -> None:
        """Begin a life."""
        # Not forked: an event loop, threads and locks of the parent would come along.
        context = multiprocessing.get_context("spawn")
        self._news, its = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_live, args=(self.number, work, sockets, its), name=f"worker {self.number}"
        )
        self._begun = time.monotonic()
        self.process.start()
        its.close()

    def waiting(self) -> list[Any]:
        """Return what tells that something happened to it."""
        news = [] if self._news is None else [self._news]
        return news if self.process is None else [*news, self.process.sentinel]

    def look(self) -> int | None:
        """See what happened; the exit code of one that has just ended."""
        if self._news is not None and self._news.poll():
            with contextlib.suppress(EOFError):
                self.serves = bool(self._news.recv())
            self._news.close()
            self._news = None
        process = self.process
        if process is None or process.is_alive():
            return None
        process.join()
        code = process.exitcode or 0
        process.close()
        self.process, self.serves = None, False
        now = time.monotonic()
        self._pause = _FIRST_PAUSE_S if now - self._begun > _STEADY_S else 2 * self._pause
        self._pause = min(self._pause, _LAST_PAUSE_S)
        self.due = now + self._pause
        log.error("a worker ended and is started again", worker=self.number, code=code)
        return code

    def terminate(self) -> None:
        """Ask it to end; one that stands still is asked when it goes on."""
        if self.process is not None:
            self.process.terminate()

    def join(self, deadline: float) -> None:
        """Wait until it has ended; beyond the deadline it is killed."""
        if self.process is None:
            return
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.is_alive():
            log.error("a worker does not end, and is killed", worker=self.number)
            self.process.kill()
            self.process.join()
        self.process.close()
        self.process = None


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Give a file descriptor that can be read when SIGTERM or SIGINT has come."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def note(_: int, __: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writing, b"!")

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _live(number: int, work: Work, sockets: Sequence[socket.socket], news: Connection) -> None:
    """Be a worker, in its process."""
    structlog.contextvars.bind_contextvars(worker=number)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    raise SystemExit(work(number, sockets, lambda: news.send(True)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
