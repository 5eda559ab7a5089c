"""What all tests share: servers that they may kill, and their logs when a test fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

from reattach.server import app
from reattach.store.base import Store
from reattach.store.postgres import PostgresStore
from reattach.store.sqlite import SQLiteStore
from tests.support import full
from tests.support.database import (
    ON_POSTGRES,
    ON_TWO_NODES,
    Database,
    PostgresDatabase,
    SQLiteDatabase,
)
from tests.support.pair import ServerPair
from tests.support.postgres import Postgres
from tests.support.server import ServerProcess
from tests.support.valkey import ValkeyServer

# A slow machine is no counterexample; a printed blob repeats a failure.
hypothesis.settings.register_profile("reattach", deadline=None, print_blob=True)
hypothesis.settings.load_profile("reattach")

Serve = Callable[..., Awaitable[ServerProcess]]
NewServer = Callable[..., ServerProcess]
BehindFile = Callable[[Path], Database]

# What a failed test wants to tell: a title and a text.
Witnesses = list[tuple[str, Callable[[], str]]]
WITNESSES = pytest.StashKey[Witnesses]()


@pytest.fixture
def witnesses(request: pytest.FixtureRequest) -> Witnesses:
    """Texts that are printed when the test fails: add a title and a function that gives one."""
    node: pytest.Item = request.node
    return node.stash.setdefault(WITNESSES, [])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for title, text in item.stash.get(WITNESSES, []):
            report.sections.append((title, text()))
    return report


def pytest_configure() -> None:
    if ON_TWO_NODES:
        full.seed()  # before there are processes that share the tests


def pytest_report_header() -> str | None:
    """Tells how to repeat a run with two nodes."""
    return f"two nodes: {full.SEED}={full.seed()}" if ON_TWO_NODES else None


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[Postgres]:
    """The PostgreSQL of all tests that do not kill it; each makes databases of its own there."""
    async with Postgres() as server:
        yield server


if ON_POSTGRES:

    @pytest.fixture(scope="session")
    def files(postgres: Postgres) -> Postgres | None:
        """The PostgreSQL that stands for files of SQLite in this run."""
        return postgres

else:

    @pytest.fixture(scope="session")
    def files() -> Postgres | None:
        """Nothing: files of SQLite stand for themselves."""
        return None


if ON_TWO_NODES:

    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str | None]:
        """Where the Valkey of this run's servers is."""
        async with ValkeyServer(tmp_path_factory.mktemp("valkey")) as valkey:
            yield valkey.url

else:

    @pytest.fixture(scope="session")
    def redis() -> str | None:
        """Nowhere: each server is alone."""
        return None


class _OnPostgres(PostgresStore):
    """The store that stands for a file of SQLite."""

    def __init__(self, postgres: Postgres, path: Path) -> None:
        super().__init__(postgres.url_for(path))
        self._make = partial(postgres.database_for, path)

    async def open(self) -> str:
        await self._make()
        return await super().open()


@pytest.fixture(autouse=ON_POSTGRES)
def in_process(
    files: Postgres,
    redis: str | None,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[None]:
    """Has servers in this process on PostgreSQL, too, and as two nodes where others are."""
    store_at = app.store_at

    def elsewhere(url: str, **options: Any) -> Store:
        store = store_at(url, **options)
        if isinstance(store, SQLiteStore):
            return _OnPostgres(files, Path(url.removeprefix("sqlite:///")))
        return store

    monkeypatch.setattr(app, "store_at", elsewhere)
    if redis is not None and request.node.get_closest_marker("one_node") is None:
        monkeypatch.setenv("REATTACH_REDIS", redis)
        full.share(monkeypatch, full.chance_of(request.node.nodeid))
    yield
    files.forget()


@pytest.fixture
def behind_file(files: Postgres | None) -> BehindFile:
    """Gives the database of a server in this process, by its file: see `database.behind`."""
    return lambda path: (
        SQLiteDatabase(path) if files is None else PostgresDatabase(files.url_for(path))
    )


@pytest.fixture(scope="module")
def moving() -> float | None:
    """Seconds after which, on average, a WebSocket to one of two nodes is moved; None: it stays."""
    return None


def _new_server(path: Path, name: str, redis: str | None, options: dict[str, Any]) -> ServerProcess:
    if redis is None:
        return ServerProcess(path, **options)
    environment = {"REATTACH_REDIS": redis, **(options.pop("environment", None) or {})}
    chance = full.chance_of(f"{name} {path.name}")
    return ServerPair(path, chance=chance, environment=environment, **options)


@pytest.fixture(scope="module")
def new_server(files: Postgres | None, redis: str | None, moving: float | None) -> NewServer:
    """Makes servers for several tests: `new_server(tmp_path / "reattach.db", …)`.

    They are not started yet. Options are those of ServerProcess.
    """

    def new(path: Path, **options: Any) -> ServerProcess:
        if files is not None:
            options["database_url"] = asyncio.run(files.own_database())
        if redis is not None:
            options["moving"] = moving
        return _new_server(path, path.parent.name, redis, options)

    return new


@pytest.fixture
async def serve(
    tmp_path: Path,
    witnesses: Witnesses,
    files: Postgres | None,
    redis: str | None,
    moving: float | None,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Serve]:
    """Starts servers: `server = await serve()`. Options are those of ServerProcess.

    The database is a file of this test unless one is given. All are killed in the end.
    """
    servers: list[ServerProcess] = []
    url = redis if request.node.get_closest_marker("one_node") is None else None

    async def start(database: Path | None = None, **options: Any) -> ServerProcess:
        path = database or tmp_path / f"reattach-{len(servers)}.db"
        if files is not None and "database_url" not in options:
            options["database_url"] = await files.database_for(path)
        if url is not None:
            options["moving"] = moving
        server = _new_server(path, request.node.nodeid, url, options)
        servers.append(server)
        witnesses.append((f"server log {server.url}", server.log_tail))
        await server.start()
        return server

    yield start
    for server in servers:
        await server.kill()
