"""What all tests share: servers that they may kill, and their logs when a test fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

from tests.support.postgres import Postgres
from tests.support.server import ServerProcess

# A slow machine is no counterexample; a printed blob repeats a failure.
hypothesis.settings.register_profile("reattach", deadline=None, print_blob=True)
hypothesis.settings.load_profile("reattach")

Serve = Callable[..., Awaitable[ServerProcess]]

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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[Postgres]:
    """The PostgreSQL of all tests that do not kill it; each makes databases of its own there."""
    async with Postgres() as server:
        yield server


@pytest.fixture
async def serve(tmp_path: Path, witnesses: Witnesses) -> AsyncIterator[Serve]:
    """Starts servers: `server = await serve()`. Options are those of ServerProcess.

    The database is a file of this test unless one is given. All are killed in the end.
    """
    servers: list[ServerProcess] = []

    async def start(database: Path | None = None, **options: Any) -> ServerProcess:
        path = database or tmp_path / f"reattach-{len(servers)}.db"
        server = ServerProcess(path, **options)
        servers.append(server)
        witnesses.append((f"server log {server.url}", server.log_tail))
        await server.start()
        return server

    yield start
    for server in servers:
        await server.kill()
