"""What commands have done to sessions: by the server that holds the file, or by themselves."""

from __future__ import annotations

import asyncio
import importlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from reattach import Reattach
from reattach.cli import reach
from reattach.runtime.registry import Registry
from reattach.server import app, operators
from reattach.settings import Settings
from reattach.store.sqlite import SQLiteStore
from tests.cli.conftest import fine, reattach, refused, told
from tests.server.peer import joined
from tests.server.test_rest import as_user, by_token, session_url
from tests.support.server import ServerProcess
from tests.support.waiting import until

OPERATOR = reach.operator_name()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server in a process of its own, for all tests that do not end it."""
    started = ServerProcess(tmp_path_factory.mktemp("server") / "reattach.db", app=None)
    asyncio.run(started.start())
    yield started
    asyncio.run(started.kill())


@pytest.fixture
def on(server: ServerProcess) -> tuple[str, str]:
    return "--database", f"sqlite:///{server.database}"


async def create(server: ServerProcess, session_id: str, state: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=f"{server.url}/api/v0", trust_env=False) as client:
        body = {"session_id": session_id, "state": state}
        assert (await client.post("/session", json=body)).status_code == 201
        await client.patch(
            f"/session/{session_id}",
            content=msgspec.json.encode({"n": 1}),
            headers={"Content-Type": "application/merge-patch+json"},
        )


async def get(server: ServerProcess, path: str) -> Any:
    async with httpx.AsyncClient(base_url=f"{server.url}/api/v0", trust_env=False) as client:
        return (await client.get(path)).json()


# By the server that holds the file


async def test_a_checkpoint_is_saved_and_listed(server: ServerProcess, on: tuple[str, str]) -> None:
    await create(server, "marked", {"n": 0})
    saved = await told("checkpoint", "marked", "--name", "mine", "--data", '{"a": 1}', *on)
    items = (await get(server, "/session/marked/checkpoints"))["items"]
    assert items == [saved]
    assert (saved["name"], saved["data"], saved["version"]) == ("mine", {"a": 1}, 1)
    assert (await told("checkpoint", "marked", "--list", *on))["items"] == items
    assert "mine" in await fine("checkpoint", "marked", "--list", *on)
    said = await refused(2, "checkpoint", "marked", "--data", "{a", *on)
    assert "expected JSON for --data" in said


async def test_a_restore_is_seen_by_every_device_and_can_be_undone(
    server: ServerProcess, on: tuple[str, str]
) -> None:
    async with joined(server.ws_url, session_id="restored", state={"n": 0}) as peer:
        await peer.change({"op": "inc", "path": "/n", "by": 1})
        await peer.expect("state_update")
        said = await fine("restore", "restored", "--version", "0", *on)
        restored = await peer.expect("session_restored")
        assert (restored["version"], restored["to_version"]) == (2, 0)
        assert restored["by"]["user_id"] == OPERATOR
        assert restored["by"]["source"] == "server"
        undo = said.rpartition("reattach ")[2].split()
        assert undo == ["restore", "restored", "--version", "1"]
        again = await told(*undo, *on)
        assert await peer.expect("session_restored") == again
    assert (await get(server, "/session/restored"))["state"] == {"n": 1}


async def test_what_cannot_be_restored_is_told(server: ServerProcess, on: tuple[str, str]) -> None:
    await create(server, "stays", {"n": 0})
    assert "either --version or" in await refused(2, "restore", "stays", *on)
    assert "no such checkpoint" in await refused(3, "restore", "stays", "--checkpoint", "x", *on)
    assert "is not retained" in await refused(3, "restore", "stays", "--version", "7", *on)
    assert "no such session" in await refused(3, "restore", "nope", "--version", "0", *on)
    assert (await get(server, "/session/stays"))["version"] == 1


async def test_an_export_is_imported_into_an_empty_database(
    server: ServerProcess, on: tuple[str, str], tmp_path: Path
) -> None:
    await create(server, "moved", {"n": 0})
    said = await fine("export", "moved", "moved.json", *on)
    first = (tmp_path / "moved.json").read_bytes()
    assert said == f"Wrote {len(first):,} bytes to moved.json.\n"
    assert (tmp_path / "moved.json").stat().st_mode & 0o777 == 0o600
    taken = await refused(1, "import", "moved.json", *on)
    assert "'moved' is taken" in taken

    other = ("--database", "sqlite:///other.db")
    await fine("migrate", *other)
    imported = await told("import", "moved.json", *other)
    assert imported == {"session_id": "moved", "user_id": "local", "version": 1}
    piped = await reattach("export", "moved", "-", *other)
    one, two = msgspec.json.decode(first), msgspec.json.decode(piped.stdout)
    assert (one["commits"], one["state"]) == (two["commits"], two["state"])
    assert two["activity"][-1]["activity_type"] == "imported"
    assert two["activity"][-1]["user_id"] == OPERATOR
    lines = (await get(server, "/session/moved/activity"))["items"]
    assert (lines[0]["activity_type"], lines[0]["user_id"]) == ("exported", OPERATOR)


async def test_a_session_is_imported_for_another_user_and_from_a_pipe(
    server: ServerProcess, on: tuple[str, str]
) -> None:
    await create(server, "given", {"n": 0})
    file = (await reattach("export", "given", "-", *on)).stdout_bytes
    other = ("--database", "sqlite:///other.db")
    await fine("migrate", *other)
    done = await reattach("import", "-", "--user", "ann", *other, typed=file)
    assert done.stdout == "Session given is there at version 1, owned by ann.\n"
    assert (
        "expected an exported session"
        in (await reattach("import", "-", *other, typed=b"{}")).stderr
    )
    assert "cannot read nothing.json: No such file" in await refused(
        1, "import", "nothing.json", *other
    )


async def test_a_session_is_erased_and_only_when_asked_twice(
    server: ServerProcess, on: tuple[str, str]
) -> None:
    await create(server, "gone", {"n": 0})
    assert "--yes does not ask" in await refused(1, "erase", "gone", *on)
    assert "either the id of a session or --user" in await refused(2, "erase", *on)
    assert await fine("erase", "gone", "--yes", *on) == "1 session is erased.\n"
    assert "was erased at" in await refused(3, "show", "gone", *on)
    assert "no such session" in await refused(3, "erase", "gone", "--yes", *on)
    assert await told("erase", "--user", "nobody", "--yes", *on) == {"erased": 0}


async def test_another_epoch_begins_in_one_session_and_in_all(
    server: ServerProcess, on: tuple[str, str]
) -> None:
    """E3: `reattach epoch new`; the session's connections are closed with 1012."""
    async with joined(server.ws_url, session_id="set-back", state={"n": 0}) as peer:
        assert await fine("epoch", "new", "--session", "set-back", *on) == (
            "1 session is in another epoch.\n"
        )
        assert (await peer.closed())[0] == 1012
        first = (await get(server, "/session/set-back"))["epoch"]
        assert first != peer.epoch
    async with joined(server.ws_url, session_id="set-back") as peer:
        assert peer.epoch == first
        renewed = (await told("epoch", "new", *on))["renewed"]
        assert renewed == len((await told("sessions", "--limit", "0", *on))["items"])
        assert (await peer.closed())[0] == 1012
        assert (await get(server, "/session/set-back"))["epoch"] != first
    assert "no such session" in await refused(3, "epoch", "new", "--session", "nope", *on)


async def test_history_is_compacted_by_the_server(
    server: ServerProcess, on: tuple[str, str]
) -> None:
    await create(server, "old", {"n": 0})
    assert await told("compact", "--session", "old", *on) == {"commits": 0, "checkpoints": 0}
    said = await fine("compact", *on)
    assert said == "0 commits and 0 automatic checkpoints are gone.\n"
    assert "no such session" in await refused(3, "compact", "--session", "nope", *on)


async def test_the_lock_file_is_for_its_owner_alone_and_opens_nothing_without_its_secret(
    server: ServerProcess,
) -> None:
    lock = server.database.with_name("reattach.db.lock")
    assert lock.stat().st_mode & 0o777 == 0o600
    assert lock.read_text().splitlines()[0] == str(server.pid)
    found = reach.doors(server.database)
    assert found is not None
    port, secret = found
    for said in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(len(secret)), secret[:-1]):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    served = await reach.served_by(server.database)
    assert served is not None
    assert served["pid"] == server.pid


async def test_an_order_that_is_none_is_refused(server: ServerProcess) -> None:
    found = reach.doors(server.database)
    assert found is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", found[0])
    writer.write(found[1])
    assert await reader.readexactly(len(operators.GREETING)) == operators.GREETING
    writer.write(b"\x00\x00\x00\x01\xc0")
    answer = msgspec.msgpack.decode(await operators.receive(reader), type=operators.Answer)
    assert isinstance(answer, operators.Failed)
    assert answer.code == "bad_request"
    writer.close()


# Without a server


@pytest.fixture
async def file(tmp_path: Path) -> str:
    """A database that no server holds."""
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    async with Reattach(database=url) as made:
        await made.sessions.create({"n": 0}, user_id="ann", session_id="s")
        await made.sessions.update("s", [{"op": "inc", "path": "/n", "by": 1}])
    return url


async def test_where_no_server_runs_the_command_does_it_itself(file: str) -> None:
    on = ("--database", file)
    assert (await told("restore", "s", "--version", "0", *on))["version"] == 2
    assert (await told("show", "s", *on))["state"] == {"n": 0}
    kinds = [one["kind"] for one in (await told("checkpoint", "s", "--list", *on))["items"]]
    assert kinds == ["before_restore"]
    async with Reattach(database=file) as again:  # nothing is left that would hold it
        assert (await again.sessions.get("s")).version == 2
    assert await told("erase", "--user", "ann", "--yes", *on) == {"erased": 1}


async def test_a_server_that_was_killed_is_not_waited_for(file: str, tmp_path: Path) -> None:
    """What it said is still in the lock file, and another program may listen there now."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        said = f"4711\n{stranger.getsockname()[1]} {'00' * operators.SECRET_BYTES}\n"
        (tmp_path / "mine.db.lock").write_text(said)

        def answer() -> None:
            with stranger.accept()[0] as one:
                one.recv(100)
                one.sendall(b"220 mail.example.org ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        saved = await told("checkpoint", "s", "--database", file)
        thread.join()
    assert saved["version"] == 1
    assert (await told("checkpoint", "s", "--database", file))["version"] == 1


async def test_a_holder_that_cannot_be_asked_is_told(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_PATIENCE_S", 0.0)
    store = SQLiteStore(tmp_path / "mine.db")
    await store.open()
    assert "holds it: stop that one" in await refused(5, "checkpoint", "s", "--database", file)
    await store.close()


async def test_a_server_that_has_just_started_is_waited_for(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the file, and has not said yet where it listens."""
    holds, waited = asyncio.Event(), asyncio.Event()
    held = reach._do_it_here

    @asynccontextmanager
    async def later(registry: Registry, settings: Settings) -> AsyncIterator[None]:
        holds.set()
        await waited.wait()
        async with operators.operated(registry, settings):
            yield

    async def found_held(*arguments: Any) -> Any:
        loop.call_soon_threadsafe(waited.set)
        return await held(*arguments)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(app, "operated", later)
    monkeypatch.setattr(reach, "_do_it_here", found_held)
    server = Reattach(database=file)
    starting = asyncio.create_task(server.start())
    await holds.wait()
    assert (await told("checkpoint", "s", "--database", file))["version"] == 1
    await starting
    await server.stop()


async def test_a_session_whose_schema_is_not_known_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orders_of_a_shop.py").write_text(
        "from reattach import Reattach, SessionModel\n"
        "class Order(SessionModel):\n    n: int = 0\n"
        "reattach = Reattach(database='sqlite:///orders.db', schemas=[Order])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    async with importlib.import_module("orders_of_a_shop").reattach as server:
        await server.sessions.create({}, user_id="ann", session_id="s", schema="Order")
        await server.sessions.update("s", [{"op": "inc", "path": "/n", "by": 1}])
    alone = ("--database", "sqlite:///orders.db")
    said = await refused(2, "restore", "s", "--version", "0", *alone)
    assert "expected to know the schema 'Order' of session 's'" in said
    assert "--app" in said
    restored = await told("restore", "s", "--version", "0", "--app", "orders_of_a_shop:reattach")
    assert restored["patch"] == [{"op": "replace", "path": "/n", "value": 0}]
    assert (await told("show", "s", *alone))["schema"] == {"name": "Order", "version": 1}


async def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "got no file" in await refused(4, "checkpoint", "s", "--database", "sqlite:///new.db")
    assert not (tmp_path / "new.db").exists()


async def test_erasing_a_user_forgets_their_devices_in_the_sessions_of_others(
    tmp_path: Path,
) -> None:
    """Regression: the route did, and the command left the devices' names."""
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    async with (
        Reattach(database=database, authenticate=by_token) as shared,
        as_user(shared, "ann") as ann,
        as_user(shared, "bob") as bob,
    ):
        body = {"session_id": "b", "state": {}}
        assert (await bob.post("/api/v0/session", json=body)).status_code == 201
        members, devices = session_url("b", "/members"), session_url("b", "/devices")
        assert (await bob.put(f"{members}/ann", json={"role": "editor"})).status_code == 200
        device = {"id": "d-ann", "name": "Ann's phone", "info": {"kind": "phone"}}
        sign = {"session_id": "b", "device": device}
        assert (await ann.post(session_url("heartbeat"), json=sign)).status_code == 204

        async def names() -> list[str | None]:
            return [one["name"] for one in (await bob.get(devices)).json()["items"]]

        async def known() -> bool:
            return "Ann's phone" in await names()

        await until(known, within=10, what="her device to be known")
        erased = await told("erase", "--user", "ann", "--yes", "--database", database)
        assert erased == {"erased": 0}
        assert "Ann's phone" not in await names()
