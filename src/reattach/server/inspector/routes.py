"""The inspector's routes: the page, what it reads, and what it may write where that is granted.

What is read comes from the database and not from sessions in memory: to look changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from reattach.core.checkpoints import shown
from reattach.core.connection import Role
from reattach.core.devices import called
from reattach.errors import Forbidden, ReattachError, SessionErased, SessionNotFound
from reattach.runtime.access import Action, User
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.server import models
from reattach.server.inspector.access import Inspecting, Inspector
from reattach.server.inspector.pages import page
from reattach.server.past import document_at
from reattach.server.routes.answers import summary
from reattach.server.routes.base import After, Routes, SessionPath, json_answer, page_answer
from reattach.server.routes.checkpoints import CheckpointRoutes
from reattach.server.routes.exports import ExportRoutes
from reattach.server.routes.openapi import Add
from reattach.server.routes.past import PastRoutes
from reattach.server.served import Served
from reattach.store.base import CommitRecord, DeviceRecord, Search, SessionRecord, Tombstone
from reattach.wire import encode

__all__ = ["InspectorRoutes", "inspector_routes"]

_PAGE: Final = 100
_COMMITS: Final = 200
"""Commits of one answer, at most."""
_SLOTS: Final = 240
"""Parts of a timeline, at most."""
_PATHS: Final = 4
"""Paths by which a commit is described."""
_TICK_S: Final = 0.25
_READ_S: Final = 1.0
"""How often a watcher of a session that is not open here has the database asked."""
_BEAT_S: Final = 10.0
_NOT_KEPT: Final = {"Cache-Control": "no-store"}


class _Entering(Routes):
    """Lets in whom the inspector's own rule lets in, to every session that there is."""

    def _rule(self) -> Inspecting:
        rule = self._reattach.inspecting
        if rule is None:
            raise HTTPException(404)
        return rule

    async def enter_page(self, request: Request) -> None:
        """Let in whoever may see the page, in which nothing is."""
        self._rule().check_page(request)

    async def enter(self, request: Request) -> None:
        """Let in whoever may look."""
        inspector = await self._rule().identify(request)
        request.state.inspector = inspector
        request.state.user = User(inspector.id)

    async def enter_to_write(self, request: Request) -> None:
        """Let in whoever may write, too."""
        await self.enter(request)
        if not _inspector(request).writes:
            raise Forbidden(
                "expected an inspector who may write: this one is read-only. Serve with --inspector"
                " write, or have inspect return an Inspector that writes"
            )

    async def open(
        self, request: Request, session_id: str, action: Action = Action.READ
    ) -> tuple[Registry, Host, str]:
        """Return an open session to write to; whoever got here may."""
        del request, action
        registry = await self.running()
        host = await registry.open(session_id)
        await registry.nodes.keep_up(host)
        if host.closed:
            host = await registry.open(session_id)
        return registry, host, Role.OWNER


class _Past(_Entering, PastRoutes):
    pass


class _Checkpoints(_Entering, CheckpointRoutes):
    pass


class _Exports(_Entering, ExportRoutes):
    pass


class InspectorRoutes(_Entering):
    """What the page reads."""

    def add_pages_to(self, add: Add) -> None:
        """Add the page itself."""
        add("GET", "/inspector", self.to_page, None)
        add("GET", "/inspector/", self.index, None)
        add("GET", "/inspector/favicon.svg", self.icon, None)
        add("GET", "/inspector/assets/{name}", self.asset, None)

    def add_to(self, add: Add) -> None:
        """Add what it reads."""
        add("GET", "/me", self.me, None)
        add("GET", "/nodes", self.nodes, None)
        add("GET", "/sessions", self.sessions, None)
        one = "/sessions/{session_id}"
        add("GET", one, self.session, None)
        add("GET", f"{one}/state", self.state, None)
        add("GET", f"{one}/timeline", self.timeline, None)
        add("GET", f"{one}/commits", self.commits, None)
        add("GET", f"{one}/commits/{{version}}", self.commit, None)
        add("GET", f"{one}/checkpoints", self.checkpoints, None)
        add("GET", f"{one}/conflicts", self.conflicts, None)
        add("GET", f"{one}/refusals", self.refusals, None)
        add("GET", f"{one}/activity", self.activity, None)
        add("GET", f"{one}/stands", self.stands, None)

    async def to_page(self) -> Response:
        """Go to the page, under whatever prefix it is served."""
        return RedirectResponse("inspector/", 307)

    async def index(self) -> Response:
        """Show the page."""
        return await asyncio.to_thread(page, "index.html")

    async def icon(self) -> Response:
        """Show its icon."""
        return await asyncio.to_thread(page, "favicon.svg")

    async def asset(self, name: str) -> Response:
        """Show a file of the page."""
        return await asyncio.to_thread(page, f"assets/{name}")

    async def me(self, request: Request) -> Response:
        """Tell who inspects what."""
        registry, inspector = await self.running(), _inspector(request)
        return _answer(
            {
                "id": inspector.id,
                "writes": inspector.writes,
                "release": version("reattach"),
                "schemas": sorted(registry.schemas),
            }
        )

    async def nodes(self) -> Response:
        """Tell what each node does."""
        found = await self._reattach.peers.figures()
        items = [msgspec.to_builtins(one) for one in found]
        for one in items:
            one["online"] = len(one["online"])
        return _answer({"items": items})

    async def sessions(
        self,
        *,
        text: Annotated[str | None, Query(alias="q", max_length=255)] = None,
        schema: Annotated[str | None, Query(max_length=255)] = None,
        since: Annotated[int | None, Query(ge=0)] = None,
        until: Annotated[int | None, Query(ge=0)] = None,
        online: bool | None = None,
        after: After = None,
    ) -> Response:
        """List sessions, newest activity first."""
        registry = await self.running()
        here = await self._reattach.peers.online()
        search = Search(
            text=text or None,
            schema_name=schema or None,
            active_since=since,
            active_until=until,
            within=sorted(here) if online else None,
            without=sorted(here) if online is False else None,
        )
        found = await registry.store.search(search, after, _PAGE)
        items = [summary(one) | {"online": one.session_id in here} for one in found.items]
        return _page(items, found.next)

    async def session(self, session_id: SessionPath) -> Response:
        """Show one session, without its state: who is in it, and how far back it goes."""
        registry = await self.running()
        store, record = registry.store, await _record(registry, session_id)
        online = await _online(registry, session_id)
        oldest = await store.log(session_id, first=0, limit=1)
        return _answer(
            summary(record)
            | {
                "epoch_version": record.epoch_version,
                # The oldest version from which on every one can be had.
                "first_version": oldest[0].version - 1 if oldest else record.version,
                "devices": [_device(one, online) for one in await store.devices(session_id)],
                "clients": [
                    {"client_id": one.client_id, "user_id": one.user_id, "device_id": one.device_id}
                    for one in await store.session_clients(session_id)
                ],
                "members": [
                    {"user_id": one.user_id, "role": one.role}
                    for one in await store.members(session_id)
                ],
            }
        )

    async def state(
        self, session_id: SessionPath, number: Annotated[int, Query(alias="version", ge=0)]
    ) -> Response:
        """Show the state at a version."""
        registry = await self.running()
        document = await document_at(registry.store, session_id, number)
        return _answer({"version": number, "state": msgspec.Raw(encode(document.state))})

    async def timeline(
        self,
        session_id: SessionPath,
        first: Annotated[int, Query(ge=0)],
        last: Annotated[int, Query(ge=0)],
    ) -> Response:
        """Count who committed how much in each part of the log."""
        registry = await self.running()
        width = max(1, -(-(last - first + 1) // _SLOTS))
        slots = await registry.store.commit_slots(session_id, first, last, width)
        items = [msgspec.to_builtins(one) for one in slots]
        return _answer({"first": first, "last": last, "width": width, "items": items})

    async def commits(
        self,
        session_id: SessionPath,
        first: Annotated[int, Query(ge=0)],
        last: Annotated[int, Query(ge=0)],
    ) -> Response:
        """Describe commits, in order."""
        registry = await self.running()
        found = await registry.store.log(session_id, first=first, last=last, limit=_COMMITS)
        return _answer({"items": [_described(one) for one in found]})

    async def commit(self, session_id: SessionPath, version: int) -> Response:
        """Show a commit as its clients were sent it."""
        registry = await self.running()
        found = await registry.store.log(session_id, first=version, last=version, limit=1)
        if not found:
            raise SessionNotFound("there is no such commit any more, or yet", code="no_such_commit")
        return json_answer(found[0].body, headers=_NOT_KEPT)

    async def checkpoints(self, session_id: SessionPath, after: After = None) -> Response:
        """List checkpoints, newest version first."""
        registry = await self.running()
        found = await registry.store.checkpoints(session_id, after, _PAGE)
        return _page([shown(one) for one in found.items], found.next)

    async def conflicts(
        self,
        session_id: SessionPath,
        status: Annotated[Literal["all", "auto", "open", "resolved"], Query()] = "all",
        after: After = None,
    ) -> Response:
        """List the values that merges did not keep, newest first."""
        registry = await self.running()
        wanted = None if status == "all" else status
        found = await registry.store.conflicts(session_id, wanted, after, _PAGE)
        return _page([msgspec.Raw(one.body) for one in found.items], found.next)

    async def refusals(self, session_id: SessionPath, after: After = None) -> Response:
        """List what was refused, newest change first."""
        registry = await self.running()
        found = await registry.store.session_refusals(session_id, after, _PAGE)
        items = [
            {"client_id": one.client_id, "at": one.client_at, "refusal": msgspec.Raw(one.body)}
            for one in found.items
        ]
        return _page(items, found.next)

    async def activity(
        self,
        session_id: SessionPath,
        limit: Annotated[int, Query(ge=1, le=500)] = _PAGE,
        after: After = None,
    ) -> Response:
        """Show the activity log, newest first."""
        registry = await self.running()
        found = await registry.store.activity(session_id, after, limit)
        items = [
            msgspec.structs.asdict(line) | {"data": msgspec.Raw(line.data)} for line in found.items
        ]
        return _page(items, found.next)

    async def stands(self, session_id: SessionPath) -> Response:
        """Stream where a session stands, whenever that changes, as Server-Sent Events."""
        registry = await self.running()
        await _record(registry, session_id)
        return StreamingResponse(
            _watched(registry, session_id),
            headers=_NOT_KEPT | {"X-Accel-Buffering": "no"},
            media_type="text/event-stream",
        )


def inspector_routes(reattach: Served) -> APIRouter:
    """Return all routes of a server's inspector; they answer 404 while there is none."""
    routes = InspectorRoutes(reattach)
    pages = APIRouter(dependencies=[Depends(routes.enter_page)], include_in_schema=False)
    routes.add_pages_to(Add(pages))
    reads = APIRouter(dependencies=[Depends(routes.enter)], include_in_schema=False)
    routes.add_to(Add(reads))
    writes = APIRouter(dependencies=[Depends(routes.enter_to_write)], include_in_schema=False)
    add, one = Add(writes), "/sessions/{session_id}"
    past, exports = _Past(reattach), _Exports(reattach)
    add("POST", f"{one}/restore", past.restore, models.SessionAnswer)
    add("POST", f"{one}/fork", past.fork, models.SessionAnswer, status=201)
    add("POST", f"{one}/checkpoints", _Checkpoints(reattach).save, models.Checkpoint, status=201)
    add("GET", f"{one}/export", exports.export, None)
    router = APIRouter()
    router.include_router(pages)
    for one_router in (reads, writes):
        router.include_router(one_router, prefix="/inspector/api")
    return router


def _inspector(request: Request) -> Inspector:
    inspector: Inspector = request.state.inspector
    return inspector


def _answer(value: Any) -> Response:
    return json_answer(encode(value), headers=_NOT_KEPT)


def _page(items: list[Any], following: str | None) -> Response:
    answer = page_answer(items, following)
    answer.headers.update(_NOT_KEPT)
    return answer


async def _record(registry: Registry, session_id: str) -> SessionRecord:
    found = await registry.store.session(session_id)
    if isinstance(found, Tombstone):
        raise SessionErased("the session was erased")
    if found is None:
        raise SessionNotFound("there is no such session")
    return found


async def _online(registry: Registry, session_id: str) -> set[str]:
    """Return the devices that are online, as far as is known here.

    Where there are other nodes, it is known of a session that is open.
    """
    host = registry.hosts.get(session_id)
    if host is None and registry.bus is not None:
        with contextlib.suppress(ReattachError):
            host = await registry.open(session_id)
    return set() if host is None else host.room.online()


def _device(device: DeviceRecord, online: set[str]) -> dict[str, Any]:
    return {
        "id": device.device_id,
        "name": called(device),
        "info": msgspec.Raw(device.info),
        "user_id": device.user_id,
        "online": device.device_id in online,
        "is_primary": device.is_primary,
        "created_at": device.created_at,
        "last_activity": device.last_activity,
        "version": device.version,
        "revoked_at": device.revoked_at,
    }


class _Op(msgspec.Struct):
    op: str
    path: str


class _Frame(msgspec.Struct):
    type: str
    patch: list[_Op]
    by: dict[str, Any] | None = None
    conflicts: list[msgspec.Raw] = msgspec.field(default_factory=list)
    from_version: int | None = None
    to_version: int | None = None


_frame = msgspec.json.Decoder(_Frame)


def _described(commit: CommitRecord) -> dict[str, Any]:
    """Return what a line of a list says of a commit."""
    frame = _frame.decode(commit.body)
    by = frame.by or {}
    paths = list(dict.fromkeys(op.path for op in frame.patch))
    return {
        "version": commit.version,
        "at": commit.at,
        "client_id": commit.client_id,
        "device_id": by.get("device_id"),
        "user_id": by.get("user_id"),
        "source": by.get("source"),
        "bytes": len(commit.body),
        "operations": len(frame.patch),
        "paths": paths[:_PATHS],
        "more_paths": max(0, len(paths) - _PATHS),
        "conflicts": len(frame.conflicts),
        "restored": frame.to_version if frame.type == "session_restored" else None,
    }


async def _watched(registry: Registry, session_id: str) -> AsyncIterator[bytes]:
    """Tell where a session stands whenever that changes, and now and then that the line lives."""
    told: Any = None
    said_at = read_at = -_BEAT_S * 1000
    stands: Any = None
    while not registry.stopping:
        now = registry.clock.monotonic()
        host = registry.hosts.get(session_id)
        if host is not None:
            record = host.room.recorded
            stands = (record.epoch, record.version, sorted(host.room.online()))
        elif now - read_at >= _READ_S * 1000:
            read_at = now
            found = (await registry.store.versions([session_id])).get(session_id)
            stands = None if found is None else (found[0], found[1], [])
        if stands is None and host is None:
            yield b"event: gone\ndata: {}\n\n"
            return
        if stands != told:
            told, said_at = stands, now
            epoch, number, online = stands
            data = encode({"epoch": epoch, "version": number, "online": online})
            yield b"event: stands\ndata: %b\n\n" % data
        elif now - said_at >= _BEAT_S * 1000:
            said_at = now
            yield b": still here\n\n"
        await asyncio.sleep(_TICK_S)
