"""Hold what was answered against the schema, as it is answered."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from reattach import ReattachError, Sessions, Snapshot
from reattach.errors import SessionErased, SessionNotFound

from . import gaps

__all__ = ["Watchers"]

log = structlog.get_logger("gap_resolution")

LEASE_S: Final = 15 * 60
"""How long a session is watched after somebody asked for it; open pages ask more often."""
RETRY_S: Final = 1


class Watchers:
    """One task for each document in use, following its changes.

    They hold nothing that a crash could take: each begins by setting right what it finds, so that
    asking for it anew is all that a restarted server needs.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._until: dict[str, float] = {}

    async def watch(self, session_id: str) -> None:
        """Watch a session, or go on; raises `SessionNotFound`."""
        await self._sessions.get(session_id)
        self._until[session_id] = asyncio.get_running_loop().time() + LEASE_S
        if session_id not in self._tasks:
            self._tasks[session_id] = asyncio.create_task(self._watch(session_id))

    async def stop(self) -> None:
        """End all of them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, session_id: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            while (until := self._until[session_id]) > loop.time():
                try:
                    async with asyncio.timeout_at(until):
                        await self._follow(session_id)
                        break  # the session has ended
                except TimeoutError:
                    continue  # if somebody has asked again meanwhile
                except (SessionNotFound, SessionErased):
                    break
                except ReattachError as error:
                    log.warning("a document waits", session=session_id, error=str(error))
                    await asyncio.sleep(RETRY_S)
        finally:
            del self._until[session_id], self._tasks[session_id]

    async def _follow(self, session_id: str) -> None:
        snapshot = await self._set_right(session_id)
        async for commit in self._sessions.changes(session_id, after=snapshot.version):
            # Neither a key typed nor what we write ourselves: only what somebody answered.
            if gaps.answer_touched(commit.patch):
                await self._set_right(session_id)

    async def _set_right(self, session_id: str) -> Snapshot:
        snapshot = await self._sessions.get(session_id)
        if gaps.reconcile(snapshot.state):
            # Given as a function, it is asked again when its turn has come, for the state of then.
            await self._sessions.update(session_id, gaps.reconcile)
        return snapshot
