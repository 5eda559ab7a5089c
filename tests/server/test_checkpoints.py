"""Checkpoints over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reattach.server import models
from reattach.server.app import Reattach
from tests.server.test_rest import MERGE, client_of, create, problem, session_url


@pytest.fixture
async def reattach(tmp_path: Path) -> AsyncIterator[Reattach]:
    async with Reattach(database=f"sqlite:///{tmp_path / 'reattach.db'}") as served:
        yield served


@pytest.fixture
async def api(reattach: Reattach) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(reattach) as client:
        yield client


async def test_checkpoints_are_saved_and_listed(api: httpx.AsyncClient) -> None:
    # Rule T26
    await create(api, {"n": 0})
    url = session_url("s", "/checkpoints")
    assert (await api.get(url)).json() == {"items": [], "next": None}
    first = await api.post(url, json={"name": "Draft", "data": {"why": None}})
    assert first.status_code == 201
    await api.patch(session_url(), json={"n": 1}, headers=MERGE)
    second = await api.post(url, json={})
    items = (await api.get(url)).json()["items"]
    assert items == [second.json(), first.json()]
    assert [(one["name"], one["version"], one["kind"]) for one in items] == [
        (None, 1, "named"),
        ("Draft", 0, "named"),
    ]
    for one in items:
        models.Checkpoint.model_validate(one)
    assert "data" not in items[0]
    assert items[1]["data"] == {"why": None}
    problem(await api.post(url, json={"data": "x" * 4_096}), 413, "too_large")
    problem(await api.post(url, json={"name": "x" * 257}), 400, "bad_body")


async def test_a_checkpoint_is_saved_once_by_its_key(api: httpx.AsyncClient) -> None:
    # Rule T3
    await create(api, {"n": 0})
    url, key = session_url("s", "/checkpoints"), {"Idempotency-Key": "k"}
    first = await api.post(url, json={"name": "a"}, headers=key)
    again = await api.post(url, json={"name": "a"}, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert len((await api.get(url)).json()["items"]) == 1
    problem(await api.post(url, json={"name": "b"}, headers=key), 422, "idempotency_key_reused")


async def test_many_checkpoints_come_page_by_page(api: httpx.AsyncClient) -> None:
    # Rule T2
    await create(api, {"n": 0})
    url = session_url("s", "/checkpoints")
    made: list[str] = [(await api.post(url, json={})).json()["id"] for _ in range(101)]
    page: dict[str, Any] = (await api.get(url)).json()
    rest = (await api.get(url, params={"next": page["next"]})).json()
    assert (len(page["items"]), len(rest["items"]), rest["next"]) == (100, 1, None)
    assert {one["id"] for one in (*page["items"], *rest["items"])} == set(made)
