"""Sessions as documents: create, list, read, patch, erase."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from reattach.core.connection import Role
from reattach.core.merge import Merge
from reattach.core.patch import json_patch, merge_patch
from reattach.core.session import Edit
from reattach.core.values import check
from reattach.errors import (
    AlreadyExists,
    BadRequest,
    ChangeRefused,
    TooLarge,
    VersionGone,
)
from reattach.runtime.access import Action, User
from reattach.runtime.credentials import begin
from reattach.runtime.erasure import erase_user
from reattach.runtime.registry import Registry
from reattach.server import models
from reattach.server.body import BadBody, decode, hold_against, media_type, read, read_json
from reattach.server.once import Once, replay, submit
from reattach.server.past import document_at
from reattach.server.routes.answers import (
    changed,
    created,
    durable,
    etag,
    matches,
    session_body,
    summary,
    unless,
)
from reattach.server.routes.base import (
    ID,
    NOT_KEPT,
    PAGE,
    After,
    IdempotencyKey,
    Routes,
    SessionPath,
    json_answer,
    page_answer,
    user_of,
    whole_user_of,
)
from reattach.server.routes.openapi import Add, schema_of
from reattach.store.base import DeviceRecord, IdempotencyRecord, SessionRecord
from reattach.wire import encode

__all__ = ["SessionRoutes"]

_ENVELOPE_BYTES: Final = 64 * 1024
"""What the body that creates a session may weigh beside the state."""

_MERGE_PATCH: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"

_CREATE: Final = {"application/json": schema_of(models.CreateSession)}
_PATCHES: Final = {
    _MERGE_PATCH: {"type": "object", "description": "RFC 7396: what is null is removed."},
    _JSON_PATCH: {"type": "array", "items": schema_of(models.JsonPatchOperation)},
}


class SessionRoutes(Routes):
    """Routes over whole sessions."""

    def add_to(self, add: Add) -> None:
        """Add them."""
        add("GET", "/session", self.list_sessions, models.SessionPage)
        add("GET", "/session/{session_id}", self.get, models.SessionAnswer)
        add("PATCH", "/session/{session_id}", self.patch, models.SessionAnswer, body=_PATCHES)
        add("DELETE", "/session/{session_id}", self.erase, None, status=204)
        add("DELETE", "/users/{user_id:path}", self.erase_user, None, status=204)

    def add_beginning_to(self, add: Add) -> None:
        """Add what may be asked without having signed in."""
        add("POST", "/session", self.create, models.BegunAnswer, status=201, body=_CREATE)

    async def create(self, request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Create a session."""
        most = self.settings.max_state_bytes + _ENVELOPE_BYTES
        raw, value = await read_json(request, most)
        body = hold_against(models.CreateSession, value)
        registry = await self.running()
        if request.state.user is None:
            if idempotency_key is not None:
                raise BadRequest(
                    "expected no Idempotency-Key: the answer has secrets that are not kept. Send it"
                    " again without one",
                    code="bad_header",
                )
            return await self._begin(registry, body)
        user = whole_user_of(request)
        once = Once.of(user, request, raw, idempotency_key)
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        # As it will be read: whatever goes wrong with it goes wrong here.
        state = registry.begin(body.schema_, body.state, Role.OWNER)

        def answered(record: SessionRecord) -> IdempotencyRecord:
            assert once is not None
            return once.record(201, created(record, encode(state)), registry.clock.now())

        try:
            record = await registry.create(
                user,
                session_id=body.session_id,
                state=state,
                schema=body.schema_,
                device=self._first_device(user, registry, body.device_info),
                idempotency=None if once is None else answered,
            )
        except AlreadyExists:
            # Perhaps by the same request, sent twice at once.
            replayed = await replay(registry, once)
            if replayed is None:
                raise
            return replayed
        headers, answer = created(record, encode(state))
        return json_answer(answer, 201, headers)

    async def _begin(self, registry: Registry, body: models.CreateSession) -> Response:
        """Create a session for nobody who has signed in, with secrets that open it."""
        state = registry.begin(body.schema_, body.state, Role.OWNER)
        begun = await begin(
            registry,
            session_id=body.session_id,
            state=state,
            schema=body.schema_,
            first_device=lambda user: self._first_device(user, registry, body.device_info),
        )
        headers, _ = created(begun.record, b"")
        answer = {
            **summary(begun.record),
            "state": state,
            "token": begun.token,
            "claim_secret": begun.claim_secret,
        }
        return json_answer(encode(answer), 201, {**headers, **NOT_KEPT})

    def _first_device(
        self, user: User, registry: Registry, info: dict[str, Any] | None
    ) -> DeviceRecord | None:
        if info is None:
            return None
        check(info, depth=self.settings.max_nesting, path="/device_info")
        if len(encode(info)) > self.settings.max_device_info_bytes:
            most = self.settings.max_device_info_bytes
            raise TooLarge(f"expected device_info of at most {most} bytes")
        rest = dict(info)
        device_id, name = rest.pop("id", None), rest.get("name")
        if device_id is None:
            device_id = registry.clock.new_id()
        if not isinstance(device_id, str) or not ID.fullmatch(device_id):
            raise BadBody("expected an id of 1 to 128 characters", "/device_info/id")
        now = registry.clock.now()
        return DeviceRecord(
            device_id=device_id,
            user_id=user.id,
            name=name[:256] if isinstance(name, str) else None,
            info=encode(rest),
            is_primary=True,
            created_at=now,
            last_activity=now,
        )

    async def list_sessions(self, request: Request, after: After = None) -> Response:
        """List the caller's sessions, newest activity first."""
        user = whole_user_of(request)
        registry = await self.running()
        page = await registry.store.sessions(user.id, after, PAGE)
        return page_answer([summary(record) for record in page.items], page.next)

    async def get(
        self,
        request: Request,
        session_id: SessionPath,
        version: Annotated[int | None, Query(ge=0, description="As it was then.")] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Read a session as it is durably, or as it was."""
        registry, host, _ = await self.open(request, session_id)
        record, state = await durable(registry, host)
        if version is not None and version != record.version:
            if version > record.version:
                raise VersionGone(f"expected a version of at most {record.version}, got {version}")
            document = await document_at(registry.store, session_id, version)
            record = msgspec.structs.replace(record, version=version)
            state = encode(document.state)
        headers = {"ETag": etag(record.epoch, record.version), "Cache-Control": "no-cache"}
        if if_none_match is not None and matches(if_none_match, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return json_answer(session_body(record, state), headers=headers)

    async def patch(
        self,
        request: Request,
        session_id: SessionPath,
        if_match: Annotated[str | None, Header()] = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Change a session as it stands: by RFC 7396 or RFC 6902, told apart by the type."""
        kind = media_type(request, (_MERGE_PATCH, _JSON_PATCH))
        raw = await read(request, self.settings.max_frame_bytes)
        once = Once.of(user_of(request), request, raw, idempotency_key)
        edit = self._edit(kind, decode(raw))
        registry, host, role = await self.open(request, session_id, Action.WRITE)
        access_version = host.stands[2]
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        proposed = await registry.request(
            host,
            edit=edit,
            user_id=user_of(request).id,
            role=role,
            access_version=access_version,
        )
        if if_match is not None:
            proposed.unless = unless(if_match)
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

    def _edit(self, kind: str, patch: Any) -> Edit:
        if kind == _MERGE_PATCH:
            return lambda merge: merge_patch(merge, patch)
        if not isinstance(patch, list):
            return lambda merge: json_patch(merge, patch)
        most, heaviest = self.settings.max_change_operations, self.settings.max_state_bytes
        if len(patch) > most:
            raise ChangeRefused(
                f"expected at most {most} operations, got {len(patch)}",
                code="too_many_operations",
            )

        def edit(merge: Merge) -> None:
            for operation in patch:
                json_patch(merge, [operation])
                # Each copy may double the state: not only the last one is looked at.
                if merge.document.weight > heaviest:
                    raise ChangeRefused(
                        f"expected a state of at most {heaviest} bytes as JSON all along",
                        code="state_too_large",
                    )

        return edit

    async def erase(self, request: Request, session_id: SessionPath) -> Response:
        """Erase a session with its whole history."""
        registry, _, _ = await self.open(request, session_id, Action.ERASE)
        await registry.erase(session_id)
        return Response(status_code=204)

    async def erase_user(
        self, request: Request, user_id: Annotated[str, Path(description="The user's id.")]
    ) -> Response:
        """Erase all that a user owns, and end what they are in of others' sessions."""
        user, registry = whole_user_of(request), await self.running()
        await registry.members.check_erasure(user_id, user)
        await erase_user(registry, user_id, by=user.id)
        return Response(status_code=204)
