"""Whose outbox it is: nothing of it goes out in somebody else's name (rule F4)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from reattach.client import connect
from reattach.errors import NotAuthenticated, StoreError
from tests.conftest import NewServer
from tests.server.peer import opened
from tests.server.tokens import SECRET
from tests.support.server import ServerProcess

ANN, BOB = (jwt.encode({"sub": name}, SECRET, "HS256") for name in ("ann", "bob"))


@pytest.fixture(scope="module")
def server(
    new_server: NewServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = new_server(
        tmp_path_factory.mktemp("users") / "reattach.db",
        app=None,
        arguments=["--auth", "jwt"],
        environment={"REATTACH_JWT_SECRET": SECRET},
    )
    asyncio.run(server.start())
    yield server
    asyncio.run(server.kill())


async def test_a_hello_for_another_user_leaves_no_trace(server: ServerProcess) -> None:
    # Rule F4
    async with opened(server.ws_url, "letter", "c1") as peer:
        await peer.greet(token=BOB, user_id="ann", create={})
        code, reason = await peer.closed()
        assert (code, "another user's" in reason) == (4401, True)
    # Neither the session nor the client has become his.
    async with opened(server.ws_url, "letter", "c1") as peer:
        await peer.greet(token=BOB, user_id="bob")
        assert (await peer.closed())[0] == 4404
    async with opened(server.ws_url, "letter", "c1") as peer:
        welcome = await peer.hello(token=ANN, user_id="ann", create={})
        assert (welcome["created"], welcome["user_id"]) == (True, "ann")


async def test_an_outbox_file_is_read_and_sent_by_its_own_user_alone(
    server: ServerProcess, tmp_path: Path
) -> None:
    # Rule F4
    outbox, create = tmp_path / "o.db", {"state": {"title": ""}}
    # The file is Ann's, and she is not at the server yet: what she types stays in it.
    with pytest.raises(NotAuthenticated):
        async with connect(
            server.url, "draft", token=BOB, user="ann", outbox=outbox, create=create
        ):
            pass
    with pytest.raises(StoreError, match="a file of its own"):
        async with connect(server.url, "draft", token=BOB, user="bob", outbox=outbox):
            pass
    with pytest.raises(StoreError, match="a file of its own"):
        async with connect(server.url, "draft", token=BOB, outbox=outbox):
            pass
    async with connect(
        server.url, "draft", token=ANN, user="ann", outbox=outbox, create=create
    ) as session:
        await session.set("/title", "hers")
        assert session.status.saved
