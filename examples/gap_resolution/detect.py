"""Hold what was answered against the schema, as it is answered."""

from __future__ import annotations

import contextlib

from reattach import ChangeRefused, Commit, Reattach, Sessions

from . import gaps

__all__ = ["detect", "follow"]


def follow(reattach: Reattach) -> None:
    """Detect the gaps of every document anew whenever somebody has answered one.

    Whichever node does it, and whatever dies meanwhile: each answer is looked at, and to look at it
    twice finds nothing more to do.
    """
    sessions = reattach.sessions

    # Of all sessions: a document that was begun before there was a schema goes on, too.
    @reattach.on_commit(name="gaps")
    async def react(session_id: str, commit: Commit) -> None:
        # Neither a key typed nor what we write ourselves: only what somebody answered.
        if gaps.answer_touched(commit.patch):
            await detect(sessions, session_id)


async def detect(sessions: Sessions, session_id: str) -> None:
    """Set right what the answers have made of a document; raises `SessionNotFound`."""
    snapshot = await sessions.get(session_id)
    if gaps.reconcile(snapshot.state):
        # One that has ended meanwhile stays as it is.
        with contextlib.suppress(ChangeRefused):
            # Given as a function, it is asked again when its turn has come, for the state of then.
            await sessions.update(session_id, gaps.reconcile)
