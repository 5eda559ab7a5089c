"""`REATTACH_TEST_STORE=full`: whatever a test calls the server is two nodes.

They share a PostgreSQL and a Valkey. A server that is a process is a `ServerPair`; a `Reattach` in
the tests' own process has two registries, and each request comes to one of them by lot. What the
process itself does (`reattach.sessions`) is the first one's.

`REATTACH_TEST_SEED` repeats the lots of a run.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from reattach.runtime.registry import Registry
from reattach.server import app
from reattach.server.cors import Cors
from reattach.server.inspector.nodes import Peers

SEED = "REATTACH_TEST_SEED"

_node: ContextVar[int] = ContextVar("node", default=0)
_stays: ContextVar[bool] = ContextVar("stays", default=False)


def seed() -> str:
    """The run's; the processes that share its tests have the same."""
    return os.environ.setdefault(SEED, str(random.SystemRandom().randrange(2**32)))


def chance_of(name: str) -> random.Random:
    """The lots of a test or a page of tests, always the same for one seed."""
    return random.Random(f"{seed()} {name}")


@contextmanager
def first_node() -> Iterator[None]:
    """Has requests that are made in here, in this process, come to the node that the test holds.

    That is the one whose registry `Reattach.running` gives outside of a request.
    """
    token = _stays.set(True)
    try:
        yield
    finally:
        _stays.reset(token)


def share(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """Has each `Reattach` of this process be two nodes, unless its store is its own."""
    one_life: Callable[[app.Reattach, Registry], Any] = app._Life
    serve = Cors.__call__

    def live(reattach: app.Reattach, registry: Registry) -> Any:
        if reattach._store is not None:
            return one_life(reattach, registry)
        # What runs beside its sessions does so once.
        rest = copy.copy(reattach)
        rest.lifespan = rest.crew = None
        other = one_life(rest, reattach._new_registry())
        return _TwoLives(one_life(reattach, registry), other)

    async def by_lot(self: Cors, scope: Scope, receive: Receive, send: Send) -> None:
        # The application's own life is nobody's request.
        stays = scope["type"] == "lifespan" or _stays.get()
        token = _node.set(0 if stays else chance.randrange(2))
        try:
            await serve(self, scope, receive, send)
        finally:
            _node.reset(token)

    monkeypatch.setattr(app, "_Life", live)
    monkeypatch.setattr(Cors, "__call__", by_lot)


class _TwoLives:
    """What `Reattach` has of a life, of two."""

    def __init__(self, *lives: app._Life) -> None:
        self._lives = lives

    @property
    def registry(self) -> Registry | None:
        return self._lives[_node.get()].registry

    @property
    def peers(self) -> Peers | None:
        return self._lives[_node.get()].peers

    @property
    def over(self) -> bool:
        return all(life.over for life in self._lives)

    @property
    def ending(self) -> bool:
        return any(life.ending for life in self._lives)

    async def begun(self) -> None:
        try:
            await asyncio.gather(*(life.begun() for life in self._lives))
        except Exception:
            await self.end()
            raise

    async def end(self) -> None:
        await asyncio.gather(*(life.end() for life in self._lives))
