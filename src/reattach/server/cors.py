"""Answers for pages of other origins that are allowed (the Fetch standard's CORS protocol).

No answer allows credentials: a page of another origin comes with a token, not with a cookie.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.errors import Forbidden
from reattach.server.auth import Auth
from reattach.server.problems import problem

__all__ = ["Cors"]

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
)
_OWN: Final = "reattach-"
"""What all of our own headers begin with."""
_EXPOSED: Final = "ETag, Location, Retry-After, Idempotency-Replayed"
_MAX_AGE: Final = "600"
"""Seconds that a browser may go by one preflight."""


class Cors:
    """Lets pages of allowed origins read answers, and answers what their browsers ask before."""

    def __init__(self, app: ASGIApp, auth: Callable[[], Auth]) -> None:
        """Stand around an application; ``auth`` knows the origins."""
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or have the application answer."""
        auth = self._auth()
        if scope["type"] != "http" or not auth.allowed_origins:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin in auth.allowed_origins else None

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                # Also where no origin came: a cache may not show that answer to a page.
                answer.add_vary_header("Origin")
                if allowed is not None:
                    answer["Access-Control-Allow-Origin"] = allowed
                    answer["Access-Control-Expose-Headers"] = _EXPOSED
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(auth, HTTPConnection(scope))(scope, receive, tell)
        else:
            await self._app(scope, receive, tell)


def _preflight(auth: Auth, connection: HTTPConnection) -> Response:
    try:
        auth.check_host_and_origin(connection)
    except Forbidden as error:
        return problem(error)
    asked = connection.headers.get("access-control-request-headers", "").split(",")
    own = [name for one in asked if (name := one.strip().lower()).startswith(_OWN)]
    return Response(
        status_code=HTTPStatus.NO_CONTENT,
        headers={
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": ", ".join((*_HEADERS, *own)),
            "Access-Control-Max-Age": _MAX_AGE,
            "Vary": "Access-Control-Request-Headers",
        },
    )
