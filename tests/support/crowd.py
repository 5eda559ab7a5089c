"""Many clients in a process of their own, for tests with more connections than one loop can bear.

`python -m tests.support.crowd COUNT EACH WS_URL…` connects COUNT clients, EACH on a session, to the
nodes in turn, and then does what it is told, a line of JSON for each line:

    {"do": "wait", "welcomes": n}   until there were so many, and all are live, nothing undecided
    {"do": "change"}                each makes a change, whether it is connected or not
    {"do": "count", "url": url}     how many are on this node
    {"do": "spent"}                 the CPU seconds that this process has taken

A client follows the protocol: sent away with 1012 it comes back after a random part of its
`reconnect_jitter_ms`, to any node, and to another one where nobody answers, as behind a load
balancer. Times are of the system's monotonic clock, which is the same in all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import msgspec
from picows import WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from tests.support.paths import ROOT
from tests.support.waiting import until

__all__ = ["CrowdProcess"]

Frame = dict[str, Any]

_TRY_AGAIN = 0.05
_AT_ONCE = 50
"""How many connect at once, in the beginning."""

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class _Line(WSListener):
    """One connection of a client."""

    def __init__(self, client: _Client) -> None:
        super().__init__()
        self.client = client
        self.code = 0

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.client.transport = transport
        self.client.greet()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.client.take(_decode(frame.get_payload_as_memoryview()))
        elif frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            code = frame.get_close_code()
            self.code = code.value
            transport.send_close(code)
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if transport is self.client.transport:  # not where it was never let in
            self.client.lost(self.code)


class _Client:
    def __init__(self, crowd: _Crowd, number: int, session_id: str) -> None:
        self.crowd = crowd
        self.name = f"c{number}"
        self.session_id = session_id
        self.url = crowd.urls[number % len(crowd.urls)]
        self.transport: WSTransport | None = None
        self.live = False
        self.epoch: str | None = None
        self.version: int | None = None
        self.seq = 0
        self.jitter_ms = 0
        self.outbox: list[Frame] = []
        self.coming: asyncio.Task[None] | None = None

    async def come(self, after: float = 0.0) -> None:
        await asyncio.sleep(after)
        urls = [self.url]
        while True:
            for url in urls:
                try:
                    await ws_connect(
                        lambda: _Line(self),
                        f"{url}/ws/session/{self.session_id}",
                        extra_headers={"Sec-WebSocket-Protocol": "reattach.v1"},
                        websocket_handshake_timeout=20,
                    )
                except (OSError, WSError):
                    self.crowd.away += 1
                else:
                    self.url = url
                    return
            await asyncio.sleep(random.uniform(0, _TRY_AGAIN))
            urls = random.sample(self.crowd.urls, len(self.crowd.urls))

    def greet(self) -> None:
        self.send(
            {
                "type": "hello",
                "client_id": self.name,
                "device": {"id": f"d-{self.name}"},
                "t": time.time_ns() // 1_000_000,
                "epoch": self.epoch,
                "version": self.version,
                "seq": self.seq,
                "create": {"state": {"n": 0}} if self.epoch is None else None,
            }
        )

    def take(self, frame: Frame) -> None:
        match frame["type"]:
            case "initial_state" | "resumed":
                self.epoch, self.version = frame["epoch"], frame["version"]
                self.decided(frame["seq"])
                self.jitter_ms = frame["reconnect_jitter_ms"]
                self.live = True
                self.crowd.welcomed_at.append(time.monotonic())
                for change in self.outbox:
                    self.send(change)
                self.crowd.look_at(self)
            case "state_update":
                self.version = frame["version"]
                if frame["by"]["client_id"] == self.name:
                    self.decided(frame["by"]["seq"])
                    self.crowd.look_at(self)
            case "error" | "rejected":
                self.crowd.errors.append(frame)

    def change(self) -> None:
        number = self.seq + len(self.outbox) + 1
        ops = [{"op": "inc", "path": "/n", "by": 1}]
        at = time.time_ns() // 1_000_000
        change = {"type": "change", "seq": number, "epoch": self.epoch, "base": self.version}
        self.outbox.append(change | {"at": at, "ops": ops})
        self.crowd.look_at(self)
        if self.live:
            self.send(self.outbox[-1])

    def decided(self, seq: int) -> None:
        self.seq = max(seq, self.seq)
        self.outbox = [change for change in self.outbox if change["seq"] > self.seq]

    def send(self, frame: Frame) -> None:
        assert self.transport is not None
        self.transport.send(WSMsgType.TEXT, _encode(frame))

    def lost(self, code: int) -> None:
        self.live, self.transport = False, None
        self.crowd.look_at(self)
        self.crowd.closes[code] += 1
        self.url = random.choice(self.crowd.urls)
        wait = random.uniform(0, self.jitter_ms) / 1000
        self.coming = asyncio.create_task(self.come(wait))


class _Crowd:
    def __init__(self, count: int, each: int, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self.closes: Counter[int] = Counter()
        self.errors: list[Frame] = []
        self.away = 0
        """How often nobody answered where a client came to."""
        self.welcomed_at: list[float] = []
        """When each welcome came."""
        self.clients = [_Client(self, n, f"s{n // each}") for n in range(count)]
        self._unsettled = set(self.clients)

    def look_at(self, client: _Client) -> None:
        """Something about a client has changed."""
        if client.live and not client.outbox:
            self._unsettled.discard(client)
        else:
            self._unsettled.add(client)

    async def come(self) -> None:
        for first in range(0, len(self.clients), _AT_ONCE):
            some = self.clients[first : first + _AT_ONCE]
            await asyncio.gather(*(client.come() for client in some))

    async def wait(self, welcomes: int) -> Frame:
        with contextlib.suppress(TimeoutError):
            await until(lambda: self._settled(welcomes), within=40, what="all", every=0.02)
        jitters = [client.jitter_ms for client in self.clients]
        return {
            "welcomes": len(self.welcomed_at),
            "welcomed_at": self.welcomed_at,
            "closes": self.closes,
            "errors": self.errors[:5],
            "away": self.away,
            "unsettled": [
                f"{one.name} {one.url} {one.live} {one.outbox[:1]}" for one in self._unsettled
            ][:5],
            "jitter_ms": [min(jitters), max(jitters)],
            "decided": sum(client.seq for client in self.clients),
        }

    def _settled(self, welcomes: int) -> bool:
        return len(self.welcomed_at) >= welcomes and not self._unsettled

    async def do(self, order: Frame) -> Frame:
        if order["do"] == "wait":
            return await self.wait(order["welcomes"])
        if order["do"] == "change":
            for client in self.clients:
                client.change()
            return {}
        if order["do"] == "spent":
            return {"seconds": time.process_time()}
        return {"count": sum(client.url == order["url"] for client in self.clients)}


async def _main(count: int, each: int, urls: Sequence[str]) -> None:
    gc.disable()  # it lives for a minute, and is not what is measured
    crowd = _Crowd(count, each, urls)
    await crowd.come()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer = await crowd.do(_decode(line))
        sys.stdout.write(_encode(answer).decode() + "\n")
        sys.stdout.flush()


class CrowdProcess:
    """The crowd, as a test has it: `await crowd.do("wait", welcomes=2_000)`."""

    def __init__(self, count: int, each: int, urls: Sequence[str]) -> None:
        self._arguments = (str(count), str(each), *urls)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.crowd", *self._arguments),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,  # bytes of an answer: some tell of each client
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def do(self, what: str, *, within: float = 60.0, **fields: Any) -> Frame:
        """Has it do something, and returns its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(_encode({"do": what} | fields) + b"\n")
        async with asyncio.timeout(within):
            line = await self._process.stdout.readline()
        answer: Frame = _decode(line)
        return answer


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
