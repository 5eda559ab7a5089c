"""A page where people resolve the gaps of a document: a Citation file, or a pyproject.toml.

reattach serve --app examples.gap_resolution.app:reattach
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from reattach import Reattach, Snapshot, User
from reattach.errors import BadRequest, ReattachError, SessionNotFound
from reattach.server.auth import bearer

from . import documents, gaps, schemas
from .kinds import KINDS
from .session import GapResolution
from .users import LINK_LASTS_S, Keys, Users, remember
from .watchers import Watchers

__all__ = ["reattach"]

PAGES: Final = Path(__file__).parent / "pages"

# Nothing from elsewhere and nothing written into the page: what somebody typed can never run.
_SOURCES: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "worker-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
POLICY: Final = "; ".join(f"{what} {source}" for what, source in _SOURCES.items())

_MEDIA: Final = {"json": "application/json", "toml": "application/toml", "yaml": "application/yaml"}
_MAX_DOCUMENT: Final = 100_000


class NotYetValid(ReattachError):
    """The document has gaps still: answer them, then download it."""

    code = "not_yet_valid"
    status = 409


class KeyDoesNotFit(ReattachError):
    """Links for other devices last ten minutes: make another one."""

    code = "key_does_not_fit"
    status = 403


class Pages(StaticFiles):
    """The built page. Its assets are named after what is in them, so they may be kept for ever."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file and the headers of a careful page."""
        response = await super().get_response(path, scope)
        forever = path.startswith("assets/") and response.status_code < 400
        response.headers["Cache-Control"] = (
            "public, max-age=31536000, immutable" if forever else "no-cache"
        )
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        request = Request(scope)
        if path in {".", "index.html"} and users.own(request) is None:
            remember(request, response)
        return response


@asynccontextmanager
async def watching(reattach: Reattach) -> AsyncIterator[None]:
    """Have documents watched for as long as the server runs."""
    await keys.open(reattach.sessions)
    reattach.app.state.watchers = watchers = Watchers(reattach.sessions)
    try:
        yield
    finally:
        await watchers.stop()


keys = Keys()
users = Users(keys)
reattach = Reattach(lifespan=watching, authenticate=users, schemas=[GapResolution])


def from_here(request: Request) -> Request:
    """Let in requests of our own pages alone."""
    reattach.auth.check_host_and_origin(request)
    return request


Here = Annotated[Request, Depends(from_here)]


async def caller(request: Here) -> User:
    """Return who asks; our own routes let in whom the sessions let in."""
    return await reattach.auth.identify(request, bearer(request))


async def own(session_id: str, user: Annotated[User, Depends(caller)]) -> Snapshot:
    """Return a session of the caller's; another's does not exist."""
    snapshot = await reattach.sessions.get(session_id)
    if snapshot.session.user_id != user.id:
        raise SessionNotFound("there is no such document")
    return snapshot


Own = Annotated[Snapshot, Depends(own)]


class Opening(BaseModel):
    """What to open: a kind's unfinished document, somebody's own one, or a new one of a schema."""

    kind: Literal["citation", "pyproject", "own"] = "citation"
    text: str | None = Field(None, max_length=_MAX_DOCUMENT)
    """The document; of the kind "own", its JSON schema."""


class Joining(BaseModel):
    """What a link for another device carries."""

    key: str = Field(max_length=200)


@reattach.app.post("/documents", status_code=201)
async def open_document(
    request: Here, response: Response, opening: Opening | None = None
) -> dict[str, str]:
    """Open a document in a new session; answers its id, and a key to it for this device to keep."""
    state = _first_state(opening or Opening())
    user = users.own(request) or remember(request, response)
    snapshot = await reattach.sessions.create(state, user_id=user.id, schema=GapResolution.__name__)
    session_id = snapshot.session.session_id
    return {"session_id": session_id, "key": keys.make(session_id, user)}


def _first_state(opening: Opening) -> dict[str, Any]:
    if opening.kind == "own":
        try:
            return gaps.first_state(schemas.kind_of(schemas.read_schema(opening.text or "")))
        except ValueError as error:
            raise BadRequest(str(error)[:400], code="bad_schema") from error
    kind = KINDS[opening.kind]
    if opening.text is None:
        return gaps.first_state(kind)
    syntax = documents.syntax_of(opening.text, kind.syntax)
    try:
        return gaps.first_state(kind, documents.load(opening.text, syntax), syntax)
    except ValueError as error:
        raise BadRequest(str(error)[:300], code="bad_document") from error


@reattach.app.post("/documents/{session_id}/watch", status_code=204)
async def watch_document(request: Here, response: Response, snapshot: Own) -> None:
    """Have a document's answers held against the schema from now on."""
    session = snapshot.session
    watchers: Watchers = reattach.app.state.watchers
    await watchers.watch(session.session_id)
    owner = User(session.user_id)
    if users.own(request) != owner:
        # Let in by a key: a link to the file brings none, a cookie will.
        key = keys.make(session.session_id, owner)
        remember(request, response, key, session.session_id)


@reattach.app.post("/documents/{session_id}/link", status_code=201)
async def invite_device(snapshot: Own) -> dict[str, str]:
    """Make what a link for another device carries, in the part that no server is sent."""
    session = snapshot.session
    user = User(session.user_id)
    return {"key": keys.make(session.session_id, user, lasts_s=LINK_LASTS_S)}


@reattach.app.post("/documents/{session_id}/join")
async def join_document(
    session_id: str, request: Here, response: Response, joining: Joining
) -> dict[str, str]:
    """Let the caller's browser in on a document, with a key of its own to keep."""
    user = keys.user_of(joining.key, session_id)
    if user is None:
        raise KeyDoesNotFit("expected a link of the last ten minutes: make another one")
    key = keys.make(session_id, user)
    remember(request, response, key, session_id)
    return {"key": key}


@reattach.app.get("/documents/{session_id}/file")
async def download_document(snapshot: Own) -> Response:
    """Send the finished document."""
    if not snapshot.state["context"]["valid"]:
        raise NotYetValid("expected a document without gaps: answer what is left, then come back")
    name, syntax, text = gaps.file_of(snapshot.state)
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(text, 200, headers, f"{_MEDIA[syntax]}; charset=utf-8")


# Last, since it takes every path that is left.
reattach.app.mount("/", Pages(directory=PAGES, html=True, check_dir=False), name="pages")
