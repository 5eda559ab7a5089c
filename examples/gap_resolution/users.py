"""Who is there: a random user for each browser profile, in a cookie that no script can read.

A document belongs to the user who opened it, and comes with a key for it alone. The page keeps the
key with what else it knows of the document, since a browser that is killed may have lost a cookie
of the last half minute; and a link with a key that soon ends lets another device in, until sessions
can be shared among users.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from typing import Final

from fastapi import Request, Response
from starlette.requests import HTTPConnection

from reattach import NotAuthenticated, Sessions, User
from reattach.errors import AlreadyExists

__all__ = ["LINK_LASTS_S", "Keys", "Users", "remember"]

LINK_LASTS_S: Final = 10 * 60

_COOKIE: Final = "gap-resolution"
_TOKEN: Final = re.compile(r"[\w-]{43}")
_SESSION: Final = re.compile(r"/(?:session|documents)/([^/]+)")
_KEPT_S: Final = 400 * 24 * 60 * 60  # as long as browsers keep a cookie at most
_FOR_EVER: Final = 0
_OURS: Final = "gap-resolution"


class Keys:
    """Makes keys and knows its own: signed, so that nothing has to be kept of them."""

    def __init__(self) -> None:
        self._secret = b""

    async def open(self, sessions: Sessions) -> None:
        """Take the secret that all keys are signed with from the database, or put one there.

        It is the state of a session that no user of a browser can be the owner of.
        """
        name = f"{_OURS}-secret"
        try:
            fresh = {"secret": secrets.token_hex(32)}
            found = await sessions.create(fresh, user_id=_OURS, session_id=name)
        except AlreadyExists:
            found = await sessions.get(name)
        self._secret = bytes.fromhex(found.state["secret"])

    def make(self, session_id: str, user: User, *, lasts_s: int = _FOR_EVER) -> str:
        """Return a key to one document, as its owner."""
        ends_at = int(time.time()) + lasts_s if lasts_s else _FOR_EVER
        return f"{user.id}.{ends_at}.{self._sign(session_id, user.id, ends_at)}"

    def user_of(self, key: str, session_id: str) -> User | None:
        """Return whom a key lets in on a document; None when it does not fit, or is over."""
        user_id, _, rest = key.partition(".")
        ends, _, signature = rest.partition(".")
        if not ends.isdecimal() or len(ends) > 12 or not signature.isascii():
            return None
        fits = hmac.compare_digest(self._sign(session_id, user_id, int(ends)), signature)
        over = int(ends) != _FOR_EVER and int(ends) < time.time()
        return User(user_id) if fits and not over else None

    def _sign(self, session_id: str, user_id: str, ends_at: int) -> str:
        text = "\n".join((session_id, user_id, str(ends_at)))
        digest = hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


class Users:
    """What `Reattach` is given as ``authenticate``."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def __call__(self, connection: HTTPConnection) -> User:
        """Return who is there; raises `NotAuthenticated` for a browser that never had the page."""
        return self.on(connection, _session_of(connection))

    def on(self, connection: HTTPConnection, session_id: str | None) -> User:
        """Return who is there on a document: by a key to it, else by the browser's own cookie."""
        if session_id is not None:
            cookie = connection.cookies.get(f"{_COOKIE}-{session_id}")
            for key in (connection.state.token, cookie):
                user = self._keys.user_of(key, session_id) if key else None
                if user is not None:
                    return user
        user = self.own(connection)
        if user is None:
            raise NotAuthenticated("expected the cookie that the page comes with: load it first")
        return user

    @staticmethod
    def own(connection: HTTPConnection) -> User | None:
        """Return the browser's own user, if it has one yet."""
        token = connection.cookies.get(_COOKIE, "")
        return _user(token) if _TOKEN.fullmatch(token) else None


def _session_of(connection: HTTPConnection) -> str | None:
    found = _SESSION.search(connection.scope["path"])
    return found[1] if found else None


def remember(
    request: Request, response: Response, key: str | None = None, session_id: str | None = None
) -> User:
    """Have the browser keep a new user, or a key to one document; returns the user."""
    token = secrets.token_urlsafe(32)
    response.set_cookie(
        f"{_COOKIE}-{session_id}" if session_id else _COOKIE,
        key or token,
        max_age=_KEPT_S,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return _user(token)


def _user(token: str) -> User:
    # The id is shown in logs and to other devices, and lets nobody in.
    return User(hashlib.sha256(token.encode()).hexdigest()[:32])
