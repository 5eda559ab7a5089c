"""On PostgreSQL a command is one more node: others hear of what it did."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from reattach import Reattach
from reattach.cli import reach
from reattach.errors import Unavailable
from tests.cli.conftest import fine, refused, told
from tests.support.postgres import Postgres


@pytest.fixture
async def database(postgres: Postgres) -> str:
    return await postgres.own_database()


async def test_a_restore_is_heard_of_by_the_nodes_that_serve(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REATTACH_DATABASE", database)
    async with Reattach(database=database) as node:
        await node.sessions.create({"n": 0}, user_id="ann", session_id="s")
        first = await node.sessions.update("s", [{"op": "inc", "path": "/n", "by": 1}])
        heard = node.sessions.changes("s", after=first.version)
        mark = await told("checkpoint", "s", "--name", "now")
        assert mark["version"] == 1
        restored = await told("restore", "s", "--version", "0")
        commit = await asyncio.wait_for(anext(heard), 10)
        assert commit.version == restored["version"] == 2
        assert commit.by.user_id == reach.operator_name()
        assert (await node.sessions.get("s")).state == {"n": 0}
        # What the node writes next stands on it.
        await node.sessions.update("s", [{"op": "inc", "path": "/n", "by": 5}])
        assert (await told("show", "s"))["state"] == {"n": 5}
        assert await told("diff", "s", "0", "3") == [{"op": "replace", "path": "/n", "value": 5}]
        assert [one["session_id"] for one in (await told("sessions"))["items"]] == ["s"]


async def test_another_epoch_is_found_by_the_nodes_that_serve(database: str) -> None:
    on = ("--database", database)
    async with Reattach(database=database) as node:
        await node.sessions.create({"n": 0}, user_id="ann", session_id="s")
        before = (await node.sessions.get("s")).session
        assert await told("epoch", "new", *on) == {"renewed": 1}
        while True:
            try:
                await node.sessions.update("s", [{"op": "inc", "path": "/n", "by": 1}])
                break
            except Unavailable:  # it has just found out, and opens the session anew
                await asyncio.sleep(0)
        after = (await node.sessions.get("s")).session
        assert (after.epoch != before.epoch, after.version, after.epoch_version) == (True, 1, 0)


async def test_a_session_moves_to_another_database(
    database: str, postgres: Postgres, tmp_path: Path
) -> None:
    async with Reattach(database=database) as node:
        await node.sessions.create({"n": 0}, user_id="ann", session_id="s")
    await fine("export", "s", "s.json", "--database", database)
    other = await postgres.own_database()
    imported = await told("import", tmp_path / "s.json", "--database", other)
    assert imported == {"session_id": "s", "user_id": "ann", "version": 0}
    assert await told("compact", "--database", other) == {"commits": 0, "checkpoints": 0}


async def test_a_database_without_tables_or_without_a_server_is_told(postgres: Postgres) -> None:
    empty = await postgres.empty_database()
    assert "run `reattach migrate`" in await refused(1, "sessions", "--database", empty)
    assert "run `reattach migrate`" in await refused(1, "checkpoint", "s", "--database", empty)
    assert "revision" in await fine("migrate", "--database", empty)
    assert await told("sessions", "--database", empty) == {"items": [], "next": None}
    nowhere = "postgresql://user:secret@127.0.0.1:1/x"
    for command in (("sessions",), ("checkpoint", "s"), ("compact",), ("migrate",)):
        said = await refused(4, *command, "--database", nowhere)
        assert "Expected to connect to postgresql://127.0.0.1:1/x" in said
        assert "secret" not in said
