"""The server's part of the example: it follows the answers, and nothing that it did itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from examples.gap_resolution import app, gaps
from examples.gap_resolution.detect import detect, follow
from examples.gap_resolution.session import GapResolution
from reattach import Commit, Reattach, Snapshot
from reattach.errors import SessionNotFound
from tests.support.waiting import until

URL = "http://127.0.0.1"


@pytest.fixture
async def reattach(tmp_path: Path) -> AsyncIterator[Reattach]:
    made = Reattach(database=f"sqlite:///{tmp_path / 'reattach.db'}", schemas=[GapResolution])
    follow(made)
    async with made as reattach:
        yield reattach


async def new_document(reattach: Reattach) -> str:
    snapshot = await reattach.sessions.create(
        gaps.first_state(), user_id="local", schema="GapResolution"
    )
    return snapshot.session.session_id


async def answer(reattach: Reattach, session_id: str, gap: str, text: str) -> int:
    op = {"op": "set", "path": f"/user_responses/#{gap}/answer", "value": text}
    return (await reattach.sessions.update(session_id, [op])).version


async def resolved(reattach: Reattach, session_id: str, count: int) -> Snapshot:
    snapshots: list[Snapshot] = []

    async def done() -> bool:
        snapshots.append(await reattach.sessions.get(session_id))
        return len(snapshots[-1].state["gaps_resolved"]) == count

    await until(done, within=5, what=f"{count} resolved gaps")
    return snapshots[-1]


async def test_it_follows_answers_and_not_itself(reattach: Reattach) -> None:
    session_id = await new_document(reattach)
    version = await answer(reattach, session_id, "title", "Tidewatch")
    snapshot = await resolved(reattach, session_id, 1)
    assert "title: Tidewatch" in snapshot.state["context"]["document"]
    assert snapshot.version == version + 1

    # Had its own commit moved it, another one would stand between this answer and the last.
    assert await answer(reattach, session_id, "type", "software") == version + 2
    await resolved(reattach, session_id, 2)


async def test_what_was_answered_while_nobody_looked_is_found(tmp_path: Path) -> None:
    """An answer that a server took before it died is looked at by the next one."""
    database = f"sqlite:///{tmp_path / 'reattach.db'}"
    blind = Reattach(database=database, schemas=[GapResolution])
    blind.on_commit(schema=GapResolution, name="gaps")(hang)
    async with blind:
        session_id = await new_document(blind)
        await answer(blind, session_id, "title", "Tidewatch")
    seeing = Reattach(database=database, schemas=[GapResolution])
    follow(seeing)
    async with seeing:
        await resolved(seeing, session_id, 1)


async def hang(_: str, __: Commit) -> None:
    await asyncio.Event().wait()


async def test_it_detects_nothing_in_what_is_not_there(reattach: Reattach) -> None:
    with pytest.raises(SessionNotFound):
        await detect(reattach.sessions, "no-such-document")


async def test_the_routes_of_the_example(tmp_path: Path) -> None:
    app.reattach.use_database(f"sqlite:///{tmp_path / 'reattach.db'}")
    transport = httpx.ASGITransport(app.reattach)
    async with (
        app.reattach,
        httpx.AsyncClient(transport=transport, base_url=URL, headers={"Origin": URL}) as client,
    ):
        made = await client.post("/documents")
        assert made.status_code == 201
        path = f"/documents/{made.json()['session_id']}"
        early = await client.get(f"{path}/file")
        assert (early.status_code, early.json()["code"]) == (409, "not_yet_valid")
        token = {"Authorization": f"Bearer {made.json()['token']}"}
        assert (await client.post(f"{path}/detect", headers=token)).status_code == 204
        assert (await client.post("/documents/none/detect", headers=token)).status_code == 404

        snapshot = await app.reattach.sessions.create({}, user_id="somebody else")
        other = f"/documents/{snapshot.session.session_id}/file"
        assert (await client.get(other, headers=token)).status_code == 404

        # A page of another site may neither ask for nor make anything.
        foreign = await client.post("/documents", headers={"Origin": "https://example.org"})
        assert foreign.status_code == 403
