"""A state as it was, out of what was saved and logged."""

from __future__ import annotations

from typing import Any

import msgspec

from reattach.core.document import Document
from reattach.core.patch import step
from reattach.store.base import Loaded

__all__ = ["Past", "document_of"]


class Past(msgspec.Struct, frozen=True):
    """A session's state at a version, as whoever restores it is handed it.

    ``schema_version`` is that of the state, None where it is not known; ``checkpoint_id`` the mark
    by which it was found.
    """

    version: int
    state: bytes
    schema_version: int | None = None
    checkpoint_id: str | None = None


class _Logged(msgspec.Struct):
    patch: list[dict[str, Any]]


_logged = msgspec.json.Decoder(_Logged)


def document_of(loaded: Loaded) -> tuple[Document, int]:
    """Replay what was loaded; return the state and its version.

    A log with a gap is read up to it: what comes behind is a state that never was.
    """
    document = Document(msgspec.json.decode(loaded.saved.state))
    document.recording = False
    version = loaded.saved.version
    for commit in loaded.tail:
        if commit.version != version + 1:
            break
        step(document, _logged.decode(commit.body).patch)
        version = commit.version
    document.settle()
    document.recording = True
    return document, version
