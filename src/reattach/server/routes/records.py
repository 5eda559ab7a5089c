"""What a session keeps beside its state: history, conflicts, activity."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from reattach.errors import Unavailable, VersionGone
from reattach.runtime.access import Action
from reattach.server import models
from reattach.server.body import hold_against, read_json
from reattach.server.once import Once, replay, submit
from reattach.server.past import in_rfc6902
from reattach.server.routes.base import (
    PAGE,
    After,
    IdempotencyKey,
    Patches,
    Routes,
    SessionPath,
    json_answer,
    page_answer,
    user_of,
)
from reattach.server.routes.openapi import Add, schema_of
from reattach.store.base import CommitRecord
from reattach.wire import Op, encode

__all__ = ["RecordRoutes"]

_PAGE_BYTES: Final = 4 * 1024 * 1024
"""A page of history ends after so many bytes, too."""

_RESOLVE: Final = {"application/json": schema_of(models.ResolveBody)}


class RecordRoutes(Routes):
    """Lists of one session, and how a conflict is settled."""

    def add_to(self, add: Add) -> None:
        """Add them."""
        add("GET", "/session/{session_id}/history", self.history, models.CommitPage)
        add("GET", "/session/{session_id}/conflicts", self.conflicts, models.ConflictPage)
        resolve = "/session/{session_id}/conflicts/{conflict_id}/resolve"
        add("POST", resolve, self.resolve, models.Conflict, body=_RESOLVE)
        add("GET", "/session/{session_id}/activity", self.activity, models.ActivityPage)

    async def history(
        self,
        request: Request,
        session_id: SessionPath,
        *,
        first: Annotated[int, Query(alias="from", ge=0, description="Included.")] = 0,
        last: Annotated[int | None, Query(alias="to", ge=0, description="Included.")] = None,
        client_id: Annotated[str | None, Query(description="Only this client's.")] = None,
        patches: Patches = "reattach",
        after: Annotated[int | None, Query(alias="next", ge=0)] = None,
    ) -> Response:
        """List commits, in order."""
        registry, _, _ = await self.open(request, session_id)
        start = max(first, after or 0)
        commits = await registry.store.log(
            session_id,
            first=start,
            last=last,
            client_id=client_id,
            limit=PAGE + 1,
            max_bytes=_PAGE_BYTES,
        )
        if first > 1 and client_id is None and commits and commits[0].version != start:
            raise VersionGone(f"version {start} is no longer retained")
        shown = commits[:PAGE]
        heavy = sum(len(commit.body) for commit in shown) > _PAGE_BYTES
        more = len(commits) > len(shown) or heavy
        frames = [commit.body for commit in shown]
        if patches == "rfc6902":
            frames = await in_rfc6902(registry.store, session_id, shown)
        frames = [_as_sent(*one) for one in zip(shown, frames, strict=True)]
        return page_answer(
            [msgspec.Raw(frame) for frame in frames],
            str(shown[-1].version + 1) if more else None,
        )

    async def conflicts(
        self,
        request: Request,
        session_id: SessionPath,
        status: Annotated[Literal["all", "auto", "open", "resolved"], Query()] = "all",
        after: After = None,
    ) -> Response:
        """List the values that merges did not keep."""
        registry, _, _ = await self.open(request, session_id)
        wanted = None if status == "all" else status
        page = await registry.store.conflicts(session_id, wanted, after, PAGE)
        return page_answer([msgspec.Raw(record.body) for record in page.items], page.next)

    async def resolve(
        self,
        request: Request,
        session_id: SessionPath,
        conflict_id: str,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Settle a conflict: by the value that was kept, the one that lost, or another."""
        raw, value = await read_json(request, self.settings.max_frame_bytes)
        hold_against(models.ResolveBody, value)
        once = Once.of(user_of(request), request, raw, idempotency_key)
        registry, host, role = await self.open(request, session_id, Action.WRITE)
        access_version = host.stands[2]
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        proposed = await registry.request(
            host,
            resolve=Op(op="resolve", conflict_id=conflict_id, keep=value["keep"]),
            user_id=user_of(request).id,
            role=role,
            access_version=access_version,
        )
        done = await submit(
            registry,
            host,
            proposed,
            once,
            lambda session: ({}, session.conflicts[conflict_id].body),
        )
        if isinstance(done, Response):
            return done
        if not isinstance(done.decision, CommitRecord):
            raise Unavailable("the conflict was settled, and its record is no longer at hand")
        commit = msgspec.json.decode(done.decision.body)
        return json_answer(
            encode(next(one for one in commit["conflicts"] if one["id"] == conflict_id))
        )

    async def activity(
        self,
        request: Request,
        session_id: SessionPath,
        after: After = None,
    ) -> Response:
        """Show the activity log, newest first."""
        registry, _, _ = await self.open(request, session_id)
        page = await registry.store.activity(session_id, after, PAGE)
        items = [
            {
                "activity_type": line.activity_type,
                "at": line.at,
                "user_id": line.user_id,
                "device_id": line.device_id,
                "data": msgspec.Raw(line.data),
            }
            for line in page.items
        ]
        return page_answer(items, page.next)


def _as_sent(commit: CommitRecord, frame: bytes) -> bytes:
    """Add the change's ``at`` as its client sent it: by it a client knows its changes again."""
    if commit.client_at is None:
        return frame
    return b'%b,"client_at":%d}' % (frame[:-1], commit.client_at)
