"""A `Reattach` inside an application of somebody's own."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from reattach import NotAuthenticated, Reattach, User
from reattach.errors import DatabaseHeld, StoreError, Unavailable
from reattach.store.sqlite import SQLiteStore
from tests.server.hosts import PREFIX, host_of, uvicorn_of
from tests.server.peer import joined, opened
from tests.support.database import ON_POSTGRES
from tests.support.paths import ROOT


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mount.db'}"


async def test_it_serves_below_its_prefix_beside_the_hosts_own_routes(database: str) -> None:
    reattach = Reattach(database=database)
    async with (
        uvicorn_of(host_of(reattach)) as where,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        assert (await client.get(f"http://{where}/hello")).json() == "hello"
        assert (await client.get(f"http://{where}{PREFIX}/readyz")).status_code == 200
        made = await client.post(f"http://{where}{PREFIX}/api/v0/session", json={"state": {"n": 1}})
        assert made.status_code == 201
        async with opened(f"ws://{where}{PREFIX}", made.json()["session_id"]) as peer:
            assert (await peer.hello())["state"] == {"n": 1}


async def test_it_starts_on_first_use_once(database: str) -> None:
    """The store would refuse a second hold of its file."""
    reattach = Reattach(database=database)
    host = FastAPI()
    host.mount(PREFIX, reattach)
    transport = httpx.ASGITransport(app=host)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answers = await asyncio.gather(*(client.get(f"{PREFIX}/readyz") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    await reattach.stop()


async def test_the_hosts_end_closes_the_connections(database: str) -> None:
    """Section 5: 1012."""
    reattach = Reattach(database=database)
    async with uvicorn_of(FastAPI(), lifespan="off"):
        pass
    async with uvicorn_of(mounting(reattach), lifespan="off") as where:
        async with joined(f"ws://{where}{PREFIX}") as peer:
            await reattach.stop()
            assert (await peer.closed())[0] == 1012
        # It does not start anew behind the back of whoever stopped it.
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://{where}{PREFIX}/readyz")
        assert answer.status_code == 503
    with pytest.raises(Unavailable):
        await reattach.sessions.get("s1")


def mounting(reattach: Reattach) -> FastAPI:
    """A host that does not care for the lifespan of what it mounts."""
    host = FastAPI()
    host.mount(PREFIX, reattach)
    return host


async def test_it_can_be_started_again(database: str) -> None:
    reattach = Reattach(database=database)
    for n in range(3):
        async with reattach:
            await reattach.sessions.create({"n": n}, user_id="ada", session_id=f"s{n}")
    async with reattach:
        assert (await reattach.sessions.get("s1")).state == {"n": 1}


@pytest.mark.skipif(ON_POSTGRES, reason="only a file is held by one server")
async def test_a_start_that_fails_says_why_and_can_be_tried_again(
    database: str, tmp_path: Path
) -> None:
    other = SQLiteStore(tmp_path / "mount.db")
    await other.open()
    reattach = Reattach(database=database)
    attempts = await asyncio.gather(*(reattach.start() for _ in range(3)), return_exceptions=True)
    assert {type(attempt) for attempt in attempts} == {DatabaseHeld}
    with pytest.raises(DatabaseHeld, match="stop that one, or give this one another file"):
        await reattach.sessions.get("s1")
    await other.close()
    async with reattach:
        pass


def test_a_database_url_is_checked_at_once() -> None:
    for url, says in (
        ("mysql://db/reattach", "expected a database URL such as sqlite:///reattach.db"),
        ("postgresql://db:port/reattach", "got one whose host cannot be read"),
    ):
        with pytest.raises(StoreError, match=says):
            Reattach(database=url)


# In process


async def test_updates_and_changes_in_process(database: str) -> None:
    # Rule W6
    """With the guarantees of every client: section 5, durable first."""
    reattach = Reattach(database=database)
    async with uvicorn_of(host_of(reattach)) as where, joined(f"ws://{where}{PREFIX}") as peer:
        seen: asyncio.Queue[int] = asyncio.Queue()

        async def follow() -> None:
            async for commit in reattach.sessions.changes("s1", after=0):
                seen.put_nowait(commit.version)

        task = asyncio.create_task(follow())
        commit = await reattach.sessions.update("s1", [{"op": "set", "path": "/a", "value": 1}])
        assert commit.version == 1
        assert commit.by.source == "server"
        assert (await peer.expect("state_update"))["patch"] == [
            {"op": "add", "path": "/a", "value": 1}
        ]
        peer.version = 1
        await peer.change({"op": "set", "path": "/b", "value": 2})
        assert [await asyncio.wait_for(seen.get(), 5) for _ in range(2)] == [1, 2]
        assert (await reattach.sessions.get("s1")).state == {"a": 1, "b": 2}
        task.cancel()


async def test_an_application_runs_beside_its_sessions(database: str) -> None:
    """`lifespan` finds the sessions at hand, and still has them when it ends."""
    told = []

    @asynccontextmanager
    async def lifespan(reattach: Reattach) -> AsyncIterator[None]:
        await reattach.sessions.create({}, user_id="ada", session_id="s1")
        told.append("begun")
        yield
        told.append((await reattach.sessions.get("s1")).session.user_id)

    async with Reattach(database=database, lifespan=lifespan):
        assert told == ["begun"]
    assert told == ["begun", "ada"]


# Who is there


async def test_the_application_says_who_is_there(database: str) -> None:
    """Section 8: a mounting application passes its own authenticate; 4401."""

    async def authenticate(connection: HTTPConnection) -> User:
        if connection.state.token != "sesame":
            raise NotAuthenticated("expected to hear the word")
        return User("ali")

    reattach = Reattach(database=database, authenticate=authenticate)
    async with uvicorn_of(host_of(reattach)) as where:
        url = f"ws://{where}{PREFIX}"
        async with opened(url) as peer:
            assert (await peer.hello(token="sesame", create={}))["user_id"] == "ali"
        async with opened(url) as stranger:
            await stranger.send(type="hello", client_id="c", device={"id": "d"}, t=0, token="x")
            assert await stranger.closed() == (4401, "expected to hear the word")


# Never stopped


@pytest.mark.parametrize(
    "program",
    [
        "asyncio.run(reattach.start())",
        "loop = asyncio.new_event_loop(); loop.run_until_complete(reattach.start())",
    ],
    ids=["the loop ends", "the interpreter ends"],
)
def test_it_says_so_when_it_was_not_stopped(tmp_path: Path, program: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import asyncio\nfrom reattach import Reattach\n"
                f"reattach = Reattach(database='sqlite:///{tmp_path}/x.db')\n{program}\n"
            ),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert "RuntimeWarning: a Reattach was started and never stopped" in done.stderr
    assert "async with reattach:" in done.stderr
    assert done.stderr.count("never stopped") == 1


async def test_it_says_nothing_when_it_was_stopped_or_never_started(
    database: str, recwarn: pytest.WarningsRecorder
) -> None:
    Reattach(database=database)
    async with Reattach(database=database):
        pass
    gc.collect()
    assert not recwarn.list
