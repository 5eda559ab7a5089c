"""A page where people resolve the gaps of a Citation file.

reattach serve --app examples.gap_resolution.app:reattach
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

from fastapi import Depends, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from reattach import Reattach, Snapshot, User
from reattach.errors import ReattachError, SessionNotFound
from reattach.server.auth import bearer

from . import gaps
from .watchers import Watchers

__all__ = ["reattach"]

PAGES: Final = Path(__file__).parent / "pages"

# Nothing from elsewhere and nothing written into the page: what somebody typed can never run.
_SOURCES: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
POLICY: Final = "; ".join(f"{what} {source}" for what, source in _SOURCES.items())


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


@asynccontextmanager
async def watching(reattach: Reattach) -> AsyncIterator[None]:
    """Have documents watched for as long as the server runs."""
    reattach.app.state.watchers = watchers = Watchers(reattach.sessions)
    try:
        yield
    finally:
        await watchers.stop()


reattach = Reattach(lifespan=watching)


async def caller(request: Request) -> User:
    """Return who asks; our own routes let in whom the sessions let in."""
    reattach.auth.check_host_and_origin(request)
    return await reattach.auth.identify(request, bearer(request))


Caller = Annotated[User, Depends(caller)]


async def own(session_id: str, user: Caller) -> Snapshot:
    """Return a session of the caller's; another's does not exist."""
    snapshot = await reattach.sessions.get(session_id)
    if snapshot.session.user_id != user.id:
        raise SessionNotFound("there is no such document")
    return snapshot


@reattach.app.post("/documents", status_code=201)
async def open_document(user: Caller) -> dict[str, str]:
    """Open the unfinished document in a new session."""
    snapshot = await reattach.sessions.create(gaps.first_state(), user_id=user.id)
    return {"session_id": snapshot.session.session_id}


@reattach.app.post("/documents/{session_id}/watch", status_code=204)
async def watch_document(snapshot: Annotated[Snapshot, Depends(own)]) -> None:
    """Have a document's answers held against the schema from now on."""
    watchers: Watchers = reattach.app.state.watchers
    await watchers.watch(snapshot.session.session_id)


@reattach.app.get("/documents/{session_id}.cff")
async def download_document(snapshot: Annotated[Snapshot, Depends(own)]) -> Response:
    """Send the finished document."""
    document = gaps.document_of(snapshot.state)
    if not gaps.is_valid(document):
        raise NotYetValid("expected a document without gaps: answer what is left, then come back")
    headers = {
        "Content-Disposition": f'attachment; filename="{gaps.NAME}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(gaps.dump(document), 200, headers, "application/yaml; charset=utf-8")


# Last, since it takes every path that is left.
reattach.app.mount("/", Pages(directory=PAGES, html=True, check_dir=False), name="pages")
