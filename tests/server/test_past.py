"""Earlier versions over HTTP: restored, compared, and forked from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from reattach.server.app import Reattach
from tests.server.test_rest import client_of, create, merge, problem, session_url


@pytest.fixture
async def reattach(tmp_path: Path) -> AsyncIterator[Reattach]:
    async with Reattach(database=f"sqlite:///{tmp_path / 'reattach.db'}") as served:
        yield served


@pytest.fixture
async def api(reattach: Reattach) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(reattach) as client:
        await create(client, {"n": 0, "l": [{"id": "a"}, {"id": "b", "x": "one"}]})
        await merge(client, {"n": 1})
        await merge(client, {"n": 2, "m": {"y": 1}, "l": [{"id": "b", "x": "two"}, {"id": "a"}]})
        yield client


async def test_a_session_is_restored(api: httpx.AsyncClient) -> None:
    # Rule T27
    url, key = session_url("s", "/restore"), {"Idempotency-Key": "k"}
    answer = await api.post(url, json={"version": 1}, headers=key)
    assert answer.status_code == 200
    session = answer.json()
    assert (session["version"], session["state"]["n"]) == (3, 1)
    assert session["state"]["l"] == [{"id": "a"}, {"id": "b", "x": "one"}]
    assert (await api.post(url, json={"version": 1}, headers=key)).json() == session
    assert (await api.get(session_url())).json() == session
    commit = (await api.get(session_url("s", "/history"), params={"from": 3})).json()["items"][0]
    assert (commit["type"], commit["to_version"]) == ("session_restored", 1)
    (mark,) = (await api.get(session_url("s", "/checkpoints"))).json()["items"]
    assert (mark["kind"], mark["version"]) == ("before_restore", 2)
    undone = await api.post(url, json={"checkpoint_id": mark["id"]})
    assert (
        undone.json()["state"]
        == (await api.get(session_url(), params={"version": 2})).json()["state"]
    )
    problem(await api.post(url, json={"version": 99}), 410, "version_gone")
    problem(await api.post(url, json={"checkpoint_id": "x"}), 404, "no_such_checkpoint")
    problem(await api.post(url, json={"checkpoint_id": "latest"}), 404, "no_such_checkpoint")
    problem(await api.post(url, json={}), 400, "bad_body")
    problem(await api.post(url, json={"version": 1, "checkpoint_id": "x"}), 400, "bad_body")


async def test_a_browsers_backup_is_restored_as_an_outbox(api: httpx.AsyncClient) -> None:
    # Rule T27
    epoch = (await api.get(session_url())).json()["epoch"]
    ops = [{"op": "set", "path": "/mine", "value": True}]
    change = {"seq": 1, "epoch": epoch, "base": 1, "at": 1, "ops": ops}
    backup = {"client_id": "c", "device": {"id": "d"}, "t": 2, "changes": [change]}
    for _ in range(2):
        answer = await api.post(session_url("s", "/restore"), json=backup)
        assert (answer.status_code, answer.json()["version"]) == (200, 3)
        assert answer.json()["state"]["mine"] is True


async def test_versions_are_compared(api: httpx.AsyncClient) -> None:
    # Rule T28
    url = session_url("s", "/diff")
    forth = await api.get(url, params={"from": 1, "to": 2})
    assert forth.headers["content-type"].startswith("application/json-patch+json")
    assert sorted((one["op"], one["path"]) for one in forth.json()) == [
        ("add", "/m"),
        ("move", "/l/1"),
        ("replace", "/l/0/x"),
        ("replace", "/n"),
    ]
    back = (await api.get(url, params={"from": 2, "to": 1})).json()
    assert ("remove", "/m") in [(one["op"], one["path"]) for one in back]
    assert (await api.get(url, params={"from": 2})).json() == []
    problem(await api.get(url, params={"from": 1, "to": 9}), 410, "version_gone")


async def test_a_session_begins_where_another_one_was(api: httpx.AsyncClient) -> None:
    # Rule T29
    url = session_url("s", "/fork")
    answer = await api.post(url, json={"version": 1}, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    fork = answer.json()
    assert (fork["version"], fork["state"]["n"]) == (0, 1)
    assert fork["session_id"] != "s"
    again = await api.post(url, json={"version": 1}, headers={"Idempotency-Key": "k"})
    assert again.json() == fork
    await merge(api, {"n": 7})
    assert (await api.get(session_url(fork["session_id"]))).json() == fork
    assert (await api.post(url, json={})).json()["state"]["n"] == 7
    problem(await api.post(url, json={"version": 9}), 410, "version_gone")
