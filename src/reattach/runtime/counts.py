"""What a node has done since it was started, as plain numbers: whoever wants them reads them.

Counting is to cost nothing that could be measured: an addition, or for `Buckets` a search in a
dozen bounds once for each batch. `reattach.server.metrics` makes metrics of them when it is asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from reattach.core.room import Welcomes
from reattach.store.base import Append, Outcome

__all__ = ["Buckets", "Counts"]

_OK = Outcome.OK
_PARTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Buckets:
    """A histogram: how many values were at most each of ``bounds``, and above the one before."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The last one has what was above all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Take in a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counts(msgspec.Struct):
    """Totals. All of them only grow."""

    commits: int = 0
    refusals: int = 0
    batches: int = 0
    stale: int = 0
    """Parts of batches that found their session moved by another node."""
    lost: int = 0
    """Batches whose outcome was unknown."""
    loads: int = 0
    """Sessions that were opened."""
    loads_failed: int = 0
    snapshots_used: int = 0
    snapshots_missed: int = 0
    """Sessions that were opened without one, where snapshots are held."""
    welcomes: Welcomes = msgspec.field(default_factory=Welcomes)
    parts: Buckets = msgspec.field(default_factory=lambda: Buckets(_PARTS))
    """Of how many sessions a batch is."""
    seconds: Buckets = msgspec.field(default_factory=lambda: Buckets(_SECONDS))
    """What a batch took to be durable."""

    def wrote(self, parts: Sequence[Append], outcomes: Sequence[Outcome], seconds: float) -> None:
        """Take in a batch that is durable."""
        self.batches += 1
        self.parts.observe(len(parts))
        self.seconds.observe(seconds)
        for part, outcome in zip(parts, outcomes, strict=True):
            if outcome is _OK:
                self.commits += len(part.commits)
                self.refusals += len(part.refusals)
            else:
                self.stale += 1
