"""Who the example lets in: whoever has a document's token, and by a link with its cookie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette import datastructures

from examples.gap_resolution import app
from examples.gap_resolution.lan import address_for_others
from tests.server.hosts import uvicorn_of

URL = "http://127.0.0.1"
PAGE = {"Origin": URL}
"""What browsers add to what a page sends."""


@asynccontextmanager
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app.reattach)
    async with httpx.AsyncClient(transport=transport, base_url=URL, headers=PAGE) as client:
        yield client


@pytest.fixture
async def first(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app.reattach.use_database(f"sqlite:///{tmp_path / 'reattach.db'}")
    async with app.reattach, browser() as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_document_is_of_who_has_its_token(first: httpx.AsyncClient) -> None:
    opened = await first.post("/documents", json={"kind": "pyproject"})
    made: dict[str, Any] = opened.json()
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    path, mine = f"/documents/{made['session_id']}", bearer(made["token"])
    assert (await first.get(f"{path}/file")).status_code == 409
    # The cookie is for links alone.
    assert (await first.post(f"{path}/detect")).status_code == 401
    async with browser() as second:
        assert (await second.get(f"{path}/file")).status_code == 401
        other = (await second.post("/documents")).json()
        assert (await second.post(f"{path}/detect", headers=bearer("x"))).status_code == 401
        refused = await second.post(f"{path}/detect", headers=bearer(other["token"]))
        assert (refused.status_code, refused.json()["code"]) == (404, "session_not_found")
        # Whoever has the token gets the cookie that a download needs.
        assert (await second.post(f"{path}/detect", headers=mine)).status_code == 204
        assert (await second.get(f"{path}/file")).status_code == 409


async def test_a_link_lets_another_device_in(first: httpx.AsyncClient) -> None:
    made = (await first.post("/documents")).json()
    path, session = f"/documents/{made['session_id']}", f"/api/v0/session/{made['session_id']}"
    link = await first.post(f"{session}/handoff", json={}, headers=bearer(made["token"]))
    assert link.json()["link"].startswith(f"{URL}/#handoff=")
    async with browser() as second:
        body = {"secret": link.json()["secret"], "device": {"id": "phone"}}
        token = (await second.post("/api/v0/handoff", json=body)).json()["token"]
        assert (await second.post(f"{path}/detect", headers=bearer(token))).status_code == 204


@pytest.mark.parametrize("text", ["title: [", "[]", "{", "= 1"])
async def test_a_text_that_is_no_document_is_refused(first: httpx.AsyncClient, text: str) -> None:
    refused = await first.post("/documents", json={"text": text})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_document")


async def test_others_are_told_an_address_that_they_reach(
    first: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (await first.get("/address")).json()
    assert said["address"] is None or said["address"].startswith("http://")
    # A network of this machine alone stands for one that others are in.
    monkeypatch.setattr("examples.gap_resolution.lan._own_address", lambda: "127.0.0.1")
    async with uvicorn_of(app.reattach) as address:
        url = f"http://{address}"
        assert await address_for_others(datastructures.URL(f"{url}/x")) == (url, True)
    assert await address_for_others(datastructures.URL(url)) == (url, False)
    monkeypatch.setattr("examples.gap_resolution.lan._own_address", lambda: None)
    assert await address_for_others(datastructures.URL(url)) == (None, False)
