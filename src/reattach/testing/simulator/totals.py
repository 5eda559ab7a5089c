"""What happened over all seeds, so that a simulation that tests nothing is seen to test nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from reattach.testing.simulator.world import World

__all__ = ["EXPECTED", "missing", "table", "total"]

EXPECTED = (
    # what is done
    "changes",
    "refusals",
    "conflicts",
    "resumes",
    "welcomes with a state",
    "epochs",
    "histories lost",
    "history asked",
    "session ended",
    "restore",
    "restored",
    # devices
    "device killed",
    "device comes back as it once was",
    "disk fails",
    "device clock jumps",
    "lie about when",
    # the network
    "line cut",
    "line stalls",
    "late close",
    "line superseded",
    "line dead after sleep",
    "offline",
    # nodes
    "node killed",
    "node clock jumps",
    # the database
    "transaction fails before",
    "transaction fails after",
    "answer lost",
    "transaction never answered",
    "transaction slow",
    "transaction refused",
    "read fails",
    "database down",
    "backup restored",
    # the bus
    "note dropped",
    "note delayed",
    "note repeated",
)
"""What a run of many seeds has to have met."""


def total(world: World) -> Mapping[str, int]:
    """Return what happened in one seed."""
    counts: Counter[str] = Counter(world.witness.counts)
    for met in (world.met, world.database.met, world.bus.met):
        counts.update(met)
    return counts


def missing(totals: Mapping[str, int]) -> list[str]:
    """List what never happened."""
    return [what for what in EXPECTED if not totals.get(what)]


def table(totals: Mapping[str, int]) -> str:
    """Return the totals as lines to read."""
    others: Iterable[str] = sorted(set(totals) - set(EXPECTED))
    return "\n".join(f"{totals.get(what, 0):>9,}  {what}" for what in (*EXPECTED, *others))
