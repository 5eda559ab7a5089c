"""The WebSockets of `reattach serve`: picows plugged into uvicorn, on one port with the rest.

uvicorn reads the request, sees the upgrade, and hands the connection to a protocol of the class
that it was given as ``ws``. All of its WebSockets are ours; ASGI is not involved.
"""

from __future__ import annotations

import contextlib
import logging
import re
import struct
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from picows import (
    WSAutoPingStrategy,
    WSFrame,
    WSListener,
    WSMsgType,
    WSProtocolError,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # its stub leaves it out
from starlette.requests import HTTPConnection
from uvicorn import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.server import ServerState

from reattach.core.connection import Close
from reattach.errors import ReattachError, SessionNotFound
from reattach.server.auth import came_from
from reattach.server.problems import problem
from reattach.server.ws import Shell, admit
from reattach.settings import Settings
from reattach.wire import SUBPROTOCOL

if TYPE_CHECKING:
    from reattach.server.app import Reattach

__all__ = ["UvicornProtocol"]

_PATH = re.compile(r"/ws/session/([^/]+)")

_READ_BUFFER: Final = 2048
"""Bytes that a connection's buffer starts with; it grows with what comes."""

_MAX_HEADER: Final = 14
"""Bytes of a frame before its payload, at most (RFC 6455, section 5.2)."""

_UNLIMITED: Final = 2**62
"""picows would close with 1009, and ours is 4413: `UvicornProtocol` looks after the limit."""

_COPIED: Final = 8192
"""picows 2.3 copies messages up to this size. With a larger one it hands uvloop a view of its own
buffer and may write the next header over it before that is sent: we frame those ourselves."""

_TEXT_FRAME: Final = WSMsgType.TEXT
"""By a name of its own: to find a member in its enum costs a call on Python 3.11."""

_TEXT: Final = 0x81
"""The first byte of a text message in one frame."""

_PROTOCOL_ERROR: Final = 1002
_DEFAULT_CLOSE: Final = 1000


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """What picows says of a connection is for us alone; only an exception of ours is an error.

    It also spares each connection the logger of its own that picows would make.
    """

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Drop what is said of each connection."""

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Say what a client did wrong."""
        self.debug(msg, *args, **kwargs)

    error = warning


_log = _Quiet(logging.getLogger("reattach.websocket"), {})


class UvicornProtocol(WSProtocol):  # type: ignore[misc]  # see the import
    """One connection, from its upgrade to its end, as uvicorn and the event loop see it."""

    def __init__(
        self, reattach: Reattach, *, config: Config, server_state: ServerState, app_state: Any
    ) -> None:
        """Take uvicorn's arguments, and the server that the connection is for."""
        del app_state
        super().__init__(
            None,
            None,
            False,  # no client
            self._upgrade,
            _log,
            True,  # disconnect on exceptions
            None,  # no timeout: the whole request is here already
            False,  # no pings: the registry sends them
            1,
            1,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # no pongs: they count as signs of life, so they pass through our hands
            _UNLIMITED,
            None,
            _READ_BUFFER,
        )
        self._reattach = reattach
        self._config = config
        self._connections: set[Any] = server_state.connections
        self._pipe: _Pipe | None = None
        self._most = reattach.settings.max_frame_bytes + _MAX_HEADER
        self._network: Any = None

    def connection_made(self, transport: Any) -> None:
        """Begin; uvicorn calls it for a connection that it has read a request from."""
        super().connection_made(transport)
        self._network = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._connections.discard(self)
        super().connection_lost(exc)
        self._pipe = None

    def shutdown(self) -> None:
        """Go away: uvicorn stops."""
        if self._pipe is None:
            self._network.close()
        else:
            self._pipe.shell.close(Close.RESTART, "the server restarts: come back")

    def data_received(self, data: bytes) -> None:
        """Take the request that uvicorn had read; what follows comes through the buffer."""
        rest = memoryview(data)
        while rest and not self._network.is_closing():
            buffer = self.get_buffer(-1)
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            self.buffer_updated(size)
            rest = rest[size:]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came, unless it is a message beyond all limits, which is not even kept."""
        pipe = self._pipe
        if pipe is None:
            super().buffer_updated(nbytes)
            return
        if pipe.broken:
            return
        pipe.unread += nbytes
        super().buffer_updated(nbytes)
        if pipe.unread > self._most:
            # A little more is taken, so that a client which is just over can answer the close.
            pipe.shell.too_large()
            pipe.broken = pipe.unread > 2 * self._most
        elif self.transport.is_close_frame_sent and not pipe.shell.closing:
            # picows or the pipe found the frames themselves wrong, and told the client.
            pipe.broken = True
            pipe.shell.hang_up(_PROTOCOL_ERROR, "broken frames")

    def _upgrade(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        # uvicorn has found "upgrade" in it; picows wants nothing else to be there, and Firefox
        # sends "keep-alive, Upgrade".
        request.headers["Connection"] = "upgrade"
        path, _, query = request.path.partition(b"?")
        connection = self._connection(request, path, query)
        found = _PATH.fullmatch(connection.scope["path"])
        try:
            if found is None:
                raise SessionNotFound("expected /ws/session/{session_id} as path of a WebSocket")
            # As a router leaves it: an application's `authenticate` may look at it.
            connection.scope["path_params"] = {"session_id": found[1]}
            admit(self._reattach, connection, found[1])
        except ReattachError as error:
            answer = problem(error)
            headers = dict(answer.headers)
            del headers["content-length"]  # picows adds it
            response = WSUpgradeResponse.create_error_response(
                answer.status_code, bytes(answer.body), headers
            )
            return WSUpgradeResponseWithListener(response, None)
        pipe = _Pipe(partial(self._begin, connection, found[1]), self._reattach.settings)
        headers = {"Sec-WebSocket-Protocol": SUBPROTOCOL}
        response = WSUpgradeResponse.create_101_response(headers)
        return WSUpgradeResponseWithListener(response, pipe)

    def _begin(self, connection: HTTPConnection, session_id: str, pipe: _Pipe) -> Shell:
        self._pipe = pipe
        return Shell(
            self._reattach.registry,
            session_id,
            partial(self._reattach.auth.identify, connection),
            pipe,
            max_waiting=self._reattach.settings.max_send_buffer_bytes,
            came_from=came_from(self._reattach.settings, connection),
        )

    def _connection(self, request: WSUpgradeRequest, path: bytes, query: bytes) -> HTTPConnection:
        info = self._network.get_extra_info
        offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", []))
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws" if info("ssl_object") is None else "wss",
            "server": (info("sockname") or ())[:2] or None,
            "client": (info("peername") or ())[:2] or None,
            "root_path": "",
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "headers": [
                (name.lower().encode(), value.encode("ascii", "surrogateescape"))
                for name, value in request.headers.items()
            ],
            "subprotocols": [one.strip() for one in offered.split(",")],
            "state": {},
        }
        if self._config.proxy_headers:
            _undo_proxy(scope, self._config.forwarded_allow_ips)
        return HTTPConnection(scope)


class _Pipe(WSListener):
    """A pipe through picows."""

    def __init__(self, begin: Callable[[_Pipe], Shell], settings: Settings) -> None:
        super().__init__()
        self.unread = 0
        """Bytes in picows' buffer, of a message that is not complete."""
        self.broken = False
        """Whether what comes now cannot be told apart into frames."""
        self.shell: Shell
        self._begin = begin
        self._parts: list[bytes] | None = None
        self._size = 0
        self._most = settings.max_frame_bytes
        self._transport: WSTransport
        self._network: Any

    # What picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._network = transport.underlying_transport
        self.shell = self._begin(self)
        del self._begin  # and with it the request

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.unread = frame.tail_size
        if self.broken:
            return
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            raise WSProtocolError(_PROTOCOL_ERROR, "expected no reserved bits")
        kind = frame.msg_type
        if kind == _TEXT_FRAME:
            if self._parts is not None:
                raise WSProtocolError(_PROTOCOL_ERROR, "expected the rest of a message")
            if frame.fin:
                self.shell.text(frame.get_payload_as_bytes())
            else:
                self._parts, self._size = [], 0
                self._part(self._parts, frame)
        elif kind == WSMsgType.CONTINUATION:
            if self._parts is None:
                raise WSProtocolError(_PROTOCOL_ERROR, "expected a message to continue")
            self._part(self._parts, frame)
        elif kind == WSMsgType.PONG:
            self.shell.heard()
        elif kind == WSMsgType.PING:
            self.shell.heard()
            transport.send_pong(frame.get_payload_as_bytes())
            self.shell.wrote(self._network.get_write_buffer_size())
        elif kind == WSMsgType.BINARY:
            self.shell.binary()
        else:
            code = int(frame.get_close_code())  # type: ignore[call-overload]  # any number
            self.shell.left(code or _DEFAULT_CLOSE)
            transport.disconnect()

    def on_ws_disconnected(self, _: WSTransport) -> None:
        self.shell.stop("connection lost")

    def pause_writing(self) -> None:
        """Nothing: a slow reader is found by what waits for it."""

    def resume_writing(self) -> None:
        """Nothing."""

    # Pipe

    def write(self, frames: Sequence[bytes]) -> int:
        """Write text messages, all at once; return how many bytes the loop has yet to write."""
        if len(frames) == 1 and len(frames[0]) <= _COPIED:
            self._transport.send(_TEXT_FRAME, frames[0])
        else:
            self._network.write(b"".join(_framed(frames)))
        return int(self._network.get_write_buffer_size())

    def close(self, code: int, reason: str) -> None:
        """Write a close frame."""
        self._transport.send_close(code, reason)  # type: ignore[arg-type]  # any code is taken

    def read(self, on: bool) -> None:
        """Stop reading from the network, or go on."""
        if self._network.is_closing():
            return
        if on:
            self._network.resume_reading()
        else:
            self._network.pause_reading()

    def ping(self) -> bool:
        """Write a ping; its pong comes as a frame."""
        self._transport.send_ping()
        return True

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.disconnect(graceful=False)

    # Inside

    def _part(self, parts: list[bytes], frame: WSFrame) -> None:
        self._size += frame.payload_size
        if self._size > self._most:
            parts.clear()
            self.shell.too_large()
        elif frame.payload_size:
            parts.append(frame.get_payload_as_bytes())
        if frame.fin:
            self._parts = None
            self.shell.text(b"".join(parts))
        else:
            self.shell.heard()


def _undo_proxy(scope: dict[str, Any], trusted: list[str] | str | None) -> None:
    """Put in who connected to a trusted proxy, as uvicorn does for requests over HTTP."""
    many = tuple(trusted) if isinstance(trusted, list) else trusted
    with contextlib.suppress(StopIteration):
        # It is a coroutine that never waits.
        _proxies(many or "127.0.0.1")(scope, None, None).send(None)


@cache
def _proxies(trusted: tuple[str, ...] | str) -> Any:
    async def done(*_: object) -> None:
        """Nothing follows: uvicorn's middleware has altered the scope."""

    return ProxyHeadersMiddleware(done, trusted if isinstance(trusted, str) else list(trusted))


def _framed(frames: Sequence[bytes]) -> list[bytes]:
    """Put the header of a text message before each (RFC 6455, section 5.2; servers do not mask)."""
    parts = []
    for frame in frames:
        size = len(frame)
        if size < 126:
            parts.append(bytes((_TEXT, size)))
        elif size < 65_536:
            parts.append(struct.pack("!BBH", _TEXT, 126, size))
        else:
            parts.append(struct.pack("!BBQ", _TEXT, 127, size))
        parts.append(frame)
    return parts
