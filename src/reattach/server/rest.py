"""The HTTP routes of `docs/protocol.md`, section 7: read the request, ask the runtime, answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Query, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from reattach.core.connection import Role
from reattach.core.effects import Request as Proposed
from reattach.core.effects import Result
from reattach.core.inbox import propose
from reattach.core.merge import Merge
from reattach.core.patch import json_patch, merge_patch
from reattach.core.session import Edit, Session
from reattach.core.values import check
from reattach.errors import (
    AlreadyExists,
    BadRequest,
    ChangeRefused,
    Forbidden,
    KeyAnswered,
    PreconditionFailed,
    ReattachError,
    SessionNotFound,
    TooLarge,
    Unavailable,
    VersionGone,
)
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry, User
from reattach.server import models
from reattach.server.auth import bearer
from reattach.server.body import BadBody, decode, hold_against, media_type, read, read_json
from reattach.server.once import Once, replay
from reattach.server.outbox import decide, introduce, runs
from reattach.server.past import PlainPatches, document_at, document_of, in_rfc6902
from reattach.server.problems import MEDIA_TYPE
from reattach.server.served import Served
from reattach.server.sse import EventStream, parse_event_id
from reattach.store.base import (
    CommitRecord,
    DeviceRecord,
    IdempotencyRecord,
    SessionRecord,
)
from reattach.wire import Change, HelloDevice, Op, encode

__all__ = ["routes"]

_PAGE: Final = 100
_PAGE_BYTES: Final = 4 * 1024 * 1024
"""A page of history ends after so many bytes, too."""
_ENVELOPE_BYTES: Final = 64 * 1024
"""What the body that creates a session may weigh beside the state."""
_PATIENCE: Final = 0.25
"""Seconds that a reader waits for a batch in flight; then it is shown what the database has."""
_CHECK_TIMEOUT: Final = 2.0
"""Seconds that the database has to prove that it can commit."""

_MERGE_PATCH: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"

_ID = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_ETAG = re.compile(r'\s*(?:W/)?"([^"]*)"\s*')

SessionPath = Annotated[models.SessionId, Path(description="The session's id.")]
After = Annotated[str | None, Query(alias="next", description="`next` of the page before.")]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="Makes the request safe to repeat for a day."),
]
Patches = Annotated[
    Literal["reattach", "rfc6902"],
    Query(description="`rfc6902`: without text operations (`str_ins`, `str_del`)."),
]


def routes(reattach: Served) -> APIRouter:
    """Return all routes over a server's sessions."""
    rest = _Rest(reattach)
    router = APIRouter()
    router.include_router(_health(rest))
    router.include_router(_sessions(rest), prefix="/api/v0")
    return router


def _health(rest: _Rest) -> APIRouter:
    router = APIRouter(tags=["health"])
    router.add_api_route(
        "/healthz",
        rest.healthz,
        methods=["GET"],
        summary="The process lives",
        responses={200: {"model": models.Status}},
    )
    router.add_api_route(
        "/readyz",
        rest.readyz,
        methods=["GET"],
        summary="The server can commit",
        responses={200: {"model": models.Status}, 503: _problem("It cannot, and why.")},
    )
    return router


def _sessions(rest: _Rest) -> APIRouter:
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": _problem("What is wrong."),
        "5XX": _problem("The server cannot now."),
    }
    router = APIRouter(
        tags=["sessions"],
        dependencies=[Depends(rest.enter), Security(HTTPBearer(auto_error=False))],
        responses=errors,
    )

    def add(
        method: str,
        path: str,
        endpoint: Callable[..., Any],
        answer: type[BaseModel] | None,
        *,
        status: int = 200,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            status_code=status,
            summary=(endpoint.__doc__ or "").rstrip("."),
            responses={status: {"model": answer} if answer else {}},
            openapi_extra=None if body is None else {"requestBody": _content(body)},
        )

    add("POST", "/session/heartbeat", rest.heartbeat, None, status=204, body=_JSON_HEARTBEAT)
    add("GET", "/session/check-connection", rest.check_connection, None, status=204)
    add("POST", "/session", rest.create, models.SessionAnswer, status=201, body=_JSON_CREATE)
    add("GET", "/session", rest.list_sessions, models.SessionPage)
    add("GET", "/session/{session_id}", rest.get, models.SessionAnswer)
    add("PATCH", "/session/{session_id}", rest.patch, models.SessionAnswer, body=_PATCHES)
    add("DELETE", "/session/{session_id}", rest.erase, None, status=204)
    add("DELETE", "/users/{user_id:path}", rest.erase_user, None, status=204)
    changes = "/session/{session_id}/changes"
    add("POST", changes, rest.changes, models.ChangesAnswer, body=_JSON_CHANGES)
    router.add_api_route(
        "/session/{session_id}/events",
        rest.events,
        methods=["GET"],
        summary="Stream a session's frames as Server-Sent Events",
        responses={200: _EVENTS},
        response_class=Response,
    )
    add("GET", "/session/{session_id}/history", rest.history, models.CommitPage)
    add("GET", "/session/{session_id}/conflicts", rest.conflicts, models.ConflictPage)
    resolve = "/session/{session_id}/conflicts/{conflict_id}/resolve"
    add("POST", resolve, rest.resolve, models.Conflict, body=_JSON_RESOLVE)
    add("GET", "/session/{session_id}/devices", rest.devices, models.DevicePage)
    add("GET", "/session/{session_id}/activity", rest.activity, models.ActivityPage)
    return router


class _Rest:
    """The routes' handlers."""

    def __init__(self, reattach: Served) -> None:
        self._reattach = reattach
        self._settings = reattach.settings
        self._checking: asyncio.Task[None] | None = None

    # Who is there

    async def enter(self, request: Request) -> None:
        """Let a request in, or raise what keeps it out."""
        auth = self._reattach.auth
        auth.check_host_and_origin(request)
        request.state.user = await auth.identify(request, bearer(request))

    async def _open(self, request: Request, session_id: str) -> tuple[Registry, Host, str]:
        registry = await self._reattach.running()
        host, role = await registry.admit(session_id, _user(request))
        return registry, host, role

    # Health

    async def healthz(self) -> Response:
        """Say that the process lives."""
        return _json(encode(models.Status(status="ok").model_dump()))

    async def readyz(self) -> Response:
        """Say that the server can commit, having committed something."""
        await self._check()
        return _json(encode(models.Status(status="ready").model_dump()))

    async def check_connection(self) -> Response:
        """Say that the token is good and the server can commit."""
        await self._check()
        return Response(status_code=204)

    async def _check(self) -> None:
        """Try the database once for everybody who asks at the time."""
        registry = await self._reattach.running()
        if registry.stopping:
            raise Unavailable("the server restarts: come back")
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(registry.store.check())
            self._checking.add_done_callback(_retrieve)
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT):
                await asyncio.shield(self._checking)
        except TimeoutError:
            raise Unavailable("the database did not commit in time: try again") from None

    # Sessions

    async def create(self, request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Create a session."""
        most = self._settings.max_state_bytes + _ENVELOPE_BYTES
        raw, value = await read_json(request, most)
        once = Once.of(_user(request), request, raw, idempotency_key)
        body = hold_against(models.CreateSession, value)
        registry = await self._reattach.running()
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        # As it will be read: what goes wrong with it goes wrong in `Registry.create`, too.
        state = registry.begin(body.schema_, body.state)

        def answered(record: SessionRecord) -> IdempotencyRecord:
            assert once is not None
            return once.record(201, _created(record, encode(state)), registry.clock.now())

        try:
            record = await registry.create(
                _user(request),
                session_id=body.session_id,
                state=state,
                schema=body.schema_,
                device=self._first_device(request, registry, body.device_info),
                idempotency=None if once is None else answered,
            )
        except AlreadyExists:
            # Perhaps by the same request, sent twice at once.
            replayed = await replay(registry, once)
            if replayed is None:
                raise
            return replayed
        headers, answer = _created(record, encode(state))
        return _json(answer, 201, headers)

    def _first_device(
        self, request: Request, registry: Registry, info: dict[str, Any] | None
    ) -> DeviceRecord | None:
        if info is None:
            return None
        check(info, depth=self._settings.max_nesting, path="/device_info")
        if len(encode(info)) > self._settings.max_device_info_bytes:
            most = self._settings.max_device_info_bytes
            raise TooLarge(f"expected device_info of at most {most} bytes")
        rest = dict(info)
        device_id, name = rest.pop("id", None), rest.get("name")
        if device_id is None:
            device_id = registry.clock.new_id()
        if not isinstance(device_id, str) or not _ID.fullmatch(device_id):
            raise BadBody("expected an id of 1 to 128 characters", "/device_info/id")
        now = registry.clock.now()
        return DeviceRecord(
            device_id=device_id,
            user_id=_user(request).id,
            name=name[:256] if isinstance(name, str) else None,
            info=encode(rest),
            is_primary=True,
            created_at=now,
            last_activity=now,
        )

    async def list_sessions(self, request: Request, after: After = None) -> Response:
        """List the caller's sessions, newest activity first."""
        registry = await self._reattach.running()
        page = await registry.store.sessions(_user(request).id, after, _PAGE)
        return _page([_summary(record) for record in page.items], page.next)

    async def get(
        self,
        request: Request,
        session_id: SessionPath,
        version: Annotated[int | None, Query(ge=0, description="As it was then.")] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Read a session as it is durably, or as it was."""
        registry, host, _ = await self._open(request, session_id)
        record, state = await _durable(registry, host)
        if version is not None and version != record.version:
            if version > record.version:
                raise VersionGone(f"expected a version of at most {record.version}, got {version}")
            document = await document_at(registry.store, session_id, version)
            record = msgspec.structs.replace(record, version=version)
            state = encode(document.state)
        headers = {"ETag": _etag(record.epoch, record.version), "Cache-Control": "no-cache"}
        if if_none_match is not None and _matches(if_none_match, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return _json(_session(record, state), headers=headers)

    async def patch(
        self,
        request: Request,
        session_id: SessionPath,
        if_match: Annotated[str | None, Header()] = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Change a session as it stands: by RFC 7396 or RFC 6902, told apart by the type."""
        kind = media_type(request, (_MERGE_PATCH, _JSON_PATCH))
        raw = await read(request, self._settings.max_frame_bytes)
        once = Once.of(_user(request), request, raw, idempotency_key)
        edit = self._edit(kind, decode(raw))
        registry, host, role = await self._open(request, session_id)
        if role == Role.VIEWER:
            raise Forbidden("a viewer may not write")
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        proposed = await registry.request(host, edit=edit, user_id=_user(request).id)
        if if_match is not None:
            proposed.unless = _unless(if_match)
        done = await self._submit(
            registry,
            host,
            proposed,
            once,
            lambda session: _changed(session.record, encode(session.document.state)),
        )
        if isinstance(done, Response):
            return done
        headers, answer = _changed(*await _durable(registry, host))
        return _json(answer, headers=headers)

    async def _submit(
        self,
        registry: Registry,
        host: Host,
        proposed: Proposed,
        once: Once | None,
        answer: Callable[[Session], tuple[dict[str, str], bytes]],
    ) -> Response | Result:
        """Have a change decided; with an idempotency key, return what was recorded as its answer
        (this request's, or that of the one before it with the same key).
        """
        if once is None:
            return await host.submit(proposed)

        def recorded(session: Session, commit: CommitRecord) -> IdempotencyRecord:
            del commit
            return once.record(200, answer(session), registry.clock.now())

        proposed.key, proposed.record = once.place, recorded
        first = True
        try:
            await host.submit(proposed)
        except KeyAnswered:
            first = False
        replayed = await replay(registry, once, first=first)
        if replayed is None:
            raise Unavailable("the answer was recorded and is not at hand: repeat the request")
        return replayed

    def _edit(self, kind: str, patch: Any) -> Edit:
        if kind == _MERGE_PATCH:
            return lambda merge: merge_patch(merge, patch)
        if not isinstance(patch, list):
            return lambda merge: json_patch(merge, patch)
        most, heaviest = self._settings.max_change_operations, self._settings.max_state_bytes
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
        registry, _, role = await self._open(request, session_id)
        if role != Role.OWNER:
            raise Forbidden("only the owner may erase a session")
        await registry.erase(session_id)
        return Response(status_code=204)

    async def erase_user(
        self, request: Request, user_id: Annotated[str, Path(description="The user's id.")]
    ) -> Response:
        """Erase all that a user owns."""
        if user_id != _user(request).id:
            raise Forbidden("only the user may erase all that is the user's")
        registry = await self._reattach.running()
        while True:
            page = await registry.store.sessions(user_id, None, _PAGE)
            for record in page.items:
                try:
                    await registry.erase(record.session_id)
                except SessionNotFound:
                    continue  # it was erased meanwhile
            if not page.items:
                return Response(status_code=204)

    # Clients without a WebSocket

    async def changes(self, request: Request, session_id: SessionPath) -> Response:
        """Take a client's outbox: applied in order, up to a gap in its numbers."""
        _, value = await read_json(request, self._settings.max_frame_bytes)
        body = hold_against(models.ChangesBody, value)
        device = HelloDevice(body.device.id, body.device.name, body.device.info)
        changes: Sequence[Any] = value["changes"]
        heads = [self._change(change, n) for n, change in enumerate(changes)]
        registry, host, role = await self._open(request, session_id)
        user = _user(request)
        offset = registry.clock.now() - body.t
        host.pins += 1
        try:
            await introduce(registry, host, user, body.client_id, device)
            limits, schema = registry.limits, host.room.session.schema
            proposals = [
                propose(body.client_id, role, change, offset, limits, schema, refused=refused)
                for change, refused in heads
            ]
            rejected: list[msgspec.Raw] = []
            for run in runs(proposals, limits.max_in_flight_changes):
                rejected += await decide(registry, host, run)
            seq, version = await host.at_rest(
                lambda room: (room.session.clients[body.client_id].seq, room.session.version)
            )
        finally:
            host.pins -= 1
        return _json(encode({"seq": seq, "version": version, "rejected": rejected}))

    def _change(self, value: Any, number: int) -> tuple[Change, ChangeRefused | None]:
        """Read a change; one whose head is sound and whose operations are not is refused."""
        refused = None
        try:
            change = msgspec.convert(value, Change)
        except msgspec.ValidationError as broken:
            refused = ChangeRefused(f"expected a sound change: {broken}", code="bad_op")
            try:
                change = msgspec.convert({**value, "ops": []}, Change)
            except (msgspec.ValidationError, TypeError):
                raise BadBody(refused.message, f"/changes/{number}") from None
        size, most = _weight(value), self._settings.max_change_bytes
        if size > most:
            message = f"expected a change of at most {most} bytes, got {size}"
            refused = ChangeRefused(message, code="change_too_large")
        return change, refused

    async def events(
        self,
        request: Request,
        session_id: SessionPath,
        *,
        patches: Patches = "reattach",
        last_event_id: Annotated[
            str | None, Header(description="`<epoch>.<version>`: resumes right after it.")
        ] = None,
        reattach_client: Annotated[
            str | None, Header(description="With the device: this client's down-link.")
        ] = None,
        reattach_device: Annotated[str | None, Header()] = None,
        reattach_seq: Annotated[
            int, Header(ge=0, description="The client's last number whose decision it knows.")
        ] = 0,
    ) -> Response:
        """Stream a session's frames as Server-Sent Events."""
        registry, _, _ = await self._open(request, session_id)
        client = _down_link(reattach_client, reattach_device)
        after = parse_event_id(last_event_id)
        plain = None
        if patches == "rfc6902":
            plain, after = await _plain_after(registry, session_id, after)
        stream = EventStream(registry, self._settings, plain)
        if client is None:
            await stream.observe(session_id, _user(request), after)
        else:
            await stream.join(
                session_id,
                _user(request),
                client_id=client[0],
                device_id=client[1],
                seq=reattach_seq,
                after=after,
            )
        return stream

    async def heartbeat(self, request: Request) -> Response:
        """Take a device's sign of life."""
        _, value = await read_json(request, self._settings.max_frame_bytes)
        body = hold_against(models.HeartbeatBody, value)
        registry, host, _ = await self._open(request, body.session_id)
        device = HelloDevice(body.device.id, body.device.name, body.device.info)
        host.room.devices.greet(_user(request).id, device, registry.clock.now())
        host.flush()
        return Response(status_code=204)

    # Lists

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
        registry, _, _ = await self._open(request, session_id)
        start = max(first, after or 0)
        commits = await registry.store.log(
            session_id,
            first=start,
            last=last,
            client_id=client_id,
            limit=_PAGE + 1,
            max_bytes=_PAGE_BYTES,
        )
        if first > 1 and client_id is None and commits and commits[0].version != start:
            raise VersionGone(f"version {start} is no longer retained")
        shown = commits[:_PAGE]
        heavy = sum(len(commit.body) for commit in shown) > _PAGE_BYTES
        more = len(commits) > len(shown) or heavy
        frames = [commit.body for commit in shown]
        if patches == "rfc6902":
            frames = await in_rfc6902(registry.store, session_id, shown)
        frames = [_as_sent(*one) for one in zip(shown, frames, strict=True)]
        return _page(
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
        registry, _, _ = await self._open(request, session_id)
        wanted = None if status == "all" else status
        page = await registry.store.conflicts(session_id, wanted, after, _PAGE)
        return _page([msgspec.Raw(record.body) for record in page.items], page.next)

    async def resolve(
        self,
        request: Request,
        session_id: SessionPath,
        conflict_id: str,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Settle a conflict: by the value that was kept, the one that lost, or another."""
        raw, value = await read_json(request, self._settings.max_frame_bytes)
        hold_against(models.ResolveBody, value)
        once = Once.of(_user(request), request, raw, idempotency_key)
        registry, host, role = await self._open(request, session_id)
        if role == Role.VIEWER:
            raise Forbidden("a viewer may not write")
        replayed = await replay(registry, once)
        if replayed is not None:
            return replayed
        proposed = await registry.request(
            host,
            resolve=Op(op="resolve", conflict_id=conflict_id, keep=value["keep"]),
            user_id=_user(request).id,
        )
        done = await self._submit(
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
        return _json(encode(next(one for one in commit["conflicts"] if one["id"] == conflict_id)))

    async def devices(self, request: Request, session_id: SessionPath) -> Response:
        """List the session's devices, oldest first, and whether each is connected."""
        _, host, _ = await self._open(request, session_id)
        return _page(host.room.statuses(), None)

    async def activity(
        self,
        request: Request,
        session_id: SessionPath,
        after: After = None,
    ) -> Response:
        """Show the activity log, newest first."""
        registry, _, _ = await self._open(request, session_id)
        page = await registry.store.activity(session_id, after, _PAGE)
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
        return _page(items, page.next)


def _weight(value: Any) -> int:
    try:
        return len(encode(value))
    except (ValueError, OverflowError):
        # What JSON cannot say back (a lone surrogate, a number beyond all) is refused later.
        return 0


# Events


def _down_link(client: str | None, device: str | None) -> tuple[str, str] | None:
    if client is None and device is None:
        return None
    for name, value in (("Reattach-Client", client), ("Reattach-Device", device)):
        if value is None or not _ID.fullmatch(value):
            raise BadRequest(
                f"expected {name} with an id of 1 to 128 characters: a client's down-link needs"
                " its client id and its device's",
                code="bad_header",
            )
    assert client is not None
    assert device is not None
    return client, device


async def _plain_after(
    registry: Registry, session_id: str, after: tuple[str, int] | None
) -> tuple[PlainPatches, tuple[str, int] | None]:
    """Return what rewrites the commits after an event; where that is gone, from the beginning."""
    if after is not None:
        try:
            document = await document_at(registry.store, session_id, after[1])
            return PlainPatches(document), after
        except VersionGone:
            pass
    return PlainPatches(None), None


# Answers


async def _durable(registry: Registry, host: Host) -> tuple[SessionRecord, bytes]:
    """Read a session as the database has it, at hand or, while a batch takes its time, from it."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await host.at_rest(lambda room: (room.recorded, room.state()))
    except (TimeoutError, Unavailable):
        loaded = await registry.store.load(host.room.session_id)
    if loaded is None:
        raise SessionNotFound("there is no such session")
    document, _ = document_of(loaded)
    return loaded.session, encode(document.state)


def _user(request: Request) -> User:
    user: User = request.state.user
    return user


def _summary(record: SessionRecord) -> dict[str, Any]:
    schema = None
    if record.schema_name is not None:
        schema = {"name": record.schema_name, "version": record.schema_version}
    return {
        "session_id": record.session_id,
        "epoch": record.epoch,
        "version": record.version,
        "user_id": record.user_id,
        "schema": schema,
        "created_at": record.created_at,
        "last_activity": record.last_activity,
        "is_active": record.is_active,
        "disconnected_at": record.disconnected_at,
        "reconnected_at": record.reconnected_at,
    }


def _session(record: SessionRecord, state: bytes) -> bytes:
    return encode({**_summary(record), "state": msgspec.Raw(state)})


def _created(record: SessionRecord, state: bytes) -> tuple[dict[str, str], bytes]:
    headers, answer = _changed(record, state)
    return {"Location": f"session/{record.session_id}", **headers}, answer


def _changed(record: SessionRecord, state: bytes) -> tuple[dict[str, str], bytes]:
    return {"ETag": _etag(record.epoch, record.version)}, _session(record, state)


def _etag(epoch: str, version: int) -> str:
    return f'"{epoch}.{version}"'


def _matches(header: str, etag: str) -> bool:
    """Compare weakly (RFC 9110, section 13.1.2)."""
    return header.strip() == "*" or etag in {f'"{tag}"' for tag in _ETAG.findall(header)}


def _unless(if_match: str) -> Callable[[Session], ReattachError | None]:
    """Refuse a change where the version is none of those of ``If-Match``."""
    tags = [tag.strip() for tag in if_match.split(",")]

    def unless(session: Session) -> ReattachError | None:
        current = _etag(session.record.epoch, session.version)
        if "*" in tags or current in tags:
            return None
        return PreconditionFailed(f"expected If-Match: {current}, got {if_match[:120]}")

    return unless


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def _as_sent(commit: CommitRecord, frame: bytes) -> bytes:
    """Add the change's ``at`` as its client sent it: by it a client knows its changes again."""
    if commit.client_at is None:
        return frame
    return b'%b,"client_at":%d}' % (frame[:-1], commit.client_at)


def _page(items: Sequence[Any], following: str | None) -> Response:
    return _json(encode({"items": items, "next": following}))


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


# OpenAPI


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema with its parts in place, since bodies are not FastAPI's."""
    schema = model.model_json_schema(ref_template="{model}")
    parts = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolve(parts[value["$ref"]])
            return {key: resolve(item) for key, item in value.items()}
        return [resolve(item) for item in value] if isinstance(value, list) else value

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def _content(by_type: Mapping[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in by_type.items()}
    return {"required": True, "content": content}


def _problem(description: str) -> dict[str, Any]:
    schema = _schema(models.Problem)
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}


_JSON_CREATE: Final = {"application/json": _schema(models.CreateSession)}
_JSON_CHANGES: Final = {"application/json": _schema(models.ChangesBody)}
_JSON_HEARTBEAT: Final = {"application/json": _schema(models.HeartbeatBody)}
_JSON_RESOLVE: Final = {"application/json": _schema(models.ResolveBody)}
_PATCHES: Final = {
    _MERGE_PATCH: {"type": "object", "description": "RFC 7396: what is null is removed."},
    _JSON_PATCH: {"type": "array", "items": _schema(models.JsonPatchOperation)},
}
_EVENTS: Final = {
    "description": "The frames of the WebSocket: `event` is the type, `data` the frame, `id` is"
    " `<epoch>.<version>` on commits. `event: close` with {code, reason} goes before the end.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
