"""Sessions for the server's own code, in process, with the guarantees that every client has.

commit = await reattach.sessions.update(session_id, [{"op": "inc", "path": "/n", "by": 1}])
async for commit in reattach.sessions.changes(session_id, after=commit.version):
...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec

from reattach.core.merge import Merge
from reattach.core.session import apply_ops
from reattach.errors import BadRequest, Unavailable, VersionGone
from reattach.runtime.access import User
from reattach.runtime.credentials import Begun, begin
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.store.base import CommitRecord, SessionRecord
from reattach.wire import Op, SessionRestored, StateUpdate
from reattach.writer import TextWriter

__all__ = ["Begun", "Commit", "Sessions", "Snapshot"]

Commit: TypeAlias = StateUpdate | SessionRestored
"""A commit: its ``version``, ``patch`` (RFC 6902 and text), ``by``, ``at`` and ``conflicts``."""

Ops: TypeAlias = Sequence[Mapping[str, Any]]
"""Operations of the protocol's section 3, as plain dicts."""

_commit: msgspec.json.Decoder[Commit] = msgspec.json.Decoder(Commit)
_PAGE = 100


class Snapshot(msgspec.Struct, frozen=True):
    """A session at one moment: ``state`` is the caller's own copy."""

    session: SessionRecord
    version: int
    state: dict[str, Any]


class Sessions:
    """What `Reattach.sessions` is. ``running`` returns the registry, started."""

    def __init__(self, running: Callable[[], Any]) -> None:
        self._running = running

    async def create(
        self,
        state: dict[str, Any] | None = None,
        *,
        user_id: str,
        session_id: str | None = None,
        schema: str | None = None,
    ) -> Snapshot:
        """Create a session that ``user_id`` owns; raises `AlreadyExists` when the id is taken."""
        registry: Registry = await self._running()
        record = await registry.create(
            User(user_id), session_id=session_id, state=state, schema=schema
        )
        return await self.get(record.session_id)

    async def begin(
        self,
        state: dict[str, Any] | None = None,
        *,
        session_id: str | None = None,
        schema: str | None = None,
    ) -> Begun:
        """Create a session for somebody who has not signed in, as ``--anonymous`` lets them do it.

        ``token`` opens this session alone, and ``claim_secret`` makes it a user's who has signed in
        since. Both are told this once. Raises `AlreadyExists` when the id is taken.
        """
        registry: Registry = await self._running()
        return await begin(registry, session_id=session_id, state=state, schema=schema)

    async def get(self, session_id: str) -> Snapshot:
        """Read a session as it is durably; raises `SessionNotFound`."""
        registry: Registry = await self._running()
        host = await registry.open(session_id)
        await registry.nodes.keep_up(host)
        if host.closed:
            host = await registry.open(session_id)
        record, state = await host.at_rest(lambda room: (room.recorded, room.state()))
        return Snapshot(record, record.version, msgspec.json.decode(state))

    async def list(self, user_id: str) -> AsyncIterator[SessionRecord]:
        """Go through a user's sessions, newest activity first."""
        registry: Registry = await self._running()
        after: str | None = None
        while True:
            page = await registry.store.sessions(user_id, after, _PAGE)
            for record in page.items:
                yield record
            if page.next is None:
                return
            after = page.next

    async def update(
        self,
        session_id: str,
        change: Ops | Callable[[dict[str, Any]], Ops],
        *,
        user_id: str | None = None,
    ) -> Commit:
        """Commit operations on the newest state; returns when they are durable.

        ``change`` is a list of operations, or a function from the state (its own copy) to one,
        called when the change's turn has come. Raises `ChangeRefused` with the protocol's code.
        """
        registry: Registry = await self._running()
        host = await self._host(session_id)

        def edit(merge: Merge) -> None:
            ops = change
            if callable(ops):
                copy = msgspec.json.decode(msgspec.json.encode(merge.document.state))
                ops = ops(copy)
            apply_ops(_to_ops(ops))(merge)

        request = await registry.request(host, edit=edit, user_id=user_id)
        result = await host.submit(request)
        if not isinstance(result.decision, CommitRecord):
            raise Unavailable("the change was stored, and its commit is no longer at hand")
        return _commit.decode(result.decision.body)

    async def changes(self, session_id: str, *, after: int | None = None) -> AsyncIterator[Commit]:
        """Go through a session's commits after a version, and on as they become durable.

        ``after`` None begins with the next one. Each comes once, in order, without a gap. Ends
        when the session ends; raises `SessionNotFound` when it is erased, `VersionGone` where the
        log no longer reaches back to ``after``.
        """
        registry: Registry = await self._running()
        host = await self._host(session_id)
        at = host.room.recorded.version if after is None else after
        woken = asyncio.Event()
        while True:
            host.watchers.add(woken)
            host.pins += 1
            try:
                while not host.closed:
                    woken.clear()
                    commits = await registry.store.log(session_id, first=at + 1, limit=_PAGE)
                    for commit in commits:
                        if commit.version != at + 1:
                            raise VersionGone(f"the log begins after version {at + 1}")
                        at = commit.version
                        yield _commit.decode(commit.body)
                    if not commits:
                        if host.room.ended:
                            return
                        await woken.wait()
            finally:
                host.watchers.discard(woken)
                host.pins -= 1
            host = await self._host(session_id)

    @asynccontextmanager
    async def text(
        self, session_id: str, path: str, *, user_id: str | None = None
    ) -> AsyncIterator[TextWriter]:
        """Write streamed text behind the one at a path, as at most 20 commits a second::

            async with reattach.sessions.text("draft-7", "/answer") as out:
                async for token in model:
                    await out.write(token)

        What others type into it meanwhile stays, and what is written goes on where it was. The
        block ends when all is durable. Raises what refuses it, such as `ChangeRefused`.
        """
        registry: Registry = await self._running()
        async with TextWriter(registry, session_id, path, user_id) as writer:
            yield writer

    async def erase(self, session_id: str) -> None:
        """Erase a session with its whole history."""
        registry: Registry = await self._running()
        await registry.erase(session_id)

    async def _host(self, session_id: str) -> Host:
        registry: Registry = await self._running()
        return await registry.open(session_id)


def _to_ops(ops: Ops) -> list[Op]:
    # By way of JSON: the state must not share objects with the caller.
    try:
        return msgspec.json.decode(msgspec.json.encode(ops), type=list[Op])
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise BadRequest(f"expected a list of operations: {error}", code="bad_op") from None
