"""Reads that are gathered: what a node reads that many come to at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from reattach.errors import StoreUnavailable, Unavailable
from reattach.runtime.gathering import Gathering
from reattach.runtime.tasks import Tasks
from reattach.store.base import Loaded
from reattach.store.memory import MemoryStore
from tests.runtime.rig import LineClient, inc, running, settle
from tests.support.waiting import until

COUNT = 1_000

Read = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]


class Reads:
    """Reads that are answered when a test lets them be."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.answers: list[asyncio.Future[Mapping[str, int]]] = []

    async def __call__(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.asked.append(keys)
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


def gathering(read: Read, *, most: int = 100, timeout_ms: int = 5_000) -> Gathering[str, int]:
    return Gathering(read, Tasks(), most=most, timeout_ms=timeout_ms)


async def asked_for(reads: Gathering[str, int], *keys: str) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(reads.get(key)) for key in keys]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_what_is_asked_for_meanwhile_is_read_by_the_next() -> None:
    read = Reads()
    reads = gathering(read)
    early = await asked_for(reads, "a", "b", "a")
    assert read.asked == [["a", "b"]], "what is asked for in one turn is read at once"
    (other,) = await asked_for(reads, "c")
    late = [*await asked_for(reads, "a"), *await asked_for(reads, "d", "e")]
    assert read.asked[1:] == [["c"]], "two are under way, and the others wait for one of them"
    read.answers[0].set_result({"a": 1, "b": 5})
    assert await asyncio.gather(*early) == [1, 5, 1]
    assert not late[0].done(), "what was asked for later is read later"
    await asyncio.sleep(0)
    assert read.asked[2:] == [["a", "d", "e"]]
    read.answers[2].set_result({"a": 2, "d": 3, "e": 4})
    read.answers[1].set_result({"c": 6})
    assert await asyncio.gather(other, *late) == [6, 2, 3, 4]


async def test_what_a_read_leaves_out_is_read_by_the_next() -> None:
    asked = []

    async def read(keys: Sequence[str]) -> Mapping[str, int]:
        asked.append(len(keys))
        await asyncio.sleep(0)
        return {key: int(key) for key in keys[:3]}

    reads = gathering(read, most=10)
    assert await asyncio.gather(*(reads.get(str(n)) for n in range(20))) == list(range(20))
    assert max(asked) == 10


async def test_one_that_cannot_be_read_fails_alone() -> None:
    async def read(keys: Sequence[str]) -> Mapping[str, int]:
        if "bad" in keys:
            raise ValueError("it is broken")
        return dict.fromkeys(keys, 1)

    reads = gathering(read)
    found = await asyncio.gather(
        *(reads.get(key) for key in ("a", "b", "c", "bad", "d")), return_exceptions=True
    )
    assert [*found[:3], found[4]] == [1, 1, 1, 1]
    assert isinstance(found[3], ValueError)


async def test_a_database_that_is_away_is_asked_once_for_all() -> None:
    asked = []

    async def read(keys: Sequence[str]) -> Mapping[str, int]:
        asked.append(keys)
        raise StoreUnavailable("it is away")

    reads = gathering(read)
    found = await asyncio.gather(*(reads.get(str(n)) for n in range(50)), return_exceptions=True)
    assert all(isinstance(one, StoreUnavailable) for one in found)
    assert len(asked) == 1


async def test_a_read_that_is_not_answered_holds_up_others_for_its_time_only() -> None:
    read = Reads()
    reads = gathering(read, timeout_ms=50)
    early = [*await asked_for(reads, "a"), *await asked_for(reads, "b")]
    assert len(read.asked) == 2
    for one in early:
        with pytest.raises(StoreUnavailable):
            await one
    (later,) = await asked_for(reads, "c")
    await until(lambda: len(read.asked) == 3, within=5, what="the next read")
    read.answers[2].set_result({"c": 3})
    assert await later == 3


async def test_who_gives_up_leaves_the_others_be() -> None:
    read = Reads()
    reads = gathering(read)
    first, second = await asked_for(reads, "a", "b")
    first.cancel()
    await asyncio.sleep(0)
    read.answers[0].set_result({"a": 1, "b": 2})
    assert await second == 2


async def test_when_a_node_stops_nobody_waits_for_what_is_not_read() -> None:
    read, tasks = Reads(), Tasks()
    reads: Gathering[str, int] = Gathering(read, tasks, most=10, timeout_ms=60_000)
    waiting = await asked_for(reads, "a", "b", "c")
    await tasks.stop()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, StoreUnavailable) for one in found)


async def test_sessions_that_are_opened_at_once_load_in_batches() -> None:
    """A node after a restart, and all who were on it: a bounded number of statements."""
    inner = MemoryStore()
    async with running(inner) as before:
        for number in range(COUNT):
            client = LineClient(before, f"s{number}", f"c{number}", create={"n": 0})
            before.clients.append(client)
            client.begin()
        clients = list(before.clients)
        await until(lambda: all(client.greeted for client in clients), within=30, what="all")
        for client in clients:
            client.change(inc())
        await until(lambda: not any(client.outbox for client in clients), within=30, what="all")
    async with running(inner) as after:
        for client in clients:
            client.move_to(after)
        for client in clients:
            client.begin()
        await until(lambda: all(client.greeted for client in clients), within=30, what="all back")
        asked = Counter(after.store.calls)
        assert asked.total() < 40, asked
        assert asked["load_many"] < 10
        for client in clients:
            client.change(inc())
        await until(lambda: not any(client.outbox for client in clients), within=30, what="all")
        assert all(client.state == {"n": 2} for client in clients)
        assert not any(client.closes for client in clients)


async def test_one_session_whose_rows_are_broken_keeps_no_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as node:
        for name in ("a", "b", "bad", "c"):
            (await node.client(name, client_id=name)).leave()
        await settle()
        node.registry.hosts.clear()
        load_many = node.store.inner.load_many

        async def broken(names: Sequence[str], most: int) -> Mapping[str, Loaded | None]:
            if "bad" in names:
                raise ValueError("it cannot be read")
            return await load_many(names, most)

        monkeypatch.setattr(node.store.inner, "load_many", broken)
        opened: list[Any] = await asyncio.gather(
            *(node.registry.open(name) for name in ("a", "b", "c", "bad")), return_exceptions=True
        )
        assert [one.session_id for one in opened[:3]] == ["a", "b", "c"]
        assert isinstance(opened[3], Exception)
        assert not isinstance(opened[3], Unavailable)
