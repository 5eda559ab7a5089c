"""The activity log: who did what, from which device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reattach import Reattach
from reattach.settings import Settings
from tests.server.hosts import uvicorn_of
from tests.server.peer import joined, opened
from tests.server.test_anonymous import Api, serving
from tests.support.waiting import until


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
        await one.send(type="save_checkpoint", ref="r", name="Here", data={"n": 1})
        await one.expect("checkpoint_saved")
        await two.change({"op": "restore", "checkpoint_id": "latest"})
        await two.expect("session_restored")
        (mark,) = await lines(api, "checkpoint")
        assert (mark["user_id"], mark["device_id"]) == ("ann", "device-of-one")
        assert mark["data"]["name"] == "Here"
        (restored,) = await lines(api, "restored")
        assert (restored["user_id"], restored["device_id"]) == ("ann", "device-of-two")
        version = mark["data"]["version"]
        assert restored["data"] == {
            "client_id": "two",
            "version": version + 1,
            "from_version": version,
            "to_version": version,
            "checkpoint_id": mark["data"]["id"],
        }
        saved = await api.ask("POST", "/s/checkpoints", "ann", {"name": "By HTTP"})
        (line, _) = await lines(api, "checkpoint")
        assert (line["user_id"], line["device_id"]) == ("ann", None)
        assert line["data"] == {
            "id": saved.json()["id"],
            "name": "By HTTP",
            "version": version + 1,
        }
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


@pytest.mark.parametrize("told", [False, True])
async def test_addresses_are_told_of_only_where_a_setting_says_so(
    tmp_path: Path, told: bool
) -> None:
    # Rule Y2
    settings = Settings(activity_addresses=told)
    reattach = Reattach(database=f"sqlite:///{tmp_path / 'reattach.db'}", settings=settings)
    async with uvicorn_of(reattach) as address:
        url = f"ws://{address}"
        async with joined(url, "s", "c1", user_agent_header="Agent/1"):
            pass
        headers = {"Reattach-Client": "c2", "Reattach-Device": "d2", "User-Agent": "Agent/2"}
        async with (
            httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http,
            http.stream("GET", "/api/v0/session/s/events", headers=headers) as stream,
        ):
            await anext(stream.aiter_lines())
            found: list[Any] = []

            async def read() -> bool:
                answer = await http.get("/api/v0/session/s/activity")
                items = answer.json()["items"]
                found[:] = [one["data"] for one in items if one["activity_type"] == "connected"]
                return len(found) == 2

            await until(read, within=10, what="both lines to be written")
    wanted = [{"client_id": "c2"}, {"client_id": "c1"}]
    if told:
        for data, agent in zip(wanted, ("Agent/2", "Agent/1"), strict=True):
            data |= {"ip": "127.0.0.1", "user_agent": agent}
    assert found == wanted
