"""What a commit costs, in things that can be counted: on any machine they are the same.

Times are `make bench`'s. These are what times come from: how often something is encoded, how many
statements a batch is, how often it is synced, how many bytes it adds.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reattach.core import session as decisions
from reattach.store.base import Append, CommitRecord
from reattach.store.sqlite import SQLiteStore
from reattach.wire import StateUpdate, encode
from tests.runtime.rig import BareLine, LineClient, Node, put, running
from tests.support.waiting import until

SESSIONS = 5
CHANGES = 4
VALUE = "x" * 60


async def crowd(node: Node) -> list[LineClient]:
    """Sessions with a writer and two watchers each; the writers are returned."""
    writers = []
    for number in range(SESSIONS):
        writers.append(await node.client(f"s{number}", f"w{number}"))
        for watcher in range(2):
            await node.client(f"s{number}", f"r{number}-{watcher}")
    await until(lambda: all(one.greeted for one in node.clients), within=5, what="welcomes")
    hosts = [node.host(f"s{number}") for number in range(SESSIONS)]
    await until(
        lambda: all(host.room.at_rest and not host.room.has_work for host in hosts),
        within=5,
        what="all who came to be written down",
    )
    for writer in writers:
        writer.change(put("/begun", 1))  # a client's first number is a row, later ones change it
    await all_landed(writers)
    return writers


async def all_landed(writers: Sequence[LineClient]) -> None:
    await until(lambda: not any(one.outbox for one in writers), within=5, what="the last commit")


async def write(node: Node, writers: Sequence[LineClient]) -> list[Append]:
    """Have each writer send its changes at one moment; returns what the store was asked for."""
    node.store.asked.clear()
    for writer in writers:
        for number in range(CHANGES):
            writer.change(put(f"/k{number}", VALUE))
    await all_landed(writers)
    (batch,) = node.store.asked
    assert sum(len(part.commits) for part in batch) == SESSIONS * CHANGES
    return list(batch)


async def test_a_commit_is_encoded_once_however_many_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: Counter[int] = Counter()
    sent: dict[tuple[str, int], set[int]] = {}
    kept: list[bytes] = []

    def counting(value: Any) -> bytes:
        if type(value) is StateUpdate:
            encoded[value.version] += 1
        return encode(value)

    def send(line: BareLine, frames: Sequence[bytes]) -> None:
        for frame in frames:
            if frame.startswith(b'{"type":"state_update"'):
                kept.append(frame)  # so that no two have one identity after one another
                version = int(frame.split(b'"version":')[1].split(b",")[0])
                sent.setdefault((line.client.session_id, version), set()).add(id(frame))
        deliver(line, frames)

    deliver = BareLine.send
    monkeypatch.setattr(decisions, "encode", counting)
    monkeypatch.setattr(BareLine, "send", send)
    async with running() as node:
        batch = await write(node, await crowd(node))
    assert sum(encoded.values()) == SESSIONS * (1 + CHANGES)
    assert len(kept) == 3 * sum(encoded.values())
    # The log's bytes are those that each of the three was sent.
    assert all(len(one) == 1 for one in sent.values())
    assert {id(commit.body) for part in batch for commit in part.commits} <= set(map(id, kept))


async def test_what_a_commit_adds_to_the_log_is_bounded() -> None:
    async with running() as node:
        batch = await write(node, await crowd(node))
    commits: list[CommitRecord] = [commit for part in batch for commit in part.commits]
    for commit in commits:
        # What was written, where, and by whom: ids as long as these are in it once.
        assert len(commit.body) < len(VALUE) + 220, commit.body
        assert len(commit.writes) < 40, commit.writes


async def test_a_batch_on_sqlite_is_one_transaction_with_a_statement_for_each_row(
    tmp_path: Path,
) -> None:
    store = SQLiteStore(tmp_path / "r.db")
    said: list[str] = []
    async with running(store) as node:
        writers = await crowd(node)
        writer = store._file._writer
        assert writer is not None
        writer.set_trace_callback(lambda statement: said.append(statement.split()[0]))
        batch = await write(node, writers)
        writer.set_trace_callback(None)
    counted = Counter(said)
    assert counted == {
        "BEGIN": 1,
        "COMMIT": 1,
        "INSERT": SESSIONS * CHANGES,
        "UPDATE": 2 * SESSIONS,  # the session's row and its client's number
    }
    assert len(batch) == SESSIONS


async def test_a_session_that_is_let_go_is_freed_without_the_collector() -> None:
    async with running(idle_session_ms=1) as node:
        client, other = await node.client("s", "c"), await node.client("t", "d")
        client.change(put("/n", 1))
        await all_landed([client])
        gone: list[weakref.ref[Any]] = [
            weakref.ref(node.host("s")),
            weakref.ref(node.host("s").room.session),
        ]
        gc.collect()
        gc.disable()
        try:
            client.leave()
            await node.clock.pass_(5_000, step=1_000)
            await until(lambda: "s" not in node.registry.hosts, within=5, what="it to be let go")
            # The committer has its last batch at hand until the next one.
            other.change(put("/n", 1))
            await all_landed([other])
            assert [one() for one in gone] == [None, None]
        finally:
            gc.enable()
