"""Marks on versions: who may ask for which, and how they are told.

A mark is a row and no state: that of its version can be had from the log, or is saved before the
log is compacted.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from reattach.core.limits import Limits
from reattach.core.values import check
from reattach.errors import ChangeRefused
from reattach.store.base import CheckpointRecord
from reattach.wire import Checkpoint, encode

__all__ = ["Kind", "Mark", "id_by_ref", "mark_of", "shown"]

_MOST_NAME: Final = 256
"""Characters of a checkpoint's name."""


class Kind:
    """Why there is a mark."""

    AUTOMATIC = "automatic"
    """The last device left, or the schema's step field moved."""
    NAMED = "named"
    """Somebody asked for it."""
    BEFORE_RESTORE = "before_restore"
    """What a restore set back."""


class Mark(msgspec.Struct, frozen=True):
    """A mark that somebody asks for; ``ref`` is what its client calls it."""

    checkpoint_id: str
    name: str | None
    data: bytes | None
    ref: str | None = None


def mark_of(
    checkpoint_id: str, name: str | None, data: Any, limits: Limits, ref: str | None = None
) -> Mark:
    """Make the mark that is asked for; raises `ChangeRefused` for what no mark can have."""
    if name is not None:
        check(name, depth=0, path="/name")
        if len(name) > _MOST_NAME:
            raise ChangeRefused(
                f"expected a name of at most {_MOST_NAME} characters, got {len(name)}",
                code="too_large",
                path="/name",
            )
    if data is None:
        return Mark(checkpoint_id, name, None, ref)
    check(data, depth=limits.max_nesting, path="/data")
    encoded = encode(data)
    if len(encoded) > limits.max_checkpoint_bytes:
        raise ChangeRefused(
            f"expected data of at most {limits.max_checkpoint_bytes} bytes as JSON, got"
            f" {len(encoded)}: keep the rest in the state",
            code="too_large",
            path="/data",
        )
    return Mark(checkpoint_id, name, encoded, ref)


def id_by_ref(client_id: str, ref: str) -> str:
    """Return the id of the one mark that a client calls ``ref``, however often it asks for it."""
    digest = hashlib.sha256(f"{client_id}/{ref}".encode("utf-8", "surrogatepass"))
    return f"c-{digest.hexdigest()[:32]}"


def shown(record: CheckpointRecord) -> Checkpoint:
    """Return a mark as it is told."""
    return Checkpoint(
        id=record.checkpoint_id,
        name=record.name,
        kind=record.kind,
        version=record.version,
        step=msgspec.UNSET if record.step is None else msgspec.Raw(record.step),
        data=msgspec.UNSET if record.data is None else msgspec.Raw(record.data),
        created_at=record.created_at,
    )
