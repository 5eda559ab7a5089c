"""A writer of streamed text: what a model says, token by token, as few commits."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from reattach.core.document import ABSENT
from reattach.core.effects import Request
from reattach.core.merge import Merge
from reattach.core.paths import join, parse
from reattach.core.text import shift
from reattach.errors import ChangeRefused, ReattachError, Unavailable
from reattach.runtime.registry import Registry
from reattach.wire import Op

__all__ = ["TextWriter"]

_PAUSE_MS = 50
"""At most 20 commits a second."""


class TextWriter:
    """Appends to one text of a session, where its own last word stands, whoever else types there.

    `write` returns at once with what was written before on its way; leaving the ``async with``
    block returns when everything is durable. What fails is raised by the next `write` or by the
    end of the block, and nothing is written twice.
    """

    def __init__(self, registry: Registry, session_id: str, path: str, user_id: str | None) -> None:
        self._registry = registry
        self._session_id = session_id
        self._path = parse(path)
        self._user_id = user_id
        self._waiting: list[str] = []
        self._wake = asyncio.Event()
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._at: tuple[int, int] | None = None
        """The version that was written last, and where its text ended; None: at the end."""
        self._next: tuple[int, int] | None = None
        """The same of what is being written."""

    async def __aenter__(self) -> Self:
        """Begin to write at the end of the text."""
        self._task = asyncio.create_task(self._run(), name="reattach text writer")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Return when all that was written is durable."""
        self._ended = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def write(self, text: str) -> None:
        """Add text; raises what kept earlier text from being written, such as `ChangeRefused`."""
        if self._task is None:
            raise RuntimeError("expected to be inside the writer's `async with` block")
        if self._task.done():
            await self._task
        self._waiting.append(text)
        self._wake.set()
        await asyncio.sleep(0)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            text = "".join(self._waiting)
            self._waiting.clear()
            if text:
                await self._commit(text)
            if self._ended and not self._waiting:
                return
            if not self._ended:
                await self._registry.clock.sleep(_PAUSE_MS)

    async def _commit(self, text: str) -> None:
        """Write text once, however often the database has to be asked."""
        request: Request | None = None
        while True:
            try:
                host = await self._registry.open(self._session_id)
                if request is not None and await self._was_written(request):
                    self._at = None
                    return
                request = await self._registry.request(
                    host, edit=lambda merge: self._append(merge, text), user_id=self._user_id
                )
                await host.insist(request)
            except Unavailable as error:
                if self._registry.stopping:
                    raise
                await self._registry.clock.sleep(error.retry_after_ms)
            else:
                self._at = self._next
                return

    async def _was_written(self, request: Request) -> bool:
        """Whether a change whose answer was lost took effect."""
        while True:
            try:
                decision = await self._registry.store.decision(
                    self._session_id, request.proposal.client_id, request.number
                )
            except ReattachError:
                await self._registry.clock.sleep(_PAUSE_MS)
            else:
                return decision is not None and decision.client_at == request.at

    def _append(self, merge: Merge, text: str) -> None:
        current = merge.document.read(self._path)
        if current is not ABSENT and type(current) is not str:
            raise ChangeRefused("expected a text", code="not_a_string", path=join(self._path))
        end = 0 if current is ABSENT else len(current)
        at = end if self._at is None else self._moved(merge, *self._at, end)
        pointer = join(self._path)
        merge.apply(Op(op="splice", path=pointer, index=at, delete=0, insert=text))
        # Not yet: the batch may be decided again.
        self._next = merge.version, at + len(text)

    def _moved(self, merge: Merge, version: int, at: int, end: int) -> int:
        """Return where this writer's text ends after what others did since a version."""
        history = merge.texts.find(self._path)
        if history is None or history.floor > version:
            return end
        for entry in history.since(version):
            at = shift(at, entry.done)
        return min(at, end)
