"""The load, in a process of its own: sessions with a writer and watchers, over real WebSockets.

    python -m bench.load --writers ws://127.0.0.1:8000 --watchers ws://127.0.0.1:8000

Prints ``measuring`` when it has warmed up, then one line of JSON. An edit is done when its writer
has its commit and every watcher has it. With ``--in-flight`` each writer keeps so many edits under
way; with ``--rate`` so many come each second from all together, whatever becomes of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

__all__ = ["main"]

_TEXT: Final = WSMsgType.TEXT
_CLOSE: Final = WSMsgType.CLOSE
_UPDATE: Final = b'{"type":"state_update","version":'
_SEQ: Final = b'"seq":'
_AT_ONCE: Final = 50
"""Connections that are made at a time."""
_TICK_S: Final = 0.002
_PAD: Final = "abcdefghijklmnopqrstuvwxyz0123456789" * 2
_FIELDS: Final = 20


class Line(WSListener):
    """One connection to one session."""

    def __init__(self, session_id: str, hello: dict[str, Any]) -> None:
        super().__init__()
        self.session_id = session_id
        self.hello = hello
        self.client_id = f"{uuid.uuid4()}"
        self.epoch = ""
        self.version = 0
        self.transport: WSTransport
        self.welcomed = asyncio.get_running_loop().create_future()
        self.on_commit: Callable[[int], None] = _nothing
        self.bytes = 0

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        device = {"id": self.client_id}
        said = {
            "type": "hello",
            "client_id": self.client_id,
            "device": device,
            "t": _now(),
            "seq": 0,
        }
        self.send({**said, "epoch": None, "version": None, **self.hello})

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == _TEXT:
            data = frame.get_payload_as_bytes()
            self.bytes += len(data)
            if data.startswith(_UPDATE):
                self.version = int(data[len(_UPDATE) : data.index(b",", len(_UPDATE))])
                at = data.index(_SEQ) + len(_SEQ)
                self.on_commit(int(data[at : data.index(b",", at)]))
            elif not self.welcomed.done():
                self._welcome(json.loads(data))
        elif frame.msg_type == _CLOSE:
            if not self.welcomed.done():
                why = str(frame.get_close_message())
                self.welcomed.set_exception(ConnectionError(f"expected a welcome, got {why}"))
            transport.disconnect()

    def send(self, message: dict[str, Any]) -> None:
        """Send a frame."""
        self.transport.send(_TEXT, json.dumps(message).encode())

    def _welcome(self, frame: dict[str, Any]) -> None:
        if frame["type"] in {"initial_state", "resumed"}:
            self.epoch, self.version = frame["epoch"], frame["version"]
            self.welcomed.set_result(frame)
        elif frame["type"] == "error":
            self.welcomed.set_exception(ConnectionError(f"expected a welcome, got {frame}"))


class Session:
    """A writer, its watchers, and the edits under way."""

    def __init__(self, run: Run, writer: Line, watchers: Sequence[Line]) -> None:
        self.run, self.writer, self.watchers = run, writer, watchers
        self.seq = 0
        self.done = 0
        self.sent: dict[int, float] = {}
        self.typed = 0
        self._has = [0] * (1 + len(watchers))
        """The newest edit that each line has: the writer's, then the watchers'."""
        for number, line in enumerate((writer, *watchers)):
            line.on_commit = self._follow(number)

    def edit(self) -> None:
        """Send the next edit."""
        self.seq += 1
        self.sent[self.seq] = time.perf_counter()
        ops = self.run.edit(self)
        base, epoch = self.writer.version, self.writer.epoch
        head = {"type": "change", "seq": self.seq, "base": base, "epoch": epoch, "at": _now()}
        self.writer.send({**head, "ops": [ops]})

    def fill(self) -> None:
        """Keep as many edits under way as there are to be."""
        while self.seq - self.done < self.run.in_flight and self.run.going:
            self.edit()

    def _follow(self, number: int) -> Callable[[int], None]:
        def on_commit(seq: int) -> None:
            self._has[number] = seq
            if number == 0:
                self.run.acknowledged(self.sent[seq])
            if seq > self.done and min(self._has) >= seq:
                for one in range(self.done + 1, seq + 1):
                    self.run.seen(self.sent.pop(one))
                self.done = seq
                if not self.run.rate:
                    self.fill()

        return on_commit


class Run:
    """All sessions of one measurement."""

    def __init__(self, said: argparse.Namespace) -> None:
        self.said = said
        self.in_flight: int = said.in_flight
        self.rate: float = said.rate
        self.going = True
        self.sessions: list[Session] = []
        self.acks: list[float] = []
        self.seens: list[float] = []
        self.edit = _token if said.stream else _field

    def acknowledged(self, sent: float) -> None:
        """Take in that a writer has its commit."""
        self.acks.append(time.perf_counter() - sent)

    def seen(self, sent: float) -> None:
        """Take in that everybody has an edit."""
        self.seens.append(time.perf_counter() - sent)

    async def connect(self) -> None:
        """Open all sessions."""
        said = self.said
        gate = asyncio.Semaphore(_AT_ONCE)
        state: dict[str, Any] = {"l": [], "t": ""}
        state |= {f"k{n}": {"s": 0, "v": _PAD[:60]} for n in range(_FIELDS)}
        if said.state_bytes:
            state["rest"] = ["x" * 1000] * (said.state_bytes // 1000)

        async def line(url: str, session_id: str, hello: dict[str, Any]) -> Line:
            async with gate:
                return await connect(url, session_id, hello)

        async def session(number: int) -> Session:
            name = f"{said.prefix}{number}"
            writer = await line(said.writers, name, {"create": {"state": state}})
            watchers = [line(said.watchers, name, {}) for _ in range(said.each)]
            return Session(self, writer, await asyncio.gather(*watchers))

        self.sessions = await asyncio.gather(*map(session, range(said.sessions)))

    async def drive(self) -> dict[str, Any]:
        """Warm up, measure, and return what was found."""
        going = asyncio.create_task(self._rate()) if self.rate else None
        if going is None:
            for session in self.sessions:
                session.fill()
        await asyncio.sleep(self.said.warm)
        self.acks.clear()
        self.seens.clear()
        bytes_before = self._bytes()
        print("measuring", flush=True)
        cpu, begun = time.process_time(), time.perf_counter()
        await asyncio.sleep(self.said.seconds)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        edits = len(self.seens)
        self.going = False
        if going is not None:
            going.cancel()
        return {
            "edits": edits,
            "seconds": seconds,
            "edits_s": edits / seconds,
            "ack_ms": _spread(self.acks),
            "seen_ms": _spread(self.seens),
            "load_cpu": cpu / seconds,
            "received_bytes": (self._bytes() - bytes_before) / max(1, edits),
        }

    def _bytes(self) -> int:
        return sum(line.bytes for one in self.sessions for line in (one.writer, *one.watchers))

    async def _rate(self) -> None:
        begun, sent = time.perf_counter(), 0
        while True:
            due = (time.perf_counter() - begun) * self.rate
            while sent < due:
                self.sessions[sent % len(self.sessions)].edit()
                sent += 1
            await asyncio.sleep(_TICK_S)


async def connect(url: str, session_id: str, hello: dict[str, Any]) -> Line:
    """Open a line to a session, and wait until it is let in."""
    headers = {"Sec-WebSocket-Protocol": "reattach.v1"}
    _, line = await ws_connect(
        lambda: Line(session_id, hello), f"{url}/ws/session/{session_id}", extra_headers=headers
    )
    assert isinstance(line, Line)
    await line.welcomed
    return line


def _field(session: Session) -> dict[str, Any]:
    """Write one of the fields; each tenth edit adds to a list instead."""
    seq = session.seq
    value = {"s": seq, "v": _PAD[seq % 7 : 50 + seq % 7]}
    if seq % 10 == 0:
        return {"op": "insert", "path": "/l", "value": {"id": f"e{seq}", **value}}
    return {"op": "set", "path": f"/k{seq % _FIELDS}", "value": value}


def _token(session: Session) -> dict[str, Any]:
    """Type a word at the end of a text."""
    at, session.typed = session.typed, session.typed + 6
    return {"op": "splice", "path": "/t", "index": at, "delete": 0, "insert": "token "}


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {"p50": 0.0, "p99": 0.0}
    found = sorted(seconds)
    return {
        name: round(1000 * found[min(len(found) - 1, int(len(found) * part))], 3)
        for name, part in (("p50", 0.5), ("p99", 0.99))
    }


def _now() -> int:
    return time.time_ns() // 1_000_000


def _nothing(_: int) -> None:
    """Nobody waits for commits yet."""


async def _run(said: argparse.Namespace) -> None:
    run = Run(said)
    await run.connect()
    print(json.dumps(await run.drive()), flush=True)


def main() -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(prog="bench.load", description="Load for a Reattach server.")
    parser.add_argument(
        "--writers", required=True, help="the server of the writers: ws://host:port"
    )
    parser.add_argument("--watchers", required=True, help="the server of the watchers")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--each", type=int, default=1, help="watchers of each session")
    parser.add_argument("--in-flight", type=int, default=1, help="edits of each writer under way")
    parser.add_argument("--rate", type=float, default=0, help="edits a second; 0: by --in-flight")
    parser.add_argument("--stream", action="store_true", help="edits type text, word by word")
    parser.add_argument(
        "--state-bytes", type=int, default=0, help="what states weigh beside fields"
    )
    parser.add_argument("--warm", type=float, default=1.0, help="seconds before it is measured")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--prefix", default="bench-", help="what ids of sessions begin with")
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
