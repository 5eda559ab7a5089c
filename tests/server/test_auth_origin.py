"""Pages of other origins: which may use the server, and what their browsers are told.

Rules A11 and A12.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from reattach import Reattach
from reattach.errors import BadSetting
from reattach.settings import Settings
from tests.conftest import NewServer
from tests.server.hosts import PREFIX, host_of, uvicorn_of
from tests.server.peer import opened
from tests.server.test_serve import refusal
from tests.server.tokens import SECRET, by_hand, hs256
from tests.support.server import ServerProcess

PAGE = "https://app.example.org"
LOCAL = "http://localhost:5173"
TOKEN = by_hand({"alg": "HS256"}, {"sub": "ada"}, hs256(SECRET))
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
SESSIONS = "/api/v0/session"

FOREIGN = [
    "null",
    "",
    "*",
    "https://evil.example",
    "http://app.example.org",
    "https://app.example.org:8443",
    "https://app.example.org:443",
    "https://app.example.org.",
    "https://app.example.org/",
    "https://APP.example.org",
    "https://app.example.org.evil.example",
    "https://evil-app.example.org",
    "https://x.app.example.org",
    "https://example.org",
    "https://app.example.org@evil.example",
    "https://evil.example/https://app.example.org",
    "https://app.example.org https://evil.example",
    "https://app.example.org, https://evil.example",
    "http://localhost",
    "http://localhost:51730",
    "http://127.0.0.1:5173",
]


@pytest.fixture(scope="module")
def server(
    new_server: NewServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One that two origins may use, one by option and one by setting; with tokens."""
    server = new_server(
        tmp_path_factory.mktemp("origin") / "reattach.db",
        app=None,
        arguments=["--auth", "jwt", "--allow-origin", "HTTPS://App.Example.org:443"],
        environment={"REATTACH_JWT_SECRET": SECRET, "REATTACH_ALLOW_ORIGINS": f"{LOCAL}, {LOCAL}"},
    )
    asyncio.run(server.start())
    yield server
    asyncio.run(server.kill())


@pytest.fixture
def api(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, headers=AUTHORIZED) as api:
        yield api


def cors(answer: httpx.Response) -> dict[str, str]:
    name = "access-control-"
    return {key.removeprefix(name): value for key, value in answer.headers.items() if name in key}


def vary(answer: httpx.Response) -> set[str]:
    return {name.strip() for name in answer.headers.get("vary", "").split(",")}


# Allowed


@pytest.mark.parametrize("origin", [PAGE, LOCAL])
def test_an_allowed_page_reads_every_answer(api: httpx.Client, origin: str) -> None:
    # Rule A12
    made = api.post(SESSIONS, json={"state": {}}, headers={"Origin": origin})
    assert made.status_code == 201
    where = str(made.url.join(made.headers["location"]))
    answers = [
        made,
        api.get(where, headers={"Origin": origin}),
        api.get(f"{SESSIONS}/nothing", headers={"Origin": origin}),
        api.get(SESSIONS, headers={"Origin": origin, "Authorization": "Bearer bad"}),
        api.put(SESSIONS, headers={"Origin": origin}),
        api.get("/no/such/route", headers={"Origin": origin}),
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 404, 401, 405, 404]
    for answer in answers:
        assert cors(answer) == {
            "allow-origin": origin,
            "expose-headers": "ETag, Location, Retry-After, Idempotency-Replayed",
        }
        assert "Origin" in vary(answer)


def test_an_allowed_page_reads_a_stream(api: httpx.Client) -> None:
    # Rule A12
    session = api.post(SESSIONS, json={"state": {}}).json()["session_id"]
    path = f"{SESSIONS}/{session}/events"
    with api.stream("GET", path, headers={"Origin": PAGE}) as answer:
        assert answer.status_code == 200
        assert cors(answer)["allow-origin"] == PAGE
        assert "event: initial_state" in next(answer.iter_text())


async def test_an_allowed_page_opens_a_websocket(server: ServerProcess) -> None:
    # Rule A11
    async with opened(server.ws_url, origin=PAGE) as peer:
        assert (await peer.hello(token=TOKEN, create={}))["user_id"] == "ada"


def test_the_servers_own_page_needs_no_permission(server: ServerProcess, api: httpx.Client) -> None:
    answer = api.get(SESSIONS, headers={"Origin": server.url})
    assert (answer.status_code, cors(answer)) == (200, {})


def test_without_an_origin_caches_are_told_that_it_matters(api: httpx.Client) -> None:
    # Rule A12
    answer = api.get(SESSIONS)
    assert (answer.status_code, cors(answer)) == (200, {})
    assert "Origin" in vary(answer)


# Preflights


def preflight(
    api: httpx.Client, origin: str, path: str = SESSIONS, asked: str = ""
) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": asked,
    }
    # A browser sends no token with it.
    return api.options(path, headers=headers | {"Authorization": ""})


@pytest.mark.parametrize("path", [SESSIONS, f"{SESSIONS}/s1", f"{SESSIONS}/s1/events"])
def test_a_preflight_is_answered(api: httpx.Client, path: str) -> None:
    # Rule A12
    asked = "authorization,content-type,reattach-client,reattach-seq,x-other"
    answer = preflight(api, PAGE, path, asked)
    assert (answer.status_code, answer.content) == (204, b"")
    told = cors(answer)
    assert told["allow-origin"] == PAGE
    assert told["allow-methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE"
    assert {name.strip().lower() for name in told["allow-headers"].split(",")} == {
        "authorization",
        "content-type",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "last-event-id",
        "reattach-client",
        "reattach-seq",
    }
    assert told["max-age"] == "600"
    assert "allow-credentials" not in told
    assert {"Origin", "Access-Control-Request-Headers"} <= vary(answer)


def test_other_options_are_no_preflight(api: httpx.Client) -> None:
    answer = api.options(SESSIONS, headers={"Origin": PAGE})
    assert answer.status_code == 405


# Foreign


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_page_gets_403(api: httpx.Client, origin: str) -> None:
    # Rule A11
    for answer in (
        api.get(SESSIONS, headers={"Origin": origin}),
        api.post(SESSIONS, json={"session_id": "foreign"}, headers={"Origin": origin}),
        api.get(f"{SESSIONS}/s1/events", headers={"Origin": origin}),
        preflight(api, origin),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_origin")
        assert cors(answer) == {}
        assert "Origin" in vary(answer)
    assert api.get(f"{SESSIONS}/foreign").status_code == 404


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_foreign_page_gets_403_before_the_upgrade(
    server: ServerProcess, origin: str
) -> None:
    # Rule A11
    with pytest.raises(InvalidStatus) as caught:
        async with opened(server.ws_url, additional_headers={"Origin": origin}):
            pass
    assert caught.value.response.status_code == 403


async def test_the_same_below_a_prefix(tmp_path: Path) -> None:
    """Rules A11 and A12, under another ASGI server, and on this machine without tokens."""
    settings = Settings.model_validate({"allow_origins": [PAGE]})
    reattach = Reattach(database=f"sqlite:///{tmp_path / 'o.db'}", settings=settings)
    async with (
        uvicorn_of(host_of(reattach)) as where,
        httpx.AsyncClient(base_url=f"http://{where}{PREFIX}", trust_env=False) as api,
    ):
        answer = await api.get(SESSIONS, headers={"Origin": PAGE})
        assert (answer.status_code, cors(answer)["allow-origin"]) == (200, PAGE)
        foreign = await api.get(SESSIONS, headers={"Origin": LOCAL})
        assert (foreign.status_code, cors(foreign)) == (403, {})
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
        assert (await api.options(SESSIONS, headers=asked)).status_code == 204
        # An allowed page of a name that was bent to bring it here is none.
        bent = await api.options(SESSIONS, headers=asked | {"Host": "app.example.org"})
        assert (bent.status_code, bent.json()["code"]) == (403, "forbidden_host")
        async with opened(f"ws://{where}{PREFIX}", origin=PAGE) as peer:
            await peer.hello(create={})
        with pytest.raises(InvalidStatus) as caught:
            async with opened(f"ws://{where}{PREFIX}", origin=LOCAL):
                pass
        assert caught.value.response.status_code == 403


# The list


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "",
        "app.example.org",
        "https://*.example.org",
        "https://app.example.org/",
        "https://app.example.org/path",
        "https://app.example.org?",
        "https://ada@app.example.org",
        "https://app.example.org.",
        "https://exämple.org",
        "//app.example.org",
    ],
)
def test_what_is_no_origin_is_told(origin: str) -> None:
    # Rule A11
    with pytest.raises(BadSetting, match="expected an origin such as https://app"):
        Reattach().allow_origins([origin])


def test_it_is_told_in_one_line(tmp_path: Path) -> None:
    assert "expected an origin such as" in refusal("--allow-origin", "*", cwd=tmp_path)
    said = refusal(cwd=tmp_path, environment={"REATTACH_ALLOW_ORIGINS": f"{PAGE},*"})
    assert "REATTACH_ALLOW_ORIGINS: Value error, expected an origin such as" in said


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://App.Example.org:443", "https://app.example.org"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("http://localhost:80", "http://localhost"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(written: str, meant: str) -> None:
    reattach = Reattach(settings=Settings.model_validate({"allow_origins": [written]}))
    assert reattach.auth.allowed_origins == {meant}
