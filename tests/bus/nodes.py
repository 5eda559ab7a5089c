"""Nodes in one process over one database, by the machine's clock, each with its end of a bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from reattach.bus.base import Bus
from reattach.core.limits import Limits
from reattach.runtime.clock import SystemClock
from reattach.runtime.registry import Registry
from reattach.store.base import Store
from tests.runtime.rig import FaultyStore, HandClock, Node, Work


async def _stays_open(_: Work) -> None:
    """Other nodes have it, too."""


@asynccontextmanager
async def node_on(store: Store, bus: Bus) -> AsyncIterator[Node]:
    """A node that runs, and is stopped in good order; the store stays open."""
    faulty = FaultyStore(store)
    faulty.next("close", _stays_open)
    registry = Registry(
        faulty, Limits(), SystemClock(), store_timeout_ms=5_000, idle_session_ms=60_000, bus=bus
    )
    node = Node(faulty, registry, HandClock())
    await registry.start()
    try:
        yield node
    finally:
        await registry.stop(timeout_ms=500)
    node.honest()
