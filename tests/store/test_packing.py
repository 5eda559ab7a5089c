"""Saved states are packed in both databases, and rows from before that are read as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reattach.store.base import SavedState, Store
from reattach.store.packing import HEAD, MARK, pack, unpack
from reattach.store.postgres import PostgresStore
from reattach.store.sqlite import SQLiteStore
from reattach.testing.store import change, creation
from tests.support.database import Database, PostgresDatabase, SQLiteDatabase
from tests.support.postgres import Postgres

STATE = b'{"text":"%b"}' % (b"one and the same " * 200)
INDEX = b'[["s","/text"]]' * 100


@pytest.mark.parametrize(
    "data", [b"", b"{}", STATE, MARK, MARK + b"\x00" * 9, b"\xff", bytes(range(256))]
)
def test_what_is_packed_is_unpacked(data: bytes) -> None:
    assert unpack(pack(data)) == data


def test_only_what_becomes_less_is_packed() -> None:
    assert pack(b"{}") == b"{}"
    assert len(pack(STATE)) < len(STATE) / 10
    assert int.from_bytes(pack(STATE)[len(MARK) : HEAD]) == len(STATE)


@pytest.fixture(params=["sqlite", "postgres"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres
) -> AsyncIterator[tuple[Store, Database]]:
    """A store, and the database behind it."""
    store: Store
    behind: Database
    if request.param == "sqlite":
        path = tmp_path / "sessions.db"
        store, behind = SQLiteStore(path), SQLiteDatabase(path)
    else:
        url = await postgres.database()
        store, behind = PostgresStore(url), PostgresDatabase(url)
    await store.open()
    yield store, behind
    await store.close()


async def test_states_lie_packed_and_old_ones_are_read(place: tuple[Store, Database]) -> None:
    store, behind = place
    await store.append([creation("s1"), creation("s2", state=STATE)])
    saved = SavedState(version=1, state=STATE, index=INDEX)
    await store.append([change("s1", 0, state=saved)])
    rows = await asyncio.to_thread(
        behind.rows,
        "SELECT state, last_writers FROM states WHERE session_id = ? AND version = 1",
        "s1",
    )
    assert [bytes(one[: len(MARK)]) for one in rows[0]] == [MARK, MARK]
    # As it was written before there was this form.
    raw = f"CAST('{STATE.decode()}' AS BLOB)"
    if isinstance(store, PostgresStore):
        raw = f"convert_to('{STATE.decode()}', 'UTF8')"
    older = f"UPDATE states SET state = {raw} WHERE session_id = 's2'"  # noqa: S608  # our own
    await asyncio.to_thread(behind.execute, older)
    for name, version in (("s1", 1), ("s2", 0)):
        loaded = await store.load(name)
        assert loaded is not None
        assert (loaded.saved.version, loaded.saved.state) == (version, STATE)
    everything = await store.everything("s2")
    assert everything is not None
    assert everything.saved.state == STATE
    # What is read at once is bounded by what it comes to, not by what it lies as.
    for name in ("s1", "s2"):
        assert list(await store.load_many([name, "none"], len(STATE) - 1)) == [name]
