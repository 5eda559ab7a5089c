"""What stores do alike: the form of a batch, marks between pages, keys' lifetime, some rows."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from reattach.errors import BadRequest, StoreRefused
from reattach.store.base import (
    Append,
    CheckpointRecord,
    CommitRecord,
    CommitSlot,
    ConflictRecord,
    Loaded,
    RefusalRecord,
    Tombstone,
)

__all__ = [
    "FIRST_PAGE",
    "IDEMPOTENCY_LIFETIME_MS",
    "MAX_INTEGER",
    "aged",
    "changes_access",
    "check_batch",
    "entry_after",
    "entry_mark",
    "lease_value",
    "place_after",
    "place_mark",
    "refusal_after",
    "refusal_mark",
    "text_range",
    "to_checkpoint",
    "to_commit",
    "to_conflict",
    "to_number",
    "to_slot",
    "to_tombstone",
    "wall_clock",
    "weight_of",
]

IDEMPOTENCY_LIFETIME_MS: Final = 24 * 60 * 60 * 1000

MAX_INTEGER: Final = 2**63 - 1
"""The greatest integer that a database column holds."""

FIRST_PAGE: Final = (MAX_INTEGER, "")
"""Lies before everything in a list that is sorted by number and id, greatest first."""

_PLACE: Final = re.compile(r"(-?[0-9]{1,18})\.(.+)", re.DOTALL)
_ENTRY: Final = re.compile(r"[0-9]{1,18}")


def wall_clock() -> int:
    """Read the time: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def check_batch(batch: Sequence[Append]) -> None:
    """Raise `StoreRefused` where a batch has no meaning, whatever the database holds."""
    seen: set[str] = set()
    for part in batch:
        name = part.session_id
        if name in seen:
            raise StoreRefused(
                f"Expected one part for each session of a batch, got two for {name!r}: "
                "put them into one, or into batches after one another"
            )
        seen.add(name)
        if part.expected is None and (
            part.session is None or part.state is None or part.erase is not None
        ):
            raise StoreRefused(
                f"Expected the row and the first state of {name!r}, because a part without "
                "'expected' creates a session: give both, or say where the session stands"
            )
        if part.session is not None and part.session.session_id != name:
            raise StoreRefused(
                f"Expected the row of {name!r}, got that of {part.session.session_id!r}: "
                "give each part its own session's row"
            )
        _check_access(part)


def _check_access(part: Append) -> None:
    """Raise `StoreRefused` where a part changes who may do what, and not as the law says."""
    name, row = part.session_id, part.session
    owner = None if row is None else row.user_id
    if any(member.user_id == owner for member in part.members):
        raise StoreRefused(
            f"Expected members of {name!r} beside its owner of record, got {owner!r} as one: "
            "the row says it already"
        )
    if not changes_access(part):
        return
    before = 0 if part.expected is None else part.expected.access_version
    if row is None or row.access_version <= before:
        raise StoreRefused(
            f"Expected the row of {name!r} with an access version above {before}, because the part "
            "changes who may do what: raise it, so that every node finds out"
        )
    claim = part.claim
    if claim is not None and (row.user_id != claim.after or part.clients or part.devices):
        raise StoreRefused(
            f"Expected a claim of {name!r} with the row of its new owner and without clients and "
            "devices: these are moved by it, and come in another part"
        )


def changes_access(part: Append) -> bool:
    """Say whether a part changes who may do what."""
    return bool(
        part.members
        or part.members_removed
        or part.credentials
        or part.credentials_removed
        or part.claim is not None
    )


def place_mark(number: int, name: str) -> str:
    """Make the mark of a place in a list that is sorted by number and id."""
    return f"{number}.{name}"


def place_after(mark: str | None) -> tuple[int, str]:
    """Read what `place_mark` made; `FIRST_PAGE` for None. Raises `BadRequest`."""
    if mark is None:
        return FIRST_PAGE
    match = _PLACE.fullmatch(mark)
    if match is None:
        raise _bad_mark(mark)
    return int(match[1]), match[2]


def refusal_mark(refusal: RefusalRecord) -> str:
    """Make the mark of a refusal's place among those of all clients, newest change first."""
    return place_mark(refusal.client_at, f"{refusal.client_id}.{refusal.seq}")


def refusal_after(mark: str | None) -> tuple[int, str, int]:
    """Read what `refusal_mark` made, as time, client and number. Raises `BadRequest`."""
    at, name = place_after(mark)
    client_id, _, seq = name.rpartition(".")
    if mark is not None and (_ENTRY.fullmatch(seq) is None or not client_id):
        raise _bad_mark(mark)
    return at, client_id, int(seq or 0)


def text_range(text: str | None) -> tuple[str, str]:
    """Return between which two texts all lie that begin with this one, the end not included."""
    return text or "", f"{text or ''}\U0010ffff"


def entry_mark(entry: int) -> str:
    """Make the mark of a place in a list that is sorted by its running number."""
    return str(entry)


def entry_after(mark: str | None) -> int:
    """Read what `entry_mark` made; `MAX_INTEGER` for None. Raises `BadRequest`."""
    if mark is None:
        return MAX_INTEGER
    if _ENTRY.fullmatch(mark) is None:
        raise _bad_mark(mark)
    return int(mark)


def _bad_mark(mark: str) -> BadRequest:
    return BadRequest(
        f"Expected the 'next' of this list's page before, got {mark[:80]!r}: "
        "send it as it came, or leave it out for the first page"
    )


def to_number(number: int) -> int:
    """Bring a number that somebody asked for into the range of a column."""
    return max(-MAX_INTEGER, min(number, MAX_INTEGER))


def weight_of(loaded: Loaded) -> int:
    """Say what the state and the log of a session weigh that was read, in bytes."""
    saved = loaded.saved
    tail = sum(len(commit.body) + len(commit.writes) for commit in loaded.tail)
    return len(saved.state) + len(saved.index) + tail


def to_commit(row: Sequence[Any]) -> CommitRecord:
    """Make a commit of a row of the log."""
    return CommitRecord(
        version=row[0],
        body=row[1],
        writes=row[2],
        at=row[3],
        client_id=row[4],
        seq=row[5],
        client_at=row[6],
    )


def to_slot(row: Sequence[Any]) -> CommitSlot:
    """Make what was counted of a part of a log of its row."""
    return CommitSlot(
        slot=row[0],
        client_id=row[1],
        commits=row[2],
        bytes=row[3],
        first_version=row[4],
        last_version=row[5],
        first_at=row[6],
        last_at=row[7],
    )


def to_conflict(row: Sequence[Any]) -> ConflictRecord:
    """Make a conflict of its row."""
    return ConflictRecord(
        conflict_id=row[0], path=row[1].decode(), status=row[2], version=row[3], body=row[4]
    )


def lease_value(owner: str, until: int) -> str:
    """Write who holds something until when, ms since 1970, in the order of time."""
    return f"{until:015d}.{owner}"


def to_checkpoint(row: Sequence[Any]) -> CheckpointRecord:
    """Make a mark of its row."""
    return CheckpointRecord(
        checkpoint_id=row[0],
        name=row[1],
        kind=row[2],
        version=row[3],
        step=row[4],
        data=row[5],
        created_at=row[6],
    )


def aged(rows: Sequence[Any], limit: int) -> tuple[list[str], str | None]:
    """Make an answer of what `Store.aged_sessions` looked at: ids, and whether they are meant."""
    return [row[0] for row in rows if row[1]], rows[-1][0] if len(rows) == limit else None


def to_tombstone(row: Sequence[Any]) -> Tombstone:
    """Make what is left of an erased session of its row."""
    members = msgspec.msgpack.decode(row[2], type=list[bytes])
    return Tombstone(erased_at=row[0], salt=row[1], members=members)
