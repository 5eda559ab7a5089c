"""Who the example lets in: keys to one document, and a cookie for all of one's own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from examples.gap_resolution import app
from examples.gap_resolution.users import LINK_LASTS_S, Keys, Users
from reattach import NotAuthenticated, Reattach, User

OWNER = User("owner")
URL = "http://127.0.0.1"
PAGE = {"Origin": URL}
"""What browsers add to what a page sends."""


@pytest.fixture
async def keys(tmp_path: Path) -> Keys:
    keys = Keys()
    async with Reattach(database=f"sqlite:///{tmp_path / 'reattach.db'}") as reattach:
        await keys.open(reattach.sessions)
    return keys


def connection(path: str, token: str | None = None, cookie: str = "") -> HTTPConnection:
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": path,
        "headers": [(b"cookie", cookie.encode())],
    }
    found = HTTPConnection(scope)
    found.state.token = token
    return found


async def test_a_key_fits_one_document(keys: Keys) -> None:
    key = keys.make("s1", OWNER)
    assert keys.user_of(key, "s1") == OWNER
    assert keys.user_of(key, "s2") is None


@pytest.mark.parametrize("key", ["", ".", "owner", "owner.0.", "owner.0.é", "owner.x.y", "é.0.a"])
async def test_what_is_no_key_is_none(keys: Keys, key: str) -> None:
    assert keys.user_of(key, "s1") is None


async def test_a_key_is_good_for_its_user_and_its_time_alone(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.make("s1", OWNER, lasts_s=LINK_LASTS_S)
    _, ends_at, signature = key.split(".")
    assert keys.user_of(f"other.{ends_at}.{signature}", "s1") is None
    assert keys.user_of(f"owner.{int(ends_at) + 1}.{signature}", "s1") is None
    assert keys.user_of(f"owner.0.{signature}", "s1") is None
    assert keys.user_of(key, "s1") == OWNER
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LINK_LASTS_S + 1)
    assert keys.user_of(key, "s1") is None
    assert keys.user_of(keys.make("s1", OWNER), "s1") == OWNER


async def test_keys_outlive_the_server(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        keys = Keys()
        async with Reattach(database=f"sqlite:///{tmp_path / 'reattach.db'}") as reattach:
            await keys.open(reattach.sessions)
        made.append(keys.make("s1", OWNER))
    assert made[0] == made[1]
    assert Keys().user_of(made[0], "s1") is None


async def test_who_is_there(keys: Keys) -> None:
    users = Users(keys)
    key = keys.make("s1", OWNER)
    own = users(connection("/ws/session/s1", cookie=f"gap-resolution={'x' * 43}"))
    assert own != OWNER
    assert users(connection("/ws/session/s1", token=key)) == OWNER
    assert users(connection("/documents/s1/file", cookie=f"gap-resolution-s1={key}")) == OWNER
    cookies = f"gap-resolution-s1={key}; gap-resolution={'x' * 43}"
    assert users(connection("/api/v0/session/s2", token=key, cookie=cookies)) == own
    assert users(connection("/api/v0/session", token=key, cookie=cookies)) == own
    for path in ("/ws/session/s2", "/api/v0/session", "/"):
        with pytest.raises(NotAuthenticated, match="cookie"):
            users(connection(path, token=key, cookie=f"gap-resolution-s1={key}"))


async def test_the_routes_of_a_second_device(tmp_path: Path) -> None:
    app.reattach.use_database(f"sqlite:///{tmp_path / 'reattach.db'}")
    transport = httpx.ASGITransport(app.reattach)
    async with (
        app.reattach,
        httpx.AsyncClient(transport=transport, base_url=URL, headers=PAGE) as first,
        httpx.AsyncClient(transport=transport, base_url=URL, headers=PAGE) as second,
    ):
        made = (await first.post("/documents", json={"kind": "pyproject"})).json()
        path = f"/documents/{made['session_id']}"
        assert (await second.post(f"{path}/link")).status_code == 401
        assert (await second.post("/documents")).status_code == 201
        assert (await second.post(f"{path}/link")).status_code == 404
        refused = await second.post(f"{path}/join", json={"key": "none"})
        assert (refused.status_code, refused.json()["code"]) == (403, "key_does_not_fit")
        link = (await first.post(f"{path}/link")).json()["key"]
        assert link != made["key"]
        joined = await second.post(f"{path}/join", json={"key": link})
        assert joined.json()["key"] == made["key"]
        cookie = joined.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert (await second.post(f"{path}/watch")).status_code == 204
        # Whoever has the key alone gets the cookie that a download needs.
        async with httpx.AsyncClient(transport=transport, base_url=URL, headers=PAGE) as third:
            assert (await third.post(f"{path}/watch")).status_code == 401
            bearer = {"Authorization": f"Bearer {made['key']}"}
            assert (await third.post(f"{path}/watch", headers=bearer)).status_code == 204
            assert (await third.get(f"{path}/file")).status_code == 409


@pytest.mark.parametrize("text", ["title: [", "[]", "{", "= 1"])
async def test_a_text_that_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    app.reattach.use_database(f"sqlite:///{tmp_path / 'reattach.db'}")
    transport = httpx.ASGITransport(app.reattach)
    async with (
        app.reattach,
        httpx.AsyncClient(transport=transport, base_url=URL, headers=PAGE) as client,
    ):
        refused = await client.post("/documents", json={"text": text})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_document")
