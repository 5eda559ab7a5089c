"""`--auth jwt` at a real server: who is let in, who is not, and until when (rules A7 to A9)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reattach import NotAuthenticated, Reattach
from reattach.client import connect
from reattach.errors import BadSetting
from reattach.settings import Settings
from tests.conftest import NewServer, Serve
from tests.server.hosts import PREFIX, host_of, uvicorn_of
from tests.server.peer import opened
from tests.server.test_serve import refusal
from tests.server.tokens import (
    AUDIENCE,
    ISSUER,
    SECRET,
    KeyServer,
    bad_tokens,
    by_hand,
    claims,
    hs256,
    jwk,
    jwks,
    private_key,
    private_pem,
    public_pem,
    signed,
)
from tests.support.server import ServerProcess
from tests.support.waiting import until

KEY = private_key("RS256")
BAD = bad_tokens(KEY, "RS256")
CHECK = "/api/v0/session/check-connection"
EVENTS = "/api/v0/session/s1/events"
REASON = "expected a valid bearer token: get a fresh one"


@pytest.fixture(scope="module")
def server(
    new_server: NewServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One with an RSA key, that logs all it has to say. Its log knows no token in the end."""
    server = new_server(
        tmp_path_factory.mktemp("jwt") / "reattach.db",
        app=None,
        arguments=["--auth", "jwt", "--log-level", "debug"],
        environment={
            "REATTACH_JWT_PUBLIC_KEY": public_pem(KEY),
            "REATTACH_JWT_ISSUER": ISSUER,
            "REATTACH_JWT_AUDIENCE": AUDIENCE,
        },
    )
    asyncio.run(server.start())
    yield server
    asyncio.run(server.kill())


def header(token: str) -> dict[bytes, bytes]:
    return {b"Authorization": f"Bearer {token}".encode("latin-1")}


def get(server: ServerProcess, path: str, token: str | None) -> httpx.Response:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=10) as api:
        return api.get(path, headers=None if token is None else header(token))


# Who is let in


async def test_sub_is_the_user(server: ServerProcess) -> None:
    # Rule A7
    token = signed(KEY, "RS256", sub="zoë|7", aud=["others", AUDIENCE])
    async with opened(server.ws_url, "of-zoe") as peer:
        assert (await peer.hello(token=token, create={}))["user_id"] == "zoë|7"
    assert get(server, "/api/v0/session/of-zoe", token).json()["user_id"] == "zoë|7"
    other = get(server, "/api/v0/session/of-zoe", signed(KEY, "RS256", sub="bob"))
    assert (other.status_code, other.json()["code"]) == (404, "session_not_found")


def test_a_token_without_exp_and_one_of_a_fast_clock_are_good(server: ServerProcess) -> None:
    """RFC 7519, section 4.1.6: `iat` is no reason to refuse one."""
    for changed in ({"exp": None}, {"iat": int(time.time()) + 30}, {"nbf": int(time.time()) - 1}):
        assert get(server, CHECK, signed(KEY, "RS256", **changed)).status_code == 204


def test_255_bytes_are_a_user(server: ServerProcess) -> None:
    assert get(server, CHECK, signed(KEY, "RS256", sub="x" * 255)).status_code == 204


@pytest.mark.parametrize("path", [CHECK, EVENTS], ids=["HTTP", "SSE"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_token_is_told_nothing_over_http(server: ServerProcess, path: str, kind: str) -> None:
    # Rule A8
    answer = get(server, path, BAD[kind])
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["detail"] == REASON
    assert answer.json()["code"] == "not_authenticated"


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_token_is_told_nothing_by_websocket(server: ServerProcess, kind: str) -> None:
    # Rule A8
    async with opened(server.ws_url) as peer:
        await peer.send(
            type="hello", client_id="c", device={"id": "d"}, t=0, token=BAD[kind], create={}
        )
        assert await peer.closed() == (4401, REASON)
    # And nothing was made for it.
    assert get(server, "/api/v0/session", signed(KEY, "RS256", sub="bob")).json()["items"] == []


@pytest.mark.parametrize("path", [CHECK, EVENTS, "/api/v0/session"])
def test_without_a_token_nobody_is_there(server: ServerProcess, path: str) -> None:
    answer = get(server, path, None)
    assert (answer.status_code, answer.json()["detail"]) == (
        401,
        "expected a bearer token: sign in",
    )
    with httpx.Client(base_url=server.url, trust_env=False) as api:
        basic = api.get(path, headers={"Authorization": f"Basic {signed(KEY, 'RS256')}"})
        query = api.get(path, params={"token": signed(KEY, "RS256"), "access_token": "x"})
    assert [basic.status_code, query.status_code] == [401, 401]


async def test_without_a_token_there_is_no_websocket(server: ServerProcess) -> None:
    async with opened(server.ws_url) as peer:
        await peer.send(type="hello", client_id="c", device={"id": "d"}, t=0)
        assert await peer.closed() == (4401, "expected a bearer token: sign in")


def test_health_needs_no_token(server: ServerProcess) -> None:
    assert get(server, "/readyz", None).status_code == 200


def test_the_log_tells_why_and_no_token(server: ServerProcess) -> None:
    """It follows those above, whose tokens all came to this server."""
    get(server, CHECK, BAD["expired"])
    log = server.log.read_text()
    assert "a token was refused" in log
    assert "ExpiredSignatureError" in log
    assert "Traceback" not in log
    assert "eyJ" not in log, "every token begins so"
    for token in BAD.values():
        parts = [part for part in token.split(".") if len(part) > 8]
        assert not any(part in log for part in parts)


# Until when


async def test_a_websocket_ends_with_its_token(server: ServerProcess) -> None:
    # Rule A9
    expires = int(time.time()) + 2
    token = signed(KEY, "RS256", exp=expires)
    async with opened(server.ws_url, "short") as peer, opened(server.ws_url, "short", "c2") as on:
        await peer.hello(token=token, create={})
        await on.hello(token=signed(KEY, "RS256"))
        assert await peer.closed() == (
            4401,
            "the token has expired: come back with a fresh one",
        )
        assert expires <= time.time() <= expires + 1
        await on.sees_offline("device-of-c1")
        # What came before is there for whoever shows a fresh one.
        async with opened(server.ws_url, "short") as again:
            await again.hello(token=signed(KEY, "RS256"))


async def test_a_stream_ends_with_its_token(server: ServerProcess) -> None:
    # Rule A9
    async with opened(server.ws_url, "streamed") as peer:
        await peer.hello(token=signed(KEY, "RS256"), create={})
    expires = int(time.time()) + 2
    path = "/api/v0/session/streamed/events"
    headers = header(signed(KEY, "RS256", exp=expires))
    async with (
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as api,
        api.stream("GET", path, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        text = (await answer.aread()).decode()
    assert expires <= time.time() <= expires + 1
    last = text.strip().rpartition("\n\n")[2].splitlines()
    assert last[0] == "event: close"
    assert json.loads(last[1].removeprefix("data: "))["code"] == 4401


async def test_leeway_is_given_to_both_ends(tmp_path: Path) -> None:
    # Rule A9
    settings = Settings.model_validate(
        {"auth": "jwt", "jwt_secret": SECRET, "jwt_leeway_ms": 2_000}
    )
    reattach = Reattach(database=f"sqlite:///{tmp_path / 'leeway.db'}", settings=settings)
    async with uvicorn_of(host_of(reattach)) as where:
        now = int(time.time())
        token = by_hand({"alg": "HS256"}, {"sub": "ada", "exp": now}, hs256(SECRET))
        async with opened(f"ws://{where}{PREFIX}") as peer:
            await peer.hello(token=token, create={})
            assert (await peer.closed())[0] == 4401
            assert now + 2 <= time.time() <= now + 3


async def test_the_python_client_goes_on_with_fresh_tokens(server: ServerProcess) -> None:
    """What is written meanwhile is sent once, whatever token it was written under."""
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        return signed(KEY, "RS256", exp=int(time.time()) + 2)

    create = {"state": {"n": 0}}
    async with connect(server.url, "worker", token=token, create=create) as session:
        written = 0
        async with asyncio.timeout(30):
            while asked < 3:
                await session.inc("/n")
                written += 1
                await asyncio.sleep(0.02)
            await session.inc("/n")
        assert session.state == {"n": written + 1}
    answer = get(server, "/api/v0/session/worker", signed(KEY, "RS256"))
    assert answer.json()["state"] == {"n": written + 1}
    assert answer.json()["version"] == written + 1


# The keys' settings


@contextlib.asynccontextmanager
async def key_settings(kind: str, folder: Path, server: KeyServer) -> Any:
    """The settings of one kind, the algorithm, and how a token is signed for it."""
    where, algorithm = kind.split()
    if where == "secret":
        yield {"jwt_secret": SECRET}, by_hand({"alg": "HS256"}, claims(), hs256(SECRET))
        return
    key = private_key(algorithm)
    file = folder / "key.pem"
    file.write_text(public_pem(key))
    async with server.listening():
        server.body = jwks(jwk(private_key(algorithm, "old"), kid="old"), jwk(key, kid="k"))
        settings: dict[str, dict[str, Any]] = {
            "value": {"jwt_public_key": public_pem(key)},
            "file": {"jwt_public_key": str(file)},
            "jwks": {"jwt_jwks_url": server.url, "jwt_algorithm": algorithm},
        }
        yield settings[where], signed(key, algorithm, "k")


@pytest.mark.parametrize(
    "kind",
    ["secret HS256"]
    + [
        f"{where} {algorithm}"
        for where in ("value", "file", "jwks")
        for algorithm in ("RS256", "ES256", "EdDSA")
    ],
)
async def test_each_algorithm_by_each_way_to_its_key(tmp_path: Path, kind: str) -> None:
    # Rule A7
    async with key_settings(kind, tmp_path, KeyServer()) as (keys, token):
        more = {"auth": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
        reattach = Reattach(
            database=f"sqlite:///{tmp_path / 'keys.db'}",
            settings=Settings.model_validate(keys | more),
        )
        transport = httpx.ASGITransport(reattach)
        async with (
            reattach,
            httpx.AsyncClient(transport=transport, base_url="http://example.org") as api,
        ):
            assert (await api.get(CHECK, headers=header(token))).status_code == 204
            for bad in (
                signed(private_key("RS256", "another"), "RS256", "k"),
                signed(private_key("ES256", "another"), "ES256", "k"),
                signed(private_key("EdDSA", "another"), "EdDSA", "k"),
                by_hand({"alg": "HS256", "kid": "k"}, claims(), hs256("x" * 32)),
                by_hand({"alg": "none", "kid": "k"}, claims()),
            ):
                assert (await api.get(CHECK, headers=header(bad))).status_code == 401


WRONG = [
    ({}, "expected one of REATTACH_JWT_SECRET, REATTACH_JWT_PUBLIC_KEY and REATTACH_JWT_JWKS_URL"),
    (
        {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": public_pem(KEY)},
        "expected one of REATTACH_JWT_SECRET, REATTACH_JWT_PUBLIC_KEY and REATTACH_JWT_JWKS_URL",
    ),
    ({"JWT_SECRET": "hush-hush"}, "to have at least 32 bytes (RFC 7518, section 3.2), got 9"),
    ({"JWT_SECRET": ""}, "to have at least 32 bytes (RFC 7518, section 3.2), got 0"),
    (
        {"JWT_SECRET": public_pem(KEY)},
        "expected REATTACH_JWT_SECRET to be a secret, got what looks",
    ),
    ({"JWT_PUBLIC_KEY": "nowhere.pem"}, "the file cannot be read: No such file or directory"),
    ({"JWT_PUBLIC_KEY": private_pem(KEY)}, "A private key stays with whoever signs"),
    (
        {"JWT_PUBLIC_KEY": public_pem(KEY), "JWT_ALGORITHM": "ES256"},
        "expected a key for REATTACH_JWT_ALGORITHM=ES256, got one for RS256",
    ),
    (
        {"JWT_PUBLIC_KEY": public_pem(KEY), "JWT_ALGORITHM": "HS256"},
        "expected a key for REATTACH_JWT_ALGORITHM=HS256, got one for RS256",
    ),
    ({"JWT_JWKS_URL": "https://example.org/keys"}, "to be RS256, ES256 or EdDSA, got nothing"),
    (
        {"JWT_JWKS_URL": "http://example.org/keys", "JWT_ALGORITHM": "RS256"},
        "expected REATTACH_JWT_JWKS_URL to be an https URL",
    ),
]


@pytest.mark.parametrize(("settings", "says"), WRONG)
def test_settings_that_cannot_be_are_told(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], says: str
) -> None:
    # Rule A7
    monkeypatch.setenv("REATTACH_AUTH", "jwt")
    for name, value in settings.items():
        monkeypatch.setenv(f"REATTACH_{name}", value)
    with pytest.raises(BadSetting) as caught:
        Reattach()
    assert says in caught.value.message
    assert "PRIVATE" not in caught.value.message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"JWT_SECRET": "hush-hush"}, "expected REATTACH_JWT_SECRET to have at least 32 bytes"),
        ({"JWT_ALGORITHM": "none"}, "REATTACH_JWT_ALGORITHM: Input should be 'HS256', 'RS256'"),
        ({"JWT_LEEWAY_MS": "-1"}, "REATTACH_JWT_LEEWAY_MS: Input should be greater than"),
    ],
)
def test_they_are_told_in_one_line(tmp_path: Path, settings: dict[str, str], says: str) -> None:
    environment = {f"REATTACH_{name}": value for name, value in settings.items()}
    said = refusal("--auth", "jwt", cwd=tmp_path, environment=environment)
    assert says in said
    assert "hush-hush" not in said
    assert list(tmp_path.iterdir()) == []


async def test_beyond_this_machine_somebody_has_to_sign_in(serve: Serve, tmp_path: Path) -> None:
    """Rule A1: what may be reached from elsewhere does not start without authentication."""
    said = refusal("--host", "0.0.0.0", "--auth", "none", cwd=tmp_path)  # noqa: S104 - refused
    assert "expected a loopback host (127.0.0.1, ::1 or localhost), got 0.0.0.0" in said
    assert "Serve with --auth jwt or --anonymous, or an --app whose Reattach has an" in said
    server = await serve(
        app=None,
        arguments=["--auth", "jwt", "--host", "0.0.0.0"],  # noqa: S104 - tokens are asked for
        environment={"REATTACH_JWT_SECRET": SECRET},
    )
    assert get(server, CHECK, None).status_code == 401


def write_app(folder: Path, arguments: str) -> None:
    (folder / "wizard.py").write_text(
        f"from reattach import Reattach, User\nreattach = Reattach({arguments})\n"
    )


async def test_an_application_of_ones_own_is_served_to_those_with_a_token(
    serve: Serve, tmp_path: Path
) -> None:
    write_app(tmp_path, "")
    server = await serve(
        app="wizard:reattach",
        cwd=tmp_path,
        arguments=["--auth", "jwt"],
        environment={"REATTACH_JWT_SECRET": SECRET},
    )
    token = by_hand({"alg": "HS256"}, {"sub": "ada"}, hs256(SECRET))
    assert get(server, CHECK, None).status_code == 401
    assert get(server, CHECK, token).status_code == 204


def test_an_application_that_knows_its_users_needs_no_tokens(tmp_path: Path) -> None:
    write_app(tmp_path, "authenticate=lambda connection: User('ada')")
    environment = {"REATTACH_JWT_SECRET": SECRET}
    said = refusal(
        "--app", "wizard:reattach", "--auth", "jwt", cwd=tmp_path, environment=environment
    )
    assert "expected either --auth jwt (REATTACH_AUTH) or an authenticate" in said
    with pytest.raises(BadSetting, match="got both: leave one out"):
        Reattach(
            settings=Settings.model_validate({"auth": "jwt", "jwt_secret": SECRET}),
            authenticate=lambda _: pytest.fail("nobody is asked"),
        )


async def test_a_secret_shows_in_no_settings() -> None:
    settings = Settings.model_validate({"jwt_secret": SECRET})
    assert SECRET not in f"{settings!r} {settings}"


async def test_a_static_token_that_expires_ends_the_python_client(server: ServerProcess) -> None:
    """There is nobody to ask for another: it says so, and keeps what it has."""
    token = signed(KEY, "RS256", exp=int(time.time()) + 2)
    async with connect(server.url, "static", token=token, create={}) as session:
        await until(lambda: session.status.connection != "online", within=10, what="the end")
        with pytest.raises(NotAuthenticated):
            await session.set("/a", 1)


async def test_per_user_limits_hold_with_tokens(server: ServerProcess) -> None:
    """Rule A5: there are users, so they are limited."""
    token = signed(KEY, "RS256", sub="many")
    async with contextlib.AsyncExitStack() as stack:
        for number in range(16):
            peer = await stack.enter_async_context(opened(server.ws_url, "crowded", f"c{number}"))
            await peer.hello(token=token, create={})
        last = await stack.enter_async_context(opened(server.ws_url, "crowded", "c16"))
        await last.send(type="hello", client_id="c16", device={"id": "d"}, t=0, token=token)
        assert (await last.closed())[0] == 4429
