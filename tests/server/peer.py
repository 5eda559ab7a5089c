"""A client of the protocol for tests: the `websockets` library, and frames as dicts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

SUBPROTOCOL = Subprotocol("reattach.v1")

Frame = dict[str, Any]


def now() -> int:
    return time.time_ns() // 1_000_000


class Peer:
    """One connection."""

    def __init__(self, socket: ClientConnection, client_id: str) -> None:
        self.socket = socket
        self.client_id = client_id
        self.epoch = ""
        self.version = 0
        self.seq = 0

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def receive(self) -> Frame:
        frame: Frame = json.loads(await asyncio.wait_for(self.socket.recv(), 10))
        return frame

    async def expect(self, *types: str) -> Frame:
        """The next frame of one of these types; others are passed over."""
        while True:
            frame = await self.receive()
            if frame["type"] in types:
                return frame

    async def greet(self, **fields: Any) -> None:
        """Says hello."""
        hello: Frame = {
            "type": "hello",
            "client_id": self.client_id,
            "device": {"id": f"device-of-{self.client_id}"},
            "t": now(),
            "epoch": None,
            "version": None,
            "seq": 0,
        }
        await self.send(**hello | fields)

    async def hello(self, **fields: Any) -> Frame:
        """Says hello, and returns the welcome."""
        await self.greet(**fields)
        welcome = await self.expect("initial_state", "resumed")
        self.epoch, self.version = welcome["epoch"], welcome["version"]
        self.seq = welcome["seq"]
        return welcome

    async def change(self, *ops: Frame) -> int:
        """Sends a change, and returns its number."""
        self.seq += 1
        await self.send(
            type="change",
            seq=self.seq,
            epoch=self.epoch,
            base=self.version,
            at=now(),
            ops=list(ops),
        )
        return self.seq

    def stop_reading(self) -> None:
        """Reads nothing more, answers no pings: a computer asleep."""
        self.socket.transport.pause_reading()

    def go_on_reading(self) -> None:
        self.socket.transport.resume_reading()

    async def sees_offline(self, device_id: str) -> None:
        """Waits until the server says that a device is not connected."""
        while True:
            frame = await self.expect("devices")
            if any(one["id"] == device_id and not one["online"] for one in frame["devices"]):
                return

    async def closed(self, within: float = 10) -> tuple[int, str]:
        """Reads until the server closes; its code and reason."""
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(within):
                while True:
                    await self.socket.recv()
        close = self.socket.protocol.close_rcvd
        assert close is not None, "the connection was cut without a close frame"
        return close.code, close.reason


@asynccontextmanager
async def opened(
    url: str, session_id: str = "s1", client_id: str = "c1", **options: Any
) -> AsyncIterator[Peer]:
    """A connection that has not yet said hello; `url` is the server's, with any prefix."""
    options = {"ping_interval": None, "close_timeout": 1} | options
    async with connect(
        f"{url}/ws/session/{session_id}",
        subprotocols=[SUBPROTOCOL],
        proxy=None,
        compression=None,
        **options,
    ) as socket:
        yield Peer(socket, client_id)


@asynccontextmanager
async def joined(
    url: str,
    session_id: str = "s1",
    client_id: str = "c1",
    *,
    state: Frame | None = None,
    **options: Any,
) -> AsyncIterator[Peer]:
    """A connection that was welcomed; the session is created if it is not there."""
    async with opened(url, session_id, client_id, **options) as peer:
        await peer.hello(create={"state": state or {}})
        yield peer
