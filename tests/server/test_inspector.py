"""The inspector over HTTP: whom it lets in, what it shows of a session, and what it may write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from reattach import Inspector
from reattach.bus.local import LocalBus
from reattach.errors import BadSetting
from reattach.runtime.access import User
from reattach.server.app import Reattach
from reattach.server.inspector import pages
from reattach.server.inspector.nodes import Peers
from reattach.settings import Settings
from reattach.store.memory import MemoryStore
from tests.bus.nodes import node_on
from tests.conftest import Serve
from tests.server.hosts import uvicorn_of
from tests.server.test_rest import client_of, problem
from tests.support.inspected import SESSION, TRAP, write_history
from tests.support.waiting import until
from tests.support.wire_client import WireClient

API = "/inspector/api"
ONE = f"{API}/sessions/{SESSION}"
TOKEN = "t" * 32


def server_at(path: Path, **settings: Any) -> Reattach:
    return Reattach(database=f"sqlite:///{path / 'r.db'}", settings=Settings(**settings))


async def status_of(reattach: Reattach, path: str = f"{API}/me", **options: Any) -> int:
    peer = options.pop("peer", "127.0.0.1")
    transport = httpx.ASGITransport(reattach, client=(peer, 1))
    host = options.pop("host", "http://127.0.0.1:8000")
    async with httpx.AsyncClient(transport=transport, base_url=host, trust_env=False) as http:
        answer: httpx.Response = await http.request(options.pop("method", "GET"), path, **options)
    return answer.status_code


# Who is let in


FROM = [
    ("127.0.0.1", {}, 200),
    ("127.0.0.1", {"Origin": "http://127.0.0.1:8000"}, 200),
    ("10.0.0.7", {}, 403),
    ("127.0.0.1", {"Host": "app.example.org"}, 403),
    ("127.0.0.1", {"X-Forwarded-For": "10.0.0.7"}, 403),
    # Allowed for the sessions' own routes, and never here.
    ("127.0.0.1", {"Origin": "https://app.example.org"}, 403),
    ("127.0.0.1", {"Origin": "null"}, 403),
]


async def test_without_a_token_this_machine_is_let_in(tmp_path: Path) -> None:
    origins = ("https://app.example.org",)
    async with server_at(tmp_path, inspector="read", allow_origins=origins) as reattach:
        for peer, headers, answered in FROM:
            for path in (f"{API}/me", "/inspector/"):
                found = await status_of(reattach, path, peer=peer, headers=headers)
                assert found == answered, (peer, headers)


async def test_with_a_token_whoever_has_it_is_let_in(tmp_path: Path) -> None:
    settings = {"inspector": "read", "inspector_token": SecretStr(TOKEN)}
    async with server_at(tmp_path, **settings) as reattach:
        found = {
            given: await status_of(reattach, peer="10.0.0.7", headers={"Authorization": given})
            for given in (f"Bearer {TOKEN}", f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}")
        }
        assert list(found.values()) == [200, 401, 401, 401]
        assert await status_of(reattach) == 401, "being on this machine is not enough"
        assert await status_of(reattach, f"{API}/me?token={TOKEN}") == 401
        assert await status_of(reattach, "/inspector/", peer="10.0.0.7") == 200, (
            "to be asked for it"
        )
        foreign = {"Authorization": f"Bearer {TOKEN}", "Origin": "https://elsewhere.example"}
        assert await status_of(reattach, headers=foreign) == 403


async def test_the_command_line_goes_before_settings(serve: Serve) -> None:
    environment = {"REATTACH_INSPECTOR": "read"}
    server = await serve(app=None, environment=environment, arguments=["--inspector", "write"])
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        assert (await http.get(f"{API}/me")).json()["writes"] is True


def test_a_token_that_could_be_guessed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="at least 32 bytes, got 5"):
        server_at(tmp_path, inspector="read", inspector_token=SecretStr("short"))


async def test_users_are_not_let_in_by_being_users(tmp_path: Path) -> None:
    """The application's own word goes before settings, and its users are nobody here."""

    def inspect(connection: HTTPConnection) -> Inspector | None:
        name = connection.headers.get("x-employee")
        return None if name is None else Inspector(name, writes=name == "lea")

    async with Reattach(
        database=f"sqlite:///{tmp_path / 'r.db'}",
        settings=Settings(inspector="write"),
        authenticate=lambda _: User("ann"),
        inspect=inspect,
    ) as reattach:
        await reattach.sessions.create({"n": 0}, user_id="ann", session_id=SESSION)
        assert await status_of(reattach) == 401
        for name, answered in {"sam": 403, "lea": 201}.items():
            headers = {"X-Employee": name}
            assert await status_of(reattach, headers=headers) == 200
            write: dict[str, Any] = {
                "path": f"{ONE}/fork",
                "method": "POST",
                "json": {"version": 0},
            }
            assert await status_of(reattach, headers=headers, **write) == answered
            # A browser's cookie comes along with what any page sends.
            cookie = headers | {"Cookie": "session=1"}
            assert await status_of(reattach, headers=cookie, **write) == 403
            assert await status_of(reattach, headers=cookie) == 200


async def test_who_may_only_look_changes_nothing(tmp_path: Path) -> None:
    async with server_at(tmp_path, inspector="read") as reattach:
        await reattach.sessions.create({"n": 0}, user_id="ann", session_id=SESSION)
        registry = await reattach.running()
        before = await registry.store.everything(SESSION)
        async with client_of(reattach) as api:
            for name, body in {"restore": {"version": 0}, "fork": {}, "checkpoints": {}}.items():
                problem(await api.post(f"{ONE}/{name}", json=body), 403, "forbidden")
            problem(await api.get(f"{ONE}/export"), 403, "forbidden")
            for name in ("", "/state?version=0", "/activity", "/conflicts", "/checkpoints"):
                assert (await api.get(f"{ONE}{name}")).status_code == 200
        assert await registry.store.everything(SESSION) == before


# The page


async def test_the_page_and_its_files_come_with_a_strict_policy(tmp_path: Path) -> None:
    async with server_at(tmp_path, inspector="read") as reattach, client_of(reattach) as api:
        moved = await api.get("/inspector")
        assert (moved.status_code, moved.headers["location"]) == (307, "inspector/")
        index = await api.get("/inspector/")
        assert index.headers["content-type"].startswith("text/html")
        for source in ("<script>", "style=", "http://", "https://", "onload"):
            assert source not in index.text
        files = [one.name for one in (pages.PAGES / "assets").iterdir()]
        assert {Path(one).suffix for one in files} == {".js", ".css"}
        for path in (
            "/inspector/",
            "/inspector/favicon.svg",
            *(f"/inspector/assets/{n}" for n in files),
        ):
            answer = await api.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        for wrong in ("..%2Findex.html", "no.js", "..%2F..%2Faccess.py"):
            assert (await api.get(f"/inspector/assets/{wrong}")).status_code == 404


async def test_a_page_that_was_not_built_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    async with server_at(tmp_path, inspector="read") as reattach, client_of(reattach) as api:
        assert "make install" in problem(await api.get("/inspector/"), 503, "not_built")["detail"]


# What it shows


@pytest.fixture
async def reattach(tmp_path: Path) -> AsyncIterator[Reattach]:
    async with server_at(tmp_path, inspector="write") as served:
        async with uvicorn_of(served.app, lifespan="off") as address:
            await write_history(f"ws://{address}")
        yield served


@pytest.fixture
async def api(reattach: Reattach) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(reattach) as client:
        yield client


async def items(api: httpx.AsyncClient, path: str) -> list[Any]:
    answer = await api.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: list[Any] = answer.json()["items"]
    return found


async def test_what_happened_to_a_session_is_shown(api: httpx.AsyncClient) -> None:
    session = (await api.get(ONE)).json()
    last = session["version"]
    assert (session["session_id"], session["first_version"]) == (SESSION, 0)
    devices = {one["id"]: one["name"] for one in session["devices"]}
    assert devices == {"desk-1": "Desk", "phone-1": f"Phone {TRAP}"}
    clients = {(one["client_id"], one["device_id"]) for one in session["clients"]}
    assert clients >= {("desk", "desk-1"), ("phone", "phone-1")}
    commits = await items(api, f"{ONE}/commits?first=1&last={last}")
    assert [one["version"] for one in commits] == list(range(1, last + 1))
    assert {one["device_id"] for one in commits} == {"desk-1", "phone-1"}
    (restored,) = [one for one in commits if one["restored"] is not None]
    (met,) = [one for one in commits if one["conflicts"]]
    assert met["device_id"] == "phone-1"
    assert commits[0]["paths"] == ["/delivery/street"]
    frame = (await api.get(f"{ONE}/commits/{restored['version']}")).json()
    assert frame["type"] == "session_restored"
    problem(await api.get(f"{ONE}/commits/{last + 1}"), 404, "no_such_commit")
    timeline = (await api.get(f"{ONE}/timeline?first=1&last={last}")).json()
    assert timeline["width"] == 1
    assert sum(one["commits"] for one in timeline["items"]) == last

    (conflict,) = await items(api, f"{ONE}/conflicts")
    assert conflict["kept"]["value"] == "Ada Park-Lee"
    assert conflict["lost"]["value"] == f"A. Park {TRAP}"
    assert await items(api, f"{ONE}/conflicts?status=open") == []
    (refused,) = await items(api, f"{ONE}/refusals")
    assert (refused["client_id"], refused["refusal"]["code"]) == ("phone", "test_failed")
    marks = [(one["kind"], one["version"]) for one in await items(api, f"{ONE}/checkpoints")]
    assert ("before_restore", restored["version"] - 1) in marks
    assert ("named", restored["restored"]) in marks
    kinds = [one["activity_type"] for one in await items(api, f"{ONE}/activity")]
    assert kinds[-1] == "created"
    assert {"connected", "disconnected", "conflict", "refused"} <= set(kinds)
    assert len(await items(api, f"{ONE}/activity?limit=3")) == 3

    # Every version is what it was.
    before = (await api.get(f"{ONE}/state?version={restored['restored']}")).json()
    after = (await api.get(f"{ONE}/state?version={restored['version']}")).json()
    assert before["state"] == after["state"]
    assert before["state"][TRAP] == {"says": TRAP}
    problem(await api.get(f"{ONE}/state?version={last + 1}"), 410, "version_gone")
    problem(await api.get(f"{API}/sessions/none"), 404, "session_not_found")


async def test_it_restores_forks_marks_and_exports(
    reattach: Reattach, api: httpx.AsyncClient
) -> None:
    last = (await api.get(ONE)).json()["version"]
    marked = await api.post(f"{ONE}/checkpoints", json={"name": "looked at"})
    assert (marked.status_code, marked.json()["version"]) == (201, last)
    restored = await api.post(f"{ONE}/restore", json={"version": 2})
    assert (restored.status_code, restored.json()["version"]) == (200, last + 1)
    commit = (await api.get(f"{ONE}/commits/{last + 1}")).json()
    assert commit["by"]["user_id"] == "inspector"
    state = (await api.get(f"{ONE}/state?version=2")).json()["state"]
    assert restored.json()["state"] == state
    forked = (await api.post(f"{ONE}/fork", json={"version": 2})).json()
    assert forked["state"] == state
    assert (await reattach.sessions.get(forked["session_id"])).session.user_id == "inspector"
    exported = await api.get(f"{ONE}/export")
    assert len(exported.json()["commits"]) == last + 1

    async def told() -> bool:
        lines = await items(api, f"{ONE}/activity?limit=9")
        return ("exported", "inspector") in [(x["activity_type"], x["user_id"]) for x in lines]

    await until(told, within=5, what="the line of the export")


async def test_sessions_are_found(reattach: Reattach, api: httpx.AsyncClient) -> None:
    for number in range(150):
        await reattach.sessions.create({}, user_id=f"user-{number:03}", session_id=f"s{number:03}")
    first = (await api.get(f"{API}/sessions")).json()
    second = (await api.get(f"{API}/sessions", params={"next": first["next"]})).json()
    names = [one["session_id"] for one in (*first["items"], *second["items"])]
    assert (len(first["items"]), len(names), len(set(names))) == (100, 151, 151)
    assert second["next"] is None
    found = await items(api, f"{API}/sessions?q=s01")
    assert {one["session_id"] for one in found} == {f"s01{n}" for n in range(10)}
    assert [one["user_id"] for one in await items(api, f"{API}/sessions?q=user-007")] == [
        "user-007"
    ]
    assert await items(api, f"{API}/sessions?schema=none") == []
    assert await items(api, f"{API}/sessions?until=1000") == []
    assert await items(api, f"{API}/sessions?online=true") == []
    async with (
        uvicorn_of(reattach.app, lifespan="off") as address,
        WireClient(f"ws://{address}", SESSION, "c"),
    ):
        (there,) = await items(api, f"{API}/sessions?online=true")
        assert (there["session_id"], there["online"]) == (SESSION, True)
        offline = await items(api, f"{API}/sessions?online=false&q={SESSION}")
        assert offline == []


async def test_where_a_session_stands_is_told_while_it_happens(reattach: Reattach) -> None:
    """Whether it is open here or not, and until it is erased."""
    told: list[Any] = []
    async with uvicorn_of(reattach.app, lifespan="off") as address:

        async def listen() -> None:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=30) as http,
                http.stream("GET", f"http://{address}{ONE}/stands") as answer,
            ):
                assert answer.headers["content-type"].startswith("text/event-stream")
                async for line in answer.aiter_lines():
                    told.extend([json.loads(line[6:])] if line.startswith("data: ") else [])

        listening = asyncio.create_task(listen())
        await until(lambda: bool(told), within=10, what="the first word")
        async with WireClient(f"ws://{address}", SESSION, "third") as client:
            await until(lambda: bool(told[-1]["online"]), within=10, what="who came")
            await client.change({"op": "set", "path": "/step", "value": "done"})
            await client.settled()
            await until(
                lambda: told[-1]["version"] == client.version, within=10, what="the new version"
            )
        await reattach.sessions.erase(SESSION)
        await asyncio.wait_for(listening, 10)
        assert told[-1] == {}


# Nodes


async def test_a_node_tells_what_it_does(api: httpx.AsyncClient) -> None:
    (node,) = await items(api, f"{API}/nodes")
    figures = node["figures"]
    assert figures["commits_total"] > 20
    assert figures["resumes_total{snapshot}"] >= 2
    assert figures["append_seconds_bucket{+Inf}"] > 0
    assert figures["database_up"] == 1


async def test_nodes_on_one_bus_tell_each_other() -> None:
    store, bus = MemoryStore(), LocalBus()

    async def nothing() -> bytes:
        return b""

    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node_on(store, bus)) for _ in range(3)]
        peers = [Peers(node.registry, nothing) for node in nodes]
        for one in peers[:2]:
            one.start()
            stack.callback(one.stop)
        sent = bus.counts.sent
        found = await peers[0].figures()
        # The third has no inspector, and is not asked.
        assert [one.node for one in found] == [node.registry.nodes.name for node in nodes[:2]]
        assert all("commits_total" in one.figures for one in found)
        assert bus.counts.sent == sent + 2
