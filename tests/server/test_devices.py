"""The devices of a session: what is known of each, and who is let in no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reattach.client import connect
from tests.server.peer import opened
from tests.server.test_anonymous import Api, serving
from tests.support.database import ON_TWO_NODES
from tests.support.waiting import until

PHONE = {"id": "phone"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as api:
        yield api


async def devices(api: Api, token: str, session_id: str = "draft") -> dict[str, dict[str, Any]]:
    answer = await api.ask("GET", f"/{session_id}/devices", token)
    assert answer.status_code == 200, answer.text
    return {one["id"]: one for one in answer.json()["items"]}


async def begun(api: Api) -> tuple[str, str]:
    """A session of somebody who has not signed in; their token, and one of their phone."""
    mine = (await api.begin(device_info={"id": "laptop", "name": "Laptop"}))["token"]
    link = await api.link(mine)
    phone = (await api.redeem(link["secret"], "phone")).json()["token"]
    return mine, phone


async def activity(api: Api, token: str) -> list[dict[str, Any]]:
    answer = await api.ask("GET", "/draft/activity", token)
    lines: list[dict[str, Any]] = answer.json()["items"]
    return lines


async def test_the_list_tells_what_is_known_of_each(api: Api) -> None:
    # Rule D1
    mine, phone = await begun(api)
    found = await devices(api, mine)
    assert list(found) == ["laptop", "phone"], "also before it ever connected"
    assert not found["phone"]["online"]
    async with opened(api.ws_url, "draft", "p") as peer:
        told = {"id": "phone", "name": "Fon", "info": {"kind": "phone", "os": 9}}
        await peer.hello(token=phone, device=told)
        await peer.change({"op": "set", "path": "/n", "value": 1})
        peer.version = (await peer.expect("state_update"))["version"]
        await peer.change({"op": "set", "path": "/n", "value": 2})
        await peer.expect("state_update")
        found = await devices(api, mine)
        known = found["phone"]
        assert (known["name"], known["kind"], known["online"]) == ("Fon", "phone", True)
        assert known["info"] == {"kind": "phone", "os": 9}
        # The node that it is connected to knows; the others when it comes or goes.
        assert known["version"] in {1, None if ON_TWO_NODES else 1}, "as its second change said"
        assert known["user_id"] == found["laptop"]["user_id"]
        assert known["created_at"] <= known["last_activity"]
        assert known["revoked_at"] is None
        assert [one["is_primary"] for one in found.values()] == [True, False]

    async def written() -> bool:
        return bool((await devices(api, mine))["phone"]["version"] == 1)

    await until(written, within=5, what="what it said to be known everywhere")


async def test_a_list_comes_in_pages(api: Api) -> None:
    # Rules T2, D1
    token = (await api.begin())["token"]
    for number in range(103):
        body = {"session_id": "draft", "device": {"id": f"d{number:03}"}}
        assert (await api.ask("POST", "/heartbeat", token, body)).status_code == 204
    first = (await api.ask("GET", "/draft/devices", token)).json()
    rest = await api.ask("GET", f"/draft/devices?next={first['next']}", token)
    assert (len(first["items"]), rest.json()["next"]) == (100, None)
    ids = [one["id"] for one in (*first["items"], *rest.json()["items"])]
    assert sorted(ids) == [f"d{number:03}" for number in range(103)]
    assert (await api.ask("GET", "/draft/devices?next=x", token)).status_code == 400


async def test_a_name_by_people_stands_over_what_a_device_calls_itself(api: Api) -> None:
    # Rule D2
    mine, phone = await begun(api)
    async with opened(api.ws_url, "draft", "l") as laptop:
        await laptop.hello(token=mine, device={"id": "laptop", "name": "Linux"})
        answer = await api.ask("PATCH", "/draft/devices/laptop", phone, {"name": "Desk"})
        assert (answer.status_code, answer.json()["name"]) == (200, "Desk")
        assert answer.json()["online"]
        while (await laptop.expect("devices"))["devices"][0]["name"] != "Desk":
            pass
    async with opened(api.ws_url, "draft", "l") as laptop:
        welcome = await laptop.hello(token=mine, device={"id": "laptop", "name": "Linux 7"})
        assert welcome["devices"][0]["name"] == "Desk"
    await api.ask("PATCH", "/draft/devices/laptop", mine, {"name": None})
    assert (await devices(api, mine))["laptop"]["name"] == "Linux 7"
    assert (await activity(api, mine))[0]["activity_type"] == "device_changed"
    for body in ({}, {"name": 1}, {"is_primary": False}, {"revoked": True}):
        answer = await api.ask("PATCH", "/draft/devices/laptop", mine, body)
        assert answer.status_code == 400, body
    headers = {"Authorization": f"Bearer {mine}", "Content-Type": "application/json"}
    bad = b'{"name": "\\ud800"}'
    url = "/api/v0/session/draft/devices/laptop"
    assert (await api.patch(url, content=bad, headers=headers)).status_code == 400


async def test_exactly_one_device_is_primary(api: Api) -> None:
    # Rule D3
    mine, _ = await begun(api)

    async def primary() -> list[str]:
        return [name for name, one in (await devices(api, mine)).items() if one["is_primary"]]

    assert await primary() == ["laptop"]
    answer = await api.ask("PATCH", "/draft/devices/phone", mine, {"is_primary": True})
    assert answer.json()["is_primary"]
    assert await primary() == ["phone"]
    await api.ask("DELETE", "/draft/devices/phone", mine)
    assert await primary() == ["laptop"], "who is let in no more is none"
    await api.ask("PATCH", "/draft/devices/phone", mine, {"revoked": False})
    assert await primary() == ["laptop"], "nor is it again by coming back"
    for primary_by_people, back in (("phone", "laptop"), ("laptop", "phone")):
        path = f"/draft/devices/{primary_by_people}"
        await api.ask("PATCH", path, mine, {"is_primary": True})
        await api.ask("DELETE", path, mine)
        await api.ask("PATCH", f"/draft/devices/{back}", mine, {"is_primary": True})
        await api.ask("PATCH", path, mine, {"revoked": False})
        assert await primary() == [back], "also where somebody else was made it meanwhile"


async def test_a_revoked_device_is_closed_and_let_in_no_more(api: Api) -> None:
    # Rule D4
    mine, phone = await begun(api)
    waiting = await api.link(phone)
    path = "/draft/devices/phone"
    async with (
        opened(api.ws_url, "draft", "p") as peer,
        # Another device id does not help who came by the phone's token.
        opened(api.ws_url, "draft", "q") as disguised,
        opened(api.ws_url, "draft", "l") as laptop,
    ):
        await peer.hello(token=phone, device={"id": "phone"})
        await disguised.hello(token=phone, device={"id": "tablet"})
        await laptop.hello(token=mine, device={"id": "laptop"})
        assert (await api.ask("DELETE", path, mine)).status_code == 204
        assert (await peer.closed())[0] == (await disguised.closed())[0] == 4403
        await laptop.change({"op": "set", "path": "/n", "value": 1})
        await laptop.expect("state_update")
    for token, device in ((phone, "phone"), (phone, "other"), (mine, "phone")):
        async with opened(api.ws_url, "draft", "again") as peer:
            await peer.greet(token=token, device={"id": device})
            assert (await peer.closed())[0] == 4403
    for method, rest, body in (
        ("GET", "", None),
        ("GET", "/events", None),
        ("POST", "/handoff", {}),
        ("PATCH", "/devices/phone", {"revoked": False}),
    ):
        answer = await api.ask(method, f"/draft{rest}", phone, body)
        assert (answer.status_code, answer.json()["code"]) == (403, "device_revoked")
    beat = {"session_id": "draft", "device": {"id": "phone"}}
    answer = await api.ask("POST", "/heartbeat", mine, beat)
    assert (answer.status_code, answer.json()["code"]) == (403, "device_revoked")
    assert (await api.redeem(waiting["secret"], "accomplice")).status_code == 404
    assert (await api.ask("DELETE", path, mine)).status_code == 204, "again: nothing"
    assert (await devices(api, mine))["phone"]["revoked_at"] is not None
    line = next(one for one in await activity(api, mine) if one["activity_type"] == "revoked")
    assert line["data"] == {"device_id": "phone", "name": None, "tokens": 1, "links": 2}
    welcome: Any
    async with opened(api.ws_url, "draft", "l") as laptop:
        welcome = await laptop.hello(token=mine, device={"id": "laptop"})
        assert "phone" not in {one["id"] for one in welcome["devices"]}


async def test_a_revoked_device_comes_back_by_a_fresh_link_or_where_people_let_it(
    api: Api,
) -> None:
    # Rule D5
    mine, phone = await begun(api)
    await api.ask("DELETE", "/draft/devices/phone", mine)
    fresh = (await api.redeem((await api.link(mine))["secret"], "phone")).json()["token"]
    async with opened(api.ws_url, "draft", "p") as peer:
        await peer.hello(token=fresh, device={"id": "phone"})
    assert (await api.ask("GET", "/draft", phone)).status_code in {401, 403}, "the old one is over"

    await api.ask("DELETE", "/draft/devices/phone", mine)
    answer = await api.ask("PATCH", "/draft/devices/phone", mine, {"revoked": False})
    assert answer.json()["revoked_at"] is None
    assert (await api.ask("GET", "/draft", fresh)).status_code == 403, "its tokens are over"
    async with opened(api.ws_url, "draft", "p2") as peer:
        await peer.hello(token=mine, device={"id": "phone"})


async def test_the_library_does_not_come_back_by_itself(api: Api, tmp_path: Path) -> None:
    # Rule D4
    mine, phone = await begun(api)
    url = api.ws_url.replace("ws", "http", 1)
    async with connect(
        url, "draft", token=phone, outbox=tmp_path / "outbox.db", device=PHONE
    ) as it:
        it.set("/n", 1)
        await it.saved()
        assert (await api.ask("DELETE", "/draft/devices/phone", mine)).status_code == 204
        await until(lambda: it.status.connection == "closed", within=10, what="it to stay away")
        assert (it.status.error or ("", ""))[0] == "forbidden"


async def test_a_device_is_its_users_and_the_owners_to_manage(tmp_path: Path) -> None:
    # Rule D2
    async with serving(tmp_path, anonymous=False) as api:
        await api.ask("POST", "", "ann", {"session_id": "s"})
        await api.ask("PUT", "/s/members/bob", "ann", {"role": "viewer"})
        async with opened(api.ws_url, "s", "b") as bob, opened(api.ws_url, "s", "a") as ann:
            await ann.hello(token="ann", device={"id": "anns"})
            await bob.hello(token="bob", device={"id": "bobs"})
            for body, expected in (
                ({"name": "Mine"}, 200),
                ({"is_primary": True}, 403),
            ):
                answer = await api.ask("PATCH", "/s/devices/bobs", "bob", body)
                assert answer.status_code == expected, answer.text
            assert (await api.ask("DELETE", "/s/devices/anns", "bob")).status_code == 403
            assert (await api.ask("DELETE", "/s/devices/no-such", "bob")).status_code == 403
            assert (await api.ask("DELETE", "/s/devices/bobs", "ann")).status_code == 204
            assert (await bob.closed())[0] == 4403
            await ann.change({"op": "set", "path": "/n", "value": 1})
            await ann.expect("state_update")
        # What is Bob's own is not ended: who he is, is the application's word.
        assert (await api.ask("GET", "/s", "bob")).status_code == 200
        assert (await api.ask("GET", "/s/devices", "bob")).status_code == 200
