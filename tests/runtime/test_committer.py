"""Group commit: while one transaction is in flight, the next batch gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from reattach.errors import StoreRefused, StoreUnavailable
from reattach.runtime.committer import Committer
from reattach.store.base import Append, Outcome
from reattach.store.memory import MemoryStore
from tests.runtime.rig import (
    FaultyStore,
    Gate,
    HandClock,
    Node,
    down,
    inc,
    put,
    running,
    settle,
    silent,
)
from tests.support.waiting import until


class Member:
    """Somebody with parts to write, who notes what becomes of them."""

    def __init__(self, session_id: str, *, parts: int = 1) -> None:
        self.session_id = session_id
        self.parts = parts
        self.cuts = 0
        self.told: list[str] = []
        self.fails_at: set[str] = set()

    def cut(self) -> Append | None:
        self._fail("cut")
        self.cuts += 1
        if self.parts == 0:
            return None
        self.parts -= 1
        return Append(session_id=self.session_id, expected=None)

    def landed(self, outcome: Outcome) -> None:
        self._fail("landed")
        self.told.append(outcome.value)

    def lost(self, error: BaseException) -> None:
        self._fail("lost")
        self.told.append(f"lost {type(error).__name__}")

    def refused(self, error: StoreRefused) -> None:
        self._fail("refused")
        self.told.append(f"refused {error.message}")

    def broken(self, error: Exception) -> None:
        self.told.append(f"broken {error}")

    def _fail(self, where: str) -> None:
        if where in self.fails_at:
            raise ZeroDivisionError(where)


class Backend(MemoryStore):
    """Writes anything; refuses batches with what is named `poison`."""

    async def check(self) -> None:
        """It is there, though nobody opened it."""

    async def append(self, batch: object) -> list[Outcome]:
        names = [part.session_id for part in batch]  # type: ignore[attr-defined]
        if "poison" in names:
            raise StoreRefused("poisoned")
        return [Outcome.STALE if name == "stale" else Outcome.OK for name in names]


class Bench:
    def __init__(self) -> None:
        self.store = FaultyStore(Backend())
        self.committer = Committer(self.store, HandClock(), timeout_ms=50)
        self.committer.start()

    def batches(self) -> list[list[str]]:
        return [[part.session_id for part in batch] for batch in self.store.asked]


async def test_what_comes_while_a_transaction_is_in_flight_is_the_next_batch() -> None:
    bench = Bench()
    gate = Gate()
    bench.store.next("append", gate)
    first, *others = [Member(f"s{n}") for n in range(6)]
    bench.committer.want(first)
    await gate.reached.wait()
    for member in others:
        bench.committer.want(member)
        bench.committer.want(member)  # twice is once
        await settle()
    assert bench.batches() == [["s0"]]
    assert [member.cuts for member in others] == [0] * 5, "cut before the database is free"
    gate.open()
    await settle()
    assert bench.batches() == [["s0"], ["s1", "s2", "s3", "s4", "s5"]]
    assert all(member.told == ["ok"] for member in (first, *others))
    await bench.committer.stop()


async def test_a_batch_has_one_part_for_each_session() -> None:
    """Regression: two creations of one session had the whole batch refused, for all sessions."""
    bench = Bench()
    members = [Member("s"), Member("t"), Member("s"), Member("s")]
    for member in members:
        bench.committer.want(member)
    await settle()
    assert bench.batches() == [["s", "t"], ["s"], ["s"]]
    assert all(member.told == ["ok"] for member in members)
    await bench.committer.stop()


async def test_each_is_told_its_own_outcome() -> None:
    bench = Bench()
    members = [Member("a"), Member("stale"), Member("b"), Member("nothing", parts=0)]
    for member in members:
        bench.committer.want(member)
    await settle()
    assert [member.told for member in members] == [["ok"], ["stale"], ["ok"], []]
    await bench.committer.stop()


async def test_a_refused_batch_is_tried_session_by_session() -> None:
    bench = Bench()
    members = [Member("a"), Member("poison"), Member("b")]
    for member in members:
        bench.committer.want(member)
    await settle()
    assert bench.batches() == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]
    assert [member.told for member in members] == [["ok"], ["refused poisoned"], ["ok"]]
    await bench.committer.stop()


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (down, "StoreUnavailable"),
        (lambda: down(OSError("disk")), "OSError"),
        (silent, "TimeoutError"),
    ],
)
async def test_an_unknown_outcome_is_told_to_everybody_in_the_batch(
    fault: Callable[[], object], name: str
) -> None:
    bench = Bench()
    bench.store.next("append", fault())  # type: ignore[arg-type]
    members = [Member("a"), Member("b")]
    for member in members:
        bench.committer.want(member)
    await until(lambda: all(member.told for member in members), within=5, what="their fate")
    assert [member.told for member in members] == [[f"lost {name}"]] * 2
    later = Member("a")
    bench.committer.want(later)
    await settle()
    assert later.told == ["ok"]
    await bench.committer.stop()


@pytest.mark.parametrize("where", ["cut", "landed", "lost", "refused"])
async def test_a_member_that_fails_harms_no_other(where: str) -> None:
    bench = Bench()
    bad, good = Member("poison" if where == "refused" else "bad"), Member("good", parts=3)
    bad.fails_at = {where}
    if where == "lost":
        bench.store.next("append", down(StoreUnavailable("away")))
    bench.committer.want(bad)
    bench.committer.want(good)
    await settle()
    assert bad.told == [f"broken {where}"]
    bench.committer.want(good)
    await settle()
    assert good.told[-1] == "ok"
    await bench.committer.stop()


async def test_stopping_writes_what_waits() -> None:
    bench = Bench()
    gate = Gate()
    bench.store.next("append", gate)
    first, second = Member("a"), Member("b")
    bench.committer.want(first)
    await gate.reached.wait()
    bench.committer.want(second)
    stopping = asyncio.create_task(bench.committer.stop())
    await settle()
    assert not stopping.done()
    gate.open()
    await stopping
    assert first.told == second.told == ["ok"]


# With rooms


async def test_a_batch_over_many_sessions_is_one_append() -> None:
    async with running() as node:
        clients = [await node.client(f"s{n}", f"c{n}") for n in range(20)]
        gate = Gate()
        node.store.next("append", gate)
        before = len(node.store.asked)
        clients[0].change(inc())
        await gate.reached.wait()
        for client in clients:
            for _ in range(5):
                client.change(inc())
                await settle(2)
        gate.open()
        await settle()
        batches = node.store.asked[before:]
        assert [len(batch) for batch in batches] == [1, 20]
        assert sum(len(part.commits) for part in batches[1]) == 100
        assert [client.state["n"] for client in clients] == [6] + [5] * 19


async def test_one_append_holds_all_that_a_batch_decided() -> None:
    """Commits, refusals, numbers, conflicts and devices of a session stand or fall together."""
    async with running() as node:
        a = await node.client(client_id="a", state={"n": 0})
        b = await node.client(client_id="b")
        before = len(node.store.asked)
        gate = Gate()
        node.store.next("append", gate)
        await lined_up(node, gate)
        a.change(put("/t", "a"))
        a.change(put("/no/parent", 1))
        b.change(put("/t", "b"))
        gate.open()
        await settle()
        (part,) = node.store.asked[before + 1]
        assert [commit.version for commit in part.commits] == [1, 2]
        assert [refusal.seq for refusal in part.refusals] == [2]
        assert sorted(
            (one.client.client_id, one.before, one.client.seq) for one in part.clients
        ) == [
            ("a", 0, 2),
            ("b", 0, 1),
        ]
        assert [conflict.path for conflict in part.conflicts] == ["/t"]
        assert part.expected is not None
        assert part.session is not None
        assert (part.expected.version, part.session.version) == (0, 2)


async def lined_up(node: Node, gate: Gate) -> None:
    """Has another session's transaction in flight, at a gate."""
    other = asyncio.create_task(node.sessions.create(user_id="u", session_id="other"))
    await gate.reached.wait()
    other.add_done_callback(lambda task: task.exception())
