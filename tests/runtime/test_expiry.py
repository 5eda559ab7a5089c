"""Sessions that nobody uses are ended, and that is said before (rule RT4)."""

from __future__ import annotations

from typing import Any

from reattach.core.retention import DAY_MS
from reattach.store.base import SessionRecord
from tests.runtime.rig import Node, inc, running, settle

STEP_MS = DAY_MS // 4


async def lines(node: Node) -> list[str]:
    page = await node.store.inner.activity("s", None, 100)
    told = {"expiring", "expired", "ended"}
    return [one.activity_type for one in page.items if one.activity_type in told][::-1]


async def is_active(node: Node) -> bool:
    found = await node.store.inner.session("s")
    assert isinstance(found, SessionRecord)
    return found.is_active


async def days(node: Node, count: float) -> None:
    await node.clock.pass_(round(count * DAY_MS), STEP_MS)


async def test_a_session_that_nobody_uses_is_ended_and_that_is_said_before() -> None:
    # Rule RT4
    told: list[Any] = []

    async def listener(session_id: str, user_id: str, ends_at: int) -> None:
        told.append((session_id, user_id, ends_at))
        if len(told) == 1:
            raise ValueError("it is called again")

    async with running(expire_days=30, expiring=[listener]) as node:
        a = await node.client(client_id="a")
        a.change(inc())
        await settle()
        a.leave()
        await settle()
        left_at = node.clock.now()
        await days(node, 22)
        assert (told, await lines(node)) == ([], [])
        await days(node, 2)
        assert told[0][:2] == told[1][:2] == ("s", "u")
        assert abs(told[1][2] - left_at - 30 * DAY_MS) <= 3 * STEP_MS
        assert (len(told), await lines(node)) == (2, ["expiring"])
        assert await is_active(node)
        await days(node, 8)
        assert (len(told), await lines(node)) == (2, ["expiring", "expired", "ended"])
        assert not await is_active(node)
        # What it held can be read on.
        assert await node.fresh() == {"n": 1}
        await days(node, 40)
        assert len(told) == 2


async def test_whoever_uses_it_has_it_stay() -> None:
    # Rule RT4
    async with running(expire_days=10) as node:
        a = await node.client(client_id="a")
        a.change(inc())
        await settle()
        # Connected, and silent.
        await days(node, 12)
        assert (await lines(node), await is_active(node)) == ([], True)
        await a.connect()
        a.leave()
        await settle()
        await days(node, 6)
        assert await lines(node) == ["expiring"]
        await a.connect()
        a.change(inc())
        await settle()
        a.leave()
        await settle()
        await days(node, 4.5)
        assert (await lines(node), await is_active(node)) == (["expiring"], True)
        await days(node, 6)
        assert await lines(node) == ["expiring", "expiring", "expired", "ended"]


async def test_nothing_expires_where_no_setting_says_so() -> None:
    # Rule RT4
    async with running() as node:
        a = await node.client(client_id="a")
        a.change(inc())
        await settle()
        a.leave()
        await days(node, 40)
        assert (await lines(node), await is_active(node)) == ([], True)
