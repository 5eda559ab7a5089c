"""Back-end code that reacts to commits (`Reattach.on_commit`): in order, at least once each.

Each reaction has a durable cursor in each session (`Store`, law 7). The transaction of a commit
marks it as due, so that none is forgotten whichever node dies; the node that made the commit goes
to work at once, and every second each node looks for what is due and held by nobody. Whoever works
holds a lease and renews it, so one node works on a session at a time; if it cannot renew it, it
stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import msgspec
import structlog

from reattach.errors import StoreError
from reattach.runtime.clock import Clock
from reattach.store.base import CommitRecord, Store
from reattach.wire import SessionRestored, StateUpdate

__all__ = ["React", "Reaction", "Reactions"]

log = structlog.get_logger("reattach.reactions")

React: TypeAlias = Callable[[str, StateUpdate | SessionRestored], Awaitable[None]]
"""Called with the id of a session and a commit."""

_LOOK_MS: Final = 1_000
_LEASE_MS: Final = 15_000
_RENEW_MS: Final = 4_000
_FIRST_PAUSE_MS: Final = 1_000
_LAST_PAUSE_MS: Final = 60_000
"""How long it takes, at most, until what failed is tried again."""
_AT_ONCE: Final = 16
"""Sessions that a node works on at a time."""
_PAGE: Final = 100

_commit: msgspec.json.Decoder[StateUpdate | SessionRestored] = msgspec.json.Decoder(
    StateUpdate | SessionRestored
)
_Key: TypeAlias = tuple[str, str]
"""A session's id and a reaction's name."""


class Reaction(msgspec.Struct, frozen=True):
    """What is called, for the commits of which schema (None: of all); the cursor is the name's."""

    name: str
    schema: str | None
    react: React


class Reactions:
    """The reactions of one node."""

    def __init__(self, store: Store, clock: Clock, owner: str, all_: Sequence[Reaction]) -> None:
        """``owner`` is what this node is called where it holds a lease."""
        self._store = store
        self._clock = clock
        self._owner = owner
        self._all = {reaction.name: reaction for reaction in all_}
        self._waiting: dict[_Key, None] = {}
        self._working: dict[_Key, asyncio.Task[None]] = {}
        self._failed: dict[_Key, int] = {}
        """How often in a row, on this node."""
        self._look: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; without reactions there is nothing to do."""
        if self._all:
            self._look = asyncio.create_task(self._look_on(), name="reattach reactions")

    async def stop(self) -> None:
        """End; what was not done yet is done by another node, or after the next start."""
        tasks = [task for task in (self._look, *self._working.values()) if task is not None]
        self._look = None
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def names(self, schema: str | None) -> tuple[str, ...]:
        """Return the reactions to commits of sessions with a schema."""
        return tuple(name for name, one in self._all.items() if one.schema in {None, schema})

    def wake(self, session_id: str, names: Sequence[str]) -> None:
        """Something was committed: go to work."""
        if self._look is None:
            return
        for name in names:
            self._waiting[session_id, name] = None
        self._begin()

    # Inside

    async def _look_on(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_MS)
            with contextlib.suppress(StoreError, OSError):
                due = await self._store.due_reactions(list(self._all), _PAGE)
                self._waiting.update(dict.fromkeys(due))
                self._begin()

    def _begin(self) -> None:
        for key in list(self._waiting):
            if len(self._working) >= _AT_ONCE:
                return
            if key not in self._working:
                del self._waiting[key]
                task = asyncio.create_task(self._work(key))
                self._working[key] = task
                task.add_done_callback(partial(self._worked, key))

    def _worked(self, key: _Key, _: asyncio.Task[None]) -> None:
        del self._working[key]
        if self._look is not None:
            self._begin()

    async def _lease(self, session_id: str, name: str) -> int | None:
        leasing = asyncio.ensure_future(
            self._store.lease_reaction(session_id, name, self._owner, _LEASE_MS)
        )
        try:
            return await asyncio.shield(leasing)
        except asyncio.CancelledError:
            # The node stops, and what was asked for is done all the same: others need not wait.
            with contextlib.suppress(StoreError, OSError):
                version = await leasing
                if version is not None:
                    await self._store.advance_reaction(session_id, name, self._owner, version, 0)
            raise

    async def _work(self, key: _Key) -> None:
        session_id, name = key
        try:
            version = await self._lease(session_id, name)
            if version is not None:
                reaction = self._all[name]
                work = _Work(self._store, self._clock, self._owner, reaction, session_id)
                await work.run(version)
            self._failed.pop(key, None)
        except (StoreError, OSError) as error:
            log.debug("a reaction waits for the database", session=session_id, error=str(error))
        except _Failed as failed:
            times = self._failed[key] = self._failed.get(key, 0) + 1
            pause = min(_FIRST_PAUSE_MS * 2 ** (times - 1), _LAST_PAUSE_MS)
            log.exception(
                "a reaction to a commit failed and is tried again",
                session=session_id,
                reaction=name,
                version=failed.version + 1,
                after_ms=pause,
                exc_info=failed.__cause__,
            )
            with contextlib.suppress(StoreError, OSError):
                await self._store.advance_reaction(
                    session_id, name, self._owner, failed.version, pause
                )


class _Failed(Exception):
    """The application's code raised its cause; the cursor stands at ``version``."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


class _Work:
    """One session's commits, brought to one reaction while its lease is held."""

    def __init__(
        self, store: Store, clock: Clock, owner: str, reaction: Reaction, session_id: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._owner = owner
        self._reaction = reaction
        self._session_id = session_id
        self._version = 0

    async def run(self, version: int) -> None:
        """React to all that came after a version, and let go of the lease."""
        self._version = version
        react = asyncio.create_task(self._react())
        renew = asyncio.create_task(self._renew())
        try:
            await asyncio.wait({react, renew}, return_when=asyncio.FIRST_COMPLETED)
            if not react.done():
                return  # the lease is lost: another node goes on
            try:
                react.result()
            except (StoreError, OSError):
                raise
            except Exception as error:
                raise _Failed(self._version) from error
        finally:
            for task in (react, renew):
                task.cancel()
            await asyncio.gather(react, renew, return_exceptions=True)
            if react.done() and (react.cancelled() or react.exception() is None):
                # Also at the end of the node: the next one need not wait for the lease to end.
                with contextlib.suppress(StoreError, OSError):
                    await self._advance(0)

    async def _react(self) -> None:
        while commits := await self._store.log(
            self._session_id, first=self._version + 1, limit=_PAGE
        ):
            for commit in commits:
                await self._react_to(commit)
            if len(commits) == _PAGE:  # else it is written at the end, or by `_renew`
                await self._advance(_LEASE_MS)

    async def _react_to(self, commit: CommitRecord) -> None:
        if commit.version != self._version + 1:
            log.warning(
                "commits are no longer in the log: a reaction goes on after them",
                session=self._session_id,
                reaction=self._reaction.name,
                after=self._version,
                version=commit.version,
            )
        await self._reaction.react(self._session_id, _commit.decode(commit.body))
        self._version = commit.version

    async def _renew(self) -> None:
        """Return when the lease is lost."""
        held_until = self._clock.monotonic() + _LEASE_MS
        while True:
            await self._clock.sleep(_RENEW_MS)
            now = self._clock.monotonic()
            try:
                if not await self._advance(_LEASE_MS):
                    return
                held_until = now + _LEASE_MS
            except (StoreError, OSError):
                if now + _RENEW_MS >= held_until:
                    return

    async def _advance(self, lease_ms: int) -> bool:
        return await self._store.advance_reaction(
            self._session_id, self._reaction.name, self._owner, self._version, lease_ms
        )
