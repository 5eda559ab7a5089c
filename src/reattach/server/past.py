"""Sessions as they were, from the log: the state at a version, and commits in plain RFC 6902."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from reattach.core.document import Document
from reattach.core.past import document_of
from reattach.core.patch import plain
from reattach.errors import SessionNotFound, VersionGone
from reattach.store.base import CommitRecord, Store
from reattach.wire import encode

__all__ = ["PlainPatches", "document_at", "in_rfc6902"]

_PAGE = 500


async def document_at(store: Store, session_id: str, version: int) -> Document:
    """Return the state at a version; raises `VersionGone` where there is none any more or yet."""
    loaded = await store.load_at(session_id, version)
    if loaded is not None:
        document, reached = document_of(loaded)
        if reached == version:
            document.recording = False
            return document
    elif await store.session(session_id) is None:
        raise SessionNotFound("there is no such session")
    raise VersionGone(f"version {version} is not retained, or does not exist yet")


class PlainPatches:
    """Rewrites a session's frames, in order, with RFC 6902's operations alone.

    It keeps a state of its own, because ``replace`` needs whole texts. ``document`` is that before
    the first frame; None where the first frame brings it.
    """

    def __init__(self, document: Document | None) -> None:
        self._document = document

    def rewrite(self, kind: str, frame: bytes) -> bytes:
        """Return a frame of a type, rewritten if it needs that."""
        if kind == "initial_state":
            self._document = Document(msgspec.json.decode(frame)["state"])
            self._document.recording = False
        elif kind in {"state_update", "session_restored"}:
            value = msgspec.json.decode(frame)
            assert self._document is not None, "a commit comes after its state"
            value["patch"] = plain(self._document, value["patch"])
            self._document.settle()
            return encode(value)
        return frame


async def in_rfc6902(store: Store, session_id: str, commits: Sequence[CommitRecord]) -> list[bytes]:
    """Return the frames of commits, in order and not always adjacent, with plain patches."""
    if not any(b'"str_' in commit.body for commit in commits):
        return [commit.body for commit in commits]
    first, last = commits[0].version, commits[-1].version
    wanted = {commit.version for commit in commits}
    patches = PlainPatches(await document_at(store, session_id, first - 1))
    frames: list[bytes] = []
    while first <= last:
        page = await store.log(session_id, first=first, last=last, limit=_PAGE)
        for commit in page:
            frame = patches.rewrite("state_update", commit.body)
            if commit.version in wanted:
                frames.append(frame)
        if not page:
            raise VersionGone(f"version {first} is not retained")
        first = page[-1].version + 1
    return frames
