"""What is erased is nowhere: in no file of SQLite, in none of PostgreSQL by docs/operations.md."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from reattach.store.tables import metadata
from tests.conftest import Serve
from tests.support.database import SQLiteDatabase
from tests.support.paths import ROOT
from tests.support.stack import Stack
from tests.support.waiting import until
from tests.support.wire_client import WireClient

pytestmark = pytest.mark.faults

SECRET = "sixteen-tons-of-secret"  # what is looked for
KEPT = "nobody-erased-this"
EMPTIED = "emptied-before-it-was-erased"


OF_NO_SESSION = {"meta", "nodes", "erased_sessions"}
"""Tables that have nothing of a session, or of an erased one its id alone."""


async def lived(anywhere: Any, session_id: str, word: str) -> None:
    """A session with a word wherever a user's can come to."""
    # So heavy that the log after it is held as a hot snapshot, too.
    create = {"text": " ".join(f"{word} {n}" for n in range(8_000)), "list": []}
    one = WireClient(anywhere, session_id, f"{session_id}-one", create=create)
    two = WireClient(anywhere, session_id, f"{session_id}-two", device_id=f"d-{word}")
    async with one, two:
        await one.change({"op": "set", "path": "/n", "value": word})
        await one.settled()
        base = one.version
        await one.change({"op": "set", "path": "/same", "value": f"{word} of one"})
        await one.settled()
        # Behind its back: one of them becomes a conflict.
        await two.change({"op": "set", "path": "/same", "value": f"{word} of two"}, base=base)
        await two.change({"op": "set", "path": f"/{word}/none", "value": 1})
        for n in range(30):
            value = {"id": f"r{n}", "of": word, "text": f"{word} " * 200 + str(n)}
            await one.change({"op": "insert", "path": "/list", "value": value})
        await one.change({"op": "set", "path": "/gone", "value": f"{word} {EMPTIED}"})
        await one.change({"op": "unset", "path": "/gone"})
        await one.send(type="save_checkpoint", ref="r", name=f"{word} mark", data={"is": word})
        await one.settled()
        await two.settled()
        assert two.rejected
        await one.told(lambda frame: frame["type"] == "checkpoint_saved", what="its mark")


def holding(folder: Path, wanted: Iterable[bytes]) -> dict[str, bytes]:
    """The files that have one of these bytes in them."""
    wanted = list(wanted)
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        for one in wanted:
            if one in data:
                found[str(path.relative_to(folder))] = one
    return found


def traces(states: Iterable[bytes]) -> list[bytes]:
    """What gives the session away: its word, and the middle of each of its packed states."""
    return [SECRET.encode(), *(state[len(state) // 2 :][:40] for state in states)]


async def erase(url: str) -> None:
    async with httpx.AsyncClient(base_url=f"{url}/api/v0") as api:
        assert (await api.delete("/session/s")).status_code == 204
        assert (await api.get("/session/s")).status_code == 410
        assert KEPT in (await api.get("/session/kept")).text


async def test_no_file_of_sqlite_has_anything_of_what_was_erased(
    serve: Serve, tmp_path: Path
) -> None:
    # Rule T9
    folder = tmp_path / "data"
    folder.mkdir()
    server = await serve(folder / "reattach.db", app=None)
    await lived(server.ws_url, "s", SECRET)
    await lived(server.ws_url, "kept", KEPT)
    if server.database_url is not None:
        pytest.skip("not run: the tests' databases are on PostgreSQL, which has a test of its own")
    rows = SQLiteDatabase(server.database).rows("SELECT state FROM states WHERE session_id = 's'")
    wanted = traces(bytes(row[0]) for row in rows)
    files = [path for path in folder.iterdir() if not path.name.endswith(".server.log")]
    assert len(files) >= 3
    assert {"reattach.db-wal"} <= set(holding(folder, wanted))
    await erase(server.url)
    assert holding(folder, wanted) == {}
    assert holding(folder, [KEPT.encode()])
    # Nor after a life that ended in the middle of things.
    await server.kill()
    assert holding(folder, wanted) == {}
    await server.start()
    await erase_again(server.url)


async def erase_again(url: str) -> None:
    async with httpx.AsyncClient(base_url=f"{url}/api/v0") as api:
        assert (await api.delete("/session/s")).status_code == 410


def steps() -> list[str]:
    """The statements in docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    return [one.strip() for one in block.split(";") if one.strip()]


def test_the_steps_name_every_table_that_has_anything_of_a_session() -> None:
    named = set(re.findall(r"\w+", " ".join(steps())))
    assert {table.name for table in metadata.sorted_tables} - OF_NO_SESSION <= named


async def test_by_the_steps_of_operations_nothing_is_left_in_postgresql(tmp_path: Path) -> None:
    # Rule T9: rows, indexes and keys at once; pages, statistics and log by the steps
    environment = {"REATTACH_IDLE_SESSION_MS": "300"}
    async with Stack(tmp_path, app=None, chance=random.Random(1), environment=environment) as stack:
        await lived(stack.anywhere, "s", SECRET)
        await lived(stack.anywhere, "kept", KEPT)

        async def held() -> bool:
            return any(b":snapshot:s" in key for key in await keys(stack))

        await until(held, within=20, what="a hot snapshot of the session")
        db = await asyncpg.connect(stack.database)
        try:
            # As autovacuum does by itself, sooner or later.
            await db.execute("ANALYZE")
            rows = await db.fetch("SELECT state FROM states WHERE session_id = 's'")
            wanted = traces(row[0] for row in rows)
            await db.execute("CHECKPOINT")
            before = holding(stack.postgres.data, wanted)
            assert [name for name in before if name.startswith("base/")], before
            assert [name for name in before if name.startswith("pg_wal/")], before
            await erase(stack.nodes[0].url)
            await nothing_readable(stack, db)
            assert holding(stack.postgres.data, wanted), "then nobody would need the steps"
            for statement in steps():
                await db.execute(statement)
            assert holding(stack.postgres.data, wanted) == {}
            assert holding(stack.postgres.data, [KEPT.encode()])
        finally:
            await db.close()


async def keys(stack: Stack) -> list[bytes]:
    found = await stack.valkey.call("KEYS", "*")
    assert isinstance(found, list)
    return found


async def nothing_readable(stack: Stack, db: asyncpg.Connection[Any]) -> None:
    for table in metadata.sorted_tables:
        if table.name in OF_NO_SESSION:
            continue
        count = await db.fetchval(
            f"SELECT count(*) FROM {table.name} AS one"  # noqa: S608  # our own
            " WHERE one::text LIKE '%' || $1 || '%' OR session_id = 's'",
            SECRET,
        )
        assert count == 0, table.name
    for key in await keys(stack):
        if key.endswith(b":snapshot:s"):
            assert await stack.valkey.call("HKEYS", key) == [b"gone"]
        else:
            kind = await stack.valkey.call("TYPE", key)
            assert b":snapshot:kept" in key or kind != b"hash", key
