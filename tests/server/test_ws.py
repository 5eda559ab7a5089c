"""The WebSocket (protocol, section 5), through `reattach serve` and through any ASGI server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from reattach import Reattach, Settings
from tests.conftest import BehindFile, Serve
from tests.server.hosts import PREFIX, host_of, uvicorn_of
from tests.server.peer import SUBPROTOCOL, Peer, joined, now, opened
from tests.support.database import locked

Start = Callable[..., Awaitable[str]]

DATABASE = "ws.db"


async def start_serve(serve: Serve, tmp_path: Path, **settings: int) -> str:
    environment = {f"REATTACH_{name}".upper(): str(value) for name, value in settings.items()}
    server = await serve(tmp_path / DATABASE, app=None, environment=environment)
    return server.ws_url


@pytest.fixture
def picows(serve: Serve, tmp_path: Path) -> Start:
    """Starts `reattach serve` with settings; its WebSocket address."""

    async def start(**settings: int) -> str:
        return await start_serve(serve, tmp_path, **settings)

    return start


@pytest.fixture(params=["serve", "mounted"])
async def start(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path
) -> AsyncIterator[Start]:
    """Starts either kind of server with settings; its WebSocket address."""
    async with AsyncExitStack() as stack:

        async def mounted(**settings: Any) -> str:
            reattach = Reattach(
                database=f"sqlite:///{tmp_path / DATABASE}", settings=Settings(**settings)
            )
            where = await stack.enter_async_context(uvicorn_of(host_of(reattach)))
            return f"ws://{where}{PREFIX}"

        async def served(**settings: int) -> str:
            return await start_serve(serve, tmp_path, **settings)

        yield served if request.param == "serve" else mounted


def put(path: str, value: Any) -> dict[str, Any]:
    return {"op": "set", "path": path, "value": value}


# Upgrades


async def test_the_subprotocol_is_answered_and_nothing_is_compressed(start: Start) -> None:
    """Section 5: subprotocol reattach.v1."""
    url = await start()
    async with opened(url) as peer:
        assert peer.socket.subprotocol == SUBPROTOCOL
        assert peer.socket.response is not None
        assert "Sec-WebSocket-Extensions" not in peer.socket.response.headers


async def refused(url: str, **options: Any) -> tuple[int, dict[str, Any]]:
    options = {"subprotocols": [SUBPROTOCOL], "proxy": None} | options
    with pytest.raises(InvalidStatus) as error:
        await connect(url, **options)
    response = error.value.response
    assert response.headers["Content-Type"] == "application/problem+json"
    return response.status_code, json.loads(response.body or b"")


async def test_without_the_subprotocol_there_is_no_upgrade(start: Start) -> None:
    # Rule W8
    """Section 5: subprotocol reattach.v1."""
    url = await start()
    status, problem = await refused(f"{url}/ws/session/s1", subprotocols=None)
    assert (status, problem["code"]) == (400, "bad_subprotocol")


@pytest.mark.parametrize("name", ["heartbeat", "check-connection", "import", "a%20b", "x" * 129])
async def test_what_is_no_session_id_is_not_found(start: Start, name: str) -> None:
    # Rule W8
    """Section 1: ids."""
    url = await start()
    status, problem = await refused(f"{url}/ws/session/{name}")
    assert (status, problem["code"]) == (404, "session_not_found")


@pytest.mark.parametrize("path", ["/", "/ws", "/ws/session/", "/ws/session/s1/", "/api/v0/session"])
async def test_other_paths_have_no_websocket(picows: Start, path: str) -> None:
    """Section 5: GET /ws/session/{session_id}."""
    url = await picows()
    status, _ = await refused(f"{url}{path}")
    assert status == 404


async def test_a_session_id_may_be_percent_encoded(start: Start) -> None:
    """Section 1: ids."""
    url = await start()
    async with joined(url, "a%3Ab"), opened(url, "a:b", "c2") as other:
        assert (await other.hello())["session_id"] == "a:b"


async def test_a_foreign_origin_is_forbidden(start: Start) -> None:
    # Rule A4
    """Section 8: Origin, where present, must be allowed."""
    url = await start()
    status, _ = await refused(f"{url}/ws/session/s1", origin="https://evil.example")
    assert status == 403


async def test_a_foreign_host_is_forbidden(start: Start) -> None:
    """Section 8: auth none wants a loopback Host, so that DNS rebinding fails."""
    url = await start()
    where = url.removeprefix("ws://").partition("/")[0]
    address, _, port = where.partition(":")
    status, _ = await refused(
        url.replace(where, f"evil.example:{port}") + "/ws/session/s1", host=address, port=int(port)
    )
    assert status == 403


async def test_who_comes_through_a_proxy_is_not_of_this_machine(start: Start) -> None:
    """Section 8: auth none, loopback only."""
    url = await start()
    headers = {"X-Forwarded-For": "203.0.113.9"}
    status, _ = await refused(f"{url}/ws/session/s1", additional_headers=headers)
    assert status == 403


async def test_firefox_asks_to_keep_the_connection_alive(picows: Start) -> None:
    """RFC 6455, section 4.2.1: the Connection header *includes* Upgrade."""
    async with Raw.connected(await picows(), connection="keep-alive, Upgrade"):
        pass


# Frames


async def test_hello_is_answered_by_the_whole_state(start: Start) -> None:
    """Section 5: initial_state."""
    url = await start()
    async with opened(url) as peer:
        welcome = await peer.hello(create={"state": {"a": [1, {"id": "x"}]}})
    assert welcome["type"] == "initial_state"
    assert welcome["state"] == {"a": [1, {"id": "x"}]}
    assert (welcome["session_id"], welcome["version"], welcome["created"]) == ("s1", 0, True)
    assert welcome["heartbeat"] == {"interval_ms": 5000, "timeout_ms": 15000}


async def test_a_commit_goes_to_its_author_and_to_the_others(start: Start) -> None:
    """Section 5: state_update."""
    url = await start()
    async with joined(url, client_id="c1") as one, joined(url, client_id="c2") as two:
        seq = await one.change(put("/name", "Ada"))
        mine, theirs = await one.expect("state_update"), await two.expect("state_update")
    assert mine == theirs
    assert (mine["version"], mine["by"]["client_id"], mine["by"]["seq"]) == (1, "c1", seq)
    assert mine["patch"] == [{"op": "add", "path": "/name", "value": "Ada"}]


async def test_a_client_resumes_with_what_it_missed(start: Start) -> None:
    """Section 5, Resuming."""
    url = await start()
    state = {"text": "x" * 5000}
    async with joined(url, client_id="c1", state=state) as one, joined(url, client_id="c2") as two:
        welcome_epoch, seen = two.epoch, two.version
        await two.socket.close()
        for value in (1, 2, 3):
            await one.change(put("/n", value))
            await one.expect("state_update")
        async with opened(url, client_id="c2") as again:
            resumed = await again.hello(epoch=welcome_epoch, version=seen)
    assert resumed["type"] == "resumed"
    assert [commit["version"] for commit in resumed["commits"]] == [1, 2, 3]


async def test_an_unknown_type_is_an_error_and_the_connection_stays(start: Start) -> None:
    # Rule W1
    """Section 5: unknown_type."""
    url = await start()
    async with joined(url) as peer:
        await peer.send(type="teleport")
        assert (await peer.expect("error"))["code"] == "unknown_type"
        await peer.send(type="heartbeat", t=7)
        assert (await peer.expect("heartbeat"))["t"] == 7


@pytest.mark.parametrize(
    "data",
    ["{", "[]", '{"type": 1}', "{}", b"{}", '{"type":"heartbeat"}', '{"type":"é' + "é" * 300],
    ids=["no JSON", "no object", "no type", "nothing", "binary", "no hello", "long reason"],
)
async def test_a_bad_frame_closes(start: Start, data: str | bytes) -> None:
    # Rule W1
    """Section 5: 4400. RFC 6455, section 5.5: a reason of 123 bytes."""
    url = await start()
    async with opened(url) as peer:
        await peer.socket.send(data)
        code, reason = await peer.closed()
    assert code == 4400
    assert 0 < len(reason.encode()) <= 123


@pytest.mark.parametrize("parts", [1, 50], ids=["one frame", "fragments"])
async def test_too_large_a_message_closes(start: Start, parts: int) -> None:
    # Rule L5
    """Section 5: 4413; section 8: frame 1 MiB."""
    url = await start(max_frame_bytes=100_000)
    async with joined(url) as peer:
        part = "x" * (100_050 // parts + 1)
        await peer.socket.send(part if parts == 1 else [part] * parts)
        assert (await peer.closed())[0] == 4413


async def test_too_large_a_message_is_not_waited_for(picows: Start) -> None:
    """Section 5: 4413, when the limit is reached, not when all has come."""
    async with Raw.connected(await picows(max_frame_bytes=100_000)) as raw:
        head = b"\x81\xff" + (10**12).to_bytes(8, "big") + bytes(4)
        raw.writer.write(head + b"x" * 100_100)
        assert await raw.close_code() == 4413


async def test_fragments_make_one_message(start: Start) -> None:
    """RFC 6455, section 5.4: a message in several frames, control frames between them."""
    url = await start()
    async with joined(url) as peer:
        text = json.dumps({"type": "heartbeat", "t": "ä" * 50_000})

        async def parts() -> AsyncIterator[str]:
            for at in range(0, len(text), 10_000):
                yield text[at : at + 10_000]
                await (await peer.socket.ping())

        await peer.socket.send(parts())
        assert (await peer.expect("heartbeat"))["t"] == "ä" * 50_000


async def test_large_and_small_messages_arrive_whole_and_in_order(start: Start) -> None:
    """Section 5: text frames, in order; what is written at once must not mix."""
    url = await start()
    sizes = [5, 9_000, 70_000, 5, 200, 8_192, 8_193, 5]
    async with joined(url) as peer:
        for n, size in enumerate(sizes):
            await peer.send(type="heartbeat", t=[n, "x" * size])
        for n, size in enumerate(sizes):
            assert (await peer.expect("heartbeat"))["t"] == [n, "x" * size]


async def test_what_waits_for_a_slow_reader_is_not_mixed_up(start: Start) -> None:
    """Section 5: text frames, in order, also where the network holds them up."""
    url = await start(max_send_buffer_bytes=100_000_000)
    async with joined(url, max_queue=None) as peer:
        peer.stop_reading()
        for n in range(1_000):
            await peer.send(type="heartbeat", t=[n, "x" * 9_000])
            await peer.send(type="heartbeat", t=n)
        peer.go_on_reading()
        for n in range(1_000):
            assert (await peer.expect("heartbeat"))["t"] == [n, "x" * 9_000]
            assert (await peer.expect("heartbeat"))["t"] == n


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1\x80abcd",  # a reserved bit
        b"\x81\x01x",  # not masked
        b"\x80\x80abcd",  # continues nothing
        b"\x01\x80abcd\x81\x80abcd",  # a message within a message
        b"\x83\x80abcd",  # an unknown opcode
        b"\x89\xfe\x00\x80abcd" + bytes(128),  # a ping of 128 bytes
    ],
    ids=["rsv", "unmasked", "continuation", "interleaved", "opcode", "long ping"],
)
async def test_broken_framing_closes_with_1002(picows: Start, frame: bytes) -> None:
    """RFC 6455, section 7.4.1."""
    async with Raw.connected(await picows()) as raw:
        raw.writer.write(frame)
        assert await raw.close_code() == 1002


async def test_a_clients_close_is_answered_and_ends_its_presence(start: Start) -> None:
    """RFC 6455, section 5.5.1; section 5: online goes by connection."""
    url = await start()
    async with joined(url, client_id="c1") as one, joined(url, client_id="c2") as two:
        await two.socket.close(4999, "bye")
        assert two.socket.protocol.close_rcvd is not None
        await one.sees_offline("device-of-c2")


# Signs of life


async def test_silence_closes(picows: Start) -> None:
    # Rule H2
    """Section 5, Heartbeats: silence for timeout_ms, not even pongs, means disconnected: 4408."""
    url = await picows(heartbeat_interval_ms=500, heartbeat_timeout_ms=2000)
    async with joined(url, client_id="c1") as one, joined(url, client_id="c2") as two:
        one.stop_reading()
        await two.sees_offline("device-of-c1")
        one.go_on_reading()
        assert (await one.closed())[0] == 4408


async def test_pongs_alone_keep_a_connection(start: Start) -> None:
    # Rules H1 and H3
    """Section 5, Heartbeats: any frame, pong included; timers of hidden pages are throttled."""
    url = await start(heartbeat_interval_ms=500, heartbeat_timeout_ms=2000)
    async with joined(url, client_id="c1") as hidden, joined(url, client_id="c2") as awake:
        begun = now()
        while now() < begun + 4_500:
            await awake.send(type="heartbeat")
            await awake.expect("heartbeat")
            await asyncio.sleep(0.1)
        await hidden.change(put("/here", True))
        assert (await hidden.expect("state_update"))["version"] == 1


async def test_hello_comes_in_time_and_pings_are_none(start: Start) -> None:
    # Rule W2
    """Section 5: hello first, within 10 s."""
    url = await start(hello_timeout_ms=1500)
    async with opened(url) as peer:
        ping = asyncio.create_task(pings(peer))
        code, _ = await peer.closed()
        await ping
    assert code == 4408


async def pings(peer: Peer) -> None:
    # The close may come while a ping goes out.
    with contextlib.suppress(ConnectionClosed):
        while peer.socket.close_code is None:
            await peer.socket.ping()
            await asyncio.sleep(0.1)


# Fencing and limits


async def test_a_newer_connection_of_a_client_closes_the_older(start: Start) -> None:
    # Rule F2
    """Section 5, Fencing: 4409."""
    url = await start()
    async with joined(url) as older, joined(url) as newer:
        assert (await older.closed())[0] == 4409
        await newer.change(put("/n", 1))
        assert (await newer.expect("state_update"))["version"] == 1


async def test_beyond_the_in_flight_limit_the_server_stops_reading(
    start: Start, tmp_path: Path, behind_file: BehindFile
) -> None:
    # Rule L2
    """Section 5, Refusals and limits: it stops reading; it does not close."""
    url = await start(max_in_flight_changes=4)
    async with joined(url, client_id="c1") as one, joined(url, client_id="c2") as two:
        # Nothing can be decided durably meanwhile.
        async with locked(behind_file(tmp_path / DATABASE)):
            for n in range(50):
                await one.change(put("/n", n))
            await one.send(type="heartbeat", t="last")
            await two.send(type="heartbeat")
            await two.expect("heartbeat")
        seen = []
        while (frame := await one.expect("state_update", "heartbeat"))["type"] != "heartbeat":
            seen.append(frame["version"])
        # Had it gone on reading, the echo would have come before all.
        assert len(seen) >= 46
        for n in range(len(seen), 50):
            seen.append((await one.expect("state_update"))["version"])
            assert n < 50
    assert seen == list(range(1, 51))


async def test_a_slow_reader_is_not_waited_for_and_loses_nothing(start: Start) -> None:
    # Rule L9
    """Section 5: 4429, too slow to read; it resumes and loses nothing."""
    url = await start(max_send_buffer_bytes=300_000)
    async with joined(url, client_id="c1") as slow, joined(url, client_id="c2") as quick:
        epoch, version = slow.epoch, slow.version
        slow.stop_reading()
        text, n, offline = "x" * 200_000, 0, False
        while not offline:
            assert n < 500, "the slow reader is still waited for"
            n += 1
            await quick.change(put("/text", f"{n} {text}"))
            while (frame := await quick.receive())["type"] != "state_update":
                offline |= frame["type"] == "devices" and not frame["devices"][0]["online"]
        slow.go_on_reading()
        assert (await slow.closed())[0] == 4429
        async with opened(url, client_id="c1") as again:
            welcome = await again.hello(epoch=epoch, version=version)
            assert welcome["version"] == n
            assert welcome["state"]["text"] == f"{n} {text}"


# Endings


async def test_a_client_that_does_not_answer_a_close_is_cut_off(picows: Start) -> None:
    """RFC 6455, section 7.1.1: the server may close the TCP connection first."""
    async with Raw.connected(await picows()) as raw:
        raw.send_text("no hello")
        assert await raw.close_code() == 4400
        assert await asyncio.wait_for(raw.ended(), 5)


class Raw:
    """A connection whose client minds no rules."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, *, connection: str = "Upgrade") -> AsyncIterator[Raw]:
        """Asks for an upgrade, and gets it."""
        where = url.removeprefix("ws://")
        host, _, port = where.partition(":")
        raw = cls(*await asyncio.open_connection(host, int(port)))
        lines = [
            "GET /ws/session/s1 HTTP/1.1",
            f"Host: {where}",
            f"Connection: {connection}",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            f"Sec-WebSocket-Protocol: other, {SUBPROTOCOL}",
        ]
        raw.writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        head = await asyncio.wait_for(raw.reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 101 ")
        yield raw
        raw.writer.transport.abort()

    def send_text(self, text: str) -> None:
        """A short text message, masked with zeros."""
        data = text.encode()
        self.writer.write(bytes((0x81, 0x80 | len(data))) + bytes(4) + data)

    async def close_code(self) -> int:
        """The code of the close frame that comes next; control frames are all it is sent."""
        first, size = await asyncio.wait_for(self.reader.readexactly(2), 10)
        assert first == 0x88
        data = await self.reader.readexactly(size)
        return int.from_bytes(data[:2])

    async def ended(self) -> bool:
        """Whether the server has cut the connection; waits for it."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True
