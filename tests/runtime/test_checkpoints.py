"""Marks on versions: saved once, in line with changes, told to all, and made by themselves."""

from __future__ import annotations

from typing import Annotated, Any

from reattach.schema import ModelSchema, SessionModel, Step
from reattach.store.base import CheckpointRecord
from reattach.wire import decode_json
from tests.runtime.rig import USER, Gate, Node, answer_lost, inc, put, running, settle


class Wizard(SessionModel):
    """A form with steps."""

    at: Annotated[int, Step()] = 0
    n: int = 0


async def marks(node: Node) -> list[CheckpointRecord]:
    return list((await node.store.inner.checkpoints("s", None, 100)).items)[::-1]


def save(ref: str, **fields: Any) -> dict[str, Any]:
    return {"type": "save_checkpoint", "ref": ref, **fields}


async def test_a_checkpoint_is_told_to_everybody_when_it_is_durable() -> None:
    # Rule K1
    async with running() as node:
        a, b = await node.client(client_id="a"), await node.client(client_id="b")
        a.change(inc())
        gate = Gate()
        node.store.next("append", gate)
        await gate.reached.wait()
        # It marks what was sent before it, and not what was sent after it.
        a.change(inc())
        a.feed(save("r", name="Draft", data={"x": [1]}))
        a.change(inc())
        await settle()
        assert a.of_type("checkpoint_saved") == []
        gate.open()
        await settle()
        (told,) = a.of_type("checkpoint_saved")
        assert told["ref"] == "r"
        mark = told["checkpoint"]
        assert (mark["name"], mark["kind"], mark["version"]) == ("Draft", "named", 2)
        assert mark["data"] == {"x": [1]}
        assert b.of_type("checkpoint_saved") == [{"type": "checkpoint_saved", "checkpoint": mark}]
        (record,) = await marks(node)
        assert (record.checkpoint_id, record.version) == (mark["id"], 2)


async def test_a_checkpoint_is_saved_once_by_client_and_ref() -> None:
    # Rule K1, also where the answer of its transaction is lost
    async with running() as node:
        a, b = await node.client(client_id="a"), await node.client(client_id="b")
        node.store.next("append", answer_lost())
        a.feed(save("r", name="first"))
        await settle()
        await node.clock.pass_(2_000)
        a.change(inc())
        await settle()
        a.feed(save("r", name="again"))
        b.feed(save("r", name="of another client"))
        await settle()
        assert [one.name for one in await marks(node)] == ["first", "of another client"]
        first, again, _ = a.of_type("checkpoint_saved")
        assert first == again
        assert again["checkpoint"]["version"] == 0
        # Who did not ask is told of what is new.
        assert [one["checkpoint"]["name"] for one in b.of_type("checkpoint_saved")] == [
            "first",
            "of another client",
        ]


async def test_a_ref_that_comes_twice_in_one_batch_marks_what_it_marked_first() -> None:
    # Rule K1
    async with running() as node:
        a = await node.client(client_id="a")
        a.feed({"type": "save_checkpoint", "ref": "r"})
        a.change(put("/n", 1))
        a.feed({"type": "save_checkpoint", "ref": "r"})
        await settle()
        (mark,) = await marks(node)
        assert mark.version == 0
        assert {one["checkpoint"]["version"] for one in a.of_type("checkpoint_saved")} == {0}


async def test_what_no_checkpoint_can_be_is_an_error_with_its_ref() -> None:
    # Rule K3
    async with running() as node:
        a = await node.client(client_id="a")
        a.feed(save("big", data="x" * 4_096))
        a.feed(save("long", name="x" * 257))
        a.feed(save("odd", data={"n": 2**60 + 1}))
        await settle()
        assert [(one["ref"], one["code"]) for one in a.of_type("error")] == [
            ("big", "too_large"),
            ("long", "too_large"),
            ("odd", "bad_number"),
        ]
        assert await marks(node) == []


async def test_the_version_is_marked_that_the_last_device_leaves() -> None:
    # Rule K2
    async with running() as node:
        a, b = await node.client(client_id="a"), await node.client(client_id="b")
        a.change(inc())
        await settle()
        a.leave()
        await settle()
        assert await marks(node) == []
        for _ in range(2):
            b.leave()
            await settle()
            (mark,) = await marks(node)
            assert (mark.kind, mark.version, mark.name) == ("automatic", 1, None)
            await b.connect()


async def test_each_step_of_a_schema_is_marked() -> None:
    # Rule K2
    wizard = ModelSchema(Wizard)
    async with running(schemas=[wizard]) as node:
        await node.registry.create(USER, session_id="s", schema=wizard.name)
        a = await node.client(client_id="a")
        a.change(inc())
        a.change(put("/at", 1))
        a.change(put("/at", "no number"))
        a.change(inc())
        a.change(put("", {"at": 2, "n": 5}))
        await settle()
        found = await marks(node)
        assert [(one.version, decode_json(one.step or b"")) for one in found] == [(2, 1), (4, 2)]
        assert [one["checkpoint"]["step"] for one in a.of_type("checkpoint_saved")] == [1, 2]
