"""What one client keeps, as rows of a key-value store (`docs/protocol.md`, "The outbox").

| key | value |
| --- | --- |
| ``meta`` | `Meta` |
| ``snapshot`` | ``epoch``, ``version``, ``state``: a confirmed state |
| ``commit/<version>`` | ``version``, ``patch``: a commit after it |
| ``change/<seq>`` | ``ref``, ``change``, ``view``?, ``unsure``?: what the server has not decided |
| ``rejected/<ref>`` | ``ref``, ``change``, ``code``, ``message``, ``path``?: what it refused |
| ``conflicts`` | those that nobody has settled |
| ``terms`` | ``schema``, ``policies``: the schema's, as the server last said |
"""

from __future__ import annotations

from typing import Any

import msgspec

from reattach.client.effects import Row
from reattach.client.replica import Pending

__all__ = [
    "CHANGE",
    "COMMIT",
    "CONFLICTS",
    "META",
    "REJECTED",
    "SNAPSHOT",
    "TERMS",
    "Meta",
    "change_key",
    "change_row",
    "commit_row",
    "starting",
]

META = "meta"
SNAPSHOT = "snapshot"
CONFLICTS = "conflicts"
TERMS = "terms"
COMMIT = "commit/"
CHANGE = "change/"
REJECTED = "rejected/"


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """Who the client is, and where its numbers are. In every transaction."""

    client_id: str
    next: int
    """The next number to give out."""
    at: int
    """The ``at`` of the newest change."""
    decided: int
    """The highest number whose decision is known."""
    decided_at: int | None
    """The ``at`` of that change, where that is known."""
    weight: int
    """What the snapshot weighs as JSON, in bytes."""
    tail: int
    """What the commits after it weigh."""


def change_key(seq: int) -> str:
    """Return the key of a change's row: keys sort as numbers do."""
    return f"{CHANGE}{seq:016}"


def change_row(pending: Pending) -> Row:
    """Return a pending change's row; its view stands in it where it differs from what is sent."""
    change = pending.change
    row: dict[str, Any] = {"ref": pending.ref, "change": change}
    if pending.view is not change["ops"]:
        row["view"] = list(pending.view)
    if pending.unsure:
        row["unsure"] = pending.unsure
    return change_key(change["seq"]), row


def commit_row(version: int, patch: Any) -> Row:
    """Return a commit's row."""
    return f"{COMMIT}{version:016}", {"version": version, "patch": patch}


def starting(rows: dict[str, Any], prefix: str) -> list[Any]:
    """Return the values of all keys that begin with a prefix, in the order of their keys."""
    return [rows[key] for key in sorted(rows) if key.startswith(prefix)]
