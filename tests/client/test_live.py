"""The Python client against a real server, which is killed, cut off, and set back in time."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from reattach import NotAuthenticated, Reattach, ReattachError, User
from reattach.client import Session, connect
from reattach.client.effects import Status
from reattach.errors import (
    BadRequest,
    ChangeRefused,
    OutboxHeld,
    SessionClosed,
    SessionEnded,
    SessionNotFound,
    StoreError,
)
from tests.client.proxy import Proxy
from tests.conftest import NewServer, Serve
from tests.server.hosts import PREFIX, host_of, uvicorn_of
from tests.support.database import ON_POSTGRES
from tests.support.paths import ROOT
from tests.support.server import ServerProcess
from tests.support.waiting import until

CREATE: dict[str, dict[str, Any]] = {"state": {"n": 0, "list": [], "text": "", "a": 0}}


async def online(session: Session, within: float = 20) -> None:
    await until(lambda: session.status.connection == "online", within=within, what="a line")


@pytest.fixture(scope="module")
def server(
    new_server: NewServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One that nobody kills, for tests whose sessions have a `name` of their own."""
    server = new_server(tmp_path_factory.mktemp("live") / "reattach.db", app=None)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.kill())


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    node: pytest.Item = request.node
    return node.name


async def state_of(server: ServerProcess, session_id: str = "s") -> Any:
    async with connect(server.url, session_id) as reader:
        return reader.state


def counted(number: int) -> Any:
    """Operations that show when they took effect twice, or in part."""
    return [
        {"op": "inc", "path": "/n", "by": 1},
        {"op": "insert", "path": "/list", "value": {"id": f"i{number}"}},
    ]


async def test_awaiting_a_change_waits_for_the_server(server: ServerProcess, name: str) -> None:
    async with connect(server.url, name, create=CREATE, device={"name": "Worker"}) as session:
        await session.set("/title", "Minutes")
        await session.insert("/list", {"title": "first"})
        await session.insert("/list", {"id": "front"}, after=None)
        await session.move("/list/#front")
        await session.unset("/title")
        await session.inc("/n", 2)
        await session.splice("/text", 0, 0, "naïve 👍")
        await session.update(lambda state: [{"op": "set", "path": "/n2", "value": state["n"] + 1}])
        await session.update([])
        assert session.version == 8
        assert session.get("/list/#front") == {"id": "front"}
        assert session.get("/nowhere") is None
        assert session.get("/title", "none") == "none"
        state = session.state
        # A copy of one's own.
        session.state["n"] = 99
        assert session.state == state
        assert await state_of(server, name) == state
        assert [one["id"] for one in state["list"]] == [state["list"][0]["id"], "front"]
        assert (state["n"], state["n2"], state["text"]) == (2, 3, "naïve 👍")
        (device,) = session.devices
        assert (device["id"], device["name"]) == (session.device_id, "Worker")
        with pytest.raises(ChangeRefused, match="number"):
            session.inc("/text")
    with pytest.raises(SessionClosed):
        session.set("/a", 1)


@pytest.mark.parametrize(
    ("url", "session_id"),
    [
        ("ftp://example.org", "s"),
        ("example.org", "s"),
        ("http://example.org?a=1", "s"),
        ("http://example.org", ""),
        ("http://example.org", "a b"),
        ("http://example.org", "x" * 129),
    ],
)
def test_what_cannot_be_a_session_is_said_at_once(url: str, session_id: str) -> None:
    """Rule ID1."""
    with pytest.raises(BadRequest, match="expected"):
        connect(url, session_id)


async def test_a_session_that_is_not_there_says_so(server: ServerProcess) -> None:
    """Rule A3."""
    with pytest.raises(SessionNotFound):
        async with connect(server.url, "nowhere"):
            pass


async def test_changes_are_followed_by_others_each_once_in_order(serve: Serve) -> None:
    """Rule R1."""
    # So heavy that what was missed is told commit by commit.
    heavy = {"state": {**CREATE["state"], "filler": "x" * 4_000}}
    server = await serve(app=None)
    async with (
        connect(server.url, "s", create=heavy) as writer,
        connect(server.url, "s") as reader,
    ):
        followed = reader.changes()
        for number in range(5):
            writer.inc("/n", number)
        await writer.saved()
        await server.restart()
        for session in (writer, reader):
            session.network(online=True)
        await asyncio.gather(online(writer), online(reader))
        await writer.set("/a", "end")
        seen = []
        async for commit in followed:
            seen.append(commit.version)
            if commit.patch[-1].get("value") == "end":
                break
        assert seen == list(range(1, 7))
        assert commit.by.client_id is not None
        assert reader.state == writer.state


async def test_what_was_missed_by_more_than_the_state_comes_as_one_commit(
    server: ServerProcess, name: str
) -> None:
    """Rule R1."""
    async with (
        connect(server.url, name, create=CREATE) as writer,
        Proxy(server.port) as wire,
        connect(wire.url, name) as reader,
    ):
        followed = reader.changes()
        wire.refuse = True
        wire.cut()
        await until(lambda: reader.status.connection != "online", within=5, what="the cut")
        for number in range(30):
            writer.set("/a", f"{number:050}")
        await writer.saved()
        wire.refuse = False
        commit = await anext(followed)
        assert commit.version == 30
        assert commit.patch == [{"op": "replace", "path": "", "value": writer.state}]


@pytest.mark.faults
@pytest.mark.timeout(180)
async def test_over_killed_servers_nothing_is_lost_and_nothing_happens_twice(
    serve: Serve, tmp_path: Path
) -> None:
    """Rules X1, X2, W5."""
    server = await serve(app=None)
    sessions = [
        connect(server.url, "s", create=CREATE, outbox=tmp_path / "a.db"),
        connect(server.url, "s", create=CREATE),
    ]
    made = 0
    async with sessions[0], sessions[1]:
        for _ in range(4):
            waiting = []
            for _ in range(40):
                for session in sessions:
                    made += 1
                    waiting.append(session.update(counted(made)))
            await waiting[random.randrange(len(waiting))]
            await server.kill()
            for session in sessions:
                made += 1
                session.update(counted(made))
            await server.start()
            for session in sessions:
                session.network(online=True)
        for session in sessions:
            await session.saved()
        await until(
            lambda: sessions[0].version == sessions[1].version, within=5, what="both to have all"
        )
        assert sessions[0].state == sessions[1].state
    state = await state_of(server)
    assert state["n"] == made
    assert sorted(one["id"] for one in state["list"]) == sorted(f"i{n}" for n in range(1, made + 1))


@pytest.mark.faults
@pytest.mark.one_node("a quiet line is not to be moved by anybody")
async def test_a_server_that_says_nothing_is_left_and_found_again(serve: Serve) -> None:
    """Rules H1, H2."""
    hurry = {"REATTACH_HEARTBEAT_INTERVAL_MS": "200", "REATTACH_HEARTBEAT_TIMEOUT_MS": "600"}
    server = await serve(app=None, environment=hurry)
    async with connect(server.url, "s", create=CREATE) as session:
        # Quiet, and alive: heartbeats go to and fro, longer than either side waits.
        with pytest.raises(TimeoutError):
            await _lost(session, within=2)
        server.signal(signal.SIGSTOP)
        change = session.inc("/n")
        await _lost(session)
        server.signal(signal.SIGCONT)
        session.network(online=True)
        await change
        assert session.state["n"] == 1


async def _lost(session: Session, within: float = 10) -> None:
    await until(lambda: session.status.connection != "online", within=within, what="the loss")


WORKER = """
import asyncio, sys
from reattach.client import connect

async def main(url, outbox):
    create = {"state": {"n": 0, "list": []}}
    async with connect(url, "s", create=create, outbox=outbox) as session:
        number = 0
        while True:
            number += 1
            change = session.update([
                {"op": "inc", "path": "/n", "by": 1},
                {"op": "insert", "path": "/list", "value": {}},
            ])
            if await change.stored:
                print(number, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.faults
@pytest.mark.timeout(180)
async def test_a_killed_process_goes_on_with_its_outbox(serve: Serve, tmp_path: Path) -> None:
    """Rules B1, B2: what was called stored is there once, whoever is killed when."""
    server = await serve(app=None)
    outbox = tmp_path / "outbox.db"
    stored = 0
    for life in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, server.url, str(outbox)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            wanted = random.randint(5, 60)
            while wanted > 0 and process.stdout.readline():
                wanted -= 1
                stored += 1
            if life == 2:
                await server.kill()
            process.send_signal(signal.SIGKILL)
            # What it said before it was killed counts.
            stored += len(process.stdout.read().splitlines())
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    await server.start()
    async with connect(server.url, "s", outbox=outbox) as session:
        await session.saved()
        state = session.state
    assert stored > 20
    assert stored <= state["n"] <= stored + 4
    assert len({one["id"] for one in state["list"]}) == len(state["list"]) == state["n"]
    assert await state_of(server) == state


async def test_work_begins_without_a_server_and_goes_on_in_the_next_process(
    serve: Serve, tmp_path: Path
) -> None:
    """Rules B1, B6."""
    server = await serve(app=None)
    await server.kill()
    outbox = tmp_path / "outbox.db"
    async with connect(server.url, "s", create=CREATE, outbox=outbox) as session:
        change = session.inc("/n", 5)
        assert await change.stored is True
        status = session.status
        assert (status.pending, status.saved_on_device, status.saved) == (1, True, False)
        assert status.connection == "reconnecting"
        assert status.error is not None
        assert status.error[0] == "unreachable"
        assert [one["seq"] for one in session.export()["changes"]] == [1]
    # Leaving the block does not wait for a server that is away: the change is in the outbox.
    with pytest.raises(SessionClosed, match="outbox"):
        await change
    async with connect(server.url, "s", create=CREATE, outbox=outbox) as session:
        assert session.state["n"] == 5
        session.inc("/n", 1)
        await server.start()
        session.network(online=True)
        await session.saved()
        assert session.version == 2
    assert (await state_of(server))["n"] == 6


async def test_leaving_without_an_outbox_waits_for_the_server(serve: Serve) -> None:
    """Rule B4."""
    server = await serve(app=None)

    async def work() -> Status:
        async with connect(server.url, "s", create=CREATE) as session:
            await server.kill()
            await until(lambda: session.status.connection != "online", within=5, what="its end")
            session.inc("/n")
            return session.status

    task = asyncio.create_task(work())
    await until(lambda: not server.alive, within=5, what="the server to be killed")
    await server.start()
    status = await asyncio.wait_for(task, 30)
    assert (status.storage, status.saved_on_device) == ("memory", False)
    assert (await state_of(server))["n"] == 1


@pytest.mark.faults
async def test_lost_acknowledgements_make_nothing_happen_twice(
    server: ServerProcess, name: str, tmp_path: Path
) -> None:
    """Rules X2, X3."""
    async with (
        Proxy(server.port) as wire,
        connect(wire.url, name, create=CREATE, outbox=tmp_path / "o.db") as session,
        connect(server.url, name) as witness,
    ):
        heard = witness.changes()
        for number in range(1, 11):
            await online(session)
            wire.mute = True
            change = session.inc("/n")
            while witness.state["n"] < number:
                await anext(heard)
            assert not change.acknowledged.done()
            wire.mute = False
            wire.cut()
            await until(lambda: session.status.connection != "online", within=5, what="the cut")
            session.network(online=True)
            await change
        assert session.state["n"] == witness.state["n"] == 10


@pytest.mark.faults
async def test_a_copied_outbox_takes_a_name_of_its_own(serve: Serve, tmp_path: Path) -> None:
    """Rule B5."""
    server = await serve(app=None)
    mine, copy = tmp_path / "mine.db", tmp_path / "copy.db"
    async with connect(server.url, "s", create=CREATE, outbox=mine) as session:
        await session.inc("/n", 1)
        name = session.export()["client_id"]
        await server.kill()
        await until(lambda: session.status.connection != "online", within=5, what="its end")
        await session.inc("/n", 10).stored
    shutil.copy(mine, copy)
    await server.start()
    async with connect(server.url, "s", outbox=mine) as session:
        await session.inc("/n", 100)
        assert session.export()["client_id"] == name
    async with connect(server.url, "s", outbox=copy) as clone:
        # What both had pending is there once; what only the copy does is its own.
        await clone.inc("/n", 1_000)
        await clone.saved()
        assert clone.export()["client_id"] != name
        assert clone.state["n"] == 1_111
    async with connect(server.url, "s", outbox=mine) as session:
        await session.inc("/n", 10_000)
        await session.saved()
        assert session.state["n"] == 11_111


@pytest.mark.faults
@pytest.mark.timeout(180)
@pytest.mark.skipif(ON_POSTGRES, reason="the backup is a copy of a file")
async def test_a_restored_backup_of_the_server_loses_no_pending_change(
    serve: Serve, tmp_path: Path
) -> None:
    """Rules E1, E3."""
    server = await serve(app=None)
    async with connect(server.url, "s", create=CREATE, outbox=tmp_path / "o.db") as session:
        await session.set("/a", "before")
        await server.stop()
        backup = tmp_path / "backup.db"
        shutil.copy(server.database, backup)
        await server.start()
        session.network(online=True)
        await session.set("/a", "lost")
        await session.set("/b", "lost")
        epoch = session.epoch
        await server.kill()
        await until(lambda: session.status.connection != "online", within=5, what="its end")
        change = session.inc("/n", 7)
        for suffix in ("", "-wal", "-shm"):
            server.database.with_name(server.database.name + suffix).unlink(missing_ok=True)
        shutil.copy(backup, server.database)
        events = session.events()
        await server.start()
        session.network(online=True)
        await change
        lost = [event.detail["lost"] async for event in _until_saved(events)]
        assert [one["version"] for one in lost] == [3]
        assert lost[0]["state"]["b"] == "lost"
        assert session.epoch != epoch
        state = session.state
        assert (state["n"], state["a"]) == (7, "before")
        assert "b" not in state


async def _until_saved(events: Any) -> Any:
    async for event in events:
        if event.type == "saved":
            return
        if event.type == "historyLost":
            yield event


async def test_a_refused_change_is_kept_and_can_be_mended(
    server: ServerProcess, name: str, tmp_path: Path
) -> None:
    """Rules L3, L5."""
    outbox = tmp_path / "o.db"
    async with connect(server.url, name, create=CREATE, outbox=outbox) as session:
        with pytest.raises(ChangeRefused) as refused:
            await session.set("/a", "x" * 300_000)
        assert refused.value.code == "change_too_large"
        assert session.state["a"] == 0
        session.set("/b", "y" * 300_000)
        await session.saved()
        assert len(session.rejected) == 2
    async with connect(server.url, name, outbox=outbox) as session:
        first, second = session.rejected
        assert (first.code, len(first.ops[0]["value"])) == ("change_too_large", 300_000)
        with pytest.raises(ChangeRefused):
            await second.send_again()
        first.discard()
        (again,) = session.rejected
        await again.edit([{"op": "set", "path": "/b", "value": "short"}])
        assert session.rejected == []
        assert session.state["b"] == "short"


async def test_a_change_that_closes_its_connection_twice_is_put_aside(
    server: ServerProcess, name: str, tmp_path: Path
) -> None:
    """Rules L4, L5."""
    async with connect(server.url, name, create=CREATE, outbox=tmp_path / "o.db") as session:
        session.inc("/n", 1)
        huge = session.set("/a", "x" * 1_200_000)
        session.inc("/n", 10)
        with pytest.raises(ChangeRefused) as refused:
            await huge
        assert refused.value.code == "too_large"
        await session.saved()
        assert [one.code for one in session.rejected] == ["too_large"]
        assert session.state["n"] == 11
    assert (await state_of(server, name))["n"] == 11


async def test_a_session_that_is_erased_leaves_the_outbox(
    server: ServerProcess, name: str, tmp_path: Path
) -> None:
    """Rule L8."""
    outbox = tmp_path / "o.db"
    async with connect(server.url, name, create=CREATE, outbox=outbox) as session:
        await session.inc("/n")
        changes = session.changes()
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
            answer = await http.delete(f"/api/v0/session/{name}")
            assert answer.is_success
        await until(lambda: session.status.connection == "closed", within=5, what="the end")
        with pytest.raises(SessionEnded):
            await session.inc("/n")
        with pytest.raises(SessionEnded):
            await session.saved()
        assert [commit.version async for commit in changes] == []
        assert session.state["n"] == 2
    # What is there can be read and exported, if not sent.
    async with connect(server.url, name, outbox=outbox) as session:
        assert session.state["n"] == 2
        assert [one["ops"][0]["op"] for one in session.export()["changes"]] == ["inc"]


async def test_an_outbox_is_held_by_one_process_for_one_session(
    server: ServerProcess, name: str, tmp_path: Path
) -> None:
    """Rules B3, F3."""
    outbox = tmp_path / "o.db"
    async with connect(server.url, name, create=CREATE, outbox=outbox, user="local") as session:
        with pytest.raises(OutboxHeld, match=r"this very process.*holds"):
            async with connect(server.url, name, outbox=outbox, user="local"):
                pass
        await session.inc("/n")
    for session_id, user in (("t", "local"), (name, "bob")):
        with pytest.raises(StoreError, match="a file of its own"):
            async with connect(server.url, session_id, outbox=outbox, user=user):
                pass
    async with connect(server.url, name, outbox=outbox, user="local") as session:
        assert session.state["n"] == 1
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(StoreError, match="expected to open the outbox"):
        async with connect(server.url, name, outbox=tmp_path / "text.db"):
            pass


async def test_a_mistake_in_the_client_is_told_to_who_waits(
    server: ServerProcess, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    async with connect(server.url, name, create=CREATE) as session:
        monkeypatch.setattr(session._core, "_on_frame", fail)
        failed: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failed.append(what))
        with pytest.raises(ReattachError, match="a mistake"):
            await session.inc("/n")
        assert len(failed) == 1


async def test_who_stops_waiting_stops_nothing_else(server: ServerProcess, tmp_path: Path) -> None:
    outbox = tmp_path / "o.db"
    for _ in range(3):
        # Nobody is there, and nothing is known: entering waits. The file is free again at once.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), connect("http://127.0.0.1:9", "s", outbox=outbox):
                pass
    task = asyncio.create_task(connect("http://127.0.0.1:9", "s", outbox=outbox).__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with connect("http://127.0.0.1:9", "s", outbox=outbox, create=CREATE) as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.inc("/n")
        assert session.status.pending == 1
        assert [one["ops"][0]["path"] for one in session.export()["changes"]] == ["/n"]
    async with connect(server.url, "s", outbox=outbox, create=CREATE) as session:
        await session.saved()
        assert session.version == 1


async def test_a_checkpoint_has_what_was_changed_before_and_can_be_restored(
    server: ServerProcess, name: str
) -> None:
    """Rules K1, K3, RE1."""
    async with connect(server.url, name, create=CREATE) as session:
        await online(session)
        events = session.events()
        session.set("/title", "before")
        mark = await session.save_checkpoint("Draft", {"page": 3})
        assert (mark.name, mark.kind, mark.data) == ("Draft", "named", {"page": 3})
        assert mark.version == session.version == 1
        async for event in events:
            if event.type == "checkpointSaved":
                assert event.detail["checkpoint"]["id"] == mark.id
                break
        await session.set("/title", "after")
        await session.restore(mark)
        assert session.get("/title") == "before"
        listed = await session.checkpoints()
        assert [one.kind for one in listed] == ["before_restore", "named"]
        assert listed[-1] == mark
        with pytest.raises(ReattachError) as refused:
            await session.save_checkpoint(data="x" * 5_000)
        assert refused.value.code == "too_large"
        with pytest.raises(ChangeRefused):
            session.restore(mark, version=1)


async def test_who_leaves_a_session_does_not_wait_for_its_checkpoint() -> None:
    async with connect("http://127.0.0.1:9", "s", create=CREATE) as session:
        saving = asyncio.create_task(session.save_checkpoint())
        await session.close()
        with pytest.raises(SessionClosed):
            await saving


async def test_a_version_is_restored_and_that_is_undone(server: ServerProcess, name: str) -> None:
    # Rules RE1, RE2
    async with connect(server.url, name, create=CREATE) as session:
        await session.set("/title", "one")
        first = session.version
        await session.set("/title", "two")
        await session.restore(version=first)
        assert session.get("/title") == "one"
        await session.restore(version=first + 1)
        assert session.get("/title") == "two"
        with pytest.raises(ChangeRefused) as refused:
            await session.restore(checkpoint_id="latest")
        assert refused.value.code == "no_such_checkpoint"
        with pytest.raises(ChangeRefused):
            session.restore()


async def test_presence_and_events_of_others(server: ServerProcess, name: str) -> None:
    """Rule W3."""
    async with (
        connect(server.url, name, create=CREATE) as one,
        connect(server.url, name, device={"id": "desk", "name": "Desk"}) as other,
    ):
        events = one.events()
        other.presence({"caret": 3})
        async for event in events:
            if event.type == "presence":
                assert event.detail["data"] == {"caret": 3}
                assert event.detail["device_id"] == "desk"
                break
        await until(lambda: len(one.devices) == 2, within=5, what="both devices")


async def test_concurrent_writes_leave_a_conflict(server: ServerProcess, name: str) -> None:
    """Rules M1, O10: both values are kept, and anybody can settle it."""
    async with (
        Proxy(server.port) as wire,
        connect(server.url, name, create=CREATE) as near,
        connect(wire.url, name) as far,
    ):
        wire.refuse = True
        wire.cut()
        await until(lambda: far.status.connection != "online", within=5, what="the cut")
        await near.set("/a", "near")
        change = far.set("/a", "far")
        wire.refuse = False
        await change
        assert far.state["a"] == "far"
        (conflict,) = far.conflicts
        assert (conflict.path, conflict.kept["value"]) == ("/a", "far")
        assert conflict.lost["value"] == "near"
        settled = conflict.resolve("lost")
        assert far.conflicts == []
        await settled
        assert far.state["a"] == "near"
        await until(lambda: near.state["a"] == "near" and not near.conflicts, within=5, what="near")


# Tokens


class _Guard:
    def __init__(self) -> None:
        self.good = "first"
        self.asked = 0

    def authenticate(self, connection: HTTPConnection) -> User:
        if connection.state.token != self.good:
            raise NotAuthenticated("this token is not good any more")
        return User("ann")

    async def token(self) -> str:
        self.asked += 1
        return "first" if self.asked == 1 else self.good


async def test_an_expired_token_is_asked_for_anew(tmp_path: Path) -> None:
    """Rule A2."""
    guard = _Guard()
    reattach = Reattach(database=f"sqlite:///{tmp_path / 'r.db'}", authenticate=guard.authenticate)
    async with uvicorn_of(host_of(reattach)) as address:
        url = f"http://{address}{PREFIX}"
        async with connect(url, "s", token=guard.token, create=CREATE) as session:
            await session.inc("/n")
        guard.good, guard.asked = "second", 0
        async with connect(url, "s", token=guard.token) as session:
            assert guard.asked == 2
            await session.inc("/n")
            assert session.state["n"] == 2
        # A token that stays the same is as bad the next time.
        with pytest.raises(NotAuthenticated):
            async with connect(url, "s", token="first"):
                pass


async def test_a_token_that_cannot_be_had_is_asked_for_again(tmp_path: Path) -> None:
    asked: list[None] = []

    def token() -> str:
        asked.append(None)
        if len(asked) == 1:
            raise OSError("the key server is away")
        return "good"

    reattach = Reattach(
        database=f"sqlite:///{tmp_path / 'r.db'}", authenticate=lambda _: User("ann")
    )
    async with (
        uvicorn_of(host_of(reattach)) as address,
        connect(f"http://{address}{PREFIX}", "s", token=token, create=CREATE) as session,
    ):
        await session.inc("/n")
        assert len(asked) == 2


# Text


@pytest.mark.faults
@pytest.mark.timeout(180)
async def test_a_stream_of_text_is_whole_whoever_dies(serve: Serve, tmp_path: Path) -> None:
    """Rules W4, X2."""
    server = await serve(app=None)
    words = [f"word{number} 👍 " for number in range(600)]
    async with (
        connect(server.url, "s", create=CREATE, outbox=tmp_path / "o.db") as session,
        connect(server.url, "s") as reader,
    ):
        async with session.text("/text") as out:
            for number, word in enumerate(words):
                await out.write(word)
                if number == 200:
                    await server.kill()
                if number == 300:
                    await server.start()
                await asyncio.sleep(0.002)
        # Leaving the block waits until the server has all of it.
        assert session.status.saved
        assert await state_of(server) == session.state
        assert session.get("/text") == "".join(words)
        await until(lambda: reader.get("/text") == "".join(words), within=10, what="the reader")
        assert session.version < 60


@pytest.mark.faults
async def test_two_who_type_into_one_text_keep_every_character(
    server: ServerProcess, name: str
) -> None:
    """Rules TX3, TX4, X6: whoever is cut off, and however long."""
    chance = random.Random(7)
    async with (
        Proxy(server.port) as wire,
        connect(wire.url, name, create=CREATE) as one,
        connect(server.url, name) as two,
    ):
        typists = {one: "abcdefghij", two: "ABCDEFGHIJ"}
        for turn in range(300):
            for session, letters in typists.items():
                text = session.get("/text")
                # One goes on behind its own, the other anywhere.
                at = len(text) if session is one else chance.randint(0, len(text))
                session.splice("/text", at, 0, letters[turn % 10])
            if turn % 60 == 30:
                wire.refuse = True
                wire.cut()
            if turn % 60 == 50:
                wire.refuse = False
                one.network(online=True)
                await online(one)
            await asyncio.sleep(0.002)
        await asyncio.gather(one.saved(), two.saved())
        await until(lambda: one.version == two.version, within=10, what="both to have all")
        assert one.state == two.state
        for letters in typists.values():
            assert all(one.get("/text").count(letter) == 30 for letter in letters)


@pytest.mark.faults
async def test_a_stream_goes_on_where_it_was_whatever_others_write(
    server: ServerProcess, name: str
) -> None:
    """Rules TX4, TX5."""
    async with (
        connect(server.url, name, create=CREATE) as writer,
        connect(server.url, name) as other,
    ):
        async with writer.text("/text") as out:
            for number in range(200):
                await out.write(f"<{number}>")
                if number % 20 == 10:
                    await other.splice("/text", 0, 0, "#")
                if number == 100:
                    # Somebody sets a mark behind all that there is by now.
                    await other.splice("/text", len(other.get("/text")), 0, "|")
                await asyncio.sleep(0.003)
        await other.saved()
        text = writer.get("/text")
        assert text.count("#") == 10
        assert text.replace("#", "").replace("|", "") == "".join(f"<{n}>" for n in range(200))
        # What others put behind the stream stays behind it, but for what was on its way.
        assert "|" in text


async def test_a_stream_is_gathered_and_split(server: ServerProcess, name: str) -> None:
    text = "".join(chr(0x4E00 + number % 5_000) for number in range(100_000))
    async with connect(server.url, name, create=CREATE) as session:
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with session.text("/text") as out:
            for at in range(0, len(text), 500):
                await out.write(text[at : at + 500])
        assert session.get("/text") == text
        # At most 20 commits a second, at least as many as its size asks for.
        assert 7 <= session.version <= (loop.time() - started) * 20 + 2
        async with session.text("/text") as out:
            await out.write("!")
            await out.write("")
        assert session.get("/text") == f"{text}!"


async def _write_and_fail(session: Session) -> None:
    async with session.text("/text") as out:
        await out.write("kept")
        raise TimeoutError


async def test_a_writer_says_where_there_is_no_place_for_text(
    server: ServerProcess, name: str
) -> None:
    async with connect(server.url, name, create=CREATE) as session:
        with pytest.raises(ChangeRefused, match="string"):
            async with session.text("/n") as out:
                await out.write("x")
        with pytest.raises(ChangeRefused) as refused:
            async with session.text("/text") as out:
                await out.write("\ud800")
        assert refused.value.code == "bad_string"
        with pytest.raises(TimeoutError):
            await _write_and_fail(session)
        # What was written before the exception is on its way.
        await session.saved()
        assert session.get("/text") == "kept"
