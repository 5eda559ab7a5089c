"""The line over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from reattach.errors import BadRequest
from reattach.wire import SUBPROTOCOL, encode

__all__ = ["Address", "Send", "talk"]

Send = Callable[[dict[str, Any]], None]
"""Sends a frame behind those before it; returns at once."""

OPEN_S: Final = 15.0
CLOSE_S: Final = 1.0
"""How long the other side is given to answer a close frame."""

_ID: Final = re.compile(r"[A-Za-z0-9._:~-]{1,128}")


class Address(msgspec.Struct, frozen=True):
    """Where a session is. ``base`` begins with ``http``."""

    base: str
    session_id: str

    @classmethod
    def of(cls, url: str, session_id: str) -> Address:
        """Read an application's url, with the prefix that the server is mounted under."""
        parts = urlsplit(url)
        scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(parts.scheme)
        if scheme is None or not parts.netloc or parts.query or parts.fragment:
            raise BadRequest(
                f"expected a url such as https://example.org/sessions, got {url!r}", code="bad_url"
            )
        if not _ID.fullmatch(session_id):
            raise BadRequest(
                "expected a session id of 1 to 128 letters, digits and ._:~- (ID1), got"
                f" {session_id[:140]!r}",
                code="bad_id",
            )
        return cls(f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}", session_id)

    @property
    def socket(self) -> str:
        """The address of the session's WebSocket."""
        return f"ws{self.base[4:]}/ws/session/{quote(self.session_id, safe='')}"

    @property
    def session(self) -> str:
        """The address of the session itself."""
        return f"{self.base}/api/v0/session/{quote(self.session_id, safe='')}"

    def history(self, **query: Any) -> str:
        """Return the address of the session's history."""
        return f"{self.session}/history?{urlencode(query)}"


async def talk(
    address: Address,
    *,
    opened: Callable[[Send], None],
    received: Callable[[dict[str, Any]], None],
) -> tuple[int, str]:
    """Open a line and pass on what comes, until it ends; return the close code and the reason.

    1006 where it could not be opened or broke off. Cancel it to hang up.
    """
    try:
        socket = await connect(
            address.socket,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            open_timeout=OPEN_S,
            close_timeout=CLOSE_S,
            # The protocol's own heartbeats find the silent.
            ping_interval=None,
            # As large as the state: the server's limits hold.
            max_size=None,
        )
    except InvalidStatus as error:
        return 1006, f"the server answered {error.response.status_code} to the upgrade"
    except (OSError, WebSocketException, EOFError) as error:
        return 1006, str(error) or type(error).__name__
    frames: asyncio.Queue[str] = asyncio.Queue()
    sending = asyncio.create_task(_send(socket, frames))
    try:
        opened(lambda frame: frames.put_nowait(encode(frame).decode()))
        while True:
            frame = msgspec.json.decode(await socket.recv())
            if not isinstance(frame, dict):
                return 1006, "expected frames that are JSON objects: is this a Reattach server?"
            received(frame)
    except ConnectionClosed as end:
        return (end.rcvd.code, end.rcvd.reason) if end.rcvd is not None else (1006, "")
    except msgspec.DecodeError:
        return 1006, "expected frames that are JSON: is this a Reattach server?"
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        await socket.close()


async def _send(socket: ClientConnection, frames: asyncio.Queue[str]) -> None:
    # What cannot be sent any more is sent again on the next line: the reader sees the end.
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.send(await frames.get())
