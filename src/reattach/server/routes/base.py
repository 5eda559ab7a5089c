"""What the routes have in common: who is there, the session that is asked for, and answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from reattach.errors import NotAuthenticated
from reattach.runtime.access import Action, User
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.server import models
from reattach.server.auth import bearer
from reattach.server.served import Served
from reattach.wire import encode

__all__ = [
    "ID",
    "NOT_KEPT",
    "PAGE",
    "After",
    "IdempotencyKey",
    "Patches",
    "Routes",
    "SessionPath",
    "json_answer",
    "page_answer",
    "user_of",
    "whole_user_of",
]

PAGE: Final = 100
"""Items on a page of a list."""

ID: Final = re.compile(r"[A-Za-z0-9._:~-]{1,128}")

NOT_KEPT: Final = {"Cache-Control": "no-store"}
"""Headers of an answer with secrets."""

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


class Routes:
    """Handlers over a server's sessions."""

    def __init__(self, reattach: Served) -> None:
        """Belong to a server."""
        self._reattach = reattach
        self.settings = reattach.settings

    async def running(self) -> Registry:
        """Return the sessions, started."""
        return await self._reattach.running()

    async def enter(self, request: Request) -> None:
        """Let a request in, or raise what keeps it out."""
        auth = self._reattach.auth
        auth.check_host_and_origin(request)
        request.state.user = await auth.identify(request, bearer(request))

    async def enter_from_here(self, request: Request) -> None:
        """Let in whoever it is, from a page that may ask."""
        self._reattach.auth.check_host_and_origin(request)

    async def enter_or_begin(self, request: Request) -> None:
        """Let a request in; with ``--anonymous`` also one of nobody who has signed in."""
        try:
            await self.enter(request)
        except NotAuthenticated:
            if bearer(request) is not None or not self._reattach.settings.anonymous:
                raise
            request.state.user = None

    async def open(
        self, request: Request, session_id: str, action: Action = Action.READ
    ) -> tuple[Registry, Host, str]:
        """Return an open session and the caller's role; raises what keeps the caller from it.

        It stands where the database had it when the request came, whichever node wrote to it.
        """
        registry, user = await self.running(), user_of(request)
        was_open = session_id in registry.hosts
        host, role = await registry.members.admit(session_id, user, action)
        if was_open:
            access_version = host.stands[2]
            await registry.nodes.keep_up(host)
            if host.closed or host.stands[2] != access_version:
                host, role = await registry.members.admit(session_id, user, action)
        return registry, host, role


def user_of(request: Request) -> User:
    """Return who sent a request that was let in."""
    user: User = request.state.user
    return user


def whole_user_of(request: Request) -> User:
    """Return who sent a request that is about more than one session."""
    user = user_of(request)
    if user.session_id is not None:
        raise NotAuthenticated("expected a user who has signed in, got a token for one session")
    return user


def json_answer(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON."""
    return Response(body, status, headers, "application/json")


def page_answer(items: Sequence[Any], following: str | None) -> Response:
    """Answer with a page of a list; ``following`` is where the next one begins."""
    return json_answer(encode({"items": items, "next": following}))
