"""A page where people resolve the gaps of a document: a Citation file, or a pyproject.toml.

reattach serve --app examples.gap_resolution.app:reattach
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from reattach import Reattach, Snapshot
from reattach.errors import BadRequest, ReattachError, SessionNotFound
from reattach.server.auth import bearer

from . import documents, gaps, schemas
from .detect import detect, follow
from .kinds import KINDS
from .lan import address_for_others
from .session import GapResolution

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
_KEPT_S: Final = 400 * 24 * 60 * 60  # as long as browsers keep a cookie at most


class NotYetValid(ReattachError):
    """The document has gaps still: answer them, then download it."""

    code = "not_yet_valid"
    status = 409


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
        return response


# Nobody signs in here: a document comes with a token for it alone, which its browser keeps.
reattach = Reattach(schemas=[GapResolution])
reattach.allow_anonymous()
follow(reattach)


def from_here(request: Request) -> Request:
    """Let in requests of our own pages alone."""
    reattach.auth.check_host_and_origin(request)
    return request


Here = Annotated[Request, Depends(from_here)]


async def own(session_id: str, request: Here) -> Snapshot:
    """Return a session that the caller has a token for; another does not exist."""
    return await _shown_by(bearer(request), session_id, request)


async def own_file(session_id: str, request: Here) -> Snapshot:
    """Do the same for a link, which brings no token but a cookie."""
    token = bearer(request) or request.cookies.get(_cookie(session_id))
    return await _shown_by(token, session_id, request)


async def _shown_by(token: str | None, session_id: str, request: Request) -> Snapshot:
    user = await reattach.auth.identify(request, token)
    if user.session_id != session_id:
        raise SessionNotFound("there is no such document")
    return await reattach.sessions.get(session_id)


Own = Annotated[Snapshot, Depends(own)]
OwnFile = Annotated[Snapshot, Depends(own_file)]


def _cookie(session_id: str) -> str:
    return f"gap-resolution-{session_id}"


def remember(request: Request, response: Response, session_id: str, token: str) -> None:
    """Have the browser keep the token to a document for its links, where no script can read it."""
    response.set_cookie(
        _cookie(session_id),
        token,
        max_age=_KEPT_S,
        path=request.scope.get("root_path", "") + f"/documents/{session_id}",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


class Opening(BaseModel):
    """What to open: a kind's unfinished document, somebody's own one, or a new one of a schema."""

    kind: Literal["citation", "pyproject", "own"] = "citation"
    text: str | None = Field(None, max_length=_MAX_DOCUMENT)
    """The document; of the kind "own", its JSON schema."""


@reattach.app.post("/documents", status_code=201)
async def open_document(
    request: Here, response: Response, opening: Opening | None = None
) -> dict[str, str]:
    """Open a document in a new session; answers its id, and a token to it for this device."""
    state = _first_state(opening or Opening())
    begun = await reattach.sessions.begin(state, schema=GapResolution.__name__)
    session_id = begun.record.session_id
    remember(request, response, session_id, begun.token)
    return {"session_id": session_id, "token": begun.token}


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


@reattach.app.post("/documents/{session_id}/detect", status_code=204)
async def detect_gaps(request: Here, response: Response, snapshot: Own) -> None:
    """Hold a document against its schema: one that began without the server, or an older one."""
    session_id = snapshot.session.session_id
    await detect(reattach.sessions, session_id)
    token = bearer(request)
    if token is not None:
        # A link to the file brings no token, a cookie will.
        remember(request, response, session_id, token)


@reattach.app.get("/address")
async def find_address(request: Here) -> dict[str, str | bool | None]:
    """Say by which address other devices of the local network reach this server, and whether."""
    address, reachable = await address_for_others(request.url)
    return {"address": address, "reachable": reachable}


@reattach.app.get("/documents/{session_id}/file")
async def download_document(snapshot: OwnFile) -> Response:
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
