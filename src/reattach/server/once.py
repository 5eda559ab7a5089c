"""Requests that may be repeated: what an ``Idempotency-Key`` was answered (rule T3)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from reattach.core.effects import Request as Proposed
from reattach.core.effects import Result
from reattach.core.session import Session
from reattach.errors import BadRequest, KeyAnswered, ReattachError, Unavailable
from reattach.runtime.access import User
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.store.base import IdempotencyRecord
from reattach.wire import encode

__all__ = ["KeyReused", "Once", "replay", "submit"]

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Once(msgspec.Struct, frozen=True):
    """One ``Idempotency-Key`` of one user on one route, and what was sent with it."""

    place: tuple[str, str, str]
    digest: bytes

    @classmethod
    def of(cls, user: User, request: Request, raw: bytes, key: str | None) -> Once | None:
        """Read what a request brings; None without a key."""
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise BadRequest(
                "expected an Idempotency-Key of 1 to 255 visible ASCII characters",
                code="bad_header",
            )
        digest = hashlib.sha256()
        for part in ("content-type", "if-match"):
            digest.update(request.headers.get(part, "").encode() + b"\n")
        digest.update(raw)
        route = f"{request.method} {request.url.path.removeprefix(request.scope['root_path'])}"
        return cls((user.id, route, key), digest.digest())

    def record(
        self, status: int, answer: tuple[dict[str, str], bytes], now: int
    ) -> IdempotencyRecord:
        """Make the row that remembers the answer."""
        user_id, route, key = self.place
        return IdempotencyRecord(
            user_id=user_id,
            route=route,
            key=key,
            request=self.digest,
            status=status,
            headers=encode(answer[0]),
            body=answer[1],
            created_at=now,
        )


class KeyReused(ReattachError):
    """The ``Idempotency-Key`` came with another request before: take a new one."""

    code = "idempotency_key_reused"
    status = 422


async def replay(registry: Registry, once: Once | None, *, first: bool = False) -> Response | None:
    """Return what a request was answered, if it was; raises `KeyReused`."""
    record = None if once is None else await registry.store.idempotent(*once.place)
    if record is None or once is None:
        return None
    if record.request != once.digest:
        raise KeyReused("this Idempotency-Key came with another request before: take a new one")
    headers: dict[str, str] = msgspec.json.decode(record.headers)
    if not first:
        headers["Idempotency-Replayed"] = "true"
    return Response(record.body, record.status, headers, media_type="application/json")


async def submit(
    registry: Registry,
    host: Host,
    proposed: Proposed,
    once: Once | None,
    answer: Callable[[Session], tuple[dict[str, str], bytes]],
    *,
    status: int = 200,
) -> Response | Result:
    """Have a change decided; with an idempotency key, return what was recorded as its answer
    (this request's, or that of the one before it with the same key).
    """
    if once is None:
        return await host.submit(proposed)

    def recorded(session: Session) -> IdempotencyRecord:
        return once.record(status, answer(session), registry.clock.now())

    proposed.key, proposed.record = once.place, recorded
    first = True
    try:
        await host.submit(proposed)
    except KeyAnswered:
        first = False
    replayed = await replay(registry, once, first=first)
    if replayed is None:
        raise Unavailable("the answer was recorded and is not at hand: repeat the request")
    return replayed
