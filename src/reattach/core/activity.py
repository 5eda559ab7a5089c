"""What the activity log tells of a batch: conflicts, refusals, marks, restores, the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from reattach.core.session import Session
from reattach.store.base import Activity, CommitRecord, RefusalRecord
from reattach.wire import By, Rejected, encode

__all__ = ["happened"]

_NAMED: Final = 10
"""Conflicts of one commit that a line names; it counts them all."""


class _Conflict(msgspec.Struct):
    id: str
    path: str
    status: str


class _Made(msgspec.Struct):
    """Whose a commit is, and what became of conflicts by it."""

    by: By
    conflicts: list[_Conflict] = msgspec.field(default_factory=list)


class _Restored(msgspec.Struct, omit_defaults=True):
    """Which state a commit put in the place of which."""

    from_version: int
    to_version: int
    checkpoint_id: str | None = None


_made: Final = msgspec.json.Decoder(_Made)
_restored: Final = msgspec.json.Decoder(_Restored)
_RESTORED: Final = b'{"type":"session_restored"'


def happened(session: Session, now: int, *, ended: bool) -> Iterator[Activity]:
    """Make the lines of the batch that a session has decided and not landed.

    A batch that is decided again gets them anew, so that they tell what came of it. ``ended`` says
    whether its last commit is the session's end.
    """
    if session.conflicts:
        for commit in session.commits:
            yield from _of_conflicts(commit, now)
    for commit in session.commits:
        if commit.body.startswith(_RESTORED):
            restored = _restored.decode(commit.body)
            yield _line("restored", now, commit, msgspec.to_builtins(restored))
    for name, (user_id, device_id) in session.markers.items():
        mark = session.checkpoints[name]
        data = {"id": name, "name": mark.name, "version": mark.version}
        yield Activity(
            activity_type="checkpoint",
            at=now,
            user_id=user_id,
            device_id=device_id,
            data=encode(data),
        )
    if ended:
        yield _line("ended", now, session.commits[-1], {})
    for refusal in session.refusals:
        yield _of_refusal(session, refusal, now)


def _of_conflicts(commit: CommitRecord, now: int) -> Iterator[Activity]:
    conflicts = _made.decode(commit.body).conflicts
    for what, settled in (("conflict", False), ("resolved", True)):
        found = [one for one in conflicts if (one.status == "resolved") is settled]
        if found:
            named = [{"id": one.id, "path": one.path} for one in found[:_NAMED]]
            yield _line(what, now, commit, {"count": len(found), "conflicts": named})


def _line(what: str, now: int, commit: CommitRecord, data: dict[str, Any]) -> Activity:
    by = _made.decode(commit.body).by
    return Activity(
        activity_type=what,
        at=now,
        user_id=by.user_id,
        device_id=by.device_id,
        data=encode({"client_id": by.client_id, "version": commit.version, **data}),
    )


def _of_refusal(session: Session, refusal: RefusalRecord, now: int) -> Activity:
    client = session.clients[refusal.client_id]
    told = msgspec.json.decode(refusal.body, type=Rejected)
    data = {"client_id": refusal.client_id, "seq": refusal.seq, "code": told.code}
    if told.path is not msgspec.UNSET:
        data["path"] = told.path
    return Activity(
        activity_type="refused",
        at=now,
        user_id=client.user_id,
        device_id=client.device_id,
        data=encode(data),
    )
