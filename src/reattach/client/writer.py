"""A writer that streams into a text: an answer of a model, a log, a transcript."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from reattach.client.changes import Change
from reattach.client.core import ClientCore
from reattach.client.replica import Cursor
from reattach.core.values import check
from reattach.errors import SessionClosed

__all__ = ["TextWriter"]

EVERY_S: Final = 0.05
"""Between two commits: at most 20 a second."""
PIECE: Final = 16_384
"""Code points of one commit at most, so that it stays well below what a change may weigh."""


class TextWriter:
    """Adds to a text, wherever it stands by then: ``async with session.text("/answer") as out``.

    What is written is gathered into at most 20 commits a second. It begins at the end of the text,
    and each piece goes right behind the one before, whatever others write into the text meanwhile.
    Leaving the block waits until the server has all of it; leaving it by an exception puts what was
    written into the outbox, and does not wait.
    """

    def __init__(
        self,
        core: ClientCore,
        change: Callable[[Sequence[Mapping[str, Any]]], Change],
        path: str,
    ) -> None:
        self.path = path
        self._core = core
        self._change = change
        self._cursor: Cursor | None = None
        self._gathered: list[str] = []
        self._length = 0
        """Code points in ``_gathered``."""
        self._timer: asyncio.TimerHandle | None = None
        self._last = float("-inf")
        """When the last commit was made, in the event loop's time."""
        self._made = asyncio.Event()
        self._undecided: set[Change] = set()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        """Find the end of the text."""
        self._cursor = self._core.cursor(self.path)
        return self

    async def write(self, text: str) -> None:
        """Add text. Waits while more than one commit's worth of it is gathered.

        Raises `ChangeRefused` where the text is none (a lone surrogate), or where an earlier piece
        was refused: by the server (it is in ``session.rejected``) or here, because there is no
        place for a text at the path any more.
        """
        check(text, depth=0, path=self.path)
        if self._cursor is None:
            raise SessionClosed("expected to write within `async with session.text(…)`")
        self._raise()
        if text:
            self._gathered.append(text)
            self._length += len(text)
            self._schedule()
        while self._length > PIECE:
            await self._next()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See the class."""
        try:
            if kind is None:
                while self._length:
                    await self._next()
                while self._undecided:
                    await next(iter(self._undecided))
                self._raise()
        finally:
            # Whatever ended the block: what was written is on its way.
            while self._length and self._failure is None:
                self._make()
            if self._timer is not None:
                self._timer.cancel()
            if self._cursor is not None:
                self._core.drop(self._cursor)
                self._cursor = None

    async def _next(self) -> None:
        self._raise()
        self._made.clear()
        await self._made.wait()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _schedule(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._last + EVERY_S), self._due)

    def _due(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        self._make()
        if self._length and self._failure is None:
            self._schedule()

    def _make(self) -> None:
        """Make one commit of what was gathered."""
        cursor = self._cursor
        if cursor is None:
            raise AssertionError("a writer is used within its block")
        text = "".join(self._gathered)
        piece, rest = text[:PIECE], text[PIECE:]
        op = {"op": "splice", "path": self.path, "index": cursor.pos, "delete": 0, "insert": piece}
        try:
            change = self._change([op])
        except Exception as error:  # noqa: BLE001 - whoever writes or leaves the block is told
            self._failure = error
        else:
            cursor.pos += len(piece)
            self._gathered = [rest] if rest else []
            self._length = len(rest)
            self._undecided.add(change)
            change.acknowledged.add_done_callback(lambda done: self._decided(change, done))
        self._made.set()

    def _decided(self, change: Change, done: asyncio.Future[None]) -> None:
        self._undecided.discard(change)
        if not done.cancelled() and (error := done.exception()) is not None:
            self._failure = self._failure or error
