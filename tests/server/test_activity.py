"""The activity log: who did what, from which device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.peer import opened
from tests.server.test_anonymous import Api, serving


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as api:
        yield api


async def lines(api: Api, what: str) -> list[dict[str, Any]]:
    answer = await api.ask("GET", "/s/activity", "ann")
    assert answer.status_code == 200, answer.text
    return [one for one in answer.json()["items"] if one["activity_type"] == what]


async def test_conflicts_refusals_and_the_end_are_told_of(api: Api) -> None:
    # Rule Y1
    await api.ask("POST", "", "ann", {"session_id": "s", "state": {"a": 0}})
    async with opened(api.ws_url, "s", "one") as one, opened(api.ws_url, "s", "two") as two:
        await one.hello(token="ann")
        await two.hello(token="ann")
        await one.change({"op": "set", "path": "/a", "value": 1})
        await one.expect("state_update")
        await two.change({"op": "set", "path": "/a", "value": 2})
        made = await two.expect("state_update")
        while "conflicts" not in made:
            made = await two.expect("state_update")
        (conflict,) = made["conflicts"]
        (line,) = await lines(api, "conflict")
        assert (line["user_id"], line["device_id"]) == ("ann", "device-of-two")
        assert line["data"] == {
            "client_id": "two",
            "version": 2,
            "count": 1,
            "conflicts": [{"id": conflict["id"], "path": "/a"}],
        }
        path = f"/s/conflicts/{conflict['id']}/resolve"
        assert (await api.ask("POST", path, "ann", {"keep": "lost"})).status_code == 200
        (line,) = await lines(api, "resolved")
        assert (line["user_id"], line["device_id"], line["data"]["version"]) == ("ann", None, 3)

        await two.change({"op": "inc", "path": "/nowhere/b", "by": 1})
        refused = await two.expect("rejected")
        (line,) = await lines(api, "refused")
        assert (line["user_id"], line["device_id"]) == ("ann", "device-of-two")
        assert line["data"] == {"client_id": "two", "seq": 2, "code": refused["code"]} | (
            {"path": refused["path"]} if "path" in refused else {}
        )
        await one.change({"op": "end"})
        assert (await one.closed())[0] == 4410
    (line,) = await lines(api, "ended")
    assert (line["device_id"], line["data"]["client_id"]) == ("device-of-one", "one")
    assert [one["data"]["kind"] for one in await lines(api, "resumed")] == ["snapshot"] * 2
