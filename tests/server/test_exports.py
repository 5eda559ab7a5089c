"""A session as one file, and a session made of one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.server.peer import opened
from tests.server.test_anonymous import Api, serving
from tests.support.waiting import until


async def lived(api: Api) -> None:
    """A session with something of everything."""
    await api.ask("POST", "", "ann", {"session_id": "s", "state": {"a": 0, "t": "", "l": []}})
    await api.ask("PUT", "/s/members/bob", "ann", {"role": "editor"})
    async with opened(api.ws_url, "s", "one") as one, opened(api.ws_url, "s", "two") as two:
        await one.hello(token="ann", device={"id": "d1", "info": {"kind": "phone"}})
        await two.hello(token="bob", device={"id": "d2", "name": "\x00 ü"})
        await one.change({"op": "set", "path": "/a", "value": 1})
        await one.change({"op": "splice", "path": "/t", "index": 0, "delete": 0, "insert": "hi"})
        await one.change({"op": "insert", "path": "/l", "value": {"id": "r1"}})
        await two.change({"op": "set", "path": "/a", "value": 2.0})
        await two.change({"op": "inc", "path": "/no/where", "by": 1})
        await two.expect("rejected")
    await api.ask("POST", "/s/checkpoints", "ann", {"name": "Here", "data": {"n": 1}})
    await api.ask("DELETE", "/s/devices/d2", "ann")
    assert (await api.ask("GET", "/s/conflicts", "ann")).json()["items"]

    async def left() -> bool:
        lines = (await api.ask("GET", "/s/activity", "ann")).json()["items"]
        return [one["activity_type"] for one in lines].count("disconnected") == 2

    await until(left, within=10, what="both to be gone")


async def exported(api: Api) -> Any:
    answer = await api.ask("GET", "/s/export", "ann")
    assert answer.status_code == 200, answer.text
    return answer.json()


def comparable(file: Any) -> Any:
    """A file without what has to be another one after an import."""
    file = json.loads(json.dumps(file))
    del file["exported_at"], file["session"]["epoch"], file["session"]["epoch_version"]
    file["activity"] = [
        one for one in file["activity"] if one["activity_type"] not in {"exported", "imported"}
    ]
    return file


async def test_what_is_exported_again_from_an_empty_server_is_equal(tmp_path: Path) -> None:
    # Rules X7, X8, X9, X10
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with serving(tmp_path / "a") as here, serving(tmp_path / "b") as there:
        await lived(here)
        file = await exported(here)
        lists = ("commits", "clients", "refusals", "conflicts", "checkpoints", "devices")
        assert all(file[name] for name in (*lists, "members", "activity"))
        taken = await here.ask("POST", "/import", "ann", file)
        assert taken.status_code == 409, taken.text
        answer = await there.ask("POST", "/import", "ann", file)
        assert answer.status_code == 201, answer.text
        told = answer.json()
        original = (await here.ask("GET", "/s", "ann")).json()
        assert (told["state"], told["version"]) == (original["state"], original["version"])
        assert told["epoch"] != original["epoch"]
        again = await exported(there)
        assert comparable(again) == comparable(file)
        assert again["session"]["epoch_version"] == file["session"]["version"]
        for path in ("/history", "/conflicts", "/members", "?version=1"):
            one, other = [await api.ask("GET", f"/s{path}", "ann") for api in (here, there)]
            kept = {"epoch"} if path.startswith("?") else set()
            assert {k: v for k, v in one.json().items() if k not in kept} == {
                k: v for k, v in other.json().items() if k not in kept
            }
        # Whoever was there goes on, by their numbers.
        async with opened(there.ws_url, "s", "one") as peer:
            welcome = await peer.hello(token="ann", device={"id": "d1"}, epoch=told["epoch"])
            assert welcome["seq"] == 3
            await peer.change({"op": "set", "path": "/a", "value": 3})
            assert (await peer.expect("state_update"))["version"] == told["version"] + 1
        lines = (await there.ask("GET", "/s/activity", "ann")).json()["items"]
        assert {"exported", "imported"} <= {one["activity_type"] for one in lines}


async def test_whoever_imports_it_is_its_owner(tmp_path: Path) -> None:
    # Rule X9
    (tmp_path / "b").mkdir()
    async with serving(tmp_path) as here, serving(tmp_path / "b") as there:
        await lived(here)
        file = await exported(here)
        assert (await there.ask("POST", "/import", "bob", file)).status_code == 201
        assert (await there.ask("GET", "/s", "bob")).json()["user_id"] == "bob"
        assert (await there.ask("GET", "/s", "ann")).status_code == 404
        members = (await there.ask("GET", "/s/members", "bob")).json()["items"]
        assert members == [{"user_id": "bob", "role": "owner"}]


async def test_what_is_no_such_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    # Rules X8, X11
    (tmp_path / "b").mkdir()
    async with serving(tmp_path) as here, serving(tmp_path / "b") as there:
        await lived(here)
        file = await exported(here)

        def spoilt(change: Any) -> Any:
            copy = json.loads(json.dumps(file))
            change(copy)
            return copy

        refused: list[Any] = [
            {},
            [],
            spoilt(lambda f: f.update(format="other")),
            spoilt(lambda f: f["commits"].pop(1)),
            spoilt(lambda f: f["commits"][0].update(version=7)),
            spoilt(lambda f: f["commits"][0]["body"]["patch"][0].update(path="/x/y/z")),
            spoilt(lambda f: f["commits"][0].update(body=5)),
            spoilt(lambda f: f["commits"][0].update(writes={"a": 1})),
            spoilt(lambda f: f["state"].update(state=[])),
            spoilt(lambda f: f["state"].update(index="x")),
            spoilt(lambda f: f["session"].update(version=10**20)),
            spoilt(lambda f: f["session"].update(session_id="a/b")),
            spoilt(lambda f: f["session"].update(session_id="import")),
            spoilt(lambda f: f["members"][0].update(role="king")),
            spoilt(lambda f: f["devices"][0].update(info=[])),
        ]
        for bad in refused:
            answer = await there.ask("POST", "/import", "ann", bad)
            assert answer.status_code == 400, (answer.text, str(bad)[:300])
            assert answer.json()["code"] == "bad_export"
        big = spoilt(lambda f: f["state"]["state"].update(t="x" * 2**23))
        big["commits"] = []
        big["session"]["version"] = 0
        answer = await there.ask("POST", "/import", "ann", big)
        assert answer.status_code in {400, 413}
        assert (await there.ask("GET", "", "ann")).json()["items"] == []


async def test_of_two_imports_at_once_one_is_taken(tmp_path: Path) -> None:
    # Rule X8
    (tmp_path / "b").mkdir()
    async with serving(tmp_path) as here, serving(tmp_path / "b") as there:
        await lived(here)
        file = await exported(here)
        work = [there.ask("POST", "/import", name, file) for name in ("ann", "bob")]
        found = sorted(answer.status_code for answer in await asyncio.gather(*work))
        assert found == [201, 409]
