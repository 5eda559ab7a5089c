"""Which marks stay, and how far back the log goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reattach.core.checkpoints import Kind
from reattach.store.base import CheckpointRecord

__all__ = ["DAY_MS", "old_end", "thinned"]

_HOUR_MS: Final = 60 * 60 * 1000
DAY_MS: Final = 24 * _HOUR_MS

_BANDS: Final = ((DAY_MS, 1), (7 * DAY_MS, _HOUR_MS), (30 * DAY_MS, DAY_MS))
"""Up to an age, the newest automatic mark of each so many ms stays; beyond the last, none."""


def thinned(marks: Sequence[CheckpointRecord], now: int) -> list[str]:
    """Return the ids of the marks that are to go, of all of a session.

    Automatic ones stay for a day; then the newest of each hour for a week, of each day for 30 days.
    Named ones and those before a restore stay as long as the session.
    """
    stay: set[tuple[int, int]] = set()
    gone: list[str] = []
    for mark in sorted(marks, key=lambda one: (one.created_at, one.version), reverse=True):
        if mark.kind != Kind.AUTOMATIC:
            continue
        age = now - mark.created_at
        span = next((span for most, span in _BANDS if age < most), None)
        if span == 1:
            continue
        if span is None or (span, mark.created_at // span) in stay:
            gone.append(mark.checkpoint_id)
        else:
            stay.add((span, mark.created_at // span))
    return gone


def old_end(times: Sequence[tuple[int, int]], before: int) -> int:
    """Return the last version of the log's beginning that is from before a time; 0 for none.

    ``times`` has the version and the time of each commit, in order.
    """
    last = 0
    for version, at in times:
        if at >= before:
            break
        last = version
    return last
