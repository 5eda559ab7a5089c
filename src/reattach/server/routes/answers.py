"""How a session is answered: its fields, its ETag, its state as the database has it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final

import msgspec

from reattach.core.past import document_of
from reattach.core.session import Session
from reattach.errors import PreconditionFailed, ReattachError, SessionNotFound, Unavailable
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.server.summary import summary
from reattach.store.base import SessionRecord
from reattach.wire import encode

__all__ = ["changed", "created", "durable", "etag", "matches", "session_body", "summary", "unless"]

_PATIENCE: Final = 0.25
"""Seconds that a reader waits for a batch in flight; then it is shown what the database has."""

_ETAG = re.compile(r'\s*(?:W/)?"([^"]*)"\s*')


async def durable(registry: Registry, host: Host) -> tuple[SessionRecord, bytes]:
    """Read a session as the database has it, at hand or, while a batch takes its time, from it."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await host.at_rest(lambda room: (room.recorded, room.state()))
    except (TimeoutError, Unavailable):
        loaded = await registry.store.load(host.room.session_id)
    if loaded is None:
        raise SessionNotFound("there is no such session")
    document, _ = document_of(loaded)
    return loaded.session, encode(document.state)


def session_body(record: SessionRecord, state: bytes) -> bytes:
    """Return the answer with the state."""
    return encode({**summary(record), "state": msgspec.Raw(state)})


def created(record: SessionRecord, state: bytes) -> tuple[dict[str, str], bytes]:
    """Return headers and body of the answer to a creation."""
    headers, answer = changed(record, state)
    return {"Location": f"session/{record.session_id}", **headers}, answer


def changed(record: SessionRecord, state: bytes) -> tuple[dict[str, str], bytes]:
    """Return headers and body of the answer to a change."""
    return {"ETag": etag(record.epoch, record.version)}, session_body(record, state)


def etag(epoch: str, version: int) -> str:
    """Return the tag of a version."""
    return f'"{epoch}.{version}"'


def matches(header: str, etag: str) -> bool:
    """Say whether ``If-None-Match`` names a tag; compares weakly (RFC 9110, section 13.1.2)."""
    return header.strip() == "*" or etag in {f'"{tag}"' for tag in _ETAG.findall(header)}


def unless(if_match: str) -> Callable[[Session], ReattachError | None]:
    """Refuse a change where the version is none of those of ``If-Match``."""
    tags = [tag.strip() for tag in if_match.split(",")]

    def unless(session: Session) -> ReattachError | None:
        current = etag(session.record.epoch, session.version)
        if "*" in tags or current in tags:
            return None
        return PreconditionFailed(f"expected If-Match: {current}, got {if_match[:120]}")

    return unless
