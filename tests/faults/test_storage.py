"""Storage is linear in edits: what commits and saved states weigh, and how soon a session is open.

`make history` writes 1,000,000 commits over 1,000 sessions through a node on SQLite, and prints
what came of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reattach.core.limits import Limits
from reattach.runtime.access import User
from reattach.runtime.clock import SystemClock
from reattach.runtime.registry import Registry
from reattach.store.sqlite import SQLiteStore
from tests.support.wire_client import clock

COMMITS = int(os.environ.get("REATTACH_TEST_COMMITS", "4000"))
EACH = 1_000
"""Commits of one session."""
AT_ONCE = 20
"""Sessions that are written to at the same time."""
IN_FLIGHT = 100
OPENED = 200
USER = User(id="u")
WORDS = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
]


class Sink:
    """A line whose frames are counted."""

    def __init__(self) -> None:
        self.commits = 0
        self.more = asyncio.Event()
        self.ended = ""

    def send(self, frames: Sequence[bytes]) -> None:
        self.commits += sum(b'"type":"state_update"' in frame[:40] for frame in frames)
        self.more.set()

    def close(self, code: int, reason: str) -> None:
        self.ended = f"{code} {reason}"
        self.more.set()

    def pause(self, paused: bool) -> None:
        pass

    def ping(self) -> None:
        pass


def node(path: Path) -> Registry:
    limits = Limits(heartbeat_timeout_ms=10**9)
    store = SQLiteStore(path)
    return Registry(store, limits, SystemClock(), store_timeout_ms=60_000, idle_session_ms=10**9)


def change(chance: random.Random, seq: int) -> dict[str, Any]:
    """What somebody does who fills in a form, reviews a list and writes a text."""
    some = " ".join(chance.choices(WORDS, k=chance.randrange(1, 9)))
    op: dict[str, Any] = {"op": "set", "path": f"/form/field_{chance.randrange(30)}", "value": some}
    lot = chance.random()
    if lot < 0.08:
        row = {"id": f"r{seq}", "question": some, "answer": None, "done": False}
        op = {"op": "insert", "path": "/rows", "value": row}
    elif lot < 0.3:
        near = f"r{max(1, seq - chance.randrange(20))}"
        op = {"op": "set", "path": f"/rows/#{near}", "value": {"id": near, "answer": some}}
    elif lot < 0.5:
        op = {"op": "splice", "path": "/text", "index": 0, "delete": 0, "insert": some}
    elif lot < 0.55:
        op = {"op": "inc", "path": "/step", "by": 1}
    at = clock()
    return {"type": "change", "seq": seq, "epoch": None, "base": seq - 1, "at": at, "ops": [op]}


async def write(registry: Registry, session_id: str) -> None:
    """One session's life."""
    chance, sink = random.Random(session_id), Sink()
    connection = registry.connections.connect(sink)

    async def identify(_: str | None) -> User:
        return USER

    def feed(frame: dict[str, Any]) -> None:
        registry.connections.feed(connection, session_id, identify, json.dumps(frame).encode())

    create = {"state": {"form": {}, "rows": [], "text": "", "step": 0}}
    hello = {"client_id": f"c-{session_id}", "device": {"id": "d"}, "t": clock(), "seq": 0}
    feed({"type": "hello", "epoch": None, "version": None, "create": create, **hello})
    while not connection_is_in(registry, session_id):
        await asyncio.wait_for(sink.more.wait(), 60)
        sink.more.clear()
    epoch = registry.hosts[session_id].room.recorded.epoch
    for seq in range(1, EACH + 1):
        while seq - sink.commits > IN_FLIGHT:
            sink.more.clear()
            await asyncio.wait_for(sink.more.wait(), 60)
            assert not sink.ended, sink.ended
        feed(change(chance, seq) | {"epoch": epoch})
    while sink.commits < EACH:
        sink.more.clear()
        await asyncio.wait_for(sink.more.wait(), 60)
    registry.connections.disconnected(connection, "it is done")
    host = registry.hosts[session_id]
    await host.at_rest(lambda _: None)
    registry.forget(host)


def connection_is_in(registry: Registry, session_id: str) -> bool:
    return session_id in registry.hosts


async def opened(path: Path, names: Sequence[str]) -> tuple[list[float], list[float]]:
    """How long sessions take to be opened by a node that has just started, and how much of that
    the processor worked: milliseconds.
    """
    registry = node(path)
    await registry.start()
    took, worked = [], []
    for name in names:
        began, used = time.perf_counter(), time.process_time()
        host = await registry.open(name)
        took.append((time.perf_counter() - began) * 1_000)
        worked.append((time.process_time() - used) * 1_000)
        assert host.room.recorded.version == EACH
    await registry.stop(timeout_ms=1_000)
    return took, worked


@pytest.mark.timeout(3_600)
async def test_storage_is_linear_in_edits(tmp_path: Path) -> None:
    path = tmp_path / "reattach.db"
    names = [f"s{n}" for n in range(COMMITS // EACH)]
    registry = node(path)
    await registry.start()
    waiting = names[::-1]

    async def work() -> None:
        while waiting:
            await write(registry, waiting.pop())

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await registry.stop(timeout_ms=10_000)
    with closing(sqlite3.connect(path)) as db:
        count, log = db.execute(
            "SELECT count(*), sum(length(body) + length(writes)) FROM commits"
        ).fetchone()
        saved, states = db.execute(
            "SELECT count(*), sum(length(state) + length(last_writers)) FROM states"
        ).fetchone()
    assert count == len(names) * EACH
    file = path.stat().st_size
    chance = random.Random(1)
    took, worked = await opened(path, chance.sample(names, min(OPENED, len(names))))
    median, needed = statistics.median(took), statistics.median(worked)
    sys.stdout.write(
        f"\n  {count} commits over {len(names)} sessions: {log / count:.0f} bytes a commit in the"
        f" log, {file / count:.0f} in the file\n  {saved} saved states: {states / log:.1%} of the"
        f" log; the file is {file / log:.2f} times the raw log\n"
        f"  opening one of {len(took)}: median {median:.1f} ms ({needed:.1f} of them work), worst"
        f" {max(took):.1f} ms\n"
    )
    assert file <= 2 * log
    # With neighbours that want the same processors, only the work says anything.
    assert needed < 50
    assert median < 50 or COMMITS < 1_000_000
