"""Server-Sent Events, from a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest

from reattach.runtime.access import User
from reattach.server.app import Reattach
from reattach.server.sse import EventStream, TooMany
from reattach.settings import Settings
from reattach.store.memory import MemoryStore
from tests.conftest import Serve
from tests.support.database import behind
from tests.support.server import ServerProcess
from tests.support.waiting import until

Json = dict[str, Any]

pytestmark = pytest.mark.faults

URL = "/api/v0/session/s"
MERGE = {"Content-Type": "application/merge-patch+json"}


class Event(NamedTuple):
    """One event; a comment has no type."""

    type: str | None
    id: str | None
    data: Any


class Reader:
    """An EventSource: reads one stream, event by event, and remembers the last id."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.last_id: str | None = None

    async def next(self, *, comments: bool = False) -> Event:
        """The next event; StopAsyncIteration at the end of the stream."""
        async with asyncio.timeout(15):
            while True:
                event = await self._read()
                if comments or event.type is not None:
                    return event

    async def commits(self, count: int) -> list[Event]:
        """The next commits, whatever else comes in between."""
        found: list[Event] = []
        while len(found) < count:
            event = await self.next()
            if event.type == "state_update":
                found.append(event)
        return found

    async def told(self, count: int) -> list[Event]:
        """The next events but for `devices`, which come when they come."""
        found: list[Event] = []
        while len(found) < count:
            event = await self.next()
            if event.type != "devices":
                found.append(event)
        return found

    async def rest(self) -> list[Event]:
        """All that comes until the stream ends."""
        found = []
        with contextlib.suppress(StopAsyncIteration):
            while True:
                found.append(await self.next())
        return found

    async def _read(self) -> Event:
        fields: dict[str, str] = {}
        comment = False
        while line := await anext(self._lines):
            name, _, value = line.partition(":")
            comment = comment or not name
            fields[name] = value.removeprefix(" ")
        self.last_id = fields.get("id", self.last_id)
        if comment:
            return Event(None, None, None)
        return Event(fields["event"], fields.get("id"), json.loads(fields["data"]))


@contextlib.asynccontextmanager
async def client(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20, trust_env=False) as api:
        yield api


@contextlib.asynccontextmanager
async def reading(
    api: httpx.AsyncClient, last_id: str | None = None, query: str = "", **headers: str
) -> AsyncIterator[Reader]:
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    async with api.stream("GET", f"{URL}/events{query}", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Reader(response)


async def create(api: httpx.AsyncClient, state: Json | None = None) -> Json:
    answer = await api.post("/api/v0/session", json={"session_id": "s", "state": state or {}})
    assert answer.status_code == 201, answer.text
    session: Json = answer.json()
    return session


async def merge(api: httpx.AsyncClient, patch: Json) -> httpx.Response:
    answer = await api.patch(URL, content=json.dumps(patch), headers=MERGE)
    assert answer.status_code == 200, answer.text
    return answer


async def post(
    api: httpx.AsyncClient, epoch: str, seq: int, *ops: Json, client_id: str = "c"
) -> Json:
    change = {"seq": seq, "epoch": epoch, "base": 0, "at": seq, "ops": ops}
    body = {"client_id": client_id, "device": {"id": "d"}, "t": 1000, "changes": [change]}
    answer = await api.post(f"{URL}/changes", json=body)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def as_client(name: str = "c") -> dict[str, str]:
    return {"Reattach-Client": name, "Reattach-Device": "d"}


async def test_a_stream_begins_with_the_state_and_goes_on_with_commits(serve: Serve) -> None:
    server = await serve(app=None)
    async with client(server) as api:
        epoch = (await create(api, {"n": 0}))["epoch"]
        await merge(api, {"n": 1})
        async with reading(api) as reader:
            first = await reader.next()
            assert (first.type, first.id) == ("initial_state", f"{epoch}.1")
            assert (first.data["type"], first.data["state"]) == ("initial_state", {"n": 1})
            for number in (2, 3):
                await merge(api, {"n": number})
            commits = await reader.commits(2)
        assert [commit.id for commit in commits] == [f"{epoch}.2", f"{epoch}.3"]
        history = (await api.get(f"{URL}/history?from=2")).json()
        for item in history["items"]:
            del item["client_at"]  # of use to its own client alone
        assert [commit.data for commit in commits] == history["items"]


async def test_a_stream_resumes_with_exactly_the_commits_after_it(serve: Serve) -> None:
    # Rule T12
    server = await serve(app=None)
    async with client(server) as api:
        epoch = (await create(api))["epoch"]
        for number in range(5):
            await merge(api, {"n": number})
        for known in range(6):
            async with reading(api, f"{epoch}.{known}") as reader:
                await merge(api, {"n": -known})
                current = 6 + known
                seen = [await reader.next() for _ in range(current - known)]
                assert [event.id for event in seen] == [
                    f"{epoch}.{version}" for version in range(known + 1, current + 1)
                ]
                assert {event.type for event in seen} == {"state_update"}
        for other in ("", "nonsense", "a.b", f"{epoch}.", "other.3", f"{epoch}.x", f"{epoch}.99"):
            async with reading(api, other) as reader:
                assert (await reader.next()).type == "initial_state", other


async def test_a_stream_resumes_after_the_server_was_killed(serve: Serve) -> None:
    server = await serve(app=None)
    async with client(server) as api:
        await create(api)
        async with reading(api) as reader:
            await merge(api, {"n": 1})
            await reader.commits(1)
            known = reader.last_id
            await merge(api, {"n": 2})
            await server.kill()
            with contextlib.suppress(httpx.HTTPError):
                await reader.rest()
        await server.restart()
    async with client(server) as api:
        await merge(api, {"n": 3})
        async with reading(api, known) as reader:
            assert [one.data["version"] for one in await reader.commits(2)] == [2, 3]


async def test_readers_that_come_and_go_skip_no_version(serve: Serve) -> None:
    server = await serve(app=None)
    commits = 300
    async with client(server) as api:
        await create(api)

        async def write() -> None:
            for number in range(commits // 10):
                await asyncio.gather(*(merge(api, {"n": number}) for _ in range(10)))

        async def follow() -> list[int]:
            versions: list[int] = []
            last_id: str | None = None
            while not versions or versions[-1] < commits:
                async with reading(api, last_id) as reader:
                    for _ in range(7):
                        event = await reader.next()
                        assert (event.type == "initial_state") == (last_id is None)
                        last_id = reader.last_id
                        versions.append(event.data["version"])
                        if versions[-1] >= commits:
                            break
            return versions

        readers = [asyncio.create_task(follow()) for _ in range(4)]
        await write()
        for reader in readers:
            versions = await reader
            assert versions == list(range(versions[0], commits + 1))


async def test_a_comment_comes_at_every_interval(serve: Serve) -> None:
    short = {"REATTACH_HEARTBEAT_INTERVAL_MS": "100", "REATTACH_HEARTBEAT_TIMEOUT_MS": "2000"}
    server = await serve(app=None, environment=short)
    async with client(server) as api:
        await create(api)
        async with reading(api) as reader:
            await reader.next()
            # Longer than the timeout: who reads need say nothing to stay.
            for _ in range(30):
                assert (await reader.next(comments=True)).type is None
            await merge(api, {"n": 1})
            await reader.commits(1)


async def test_a_down_link_is_its_clients(serve: Serve) -> None:
    # Rule T13; of two nodes at one: what another one refuses, its answer tells
    server = await serve(app=None)
    async with client(server.nodes[0]) as api:
        epoch = (await create(api))["epoch"]
        bad = {"op": "set", "path": "/x/y", "value": 1}
        async with reading(api, **as_client()) as reader, reading(api) as other:
            first = await reader.next()
            assert (first.type, first.data["seq"], first.data["rejected"]) == (
                "initial_state",
                0,
                [],
            )
            devices = (await api.get(f"{URL}/devices")).json()["items"]
            assert [(one["id"], one["online"]) for one in devices] == [("d", True)]
            await post(api, epoch, 1, {"op": "set", "path": "/a", "value": 1})
            await post(api, epoch, 2, bad)
            commit, refusal = await reader.told(2)
            assert commit.data["by"]["client_id"] == "c"
            assert (refusal.type, refusal.id, refusal.data["seq"]) == ("rejected", None, 2)
            await merge(api, {"b": 1})
            assert [event.type for event in await other.commits(2)] == ["state_update"] * 2
        # What was refused before is told again, unless the client says that it knows.
        async with reading(api, f"{epoch}.1", **as_client()) as reader:
            assert [event.type for event in await reader.told(2)] == ["state_update", "rejected"]
        knows = {"Reattach-Seq": "2"}
        async with reading(api, f"{epoch}.1", **as_client(), **knows) as reader:
            await merge(api, {"c": 1})
            assert [event.type for event in await reader.told(2)] == ["state_update"] * 2
        async with reading(api, **as_client()) as reader:
            first = await reader.next()
            assert [one["seq"] for one in first.data["rejected"]] == [2]


async def test_a_newer_down_link_closes_the_older_one(serve: Serve) -> None:
    server = await serve(app=None)
    async with client(server) as api:
        await create(api)
        async with reading(api, **as_client()) as older:
            await older.next()
            async with reading(api, **as_client()) as newer:
                await newer.next()
                last = (await older.rest())[-1]
                assert (last.type, last.data["code"]) == ("close", 4409)
                devices = (await api.get(f"{URL}/devices")).json()["items"]
                assert devices[0]["online"] is True
                await merge(api, {"n": 1})
                await newer.commits(1)

        async def offline() -> bool:
            devices = (await api.get(f"{URL}/devices")).json()["items"]
            return devices[0]["online"] is False

        await until(offline, within=5, what="the device to be offline")


async def test_a_down_link_needs_both_its_names(serve: Serve) -> None:
    server = await serve(app=None)
    async with client(server) as api:
        await create(api)
        for headers in (
            {"Reattach-Client": "c"},
            {"Reattach-Device": "d"},
            {"Reattach-Client": "a b", "Reattach-Device": "d"},
            as_client() | {"Reattach-Seq": "x"},
        ):
            answer = await api.get(f"{URL}/events", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_header")


def with_hello(**rest: Any) -> dict[str, str]:
    return as_client() | {"Reattach-Hello": json.dumps(rest)}


async def test_a_stream_with_a_hello_begins_with_a_welcome_whatever_its_client_has(
    serve: Serve,
) -> None:
    """Rule T40."""
    server = await serve(app=None)
    async with client(server) as api:
        epoch = (await create(api, {"long": "x" * 1000}))["epoch"]
        bad = {"op": "set", "path": "/x/y", "value": 1}
        await post(api, epoch, 1, {"op": "set", "path": "/a", "value": 1})
        await post(api, epoch, 2, bad)
        device = {"name": "Büro 😀", "info": {"os": "none"}}
        async with reading(api, f"{epoch}.0", **with_hello(device=device, t=1)) as reader:
            first = await reader.next()
            assert (first.type, first.id) == ("resumed", f"{epoch}.1")
            assert (first.data["seq"], first.data["role"]) == (2, "owner")
            assert [one["version"] for one in first.data["commits"]] == [1]
            assert [one["seq"] for one in first.data["rejected"]] == [2]
            assert first.data["devices"][0]["name"] == "Büro 😀"
        # What it cannot go on from is answered by the state; what it has seen of another is lost.
        async with reading(api, "other.1", **with_hello()) as reader:
            assert (await reader.next()).type == "initial_state"
        async with reading(api, f"{epoch}.1", **with_hello()) as reader:
            assert (await reader.next()).data["commits"] == []


async def test_a_stream_with_a_hello_is_let_in_by_the_rules_of_a_hello(serve: Serve) -> None:
    # Rules T40 and F4
    server = await serve(app=None)
    async with client(server) as api:
        await create(api)
        for headers, status, code in (
            (with_hello(user_id="eve"), 401, "not_authenticated"),
            (as_client() | {"Reattach-Hello": "[]"}, 400, "bad_header"),
            (as_client() | {"Reattach-Hello": '{"device": {"name": 1}}'}, 400, "bad_header"),
        ):
            answer = await api.get(f"{URL}/events", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        # Its welcome would have no patches to rewrite, and its commits no state to do it with.
        answer = await api.get(f"{URL}/events?patches=rfc6902", headers=with_hello())
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_header")


async def test_presence_by_http_goes_to_the_others(serve: Serve) -> None:
    """Rule T41."""
    server = await serve(app=None)
    async with client(server) as api:
        await create(api)
        async with reading(api, **as_client("a")) as one, reading(api, **as_client("b")) as other:
            await one.next()
            await other.next()
            body = {"client_id": "a", "device": {"id": "d"}, "data": {"at": 3}}
            answer = await api.post(f"{URL}/presence", json=body)
            assert (answer.status_code, answer.content) == (204, b"")
            [event] = await other.told(1)
            assert event.data == {"type": "presence", "device_id": "d", "data": {"at": 3}}
            # A client that has no line here is heard as well, and by everybody.
            await api.post(f"{URL}/presence", json=body | {"client_id": "c", "data": 4})
            assert [(await reader.told(1))[0].data["data"] for reader in (one, other)] == [4, 4]
            large = await api.post(f"{URL}/presence", json=body | {"data": "x" * 5_000})
            assert (large.status_code, large.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("resumed", [False, True])
async def test_text_can_come_as_replacements(serve: Serve, resumed: bool) -> None:
    server = await serve(app=None)
    async with client(server) as api:
        epoch = (await create(api, {"t": "ab"}))["epoch"]
        splice = {"op": "splice", "path": "/t", "index": 1, "delete": 0, "insert": "x"}
        await post(api, epoch, 1, splice)
        last_id = f"{epoch}.1" if resumed else None
        async with reading(api, last_id, "?patches=rfc6902") as reader:
            if not resumed:
                assert (await reader.next()).data["state"] == {"t": "axb"}
            await post(api, epoch, 2, splice, splice | {"index": 0, "delete": 1})
            await post(api, epoch, 3, {"op": "set", "path": "/u", "value": 1})
            one, other = await reader.commits(2)
        assert one.data["patch"] == [{"op": "replace", "path": "/t", "value": "xxxb"}]
        assert other.data["patch"] == [{"op": "add", "path": "/u", "value": 1}]


@pytest.mark.parametrize(("how", "code"), [("end", 4410), ("erase", 4410), ("stop", 1012)])
async def test_the_last_event_says_why_a_stream_ends(serve: Serve, how: str, code: int) -> None:
    # Rule T20
    server = await serve(app=None)
    async with client(server) as api:
        epoch = (await create(api))["epoch"]
        async with reading(api) as reader, reading(api, **as_client()) as down:
            await reader.next()
            await down.next()
            stopping = None
            if how == "end":
                await post(api, epoch, 1, {"op": "end"}, client_id="c2")
            elif how == "erase":
                assert (await api.delete(URL)).status_code == 204
            else:
                stopping = asyncio.create_task(server.stop(within=5))
            for stream in (reader, down):
                last = (await stream.rest())[-1]
                assert (last.type, last.data["code"]) == ("close", code)
                assert last.data["reason"]
            if stopping is not None:
                await stopping


async def test_nothing_is_streamed_before_it_is_durable(serve: Serve) -> None:
    server = await serve(app=None)
    async with client(server) as api:
        epoch = (await create(api, {"n": 0}))["epoch"]
        async with reading(api) as reader:
            await reader.next()
            with behind(server).write_lock():
                writing = asyncio.create_task(merge(api, {"n": 1}))
                event = asyncio.create_task(reader.commits(1))
                resuming = asyncio.create_task(first_event(api, f"{epoch}.0"))
                starting = asyncio.create_task(first_event(api, None))
                done, _ = await asyncio.wait({writing, event, resuming, starting}, timeout=1)
                for task in done:
                    # A stream may begin with what is durable.
                    assert task is starting
                    assert starting.result().data["version"] == 0
            await writing
            assert (await event)[0].data["version"] == 1
            assert (await resuming).data["version"] == 1
            assert (await starting).data["version"] in {0, 1}


async def first_event(api: httpx.AsyncClient, last_id: str | None) -> Event:
    async with reading(api, last_id) as reader:
        return await reader.next()


async def test_a_reader_that_is_too_slow_is_sent_away_and_loses_nothing(serve: Serve) -> None:
    # Rule L9
    server = await serve(app=None, environment={"REATTACH_MAX_SEND_BUFFER_BYTES": "100000"})
    async with client(server) as api:
        epoch = (await create(api))["epoch"]
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.port))
            request = f"GET {URL}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            headers = "".join(f"{name}: {value}\r\n" for name, value in as_client().items())
            slow.sendall(f"{request}{headers}\r\n".encode())

            async def online() -> bool:
                devices = (await api.get(f"{URL}/devices")).json()["items"]
                return any(one["online"] for one in devices)

            await until(online, within=5, what="the reader to be there")
            written = 0
            while await online():
                written += 1
                assert written < 500, "nobody noticed"
                await merge(api, {"text": f"{written}" + "x" * 50_000})
        async with reading(api, f"{epoch}.{written - 1}") as reader:
            assert [one.data["version"] for one in await reader.commits(1)] == [written]
        # More than may wait for a reader is sent as a state.
        async with reading(api, f"{epoch}.0") as reader:
            first = await reader.next()
            assert (first.type, first.data["version"]) == ("initial_state", written)


async def test_a_user_has_so_many_streams_of_a_session() -> None:
    # Rule A5
    ann, settings = User("ann"), Settings(max_user_connections=2)
    options: Any = {"settings": settings, "authenticate": lambda _: ann}
    async with Reattach(store=MemoryStore(), **options) as reattach:
        await reattach.sessions.create(user_id="ann", session_id="s")
        registry = await reattach.running()
        streams = [EventStream(registry, settings, None) for _ in range(3)]
        await streams[0].observe("s", ann, None)
        await streams[1].join("s", ann, client_id="c", device_id="d", seq=0, after=None)
        with pytest.raises(TooMany):
            await streams[2].observe("s", ann, None)
        assert len(registry.connections) == 2
        # The same client again takes the place of its older stream.
        again = EventStream(registry, settings, None)
        await again.join("s", ann, client_id="c", device_id="d", seq=0, after=None)
        registry.connections.disconnected(streams[0].connection, "gone")
        await EventStream(registry, settings, None).observe("s", ann, None)
