"""The public keys at a URL (a JWK Set, RFC 7517): kept, and asked for anew when they change.

What the other side does is bounded: its answer's size, the time that it takes, and how often it is
asked, whatever tokens come.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import httptools
import jwt
import msgspec
import structlog

from reattach.errors import BadSetting, Unavailable

__all__ = ["KeySet"]

log = structlog.get_logger("reattach.auth")

_TIMEOUT: Final = 3.0
"""Seconds for the whole answer."""
_MAX_BYTES: Final = 256 * 1024
"""What an answer may weigh, its headers included."""
_MAX_AGE: Final = 600.0
"""Seconds after which the keys are asked for again: one that was withdrawn ends with it."""
_PAUSE: Final = 5.0
"""Seconds between two questions."""
_KEEP: Final = 86_400.0
"""Seconds that keys are used for while nobody answers."""

_BROKEN: Final = (
    OSError,
    ValueError,
    RecursionError,
    jwt.PyJWTError,
    httptools.HttpParserError,
)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class KeySet:
    """The keys at a URL that ``fits`` lets through, by their ``kid``."""

    def __init__(
        self,
        url: str,
        fits: Callable[[object], bool],
        algorithm: str,
        *,
        max_age: float = _MAX_AGE,
        pause: float = _PAUSE,
    ) -> None:
        """Read the URL; raises `BadSetting`. Nothing is asked for before a token comes.

        ``max_age`` and ``pause`` are seconds: how old keys may be before they are asked for again,
        and what lies between two questions at least.
        """
        self._url = _checked(url)
        self._fits = fits
        self._algorithm = algorithm
        self._max_age = max_age
        self._pause = pause
        self._keys: list[tuple[str | None, Any]] = []
        self._had_at = 0.0
        self._asked_at: float | None = None
        self._asking: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> Any | None:
        """Return the key that a token names; without a name, the only one that there is.

        None where there is none. Raises `Unavailable` while no keys could be had at all.
        """
        age = time.monotonic() - self._had_at
        if self._keys and age >= _KEEP:
            self._keys = []
        found = self._named(kid)
        if found is not None:
            if age >= self._max_age:
                self._ask()  # and this token does not wait for it
            return found
        asking = self._ask()
        if asking is not None:
            await asyncio.shield(asking)
        if not self._keys:
            raise Unavailable(
                "the keys that tokens are checked with cannot be had now: come back",
                retry_after_ms=round(self._pause * 1000),
            )
        return self._named(kid)

    def _named(self, kid: str | None) -> Any | None:
        if kid is None:
            return self._keys[0][1] if len(self._keys) == 1 else None
        return next((key for name, key in self._keys if name == kid), None)

    def _ask(self) -> asyncio.Task[None] | None:
        """Return the question that is under way, begun if it may be; None where it may not."""
        if self._asking is None or self._asking.done():
            now = time.monotonic()
            if self._asked_at is not None and now - self._asked_at < self._pause:
                return None
            self._asked_at = now
            self._asking = asyncio.create_task(self._refresh())
        return self._asking

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                self._keys = self._read(await _get(self._url))
        except _BROKEN as error:
            # Those that are there go on: a key is not wrong because nobody can be asked.
            log.warning(
                "the keys of REATTACH_JWT_JWKS_URL could not be had: see to its server",
                error=str(error) or type(error).__name__,
                kept=len(self._keys),
            )
        else:
            self._had_at = time.monotonic()

    def _read(self, body: bytes) -> list[tuple[str | None, Any]]:
        found = []
        for data in msgspec.json.decode(body, type=_Set).keys:
            if data.get("use", "sig") != "sig" or data.get("alg") not in {None, self._algorithm}:
                continue
            try:
                key = jwt.PyJWK(data, self._algorithm).key
            except (jwt.PyJWTError, ValueError, TypeError):
                continue  # of a kind that is not known, for something else
            kid = data.get("kid")
            if self._fits(key) and (kid is None or isinstance(kid, str)):
                found.append((kid, key))
        if not found:
            raise ValueError(f"expected a public key for {self._algorithm}, got none")
        return found


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.port is None or parts.port > 0
    except ValueError:
        parts, usable = SplitResult("", "", "", "", ""), False
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not (usable and safe and parts.hostname) or "@" in parts.netloc or not url.isascii():
        raise BadSetting(
            "expected REATTACH_JWT_JWKS_URL to be an https URL such as"
            " https://example.org/.well-known/jwks.json (http on this machine only: whoever can"
            " change the answer on its way is whoever they like)"
        )
    return parts


class _Answer:
    """What httptools calls as an answer comes."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self.body += part

    def on_message_complete(self) -> None:
        """Note the end."""
        self.complete = True


async def _get(url: SplitResult) -> bytes:
    """Return what is at a URL; raises one of `_BROKEN`. A redirect is not followed."""
    secure = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if secure else 80)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    reader, writer = await asyncio.open_connection(url.hostname, port, ssl=secure)
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nAccept: application/json\r\n"
            "User-Agent: reattach\r\nConnection: close\r\n\r\n".encode()
        )
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        size = 0
        while not answer.complete and (data := await reader.read(_MAX_BYTES)):
            size += len(data)
            if size > _MAX_BYTES:
                raise ValueError(f"expected an answer of at most {_MAX_BYTES} bytes")
            parser.feed_data(data)
    finally:
        writer.transport.abort()
    if size == 0 or parser.get_status_code() != 200:
        raise ValueError(f"expected 200, got {parser.get_status_code() if size else 'nothing'}")
    return answer.body
