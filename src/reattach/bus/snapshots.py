"""Hot snapshots: states of sessions with a heavy log, to be opened quicker. Speed, never truth.

The law that every holder of snapshots keeps:

1. A snapshot is held for a while, or not at all. `get` answers within `GET_MS` or with nothing,
   `put` never waits, and neither fails.
2. In one epoch a snapshot is replaced by a newer one only; those of another epoch are not touched.
3. After `drop` nothing of a session is held, nor is what nodes put that have not heard of it; where
   the holder could not be reached, for as long as it holds anything.

Whoever opens a session asks the database where it stands, and takes a snapshot of that epoch, at
that version or below it, whose last commit is the very one that the log has there (`proof`): so one
that is of another history of the same epoch (a backup that was put back) is not taken either. From
there on the log is read, as after a state that was saved in the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from reattach.store.base import ConflictRecord, SavedState

__all__ = ["GET_MS", "WORTH_BYTES", "Snapshot", "Snapshots", "pack", "proof", "unpack"]

GET_MS: Final = 200
WORTH_BYTES: Final = 64 * 1024
"""A log that weighs less is read and replayed as quickly as a snapshot is fetched."""

_FORMAT: Final = b"1"
_DIGEST: Final = 16


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A session's state at a version, and what its database would tell beside it."""

    session_id: str
    epoch: str
    proof: bytes
    """Of the commit that made this version."""
    saved: SavedState
    conflicts: Sequence[ConflictRecord]
    """The unresolved ones, as `Loaded.conflicts`."""
    log_bytes: int
    """What the log weighs between the newest state in the database and this one."""


class Snapshots(Protocol):
    """Where snapshots are held."""

    async def open(self, identity: str) -> None:
        """Begin, for the database that ``identity`` names; does not wait for it."""

    async def close(self) -> None:
        """Store what waits, for a moment, and end."""

    async def get(self, session_id: str) -> Sequence[Snapshot]:
        """Return what is held of a session: at most one for each epoch, in any order."""

    def put(self, snapshot: Snapshot) -> None:
        """Hold a snapshot, unless a newer one of its epoch is held."""

    async def drop(self, session_id: str) -> None:
        """Hold nothing of a session any more: it was erased. Does not fail."""


def proof(body: bytes) -> bytes:
    """Return what only the commit with this body has."""
    return _checksum(body)


def pack(snapshot: Snapshot) -> bytes:
    """Make bytes of a snapshot, which tell when they are damaged."""
    data = msgspec.msgpack.encode(snapshot)
    return _FORMAT + _checksum(data) + data


def unpack(data: bytes) -> Snapshot:
    """Return what was packed; raises `ValueError` for what is damaged or not ours."""
    view = memoryview(data)
    head = 1 + _DIGEST
    if data[:1] != _FORMAT or data[1:head] != _checksum(view[head:]):
        raise ValueError("expected a snapshot of ours, whole")
    return msgspec.msgpack.decode(view[head:], type=Snapshot)


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
