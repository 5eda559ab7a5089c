"""Sessions of those who have not signed in: their token, the claim, and links for other devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from reattach import NotAuthenticated, Reattach, User
from reattach.client import connect
from reattach.errors import SessionNotFound, StoreError
from reattach.runtime.clock import SystemClock
from reattach.runtime.credentials import HANDOFF_LASTS_MS
from reattach.settings import Settings
from tests.conftest import NewServer, Serve
from tests.server.hosts import uvicorn_of
from tests.server.peer import opened
from tests.support.database import ON_POSTGRES
from tests.support.server import ServerProcess

SESSIONS = "/api/v0/session"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - that it may is what is tested


def authenticate(connection: HTTPConnection) -> User:
    """Who has the token `ann` is Ann."""
    name = connection.state.token
    if name not in {"ann", "bob", "anonymous:1"}:
        raise NotAuthenticated("expected somebody who has signed in")
    return User(name)


class Clock(SystemClock):
    ahead = 0

    def now(self) -> int:
        return super().now() + self.ahead


class Api(httpx.AsyncClient):
    """The server, as whoever has a token sees it."""

    def __init__(self, address: str, clock: Clock, database: Path) -> None:
        super().__init__(base_url=f"http://{address}", trust_env=False, timeout=20)
        self.ws_url = f"ws://{address}"
        self.clock = clock
        self.database = database

    async def ask(
        self, method: str, path: str, token: str | None = None, body: Any = None
    ) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self.request(method, f"{SESSIONS}{path}", headers=headers, json=body)

    async def begin(self, session_id: str = "draft", **body: Any) -> Any:
        answer = await self.ask("POST", "", None, {"session_id": session_id, **body})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def claim(self, secret: str, token: str | None, session_id: str = "draft") -> Any:
        body = {"claim_secret": secret}
        return await self.ask("POST", f"/{session_id}/claim", token, body)

    async def link(self, token: str, **body: Any) -> Any:
        answer = await self.ask("POST", "/draft/handoff", token, body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def redeem(self, secret: str, device: str) -> httpx.Response:
        body = {"secret": secret, "device": {"id": device}}
        return await self.post("/api/v0/handoff", json=body)


@asynccontextmanager
async def serving(tmp_path: Path, *, anonymous: bool = True) -> AsyncIterator[Api]:
    database, clock = tmp_path / "reattach.db", Clock()
    reattach = Reattach(
        database=f"sqlite:///{database}",
        settings=Settings(anonymous=anonymous),
        authenticate=authenticate,
        clock=clock,
    )
    async with uvicorn_of(reattach) as address, Api(address, clock, database) as api:
        yield api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as api:
        yield api


# Beginning


async def test_who_has_not_signed_in_begins_a_session_with_a_token_for_it(api: Api) -> None:
    # Rules A6, A31, A32
    answer = await api.ask("POST", "", None, {"state": {"n": 1}, "device_info": {"id": "d1"}})
    begun = answer.json()
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    session_id, token = begun["session_id"], begun["token"]
    assert begun["user_id"].startswith("anonymous:")
    assert token.startswith("reattach_token_")
    assert begun["claim_secret"].startswith("reattach_claim_")

    read = await api.ask("GET", f"/{session_id}", token)
    assert (read.json()["state"], read.json()["user_id"]) == ({"n": 1}, begun["user_id"])
    body = {"session_id": session_id, "device": {"id": "d1"}}
    assert (await api.ask("POST", "/heartbeat", token, body)).status_code == 204
    assert (await api.ask("GET", "/check-connection", token)).status_code == 204
    async with opened(api.ws_url, session_id) as peer:
        welcome = await peer.hello(token=token)
        assert (welcome["role"], welcome["user_id"]) == ("owner", begun["user_id"])
        await peer.change({"op": "inc", "path": "/n", "by": 1})
        assert (await peer.expect("state_update"))["version"] == 1
    headers = {"Authorization": f"Bearer {token}"}
    async with api.stream("GET", f"{SESSIONS}/{session_id}/events", headers=headers) as stream:
        assert stream.status_code == 200


async def test_its_token_is_good_for_nothing_else(api: Api) -> None:
    # Rule A32
    mine, other = await api.begin(), await api.begin("other")
    token = mine["token"]
    for method, path, body in (
        ("GET", "/other", None),
        ("GET", "/other/history", None),
        ("GET", "/never-was", None),
        ("POST", "/other/handoff", {}),
        ("DELETE", "/other", None),
        ("POST", "/heartbeat", {"session_id": "other", "device": {"id": "d"}}),
    ):
        answer = await api.ask(method, path, token, body)
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found"), path
    claim = {"claim_secret": other["claim_secret"]}
    for method, path, body in (
        ("GET", "", None),
        ("POST", "", {}),
        ("POST", "/other/claim", claim),
        ("POST", "/draft/claim", {"claim_secret": mine["claim_secret"]}),
    ):
        answer = await api.ask(method, path, token, body)
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated"), path
    headers = {"Authorization": f"Bearer {token}"}
    answer = await api.delete(f"/api/v0/users/{mine['user_id']}", headers=headers)
    assert answer.status_code == 401
    for session_id in ("other", "never-was"):
        async with opened(api.ws_url, session_id) as peer:
            await peer.greet(token=token, create={})
            assert (await peer.closed())[0] == 4404
    assert (await api.ask("GET", "/never-was", "ann")).status_code == 404


async def test_what_is_no_token_of_the_servers_lets_nobody_in(api: Api) -> None:
    # Rule A32
    begun = await api.begin()
    token, claim = begun["token"], begun["claim_secret"]
    name, dot, session_id = token.partition(".")
    link = (await api.link(token))["secret"]
    for wrong in (
        f"{name[:-1]}{'A' if name[-1] != 'A' else 'B'}{dot}{session_id}",
        f"{name}{dot}other",
        name,
        "reattach_token_",
        claim,
        claim.replace("claim", "token"),
        link,
        link.replace("link", "token"),
        token.upper(),
    ):
        assert (await api.ask("GET", "/draft", wrong)).status_code == 401, wrong
        async with opened(api.ws_url, "draft") as peer:
            await peer.greet(token=wrong)
            assert (await peer.closed())[0] == 4401, wrong


async def test_who_shows_something_wrong_begins_nothing(api: Api) -> None:
    # Rule A31
    for token in ("eve", "anonymous:1", "reattach_token_x"):
        assert (await api.ask("POST", "", token, {})).status_code == 401
    # Nor does a hello without a token: there would be nothing to come back with.
    async with opened(api.ws_url, "new") as peer:
        await peer.greet(create={})
        assert (await peer.closed())[0] == 4401
    headers = {"Idempotency-Key": "k"}
    refused = await api.post(SESSIONS, json={}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_header")
    foreign = await api.post(SESSIONS, json={}, headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert (await api.ask("GET", "", None)).status_code == 401


async def test_without_the_setting_nobody_begins_without_signing_in(tmp_path: Path) -> None:
    # Rule A31
    async with serving(tmp_path, anonymous=False) as api:
        assert (await api.ask("POST", "", None, {})).status_code == 401
        assert (await api.ask("POST", "", "ann", {})).status_code == 201


@pytest.mark.skipif(ON_POSTGRES, reason="it is a file that is looked through")
async def test_the_database_knows_no_secret(api: Api) -> None:
    # Rule A31
    begun = await api.begin()
    link = (await api.link(begun["token"]))["secret"]
    redeemed = (await api.redeem(link, "d2")).json()
    stored = b"".join(one.read_bytes() for one in api.database.parent.glob("reattach.db*"))
    assert begun["user_id"].encode() in stored
    for secret in (begun["token"], begun["claim_secret"], link, redeemed["token"]):
        assert secret[15:40].encode() not in stored


# Claiming


async def test_a_claim_moves_the_session_with_its_clients_and_devices(api: Api) -> None:
    # Rules A33, F1
    begun = await api.begin(state={"n": 0}, device_info={"id": "device-of-c1"})
    async with opened(api.ws_url, "draft") as peer:
        welcome = await peer.hello(token=begun["token"])
        await peer.change({"op": "inc", "path": "/n", "by": 1})
        await peer.expect("state_update")
        claimed = await api.claim(begun["claim_secret"], "ann")
        assert claimed.status_code == 200
        assert (claimed.json()["user_id"], claimed.json()["state"]) == ("ann", {"n": 1})
        # The line ends within a second, and what let it in is over.
        assert (await peer.closed(within=5))[0] in {1012, 4401}
    assert (await api.ask("GET", "/draft", begun["token"])).status_code == 401
    async with opened(api.ws_url, "draft") as peer:
        await peer.greet(token=begun["token"])
        assert (await peer.closed())[0] == 4401
    async with opened(api.ws_url, "draft") as peer:
        # The client goes on under the name that it had.
        again = await peer.hello(token="ann", epoch=welcome["epoch"], version=1, seq=1)
        assert (again["user_id"], again["role"], again["seq"]) == ("ann", "owner", 1)
        await peer.change({"op": "inc", "path": "/n", "by": 1})
        assert (await peer.expect("state_update"))["version"] == 2
    listed = (await api.ask("GET", "", "ann")).json()["items"]
    assert [one["session_id"] for one in listed] == ["draft"]
    activity = (await api.ask("GET", "/draft/activity", "ann")).json()["items"]
    assert "claimed" in [one["activity_type"] for one in activity]


async def test_a_claim_is_made_once(api: Api) -> None:
    # Rule A33
    begun = await api.begin()
    secret = begun["claim_secret"]
    other = (await api.begin("other"))["claim_secret"]
    missing = await api.claim(secret, "ann", "never-was")
    for wrong in ("reattach_claim_x", begun["token"], other, "\U0001f600"):
        refused = await api.claim(wrong, "ann")
        # As if there were no such session.
        assert (refused.status_code, refused.json()) == (404, missing.json()), wrong
    assert (await api.claim(secret, None)).status_code == 401
    first, second = await asyncio.gather(api.claim(secret, "ann"), api.claim(secret, "ann"))
    assert (first.status_code, second.status_code) == (200, 200)
    # Whose answer was lost asks again.
    assert (await api.claim(secret, "ann")).json()["user_id"] == "ann"
    late = await api.claim(secret, "bob")
    assert (late.status_code, late.json()) == (404, missing.json())
    assert (await api.ask("GET", "/draft", "bob")).status_code == 404
    assert (await api.ask("GET", "/draft", "ann")).status_code == 200


async def test_of_two_who_claim_at_once_one_has_it(api: Api) -> None:
    # Rule A33
    for n in range(5):
        secret = (await api.begin(f"s{n}"))["claim_secret"]
        answers = await asyncio.gather(*(api.claim(secret, who, f"s{n}") for who in ("ann", "bob")))
        assert sorted(one.status_code for one in answers) == [200, 404]


async def test_a_claim_ends_the_tokens_of_handed_over_devices(api: Api) -> None:
    # Rule A33
    begun = await api.begin()
    link = await api.link(begun["token"])
    waiting = await api.link(begun["token"])
    token = (await api.redeem(link["secret"], "d2")).json()["token"]
    async with opened(api.ws_url, "draft", "c2") as peer:
        await peer.hello(token=token)
        assert (await api.claim(begun["claim_secret"], "ann")).status_code == 200
        assert (await peer.closed(within=5))[0] in {1012, 4401}
    assert (await api.ask("GET", "/draft", token)).status_code == 401
    assert (await api.redeem(waiting["secret"], "d3")).status_code == 404


async def test_the_python_client_goes_on_after_a_claim(api: Api, tmp_path: Path) -> None:
    # Rules A33, F4
    begun = await api.begin(state={"n": 0})
    url, outbox = str(api.base_url), tmp_path / "o.db"
    async with connect(url, "draft", token=begun["token"], outbox=outbox) as session:
        await session.inc("/n")
        client_id = session.export()["client_id"]
        with pytest.raises(SessionNotFound):
            await session.claim("reattach_claim_x", "ann")
        with pytest.raises(NotAuthenticated):
            await session.claim(begun["claim_secret"], "eve")
        await session.claim(begun["claim_secret"], "ann")
        await session.claim(begun["claim_secret"])
        await session.inc("/n")
        assert session.export()["client_id"] == client_id
    for user in (None, "bob"):
        with pytest.raises(StoreError, match="a file of its own"):
            async with connect(url, "draft", token="ann", outbox=outbox, user=user):
                pass
    async with connect(url, "draft", token="ann", outbox=outbox, user="ann") as session:
        await session.inc("/n")
        assert session.state == {"n": 3}
        assert session.export()["client_id"] == client_id


# Other devices


async def test_a_link_lets_one_device_in(api: Api) -> None:
    # Rules A34, A35
    begun = await api.begin(state={"n": 1})
    link = await api.link(begun["token"], url="https://app.example.org/page?x=1")
    assert link["link"] == f"https://app.example.org/page?x=1#handoff={link['secret']}"
    redeemed = await api.redeem(link["secret"], "d2")
    assert redeemed.headers["cache-control"] == "no-store"
    token = redeemed.json()["token"]
    assert redeemed.json() == {
        "session_id": "draft",
        "token": token,
        "user_id": begun["user_id"],
        "role": "owner",
    }
    assert (await api.ask("GET", "/draft", token)).json()["state"] == {"n": 1}
    assert (await api.ask("GET", "", token)).status_code == 401
    # Its answer was lost: the same device asks again, and the first token is over.
    again = (await api.redeem(link["secret"], "d2")).json()["token"]
    assert (await api.ask("GET", "/draft", again)).status_code == 200
    assert (await api.ask("GET", "/draft", token)).status_code == 401
    other = await api.redeem(link["secret"], "d3")
    assert (other.status_code, other.json()["code"]) == (404, "handoff_over")


async def test_a_link_is_over_after_ten_minutes(api: Api) -> None:
    # Rule A35
    begun = await api.begin()
    link = await api.link(begun["token"])
    token = (await api.redeem(link["secret"], "d2")).json()["token"]
    api.clock.ahead = HANDOFF_LASTS_MS - 5_000
    token = (await api.redeem(link["secret"], "d2")).json()["token"]
    api.clock.ahead = HANDOFF_LASTS_MS + 1_000
    late = await api.redeem(link["secret"], "d2")
    assert (late.status_code, late.json()["code"]) == (404, "handoff_over")
    # What it was redeemed for stays.
    assert (await api.ask("GET", "/draft", token)).status_code == 200
    for wrong in ("", "x", begun["token"], "reattach_link_x", f"{link['secret']}x"):
        answer = await api.redeem(wrong, "d2")
        assert answer.status_code in {400, 404}


async def test_two_devices_that_open_a_link_at_once_get_one_token(api: Api) -> None:
    # Rule A35
    begun = await api.begin()
    for _ in range(5):
        secret = (await api.link(begun["token"]))["secret"]
        answers = await asyncio.gather(*(api.redeem(secret, name) for name in ("d2", "d3")))
        assert sorted(one.status_code for one in answers) == [200, 404]


async def test_a_link_has_the_role_of_who_made_it(api: Api) -> None:
    # Rule A34
    assert (await api.ask("POST", "", "ann", {"session_id": "draft"})).status_code == 201
    viewer = {"role": "viewer"}
    assert (await api.ask("PUT", "/draft/members/bob", "ann", viewer)).status_code == 200
    secret = (await api.link("bob"))["secret"]
    redeemed = (await api.redeem(secret, "d2")).json()
    assert (redeemed["role"], redeemed["user_id"]) == ("viewer", "bob")
    token = redeemed["token"]
    assert (await api.ask("GET", "/draft", token)).status_code == 200
    refused = await api.ask("PUT", "/draft/members/eve", token, viewer)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    # A link says what its maker was then, and never more than they are.
    assert (await api.ask("PUT", "/draft/members/bob", "ann", {"role": "owner"})).status_code == 200
    async with opened(api.ws_url, "draft", "c2") as peer:
        welcome = await peer.hello(token=token, device={"id": "d2"})
        assert welcome["role"] == "viewer"
    owners = (await api.redeem((await api.link("bob"))["secret"], "d3")).json()
    assert owners["role"] == "owner"
    async with opened(api.ws_url, "draft", "c3") as peer:
        await peer.hello(token=owners["token"], device={"id": "d3"})
        assert (await api.ask("PUT", "/draft/members/bob", "ann", viewer)).status_code == 200
        assert (await peer.expect("resumed"))["role"] == "viewer"
        assert (await api.ask("DELETE", "/draft/members/bob", "ann")).status_code == 204
        assert (await peer.closed(within=5))[0] == 4404
    assert (await api.ask("GET", "/draft", owners["token"])).status_code == 404
    assert (await api.ask("POST", "/draft/handoff", "eve", {})).status_code == 401
    assert (await api.ask("POST", "/draft/handoff", "bob", {})).status_code == 404


async def test_a_link_shows_none_of_its_makers_other_sessions(api: Api) -> None:
    # Rules A32, A34
    for session_id in ("draft", "other"):
        body = {"session_id": session_id}
        assert (await api.ask("POST", "", "ann", body)).status_code == 201
    token = (await api.redeem((await api.link("ann"))["secret"], "d2")).json()["token"]
    assert (await api.ask("GET", "/draft", token)).json()["user_id"] == "ann"
    for path in ("/other", "/other/history", "/other/events", "/other/members"):
        answer = await api.ask("GET", path, token)
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found"), path
    for path, body in (("", {}), ("/draft/claim", {"claim_secret": "x"})):
        assert (await api.ask("POST", path, token, body)).status_code == 401
    assert (await api.ask("GET", "", token)).status_code == 401
    for session_id in ("other", "new"):
        async with opened(api.ws_url, session_id) as peer:
            await peer.greet(token=token, create={})
            assert (await peer.closed())[0] == 4404
    assert (await api.ask("GET", "/new", "ann")).status_code == 404


async def test_a_link_of_an_erased_session_is_over(api: Api) -> None:
    # Rule A35
    begun = await api.begin()
    link = await api.link(begun["token"])
    assert (await api.ask("DELETE", "/draft", begun["token"])).status_code == 204
    assert (await api.redeem(link["secret"], "d2")).status_code == 404


async def test_who_had_a_token_is_told_that_the_session_was_erased(api: Api) -> None:
    # Rules T9, A32
    token = (await api.begin())["token"]
    async with opened(api.ws_url, "draft") as peer:
        await peer.hello(token=token)
        assert (await api.ask("DELETE", "/draft", token)).status_code == 204
        assert (await peer.closed())[0] == 4410
    gone = await api.ask("GET", "/draft", token)
    assert (gone.status_code, gone.json()["code"]) == (410, "session_erased")
    async with opened(api.ws_url, "draft") as peer:
        await peer.greet(token=token)
        assert (await peer.closed())[0] == 4410
    name, _, session_id = token.partition(".")
    other = f"{name[:-2]}xx.{session_id}"
    assert (await api.ask("GET", "/draft", other)).status_code == 401
    assert (await api.ask("GET", "/draft", "bob")).status_code == 404


# Served


@pytest.fixture(scope="module")
def server(
    new_server: NewServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = new_server(
        tmp_path_factory.mktemp("anonymous") / "reattach.db",
        app=None,
        arguments=["--anonymous", "--host", EVERYWHERE],
    )
    asyncio.run(server.start())
    yield server
    asyncio.run(server.kill())


def test_alone_it_lets_in_by_tokens_only(server: ServerProcess) -> None:
    # Rule A36
    with httpx.Client(base_url=server.url, trust_env=False, timeout=10) as api:
        # This machine's user of `--auth none` is nobody here.
        assert api.get(SESSIONS).status_code == 401
        begun = api.post(SESSIONS, json={}).json()
        path = f"{SESSIONS}/{begun['session_id']}"
        assert api.get(path).status_code == 401
        # By whatever name a phone reaches it.
        headers = {"Authorization": f"Bearer {begun['token']}", "Host": "192.168.1.7:8000"}
        assert api.get(path, headers=headers).status_code == 200
        foreign = {**headers, "Origin": "http://evil.example"}
        assert api.get(path, headers=foreign).status_code == 403


async def test_tokens_outlive_the_server(serve: Serve) -> None:
    # Rule A32
    server = await serve(app=None, arguments=["--anonymous"])
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as api:
        begun = (await api.post(SESSIONS, json={})).json()
        await server.restart()
        headers = {"Authorization": f"Bearer {begun['token']}"}
        answer = await api.get(f"{SESSIONS}/{begun['session_id']}", headers=headers)
        assert answer.status_code == 200
    log = server.log_tail(1000)
    assert begun["token"] not in log
    assert begun["claim_secret"] not in log
