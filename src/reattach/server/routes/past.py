"""Sessions as they were: what changed between two versions, restoring one, forking from one."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from reattach.core.difference import become
from reattach.core.past import document_of
from reattach.core.session import schema_version_of
from reattach.errors import AlreadyExists, VersionGone
from reattach.runtime.access import Action
from reattach.runtime.registry import Registry
from reattach.server import models
from reattach.server.body import BadBody, hold_against, read_json
from reattach.server.once import Once, replay, submit
from reattach.server.past import document_at
from reattach.server.routes.answers import changed, created, durable
from reattach.server.routes.base import (
    IdempotencyKey,
    Routes,
    SessionPath,
    json_answer,
    user_of,
    whole_user_of,
)
from reattach.server.routes.changes import ChangeRoutes
from reattach.server.routes.openapi import Add, schema_of
from reattach.server.served import Served
from reattach.store.base import IdempotencyRecord, SessionRecord
from reattach.wire import Op, encode

__all__ = ["PastRoutes"]

_RESTORE: Final = {
    "application/json": {
        "anyOf": [schema_of(models.RestoreBody), schema_of(models.ChangesBody)],
    }
}
_FORK: Final = {"application/json": schema_of(models.ForkBody)}


class PastRoutes(Routes):
    """Routes over a session's earlier versions."""

    def __init__(self, reattach: Served) -> None:
        """Belong to a server."""
        super().__init__(reattach)
        self._changes = ChangeRoutes(reattach)

    def add_to(self, add: Add) -> None:
        """Add them."""
        add("GET", "/session/{session_id}/diff", self.diff, models.Difference)
        restore = "/session/{session_id}/restore"
        add("POST", restore, self.restore, models.SessionAnswer, body=_RESTORE)
        fork = "/session/{session_id}/fork"
        add("POST", fork, self.fork, models.SessionAnswer, status=201, body=_FORK)

    async def diff(
        self,
        request: Request,
        session_id: SessionPath,
        first: Annotated[int, Query(alias="from", ge=0)] = 0,
        last: Annotated[int | None, Query(alias="to", ge=0, description="Or the newest.")] = None,
    ) -> Response:
        """Tell what changed between two versions, in either direction, by RFC 6902."""
        registry, host, _ = await self.open(request, session_id)
        if last is None:
            last = host.room.recorded.version
        document = await document_at(registry.store, session_id, first)
        target = await document_at(registry.store, session_id, last)
        document.recording = True
        become(document, target.state, lambda *_: None)
        return Response(encode(document.take_patch()), media_type="application/json-patch+json")

    async def restore(
        self,
        request: Request,
        session_id: SessionPath,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Make the state that of then; or take a browser's backup, which is an outbox."""
        raw, value = await read_json(request, self.settings.max_frame_bytes)
        if isinstance(value, dict) and "changes" in value:
            host, _, _, _ = await self._changes.take(request, session_id, value)
            headers, answer = changed(*await durable(await self.running(), host))
            return json_answer(answer, headers=headers)
        restore = _meant(hold_against(models.RestoreBody, value))
        once = Once.of(user_of(request), request, raw, idempotency_key)
        registry, host, role = await self.open(request, session_id, Action.WRITE)
        access_version = host.stands[2]
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        proposed = await registry.request(
            host,
            restore=restore,
            user_id=user_of(request).id,
            role=role,
            access_version=access_version,
        )
        done = await submit(
            registry,
            host,
            proposed,
            once,
            lambda session: changed(session.record, encode(session.document.state)),
        )
        if isinstance(done, Response):
            return done
        headers, answer = changed(*await durable(registry, host))
        return json_answer(answer, headers=headers)

    async def fork(
        self,
        request: Request,
        session_id: SessionPath,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Begin another session, the caller's, with the state as it was then."""
        raw, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.ForkBody, value)
        user = whole_user_of(request)
        once = Once.of(user, request, raw, idempotency_key)
        registry, host, _ = await self.open(request, session_id)
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        schema, version = host.room.recorded.schema_name, body.version
        state = await _state_at(registry, host.room.recorded, version)

        def answered(record: SessionRecord) -> IdempotencyRecord:
            assert once is not None
            return once.record(201, created(record, encode(state)), registry.clock.now())

        try:
            record = await registry.create(
                user, state=state, schema=schema, idempotency=None if once is None else answered
            )
        except AlreadyExists:
            # By the same request, sent twice at once.
            replayed = await replay(registry, once)
            if replayed is None:
                raise
            return replayed
        headers, answer = created(record, encode(state))
        return json_answer(answer, 201, headers)


def _meant(body: models.RestoreBody) -> Op:
    if (body.version is None) == (body.checkpoint_id is None):
        raise BadBody("expected either a version or a checkpoint_id", "")
    if body.version is not None:
        return Op(op="restore", version=body.version)
    return Op(op="restore", checkpoint_id=body.checkpoint_id)


async def _state_at(
    registry: Registry, record: SessionRecord, version: int | None
) -> dict[str, Any]:
    """Return the state at a version as a new session can begin with it, of its schema of today."""
    version = record.version if version is None else version
    loaded = await registry.store.load_at(record.session_id, version)
    document, reached = (None, -1) if loaded is None else document_of(loaded)
    if loaded is None or document is None or reached != version:
        raise VersionGone(f"version {version} is not retained, or does not exist yet")
    state: dict[str, Any] = msgspec.json.decode(encode(document.state))
    known = None if record.schema_name is None else registry.schemas.get(record.schema_name)
    before = schema_version_of(loaded.saved.index)
    if known is not None and before is not None and before < known.version:
        state = known.upgrade(state, before)
    return registry.begin(record.schema_name, state)
