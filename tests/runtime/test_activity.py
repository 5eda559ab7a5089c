"""What the activity log costs."""

from __future__ import annotations

from reattach.runtime.upkeep import DAY_MS
from reattach.store.base import Activity, Append, Expected, Outcome, SessionRecord
from reattach.store.memory import MemoryStore
from tests.runtime.rig import answer_lost, down, running, settle


async def test_to_connect_costs_one_transaction_lines_included() -> None:
    # Rule Y1
    async with running() as node:
        one = await node.client(state={"n": 0})
        before = len(node.store.parts)
        await node.client(client_id="two")
        await settle()
        (part,) = node.store.parts[before:]
        assert [line.activity_type for line in part.activity] == ["connected", "resumed"]
        assert [device.device_id for device in part.devices] == ["device-of-two"]
        one.leave()
        await settle()
        (part,) = node.store.parts[before + 1 :]
        assert [line.activity_type for line in part.activity] == ["disconnected"]


async def test_lines_of_a_batch_that_is_decided_again_are_written_once() -> None:
    # Rule Y1

    for fault in (down(), answer_lost()):
        async with running() as node:
            one = await node.client(state={"n": 0})
            node.store.next("append", fault)
            one.change({"op": "inc", "path": "/nowhere/n", "by": 1})
            await node.clock.pass_(5_000)
            page = await node.store.inner.activity("s", None, 100)
            refused = [line for line in page.items if line.activity_type == "refused"]
            assert len(refused) == 1


async def test_old_lines_are_removed_in_bounded_batches_by_whichever_node() -> None:
    # Rule Y3
    store = MemoryStore()
    async with running(store, activity_days=2) as node:
        one = await node.client(state={"n": 0})
        old = Activity(activity_type="connected", at=node.clock.now())
        record = await store.session("s")
        assert isinstance(record, SessionRecord)
        many = Append(
            session_id="s", expected=Expected.of(record), session=record, activity=[old] * 2_100
        )
        assert await store.append([many]) == [Outcome.OK]
        await node.clock.pass_(2 * DAY_MS, step=DAY_MS)
        one.leave()
        await node.clock.pass_(30 * 60 * 1000, step=60_000)
        page = await store.activity("s", None, 10_000)
        assert [line.activity_type for line in page.items] == ["disconnected"]
