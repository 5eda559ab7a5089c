"""Every error over HTTP as ``application/problem+json`` (RFC 9457), with the protocol's code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.core.session import printable
from reattach.errors import (
    ChangeRefused,
    NotAuthenticated,
    ReattachError,
    StoreRefused,
)
from reattach.wire import encode

__all__ = ["MEDIA_TYPE", "answer", "install", "problem"]

log = structlog.get_logger("reattach.http")

MEDIA_TYPE: Final = "application/problem+json"

_RETRY_MS = 1_000

_REFUSED: Final = {
    "bad_op": 400,
    "bad_patch": 400,
    "forbidden": 403,
    "no_such_conflict": 404,
    "already_resolved": 409,
    "conflict": 409,
    "conflict_changed": 409,
    "test_failed": 409,
    "no_such_checkpoint": 404,
    "session_ended": 410,
    "version_gone": 410,
    "change_too_large": 413,
    "state_too_large": 413,
    "too_large": 413,
    "too_many_operations": 413,
    "internal": 500,
}
"""The status of a refused change where it is not 422 (RFC 5789, section 2.2)."""

_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
_PLACES: Final = {"path": "bad_id", "query": "bad_query", "header": "bad_header"}


def install(app: FastAPI) -> None:
    """Have an application answer all its errors as problems."""
    app.add_exception_handler(ReattachError, _raised)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(_Failures)


def problem(error: ReattachError) -> Response:
    """Return the answer that an error becomes."""
    status, headers = error.status, {}
    members: dict[str, Any] = {}
    if isinstance(error, ChangeRefused):
        status = _REFUSED.get(error.code, status)
    if status == HTTPStatus.SERVICE_UNAVAILABLE and not isinstance(error, StoreRefused):
        wait = getattr(error, "retry_after_ms", _RETRY_MS)
        members["retry_after_ms"] = wait
        headers["Retry-After"] = str(max(1, math.ceil(wait / 1000)))
    for name in ("path", "expected"):
        value = getattr(error, name, None)
        if value is not None:
            members[name] = value
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    headers.update(getattr(error, "headers", {}))
    return answer(status, error.code, error.message, headers=headers, members=members)


def answer(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response:
    """Return a problem; ``members`` are the extension members beside ``code``."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": printable(detail),
        "code": code,
    }
    body |= {name: printable(value) for name, value in (members or {}).items()}
    return Response(encode(body), status, headers, MEDIA_TYPE)


async def _raised(_: Request, error: Exception) -> Response:
    assert isinstance(error, ReattachError)
    return problem(error)


async def _invalid(_: Request, error: Exception) -> Response:
    """A parameter is not as it has to be; bodies are not read by FastAPI."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *name = first["loc"]
    where = f"{place} parameter {'.'.join(map(str, name))}"
    code = _PLACES.get(str(place), "bad_request")
    return answer(HTTPStatus.BAD_REQUEST, code, f"{where}: {first['msg']}")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, dict(error.headers or {})
    code, detail = _CODES.get(status, "http_error"), str(error.detail)
    if status == HTTPStatus.NOT_FOUND:
        detail = f"there is no route {request.url.path[:200]}: see openapi.json"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
        detail = f"expected one of the methods {headers['Allow']}, got {request.method}"
    return answer(status, code, detail, headers=headers)


def _allowed(request: Request) -> list[str]:
    """Return the methods of a path: each stands in a route of its own."""
    routes = request.app.router.routes
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ]


class _Failures:
    """Answers what nobody expected with 500 and nothing about it, and logs all about it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            if started:
                raise  # half an answer: the server cuts the connection, and logs
            log.exception("a request failed", method=scope["method"], path=scope["path"])
            detail = "the server failed on this request: see its log"
            failure = answer(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail)
            await failure(scope, receive, send)
