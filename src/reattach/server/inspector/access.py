"""Who may look through the inspector's window: a rule of its own, which knows no users.

Whoever is let in sees every session of everybody. So it is off unless it is configured, its pages
come from the server's own origin alone, and it writes nothing unless that was granted as well.
"""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias

import msgspec
from starlette.requests import HTTPConnection

from reattach.errors import BadSetting, Forbidden, NotAuthenticated
from reattach.runtime.access import User
from reattach.server.auth import Auth, bearer, check_cookie, is_from_here, nobody
from reattach.settings import Settings

__all__ = ["Inspect", "Inspecting", "Inspector", "by_settings"]

_LEAST_TOKEN: Final = 32
"""Bytes."""


class Inspector(msgspec.Struct, frozen=True):
    """Somebody who inspects. What they write is told to be by ``id``; ``writes`` grants that."""

    id: str = "inspector"
    writes: bool = False


Inspect: TypeAlias = Callable[[HTTPConnection], Awaitable[Inspector | None] | Inspector | None]
"""An application's word on who inspects; None keeps out. The bearer token that came, if any, is
``connection.state.token``."""


class Inspecting:
    """The rule, as routes ask for it."""

    def __init__(self, inspect: Inspect, *, only_here: bool = False) -> None:
        """Let in whom ``inspect`` does; with ``only_here`` not even the page is for others."""
        self._inspect = inspect
        self._only_here = only_here
        # Pages of other origins may use the server, and never this.
        self._origins = Auth(nobody, _nobodys)

    def check_page(self, connection: HTTPConnection) -> None:
        """Raise `Forbidden` where not even the page, which has nothing in it, may be shown."""
        self._origins.check_host_and_origin(connection)
        if self._only_here and not is_from_here(connection):
            raise Forbidden(
                "expected a client on this machine, by a loopback address and without a proxy:"
                " set REATTACH_INSPECTOR_TOKEN to let in whoever has it",
                code="forbidden_client",
            )

    async def identify(self, connection: HTTPConnection) -> Inspector:
        """Return who inspects; raises `NotAuthenticated` or `Forbidden`."""
        self.check_page(connection)
        token = connection.state.token = bearer(connection)
        answer = self._inspect(connection)
        inspector = await answer if inspect.isawaitable(answer) else answer
        if inspector is None:
            raise NotAuthenticated("expected whoever may inspect: give the inspector's token")
        if not isinstance(inspector, Inspector):
            raise TypeError(
                f"expected inspect to return an Inspector or None, got {type(inspector).__name__}"
            )
        if token is None:
            check_cookie(connection)
        return inspector


def by_settings(settings: Settings, mode: Literal["read", "write"]) -> Inspecting:
    """Return the rule that settings make: whoever has the token, or else this machine alone.

    Raises `BadSetting` for a token that could be guessed.
    """
    inspector = Inspector(writes=mode == "write")
    if settings.inspector_token is None:
        return Inspecting(lambda _: inspector, only_here=True)
    token = settings.inspector_token.get_secret_value().encode()
    if len(token) < _LEAST_TOKEN:
        raise BadSetting(
            f"expected an inspector token of at least {_LEAST_TOKEN} bytes, got {len(token)}: make"
            " one at random (python -c 'import secrets; print(secrets.token_urlsafe())')"
        )

    def has_token(connection: HTTPConnection) -> Inspector | None:
        given = (connection.state.token or "").encode("utf-8", "surrogatepass")
        return inspector if hmac.compare_digest(given, token) else None

    return Inspecting(has_token)


async def _nobodys(_: str) -> User:
    raise NotAuthenticated("expected no token of a session")
