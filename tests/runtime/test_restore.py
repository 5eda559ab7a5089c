"""Restores: a commit that makes the state that of then, told to all, undone by another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from reattach.runtime.access import User
from reattach.schema import ModelSchema, SessionModel
from reattach.store.base import CheckpointRecord
from reattach.store.memory import MemoryStore
from reattach.wire import decode_json
from tests.runtime.rig import USER, Gate, Node, answer_lost, down, inc, put, running, settle


async def marks(node: Node) -> list[CheckpointRecord]:
    return list((await node.store.inner.checkpoints("s", None, 100)).items)[::-1]


def restore(**to: Any) -> dict[str, Any]:
    return {"op": "restore", **to}


async def test_a_restore_makes_the_state_that_of_then_and_is_undone_by_another() -> None:
    # Rules RE1, RE2
    async with running() as node:
        a, b = await node.client(client_id="a"), await node.client(client_id="b")
        for n in range(3):
            a.change(put("/n", n), put(f"/k{n}", {"x": n}))
        await settle()
        b.change(restore(version=1))
        await settle()
        assert a.state == b.state == {"n": 0, "k0": {"x": 0}}
        (told,) = a.of_type("session_restored")
        assert (told["version"], told["from_version"], told["to_version"]) == (4, 3, 1)
        assert told["by"]["client_id"] == "b"
        assert sorted(one["path"] for one in told["patch"]) == ["/k1", "/k2", "/n"]
        (mark,) = await marks(node)
        assert (mark.kind, mark.version) == ("before_restore", 3)
        assert [one["checkpoint"]["id"] for one in a.of_type("checkpoint_saved")] == [
            mark.checkpoint_id
        ]
        a.change(restore(checkpoint_id=mark.checkpoint_id))
        await settle()
        assert a.state == b.state == {"n": 2, "k0": {"x": 0}, "k1": {"x": 1}, "k2": {"x": 2}}
        assert b.of_type("session_restored")[1]["checkpoint_id"] == mark.checkpoint_id
        assert await node.fresh() == a.state
        assert node.registry.backlog.bytes == 0  # nothing waits, so nothing is held back
        node.honest()


async def test_the_latest_checkpoint_is_the_newest_that_was_saved() -> None:
    # Rule RE1: not one that stands before a restore, and also one that is saved just before
    async with running() as node:
        a = await node.client(client_id="a")
        a.change(put("/n", 1))
        a.feed({"type": "save_checkpoint", "ref": "r"})
        a.change(put("/n", 2))
        a.change(restore(checkpoint_id="latest"))
        a.change(put("/m", 3))
        a.change(restore(checkpoint_id="latest"))
        await settle()
        assert a.state == {"n": 1}
        assert [one["to_version"] for one in a.of_type("session_restored")] == [1, 1]


async def test_what_was_done_offline_merges_with_a_restore() -> None:
    # Rule RE3
    async with running() as node:
        a, b = await node.client(client_id="a"), await node.client(client_id="b")
        a.change(put("/n", 1), put("/m", 1), put("/t", "one two"), put("/o", {"x": 1}))
        await settle()
        a.change(put("/n", 2), put("/t", "one two three"))
        await settle()
        b.leave()
        a.change(restore(version=1))
        await settle()
        await node.clock.pass_(1_000)
        # Behind what the restore set back: the later act stands, and the text finds its place.
        b.change(put("/n", 5), put("/o/x", 9))
        b.change({"op": "splice", "path": "/t", "index": 0, "delete": 3, "insert": "ONE"})
        await b.connect()
        await settle()
        assert a.state == b.state == {"n": 5, "m": 1, "o": {"x": 9}, "t": "ONE two"}
        b.leave()
        a.change(restore(version=0))
        await settle()
        await node.clock.pass_(1_000)
        b.change(put("/o/x", 10))
        await b.connect()
        await settle()
        # Its ground is gone: it is kept.
        assert a.state == b.state == {}
        kept = (await node.store.inner.conflicts("s", None, None, 10)).items
        lost = [decode_json(one.body)["lost"]["value"] for one in kept if one.path == "/o/x"]
        assert 10 in lost
        node.honest()


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ({"version": 9}, "version_gone"),
        ({"checkpoint_id": "none"}, "no_such_checkpoint"),
        ({"checkpoint_id": "latest"}, "no_such_checkpoint"),
        ({"version": -1}, "bad_op"),
        ({"version": True}, "bad_op"),
        ({}, "bad_op"),
        ({"version": 0, "checkpoint_id": "x"}, "bad_op"),
    ],
)
async def test_what_cannot_be_restored_is_refused(op: dict[str, Any], code: str) -> None:
    # Rule RE4
    async with running() as node:
        a = await node.client(client_id="a")
        a.change(inc())
        a.change(restore(**op))
        a.change(inc())
        await settle()
        assert [one["code"] for one in a.of_type("rejected")] == [code]
        assert a.state == {"n": 2}


async def test_nothing_is_looked_up_for_who_may_not_restore() -> None:
    # Rules A16, RE4
    async with running() as node:
        a = await node.client(client_id="a")
        a.change(inc())
        await settle()
        await node.registry.members.put("s", "bob", "viewer", by=USER.id)
        bob = await node.client(client_id="b", user=User(id="bob"))
        bob.change(restore(version=0))
        await settle()
        assert [one["code"] for one in bob.of_type("rejected")] == ["forbidden"]
        a.change({"op": "end"})
        a.change(restore(version=0))
        await settle()
        assert "load_at" not in node.store.calls


async def test_a_restore_stands_alone_in_its_change() -> None:
    # Rule RE4
    async with running() as node:
        a = await node.client(client_id="a")
        a.change(inc(), restore(version=0))
        await settle()
        assert [one["code"] for one in a.of_type("rejected")] == ["bad_op"]


async def test_a_restore_is_made_once_whatever_becomes_of_its_transaction() -> None:
    # Rule X1
    for fault in (answer_lost(), down()):
        async with running() as node:
            a = await node.client(client_id="a")
            a.change(inc())
            a.change(inc())
            await settle()
            node.store.next("append", fault)
            node.store.next("load_at", down())
            a.change(restore(version=1))
            await settle()
            a.change(inc())
            await node.clock.pass_(3_000)
            assert a.state == {"n": 2}
            assert len(a.of_type("session_restored")) == 1
            assert len(await marks(node)) == 1
            version, _ = await node.durable()
            assert version == 4


async def test_others_are_served_when_whoever_restores_has_left() -> None:
    async with running() as node:
        a, b = await node.client(client_id="a"), await node.client(client_id="b")
        gate = Gate()
        node.store.next("load_at", gate)
        a.change(restore(version=0))
        await gate.reached.wait()
        b.change(inc())
        await settle()
        await a.connect()
        await settle()
        gate.open()
        await settle()
        # Sent again by who came back, it is decided where it stands now.
        assert a.state == b.state == {}
        assert len(b.of_type("session_restored")) == 1


class Named(SessionModel):
    """What sessions held at first."""

    schema_name = "form"

    name: str = ""


class Titled(SessionModel):
    """What they hold now."""

    schema_name = "form"
    schema_version = 2
    renames: ClassVar[Mapping[int, Mapping[str, str]]] = {2: {"/name": "/title"}}

    title: str = ""


async def test_an_older_state_is_restored_as_one_of_todays_schema() -> None:
    # Rule RE5
    store = MemoryStore()
    async with running(store, schemas=[ModelSchema(Named)]) as node:
        await node.registry.create(USER, session_id="s", schema="form")
        a = await node.client(client_id="a")
        a.change(put("/name", "one"))
        a.change(put("/name", "two"))
        await settle()
    async with running(store, schemas=[ModelSchema(Titled)]) as node:
        a = await node.client(client_id="b")
        assert a.lie is None, a.lie
        assert a.state == {"title": "two"}
        a.change(restore(version=1))
        await settle()
        assert a.state == {"title": "one"}
        a.change(restore(version=3))
        await settle()
        assert a.state == {"title": "two"}
        node.honest()
