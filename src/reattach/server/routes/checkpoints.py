"""Marks on versions of a session: listed, and saved."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from reattach.core.checkpoints import mark_of, shown
from reattach.core.effects import Request as Proposed
from reattach.core.session import Proposal
from reattach.errors import Unavailable
from reattach.runtime.access import Action
from reattach.server import models
from reattach.server.body import hold_against, read_json
from reattach.server.once import Once, replay, submit
from reattach.server.routes.base import (
    PAGE,
    After,
    IdempotencyKey,
    Routes,
    SessionPath,
    json_answer,
    page_answer,
    user_of,
)
from reattach.server.routes.openapi import Add, schema_of
from reattach.wire import encode

__all__ = ["CheckpointRoutes"]

_SAVE: Final = {"application/json": schema_of(models.CheckpointBody)}


class CheckpointRoutes(Routes):
    """Routes over a session's checkpoints."""

    def add_to(self, add: Add) -> None:
        """Add them."""
        path = "/session/{session_id}/checkpoints"
        add("GET", path, self.list_checkpoints, models.CheckpointPage)
        add("POST", path, self.save, models.Checkpoint, status=201, body=_SAVE)

    async def list_checkpoints(
        self, request: Request, session_id: SessionPath, after: After = None
    ) -> Response:
        """List the checkpoints, newest version first."""
        registry, _, _ = await self.open(request, session_id)
        page = await registry.store.checkpoints(session_id, after, PAGE)
        return page_answer([shown(record) for record in page.items], page.next)

    async def save(
        self,
        request: Request,
        session_id: SessionPath,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Save a checkpoint of the session as it is."""
        raw, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.CheckpointBody, value)
        once = Once.of(user_of(request), request, raw, idempotency_key)
        registry, host, role = await self.open(request, session_id, Action.WRITE)
        access_version = host.stands[2]
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        name = registry.clock.new_id()
        mark = mark_of(name, body.name, body.data, registry.limits)
        proposal = Proposal(
            client_id="",
            mark=mark,
            role=role,
            access_version=access_version,
            user_id=user_of(request).id,
        )
        done = await submit(
            registry,
            host,
            Proposed(proposal=proposal),
            once,
            lambda session: ({}, encode(shown(session.checkpoints[name]))),
            status=201,
        )
        if isinstance(done, Response):
            return done
        record = await registry.store.checkpoint(session_id, name)
        if record is None:
            raise Unavailable("the checkpoint was saved, and is no longer at hand")
        return json_answer(encode(shown(record)), 201)
