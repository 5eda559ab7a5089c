"""Who sends a request, and whether its host and origin may.

Without an ``authenticate``, the application's or that of tokens (`reattach.server.tokens`), there
is one user, and only this machine is let in. A page of another site that a browser on this machine
shows is not: by its origin, or, where DNS was bent to bring it here, by its host.
"""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from reattach.errors import Forbidden, NotAuthenticated
from reattach.runtime.access import User
from reattach.runtime.credentials import is_anonymous, is_token
from reattach.settings import Settings

__all__ = [
    "MAX_USER_ID",
    "Auth",
    "Authenticate",
    "Holder",
    "bearer",
    "came_from",
    "check_cookie",
    "is_from_here",
    "nobody",
]

Authenticate: TypeAlias = Callable[[HTTPConnection], Awaitable[User] | User]
"""Says who is there; the token that came, if any, is ``connection.state.token``."""

Holder: TypeAlias = Callable[[str], Awaitable[User]]
"""Says whom a token for one session stands for; raises `NotAuthenticated`."""

LOCAL_USER: Final = User("local")
"""The one user of a server without ``authenticate``."""

MAX_USER_ID: Final = 255
"""Bytes."""
_MAX_AGENT: Final = 300
_PORTS: Final = {"http": 80, "https": 443}
_READS: Final = frozenset({"GET", "HEAD"})


class Auth:
    """Identifies users by what the application says, or lets this machine's one user in."""

    def __init__(
        self,
        authenticate: Authenticate | None,
        holder: Holder,
        allowed_origins: Collection[str] = (),
    ) -> None:
        """Take the application's function; None lets in whoever sits at this machine.

        ``holder`` knows the tokens that the server itself gave out for one session each.
        ``allowed_origins`` are those beside the server's own, as browsers write them.
        """
        self._authenticate = authenticate
        self._holder = holder
        self.allowed_origins = frozenset(allowed_origins)

    async def identify(self, connection: HTTPConnection, token: str | None) -> User:
        """Return who is there; raises `NotAuthenticated`, or `Forbidden` for a cookie from nowhere.

        ``token`` is that of the ``hello`` or of the Authorization header. The application's
        function finds it as ``connection.state.token``.
        """
        connection.state.token = token
        if token is not None and is_token(token):
            return await self._holder(token)
        if self._authenticate is None:
            return LOCAL_USER
        answer = self._authenticate(connection)
        user = await answer if inspect.isawaitable(answer) else answer
        if not isinstance(user, User):
            raise TypeError(f"expected authenticate to return a User, got {type(user).__name__}")
        if not 0 < len(user.id.encode("utf-8", "surrogatepass")) <= MAX_USER_ID:
            raise NotAuthenticated(f"expected a user id of 1 to {MAX_USER_ID} bytes")
        if is_anonymous(user.id):
            raise NotAuthenticated("expected a user id that is none of those who did not sign in")
        if token is None:
            check_cookie(connection)
        return user

    def check_host_and_origin(self, connection: HTTPConnection) -> None:
        """Raise `Forbidden` where a request comes from where none may come from."""
        host = connection.headers.get("host", "")
        if self._authenticate is None:
            _check_loopback(connection)
        origin = connection.headers.get("origin")
        if origin is None or origin in self.allowed_origins:
            return
        if not _same_origin(origin, host):
            raise Forbidden(
                f"expected a page of {host[:80]!r} itself, got one of {origin[:80]!r}: serve the"
                " page from the same host and port as the server, or allow its origin"
                " (--allow-origin)",
                code="forbidden_origin",
            )


def nobody(_: HTTPConnection) -> User:
    """Let in nobody but who has a token for one session: ``--anonymous`` alone."""
    raise NotAuthenticated("expected a token: begin a session without one, or open a link to one")


def came_from(settings: Settings, connection: HTTPConnection) -> dict[str, str] | None:
    """Return what the activity log is to tell of where a connection comes from."""
    if not settings.activity_addresses:
        return None
    agent = connection.headers.get("user-agent", "")[:_MAX_AGENT]
    return {"ip": "" if connection.client is None else connection.client.host, "user_agent": agent}


def bearer(connection: HTTPConnection) -> str | None:
    """Return the token of the Authorization header (RFC 6750), if one came."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def check_cookie(connection: HTTPConnection) -> None:
    """Raise `Forbidden` where a browser's cookie comes along, and nothing says from which page.

    Browsers add cookies to what any site has them send. They name its origin with all but reads,
    whose answers they keep from the other site.
    """
    headers = connection.headers
    if "cookie" not in headers or "origin" in headers:
        return
    if connection.scope["type"] == "websocket" or connection.scope["method"] not in _READS:
        raise Forbidden(
            "expected an Origin beside the cookie: send the request from the application's page,"
            " or with a token in place of the cookie",
            code="forbidden_origin",
        )


def is_from_here(connection: HTTPConnection) -> bool:
    """Say whether a request comes from this machine, and not through a proxy on it."""
    headers = connection.headers
    if "x-forwarded-for" in headers or "forwarded" in headers:
        return False
    try:
        _check_loopback(connection)
    except Forbidden:
        return False
    return True


def _check_loopback(connection: HTTPConnection) -> None:
    """Raise `Forbidden` where neither a client of this machine nor its name was called."""
    host = connection.headers.get("host", "")
    client = connection.client
    if client is None or not _is_loopback(client.host):
        raise Forbidden(
            "expected a client on this machine, because nobody has to sign in here: serve with"
            " --auth jwt, or give the server an authenticate function, to let others in",
            code="forbidden_client",
        )
    name = _split(f"//{host}", 0)[0]
    if name != "localhost" and not _is_loopback(name):
        raise Forbidden(
            f"expected localhost, 127.0.0.1 or [::1] as Host, got {host[:80]!r}: use one of these"
            " in the address, or give the server an authenticate function",
            code="forbidden_host",
        )


def _is_loopback(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def _same_origin(origin: str, host: str) -> bool:
    """Compare host and port. The scheme is the proxy's business: TLS may end before us."""
    port = _PORTS.get(origin.partition(":")[0], 0)
    if not port or not host:
        return False  # "null", or an application's own scheme
    return _split(origin, port) == _split(f"//{host}", port)


def _split(url: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        found = parts.port
    except ValueError:
        return ("", -1)
    return (parts.hostname or "", found or port)
