"""An honest client of one session, in Python: the protocol's other side, as section 5 has it.

It keeps an outbox, sends again after a welcome what is undecided, applies every patch exactly to
its own copy of the state, and raises `Lie` when the server breaks a rule: a version that is skipped
or comes twice, a history that goes back, a change that is told twice or never. It shares no code
with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.typing import Subprotocol

Frame = dict[str, Any]

SUBPROTOCOL = Subprotocol("reattach.v1")

# The server, or what is left of it, does not answer: try again.
AWAY = (OSError, InvalidHandshake, InvalidMessage, EOFError)


class Lie(AssertionError):
    """The server said what cannot be true."""


def clock() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Replica:
    """What a client knows and has to send, without a connection: `take` is fed every frame."""

    def __init__(
        self,
        session_id: str,
        client_id: str,
        *,
        device_id: str | None = None,
        create: Frame | None = None,
        token: str | None = None,
        new_epochs: bool = False,
    ) -> None:
        """`new_epochs`: history may be lost."""
        self.session_id = session_id
        self.client_id = client_id
        self.device_id = device_id or f"device-of-{client_id}"
        self._create = create
        self._token = token
        self._new_epochs = new_epochs
        self._where = f"{client_id} on {session_id}"

        self.epoch: str | None = None
        self.version: int | None = None
        self.state: Frame = {}
        self.seq = 0
        """Its highest number whose decision it knows."""
        self.given = 0
        """Its highest number that it gave out."""
        self.outbox: dict[int, Frame] = {}
        """Its changes that are not decided, by number."""
        self.versions: dict[int, int] = {}
        """Its committed changes: the version that each became, where it was told."""
        self.committed: set[int] = set()
        """Its changes that it knows to be committed; by some it knows the version, too."""
        self.rejected: dict[int, Frame] = {}
        """Its changes that it knows to be refused."""
        self.sent_twice: set[int] = set()
        """Refused changes that a test sends again on purpose: they are refused again."""
        self.frames: list[Frame] = []
        """Everything that it was sent, over all connections."""
        self.welcomes: list[Frame] = []
        self.lie: BaseException | None = None
        self._said = 0
        self._greeted = False
        self._at = 0
        self._known_at: dict[int, int] = {}

    def greeting(self, **fields: Any) -> Frame:
        """The hello of a new connection; `fields` replace its own."""
        greeting: Frame = {
            "type": "hello",
            "client_id": self.client_id,
            "device": {"id": self.device_id, "name": self.client_id},
            "t": clock(),
            "epoch": self.epoch,
            "version": self.version,
            "seq": self.seq,
            "token": self._token,
            "create": None if self._create is None else {"state": self._create},
        } | fields
        self._said = greeting["seq"]
        self._greeted = False
        return greeting

    def put(self, *ops: Frame, **fields: Any) -> int:
        """Puts a change into the outbox and returns its number."""
        self.given += 1
        # Never below the one before, and never the same: so `seq_at` tells changes apart.
        self._at = max(self._at + 1, clock())
        change: Frame = {
            "type": "change",
            "seq": self.given,
            "epoch": self.epoch,
            "base": self.version,
            "at": self._at,
            "ops": list(ops),
        } | fields
        self.outbox[self.given] = change
        self._known_at[self.given] = change["at"]
        return self.given

    def take(self, frame: Frame) -> None:
        """Takes in a frame; raises `Lie` for one that cannot be true."""
        self.frames.append(frame)
        self._greeted = self._greeted or frame["type"] in {"initial_state", "resumed"}
        if not self._greeted and frame["type"] != "error":
            raise Lie(f"{self._where}: expected a welcome first, got {frame}")
        match frame["type"]:
            case "state_update" | "session_restored":
                self._commit(frame)
            case "rejected":
                self._reject(frame)
            case "initial_state" | "resumed":
                self._welcome(frame)

    def of_type(self, *types: str) -> list[Frame]:
        """The frames of these types that it was sent."""
        return [frame for frame in self.frames if frame["type"] in types]

    def _welcome(self, frame: Frame) -> None:
        self.welcomes.append(frame)
        if self.epoch not in {None, frame["epoch"]}:
            if not self._new_epochs:
                raise Lie(f"{self._where}: expected epoch {self.epoch}, got {frame['epoch']}")
            self.version = None
        same_epoch = self.epoch == frame["epoch"]
        self.epoch = frame["epoch"]
        version, seq = frame["version"], frame["seq"]
        if same_epoch and self.version is not None and version < self.version:
            raise Lie(f"{self._where}: history went back from {self.version} to {version}")
        if seq < self.seq and same_epoch:
            raise Lie(f"{self._where}: decided numbers went back from {self.seq} to {seq}")
        self._check_numbers(frame)
        if frame["type"] == "resumed":
            if not same_epoch or self.version is None:
                raise Lie(f"{self._where}: resumed where there was nothing to resume")
            for commit in frame["commits"]:
                self._commit(commit, live=False)
            if self.version != version:
                raise Lie(f"{self._where}: resumed to {self.version} instead of {version}")
        else:
            if self.version == version and not equal(self.state, frame["state"]):
                raise Lie(f"{self._where}: version {version} has two states")
            self.version, self.state = version, copy.deepcopy(frame["state"])
        for one in frame["rejected"]:
            if one["seq"] in self.outbox:
                self._reject(one)
        left = [number for number in self.outbox if number <= seq]
        if frame["type"] == "resumed" and left:
            raise Lie(f"{self._where}: the commits of {left} are missing, decided up to {seq}")
        for number in left:
            del self.outbox[number]
            self.committed.add(number)
        self.seq = max(self.seq, seq)

    def _check_numbers(self, frame: Frame) -> None:
        said, self._said = self._said, self.seq
        seq = frame["seq"]
        if seq > self.given:
            raise Lie(f"{self._where}: {seq} is decided, and only {self.given} were given out")
        if seq > 0 and frame["seq_at"] != self._known_at[seq]:
            raise Lie(f"{self._where}: {seq} is decided with another `at`: {frame['seq_at']}")
        refused = [one["seq"] for one in frame["rejected"]]
        if refused != sorted(set(refused)) or any(not said < one <= seq for one in refused):
            raise Lie(f"{self._where}: expected refusals in {said}..{seq}, got {refused}")

    def _commit(self, frame: Frame, *, live: bool = True) -> None:
        if self.version is None or frame["version"] != self.version + 1:
            raise Lie(f"{self._where}: version {frame['version']} came after {self.version}")
        self.state = apply_patch(self.state, frame["patch"])
        self.version += 1
        by = frame["by"]
        if by["client_id"] != self.client_id:
            return
        seq = by["seq"]
        if self.outbox.pop(seq, None) is None:
            raise Lie(f"{self._where}: its change {seq} was committed twice, or never made")
        earlier = [number for number in self.outbox if number < seq]
        if earlier and live:  # a welcome tells of commits and of refusals apart
            raise Lie(f"{self._where}: its change {seq} was decided before {earlier}")
        self.versions[seq] = self.version
        self.committed.add(seq)
        self.seq = max(self.seq, seq)

    def _reject(self, frame: Frame) -> None:
        seq = frame["seq"]
        if self.outbox.pop(seq, None) is None and seq not in self.sent_twice:
            raise Lie(f"{self._where}: its change {seq} was refused twice, or never made")
        self.rejected[seq] = frame
        self.seq = max(self.seq, seq)


class WireClient(Replica):
    """One client id on one session, over a WebSocket.

        async with WireClient(server.ws_url, "s", "c1", create={"n": 0}) as client:
            number = await client.change({"op": "inc", "path": "/n", "by": 1})
            await client.settled()

    `stay=True` has it come back by itself whenever the connection goes; a lie ends it, and every
    wait raises it.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        session_id: str,
        client_id: str,
        *,
        stay: bool = False,
        ping: float | None = None,
        **options: Any,
    ) -> None:
        """Describes the client; nothing is opened. `options` are those of `Replica`.

        `url` is the server's, or is asked for it before each connection: where there are several.
        With `ping` a line that is silent for so many seconds is given up.
        """
        super().__init__(session_id, client_id, **options)
        self.closes: list[tuple[int | None, str]] = []
        """How its connections ended: the code (None: without a close frame) and the reason."""
        self.on_frame: Callable[[Frame], None] = lambda _: None
        """Called with each frame once it was taken in."""
        self._url = url
        self._ping = ping
        self._stay = stay
        self._sent: set[int] = set()
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # Connections

    async def __aenter__(self) -> Self:
        if self._stay:
            self._keeper = asyncio.create_task(self._keep())
            await self.wait(lambda: self.live, what="its first welcome")
        else:
            await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def live(self) -> bool:
        """Whether it was welcomed on the connection that it has."""
        return self._socket is not None

    async def connect(self, *, send: bool = True, **hello: Any) -> Frame:
        """Opens a connection and returns its welcome; sends what is undecided, unless told not to.

        `hello` replaces fields of the greeting. Raises `ConnectionClosed` where it is sent away.
        """
        url = self._url if isinstance(self._url, str) else self._url()
        socket = await connect(
            f"{url}/ws/session/{self.session_id}",
            subprotocols=[SUBPROTOCOL],
            proxy=None,
            compression=None,
            ping_interval=None if self._ping is None else self._ping / 2,
            ping_timeout=None if self._ping is None else self._ping / 2,
            close_timeout=0.5,
            open_timeout=5,
            max_size=None,
        )
        try:
            await socket.send(json.dumps(self.greeting(**hello)))
            async with asyncio.timeout(20):
                while True:
                    frame: Frame = json.loads(await socket.recv())
                    self.take(frame)
                    if frame["type"] != "error":
                        break
        except ConnectionClosed as end:
            self._note_close(end)
            raise
        except BaseException:
            socket.transport.abort()
            raise
        self._socket = socket
        self._reader = asyncio.create_task(self._read(socket))
        self._sent.clear()
        self._changed.set()
        if send:
            await self._send_pending()
        return frame

    async def disconnect(self, *, abruptly: bool = False) -> None:
        """Closes the connection: in good order, or by a reset that may take along what was sent."""
        socket, reader = self._socket, self._reader
        self._socket = None
        if reader is None:
            return
        if socket is not None and abruptly:
            socket.transport.abort()
        elif socket is not None:
            await socket.close()
        await reader

    async def close(self) -> None:
        """Ends it; raises the lie that it was told, if there was one."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await self.disconnect(abruptly=True)
        if self.lie is not None:
            raise self.lie

    # Work

    async def change(self, *ops: Frame, **fields: Any) -> int:
        """Puts a change into the outbox and returns its number; it is sent now if there is a line.

        `fields` replace the change's own.
        """
        number = self.put(*ops, **fields)
        await self._send_pending()
        return number

    async def send(self, **frame: Any) -> None:
        """Sends any frame, as it is."""
        assert self._socket is not None, "it is not connected"
        await self._socket.send(json.dumps(frame))

    async def echo(self) -> Frame:
        """Sends a heartbeat and waits for its echo: the server took all that was sent before."""
        mark = f"echo {len(self.frames)} {clock()}"
        await self.send(type="heartbeat", t=mark)
        return await self.told(lambda f: f["type"] == "heartbeat" and f["t"] == mark, what="echo")

    async def settled(self, within: float = 20) -> None:
        """Waits until every change is decided."""
        await self.wait(lambda: not self.outbox, within=within, what="its changes to be decided")

    async def at(self, version: int, within: float = 20) -> None:
        """Waits until it stands at a version."""
        await self.wait(
            lambda: self.version is not None and self.version >= version,
            within=within,
            what=f"version {version} (it stands at {self.version})",
        )

    async def closed(self, within: float = 20) -> tuple[int | None, str]:
        """Waits until its connection is gone, and says how it ended."""
        await self.wait(lambda: not self.live, within=within, what="its connection to end")
        return self.closes[-1]

    async def told(
        self, wanted: Callable[[Frame], bool], *, what: str, within: float = 20
    ) -> Frame:
        """Waits until it was sent such a frame, and returns the first."""
        found: list[Frame] = []

        def look() -> bool:
            found[:] = [frame for frame in self.frames if wanted(frame)]
            return bool(found)

        await self.wait(look, within=within, what=what)
        return found[0]

    async def wait(self, holds: Callable[[], bool], *, what: str, within: float = 20) -> None:
        """Waits for a condition that frames bring about; a lie ends the wait."""
        deadline = time.monotonic() + within
        while self.lie is None and not holds():
            self._changed.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{self._where} waited {within} s for {what}")
            # Not wait_for: before Python 3.12 it loses a cancellation that comes with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
        if self.lie is not None:
            raise self.lie

    # Inside

    async def _keep(self) -> None:
        while self.lie is None:
            try:
                await self.connect()
                assert self._reader is not None
                await asyncio.wait({self._reader})  # which goes on when this is cancelled
            except (*AWAY, ConnectionClosed, TimeoutError):
                await asyncio.sleep(0.02)
            except Lie as lie:
                self._say(lie)

    async def _read(self, socket: ClientConnection) -> None:
        try:
            while True:
                frame: Frame = json.loads(await socket.recv())
                self.take(frame)
                self.on_frame(frame)
                self._changed.set()
        except ConnectionClosed as end:
            self._note_close(end)
        except Exception as error:  # noqa: BLE001
            self._say(error)
            socket.transport.abort()
        finally:
            if self._socket is socket:
                self._socket = None
            self._changed.set()

    def _note_close(self, end: ConnectionClosed) -> None:
        self.closes.append((end.rcvd.code, end.rcvd.reason) if end.rcvd else (None, ""))

    def _say(self, lie: BaseException) -> None:
        self.lie = self.lie or lie
        self._changed.set()

    async def _send_pending(self) -> None:
        socket = self._socket
        if socket is None:
            return
        for seq in sorted(self.outbox):
            if seq not in self._sent and seq in self.outbox:
                self._sent.add(seq)
                try:
                    await socket.send(json.dumps(self.outbox[seq]))
                except ConnectionClosed:
                    return  # it goes with the next connection


# Patches: RFC 6902 as commits use it, and the two operations on text


def apply_patch(state: Frame, patch: list[Frame]) -> Frame:
    """The state after a patch, made from the one before; raises `Lie` where it does not fit."""
    document: Any = state
    for op in patch:
        try:
            document = _apply(document, op)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise Lie(f"the patch operation {op} does not fit the state: {error!r}") from error
    result: Frame = document
    return result


def _apply(document: Any, op: Frame) -> Any:
    path = _tokens(op["path"])
    value: Any = copy.deepcopy(op.get("value"))
    match op["op"]:
        case "add":
            op["value"]
        case "remove":
            _take_out(document, path)
            return document
        case "replace":
            op["value"]
            if path:
                _take_out(document, path)
        case "move":
            value = _take_out(document, _tokens(op["from"]))
        case "str_ins":
            text = _text(document, path)
            _within(op["pos"], len(text))
            value = text[: op["pos"]] + op["str"] + text[op["pos"] :]
            _take_out(document, path)
        case "str_del":
            text = _text(document, path)
            _within(op["pos"] + op["len"], len(text))
            value = text[: op["pos"]] + text[op["pos"] + op["len"] :]
            _take_out(document, path)
        case other:
            raise ValueError(f"unknown operation {other}")
    if not path:
        if not isinstance(value, dict):
            raise ValueError("the state is an object")
        return value
    parent = _walk(document, path[:-1])
    if isinstance(parent, list):
        parent.insert(_index(path[-1], len(parent)), value)
    else:
        _object(parent)[path[-1]] = value
    return document


def _take_out(document: Any, path: list[str]) -> Any:
    parent = _walk(document, path[:-1])
    if isinstance(parent, list):
        return parent.pop(_index(path[-1], len(parent) - 1))
    return _object(parent).pop(path[-1])


def _text(document: Any, path: list[str]) -> str:
    found = _walk(document, path)
    if not isinstance(found, str):
        raise TypeError(f"expected text, got {found!r}")
    return found


def _walk(document: Any, path: list[str]) -> Any:
    for token in path:
        if isinstance(document, list):
            document = document[_index(token, len(document) - 1)]
        else:
            document = _object(document)[token]
    return document


def _object(value: Any) -> Frame:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r}")
    return value


def _index(token: str, most: int) -> int:
    if not token.isdigit() or (token != "0" and token.startswith("0")):
        raise ValueError(f"expected an index, got {token!r}")
    return _within(int(token), most)


def _within(number: int, most: int) -> int:
    if not 0 <= number <= most:
        raise IndexError(f"{number} is not within 0..{most}")
    return number


def _tokens(pointer: str) -> list[str]:
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise ValueError(f"expected a JSON Pointer, got {pointer!r}")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]


def equal(a: Any, b: Any) -> bool:
    """Equality of section 2: types count, `true` is not `1`, and `1` is `1.0`."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


async def all_settled(clients: Sequence[WireClient], within: float = 20) -> None:
    """Waits until none of the clients has an undecided change."""
    deadline = time.monotonic() + within
    for one in clients:
        await one.settled(within=max(0.1, deadline - time.monotonic()))
