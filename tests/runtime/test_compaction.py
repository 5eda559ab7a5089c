"""History is kept within its bounds, and what is listed can be restored."""

from __future__ import annotations

import random
from typing import Any

import pytest

from reattach.core.limits import Limits
from reattach.core.past import document_of
from reattach.core.retention import DAY_MS, thinned
from reattach.runtime.compaction import Compacted, Compactor
from reattach.store.base import CheckpointRecord
from tests.runtime.rig import Node, inc, put, running, settle

HOUR_MS = DAY_MS // 24


def mark(number: int, age: int, kind: str = "automatic") -> CheckpointRecord:
    return CheckpointRecord(
        checkpoint_id=f"{kind}.{number}", kind=kind, version=number, created_at=-age
    )


def test_automatic_marks_are_thinned_and_no_others() -> None:
    """Rule RT1."""
    now = 0
    young = [mark(n, n * 1_000) for n in range(50)]
    week = [mark(100 + n, DAY_MS + HOUR_MS // 2 + n * HOUR_MS // 4) for n in range(20)]
    month = [mark(200 + n, 7 * DAY_MS + DAY_MS // 2 + n * DAY_MS // 4) for n in range(20)]
    old = [mark(300 + n, 31 * DAY_MS + n) for n in range(5)]
    kept = [mark(400 + n, n * 10 * DAY_MS, kind) for n in range(9) for kind in ("named",)]
    kept += [mark(500 + n, n * 10 * DAY_MS, "before_restore") for n in range(9)]
    everything = [*young, *week, *month, *old, *kept]
    gone = set(thinned(everything, now))
    left = [one for one in everything if one.checkpoint_id not in gone]
    assert all(one in left for one in (*young, *kept))
    assert not any(one in left for one in old)
    assert sum(one in left for one in week) in {5, 6}
    assert sum(one in left for one in month) in {5, 6}
    # What was thinned stays as it is.
    assert thinned(left, now) == []


def compactor(node: Node, days: int = 30) -> Compactor:
    return Compactor(node.store, node.clock, Limits(), "me", history_days=days)


async def past(node: Node, version: int) -> Any:
    loaded = await node.store.inner.load_at("s", version)
    if loaded is None:
        return None
    document, reached = document_of(loaded)
    return document.state if reached == version else None


async def test_a_log_is_compacted_and_marks_can_be_restored() -> None:
    # Rules RT2, RE1
    async with running() as node:
        a = await node.client(client_id="a")
        seen: list[Any] = [{}]
        chance = random.Random(1)
        for n in range(30):
            a.change(put(f"/k{chance.randrange(9)}", n))
            if n in {4, 11}:
                a.feed({"type": "save_checkpoint", "ref": str(n)})
            await settle()
            seen.append(dict(a.state or {}))
        a.change({"op": "restore", "version": 20})
        await settle()
        seen.append(dict(a.state or {}))
        assert await compactor(node).compact("s") == Compacted()
        await node.clock.pass_(31 * DAY_MS, 31 * DAY_MS)
        assert await compactor(node).sweep() == Compacted(commits=31)
        assert await compactor(node).sweep() == Compacted()
        assert {n for n in range(32) if await past(node, n) is not None} == {5, 12, 30, 31}
        for n in (5, 12, 30, 31):
            assert await past(node, n) == seen[n]
        b = await node.client(client_id="b")
        assert b.state == seen[31]
        b.change({"op": "restore", "version": 5})
        b.change({"op": "restore", "version": 6})
        await settle()
        assert a.state == b.state == seen[5]
        assert [one["code"] for one in b.of_type("rejected")] == ["version_gone"]
        assert await node.fresh() == b.state
        node.honest()


async def test_who_comes_back_from_below_the_floor_gets_the_state() -> None:
    # Rule R1
    async with running(idle_session_ms=1) as node:
        a, b = await node.client(client_id="a"), await node.client(client_id="b")
        a.change(put("/large", "x" * 2_000))
        await settle()
        b.leave()
        for _ in range(5):
            a.change(inc())
        await settle()
        a.leave()
        await settle()
        node.registry.hosts.clear()
        await node.clock.pass_(31 * DAY_MS, 31 * DAY_MS)
        assert (await compactor(node).sweep()).commits == 6
        b.change(put("/late", 1))
        await b.connect()
        await settle()
        assert b.welcomes[-1]["type"] == "initial_state"
        assert b.state == {"large": "x" * 2_000, "n": 5, "late": 1}
        node.honest()


async def test_of_two_nodes_one_compacts_at_a_time() -> None:
    # Rule RT3
    async with running() as node:
        assert await node.store.lease("compaction", "another", 60 * 60 * 1000)
        assert not await node.store.lease("compaction", "me", 60 * 60 * 1000)


@pytest.mark.parametrize("seed", range(3))
async def test_every_retained_version_reads_as_it_was_seen(seed: int) -> None:
    # Rule RT2, step by step, with what is younger left alone
    chance = random.Random(seed)
    async with running(
        limits=Limits(heartbeat_timeout_ms=10**12, saved_state_floor_bytes=500)
    ) as node:
        a = await node.client(client_id="a")
        seen: list[Any] = [{}]
        for n in range(300):
            a.change(put(f"/k{chance.randrange(20)}", [n] * chance.randrange(9)))
            await settle(12)
            seen.append(dict(a.state or {}))
            if n in {100, 200}:
                a.feed({"type": "save_checkpoint", "ref": str(n)})
                await settle()
            if n == 150:
                await node.clock.pass_(31 * DAY_MS, 31 * DAY_MS)
                await a.connect()
        assert (await compactor(node).compact("s")).commits in range(140, 153)
        readable = {n for n in range(301) if await past(node, n) is not None}
        assert set(range(153, 301)) | {101} <= readable
        for n in readable:
            assert await past(node, n) == seen[n], n
        assert min(readable) == 101
