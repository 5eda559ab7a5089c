"""A batch that fails, or whose answer is lost, leaves every client right without reconnecting.

Clients here stay on their lines: each `Replica` raises a `Lie` when it is told twice, never, or of
a version that it cannot be at.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from reattach.core.effects import Request
from reattach.core.room import Room
from reattach.core.session import Proposal, apply_ops
from reattach.errors import ChangeRefused, StoreRefused, Unavailable
from reattach.sessions import Commit
from reattach.store.base import Append, ClientRecord, CommitRecord, Expected, SessionRecord
from reattach.store.sqlite import SQLiteStore
from reattach.wire import Op, StateUpdate
from tests.runtime.rig import (
    Fault,
    Gate,
    Node,
    answer_lost,
    done_in_silence,
    down,
    inc,
    put,
    running,
    settle,
    silent,
)
from tests.support.waiting import until

FAULTS: dict[str, Callable[[], Fault]] = {
    "failed": down,
    "failed with an operating system error": lambda: down(OSError(5, "I/O error")),
    "answer lost": answer_lost,
    "timed out": silent,
    "done, timed out": done_in_silence,
}

TIMEOUT_MS = 60


async def until_recovered(node: Node, *sessions: str) -> None:
    """Lets store timeouts (in real time) and retries (by the node's clock) take their course."""
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.005)
            await node.clock.pass_(50)
            hosts = [node.registry.hosts[name] for name in sessions]
            if all(host.room.at_rest and not host.room.has_work for host in hosts) and all(
                not client.outbox for client in node.clients
            ):
                return


@pytest.mark.parametrize("fault", FAULTS)
async def test_nobody_is_told_twice_and_nobody_misses(fault: str) -> None:
    # Rule X1
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        node.store.next("append", FAULTS[fault]())
        a.change(inc())
        a.change(inc(10), put("/a", 1))
        b.change(inc(100))
        await until_recovered(node, "s")
        version, log = await node.durable()
        assert (version, sorted(log)) == (3, [("a", 1), ("a", 2), ("b", 1)])
        for client in (a, b):
            assert [frame["version"] for frame in client.of_type("state_update")] == [1, 2, 3]
            assert client.state == {"n": 111, "a": 1}
            assert client.closes == []
            assert len(client.welcomes) == 1
        # And it goes on as ever.
        b.change(inc(1000))
        await settle()
        assert a.state["n"] == b.state["n"] == 1111
        assert await node.fresh() == a.state


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_refusal_in_the_lost_batch_is_told_once(fault: str) -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        node.store.next("append", FAULTS[fault]())
        a.change(put("/no/such/parent", 1))
        a.change(put("/a", 1))
        b.change(put("/nor/here", 1))
        await until_recovered(node, "s")
        assert [frame["seq"] for frame in a.of_type("rejected")] == [1]
        assert [frame["seq"] for frame in b.of_type("rejected")] == [1]
        assert a.state == b.state == {"a": 1}
        assert [one.seq for one in await node.store.inner.refusals("s", "a", 0)] == [1]


@pytest.mark.parametrize("fault", FAULTS)
async def test_refusals_alone_are_told_once(fault: str) -> None:
    """The session's version does not tell that such a batch was written: the number does."""
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        node.store.next("append", FAULTS[fault]())
        a.change(put("/no/such/parent", 1))
        a.change(put("/nor/here", 1))
        await until_recovered(node, "s")
        assert [frame["seq"] for frame in a.of_type("rejected")] == [1, 2]


async def test_a_refusal_is_told_although_reading_it_fails_at_first() -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        node.store.next("append", answer_lost())
        node.store.next("clients", down(), down())
        a.change(put("/no/such/parent", 1))
        await until_recovered(node, "s")
        assert [frame["seq"] for frame in a.of_type("rejected")] == [1]


async def test_a_number_that_comes_again_is_looked_up_until_the_database_answers() -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        a.change(put("/no/such/parent", 1))
        a.change(inc())
        await settle()
        change = {"type": "change", "epoch": a.epoch, "base": 0, "ops": [inc()]}
        a.leave()
        await settle()
        node.registry.hosts.clear()
        # It says that it knows of both, so they are not read when it joins.
        await a.connect()
        a.sent_twice = {1}
        node.store.next("decision", down(), silent(), down(), down())
        a.feed(change | {"seq": 1, "at": a._known_at[1]})
        a.feed(change | {"seq": 2, "at": a._known_at[2] + 5})
        await settle()
        assert len(a.of_type("rejected")) == 1
        async with asyncio.timeout(5):
            while len(a.of_type("rejected", "error")) < 3:
                await asyncio.sleep(0.005)
                await node.clock.pass_(50)
        assert [frame["seq"] for frame in a.of_type("rejected")] == [1, 1]
        assert [frame["code"] for frame in a.of_type("error")] == ["seq_reused"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_several_sessions_in_the_batch(fault: str) -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        names = [f"s{n}" for n in range(5)]
        clients = [await node.client(name, f"{name}-{n}") for name in names for n in range(2)]
        gate = Gate()
        node.store.next("append", gate, FAULTS[fault]())
        clients[0].change(inc())
        await gate.reached.wait()
        for client in clients:
            client.change(inc())
        gate.open()
        await until_recovered(node, *names)
        assert len(node.store.asked[-2 if fault == "answer lost" else -1]) >= 1
        for name in names:
            expected = 3 if name == "s0" else 2
            version, log = await node.durable(name)
            assert (version, len(set(log))) == (expected, expected)
            assert (await node.fresh(name))["n"] == expected
        assert {client.state["n"] for client in clients} == {2, 3}


async def test_the_store_stays_down_for_several_attempts() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        mend = node.store.spoil("append", "since", "clients", "load_many", with_=down())
        a.change(inc())
        await node.clock.pass_(3_000)
        b.change(inc(10))
        tried = node.store.calls.count("clients")  # the first that an attempt reads
        await node.clock.pass_(3_000)
        assert node.store.calls.count("clients") >= tried + 2, "it has given up"
        assert not a.of_type("state_update", "rejected")
        told = [frame["code"] for frame in a.of_type("error")]
        assert told == ["unavailable"], told
        assert a.of_type("error")[0]["retry_after_ms"] > 0
        mend()
        await node.clock.pass_(3_000)
        assert a.state == b.state == {"n": 11}
        assert (await node.durable())[0] == 2


async def test_the_answer_is_lost_and_then_the_log_cannot_be_read_for_a_while() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        node.store.next("append", answer_lost())
        node.store.next("since", down(), down(), down())
        node.store.next("clients", down())
        a.change(inc())
        a.change(inc())
        await node.clock.pass_(5_000)
        assert a.state == {"n": 2}
        assert await node.durable() == (2, [("a", 1), ("a", 2)])


async def test_a_read_that_is_never_answered_does_not_stop_the_recovery() -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        node.store.next("append", answer_lost())
        node.store.next("clients", silent())
        node.store.next("since", silent())
        a.change(inc())
        await until_recovered(node, "s")
        assert a.state == {"n": 1}


async def test_outcomes_lost_again_and_again() -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        node.store.next("append", answer_lost(), down(), done_in_silence(), silent(), answer_lost())
        for n in range(6):
            a.change(inc())
            b.change(inc(10))
            if n % 2:
                await settle()
        await until_recovered(node, "s")
        assert a.state == b.state == {"n": 66}
        assert (await node.durable())[0] == 12


async def test_the_lost_batch_is_written_late_while_the_log_is_already_read() -> None:
    """As SQLite's writer does when its caller gives up: the batch sits in its thread and goes on.

    Then the log does not hold it yet, the changes are decided again, and the batch arrives before
    them or after them: they are stale, and the session is loaded again.
    """
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        late, second = Gate(), Gate()
        node.store.next("append", late, second)
        a.change(inc())
        b.change(put("/no/parent", 1))
        await late.reached.wait()
        await asyncio.wait_for(second.reached.wait(), 5)
        late.open()
        await late.passed.wait()
        second.open()
        await until_recovered(node, "s")
        assert a.state == b.state == {"n": 1}
        assert await node.durable() == (1, [("a", 1)])
        assert [frame["seq"] for frame in b.of_type("rejected")] == [1]


async def test_changes_that_came_meanwhile_keep_their_order() -> None:
    async with running() as node:
        a = await node.client(client_id="a", state={"text": ""})
        gate = Gate()
        node.store.next("append", gate)
        a.change(put("/text", "1"))
        await gate.reached.wait()
        node.store.next("append", answer_lost(), down())
        for text in ("2", "3", "4"):
            a.change(put("/text", text))
            await settle()
        gate.open()
        await until_recovered(node, "s")
        assert a.state == {"text": "4"}
        assert await node.durable() == (4, [("a", 1), ("a", 2), ("a", 3), ("a", 4)])


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_gap_is_told_once_although_its_batch_is_lost(fault: str) -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        gate = Gate()
        node.store.next("append", gate, FAULTS[fault]())
        b.change(inc())
        await gate.reached.wait()
        b.change(inc())
        first, second = a.put(inc(100)), a.put(inc(1000))
        a.feed(a.outbox[second])
        gate.open()
        async with asyncio.timeout(5):
            while not [one for one in a.of_type("error") if one["code"] == "sequence_gap"]:
                await asyncio.sleep(0.005)
                await node.clock.pass_(100)
        a.feed(a.outbox[first])
        a.feed(a.outbox[second])
        await until_recovered(node, "s")
        gaps = [one for one in a.of_type("error") if one["code"] == "sequence_gap"]
        assert [one["expected"] for one in gaps] == [1]
        assert a.state == b.state == {"n": 1102}


# In process


@pytest.mark.parametrize("fault", FAULTS)
async def test_updates_in_process_are_answered_once_with_their_own_commit(fault: str) -> None:
    async with running(timeout_ms=2_000 if "timed" not in fault else TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        await node.sessions.update("s", [inc()])
        gate = Gate()
        node.store.next("append", gate, FAULTS[fault]())
        a.change(inc(10))
        await gate.reached.wait()
        # They wait for the batch in flight, and make the next one together.
        tasks = [
            asyncio.create_task(node.sessions.update("s", lambda s: [put("/seen", s), inc(100)])),
            asyncio.create_task(node.sessions.update("s", [inc(1000)])),
            asyncio.create_task(node.sessions.update("s", [put("/no/parent", 1)])),
        ]
        await settle()
        gate.open()
        results = await finished(node, tasks)
        await until_recovered(node, "s")
        # Whether or not their callers were still waiting, each took effect once.
        assert a.state["n"] == 1111
        version, log = await node.durable()
        assert (version, len(set(log))) == (4, 4)
        told = [one.version for one in results if isinstance(one, StateUpdate)]
        assert len(set(told)) == len(told)
        assert set(told) <= by_server(node, log)
        if "timed out" in fault:
            assert all(
                isinstance(one, StateUpdate | Unavailable | ChangeRefused) for one in results
            )
        else:
            assert len(told) == 2
            assert isinstance(results[2], ChangeRefused), results


async def test_answers_are_still_known_when_changes_are_taken_one_by_one() -> None:
    """The answer is lost, the log read again, and then the database refuses what else is in line:
    so changes are decided one at a time, and those that the log held are among them.
    """
    async with running() as node:
        a = await node.client(client_id="a")
        gate = Gate()
        node.store.next("append", gate, answer_lost(), down(StoreRefused("a trigger")))
        a.change(inc())
        await gate.reached.wait()
        tasks = [asyncio.create_task(node.sessions.update("s", [inc()])) for _ in range(3)]
        await settle()
        read = Gate()
        node.store.next("since", read)
        gate.open()
        await read.reached.wait()
        assert len(node.store.parts[-1].commits) == 3, "they make the batch that is lost"
        a.change(inc())
        a.change(inc())
        read.open()
        commits = await finished(node, tasks)
        await until_recovered(node, "s")
        assert a.state == {"n": 6}
        _, log = await node.durable()
        assert {one.version for one in commits if isinstance(one, StateUpdate)} == by_server(
            node, log
        )


def by_server(node: Node, log: Sequence[tuple[str | None, int]]) -> set[int]:
    """The versions that this node wrote on its own."""
    return {n for n, (name, _) in enumerate(log, 1) if name == node.registry.server_client}


async def finished(
    node: Node, tasks: Sequence[asyncio.Task[Commit]]
) -> list[Commit | BaseException]:
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.005)
        await node.clock.pass_(50)
    return await asyncio.gather(*tasks, return_exceptions=True)


# Another writer


async def advance(node: Node, name: str = "s", writer: str = "elsewhere") -> int:
    """Another process commits to the session, straight into the database."""
    store = node.store.inner
    row = await store.session(name)
    assert isinstance(row, SessionRecord)
    version = row.version + 1
    by = {"client_id": None, "seq": None, "device_id": None, "user_id": None, "source": "server"}
    op = {"op": "add", "path": f"/{writer}", "value": version}
    body = {"type": "state_update", "version": version, "patch": [op], "by": by, "at": 1}
    part = Append(
        session_id=name,
        expected=Expected(version=row.version, epoch=row.epoch, access_version=0),
        session=msgspec.structs.replace(row, version=version),
        commits=[CommitRecord(version=version, body=msgspec.json.encode(body), writes=b"[]", at=1)],
    )
    outcomes = await store.append([part])
    assert outcomes[0].value == "ok"
    return version


async def test_a_session_that_another_writer_moved_is_caught_up_with() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        other = await node.client("t", "x")
        a.change(inc())
        await settle()
        for _ in range(3):
            await advance(node)
        a.change(inc(10))
        b.change(put("/no/parent", 1))
        other.change(inc())
        updated = asyncio.create_task(node.sessions.update("s", [inc(100)]))
        await until_recovered(node, "s", "t")
        assert a.state == b.state == {"n": 111, "elsewhere": 4}
        assert (await updated).version in {5, 6}
        for client in (a, b):
            versions = [frame["version"] for frame in client.of_type("state_update")]
            assert versions == [1, 2, 3, 4, 5, 6]
            assert len(client.welcomes) == 1
        assert [frame["seq"] for frame in b.of_type("rejected")] == [1]
        assert other.state == {"n": 1}
        assert not a.of_type("error")


async def test_the_number_was_decided_by_another_node() -> None:
    """A client's changes went over another node while this one still had them in line."""
    async with running() as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        loaded = await node.store.inner.load("s")
        assert loaded is not None
        elsewhere = Room(loaded, node.registry.limits)
        elsewhere.session.know(
            ClientRecord(client_id="a", user_id="u", device_id=a.device_id), known=True
        )
        first, second = a.put(put("/twice", 1)), a.put(put("/no/parent", 1))
        for seq in (first, second):
            frame = a.outbox[seq]
            ops = [Op(op=op["op"], path=op["path"], value=op["value"]) for op in frame["ops"]]
            elsewhere.inbox.submit(
                Request(
                    proposal=Proposal(client_id="a", seq=seq, at=frame["at"], edit=apply_ops(ops))
                )
            )
        part = elsewhere.cut(node.clock.now())
        assert part is not None
        assert [one.value for one in await node.store.inner.append([part])] == ["ok"]
        third = a.change(inc())
        await until_recovered(node, "s")
        assert await node.durable() == (2, [("a", first), ("a", third)])
        assert a.state == b.state == {"twice": 1, "n": 1}
        assert list(a.rejected) == [second]


# Housekeeping


@pytest.mark.parametrize("fault", FAULTS)
async def test_when_the_last_one_left_is_known_although_that_batch_was_lost(fault: str) -> None:
    async with running(timeout_ms=TIMEOUT_MS) as node:
        a = await node.client(client_id="a")
        node.store.next("append", FAULTS[fault]())
        a.leave()
        left = node.clock.now()
        await until_recovered(node, "s")
        await settle()
        row = await node.store.inner.session("s")
        assert isinstance(row, SessionRecord)
        assert row.disconnected_at == left


# The real store: its writer goes on when its caller gives up


async def test_sqlite_goes_on_with_a_batch_that_its_caller_has_given_up(tmp_path: Path) -> None:
    path = tmp_path / "reattach.db"
    async with running(SQLiteStore(path), timeout_ms=300) as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        await until(lambda: bool(a.welcomes and b.welcomes), within=5, what="their welcomes")
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        a.change(inc())
        b.change(inc(10))
        a.change(put("/no/parent", 1))
        await until(lambda: bool(a.of_type("error")), within=5, what="the error")
        assert not a.of_type("state_update", "rejected")
        blocker.execute("ROLLBACK")
        blocker.close()
        await until_recovered(node, "s")
        assert a.state == b.state == {"n": 11}
        assert [frame["seq"] for frame in a.of_type("rejected")] == [2]
        version, log = await node.durable()
        assert (version, sorted(log)) == (2, [("a", 1), ("b", 1)])


async def test_a_new_client_whose_first_changes_were_in_the_lost_batch_goes_on() -> None:
    """Found by the simulator: its row was to be made anew, at a number that it had long left."""
    async with running(timeout_ms=TIMEOUT_MS) as node:
        await node.client(client_id="a", state={"n": 0})
        other = await node.client("t", client_id="t")
        gate = Gate()
        node.store.next("append", gate, answer_lost())
        other.change(inc())
        await settle()
        new = await node.client(client_id="new")
        new.change(inc())
        await settle()
        gate.open()
        await until_recovered(node, "s", "t")
        new.change(inc())
        await until_recovered(node, "s", "t")
        assert new.state == {"n": 2}
