"""How soon a write on one node is seen on another: with Valkey, without it, and when it lost it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median, quantiles
from typing import Self

import pytest
import pytest_asyncio

from tests.conftest import Witnesses
from tests.support.server import ServerProcess, free_port
from tests.support.stack import Stack
from tests.support.wire_client import Frame, WireClient

pytestmark = pytest.mark.faults

WITH_VALKEY = 0.010
"""Seconds, on the median of the best window of writes."""
# `make soak` has the machine for itself. In `make test` other tests run beside this one, and a
# window is short: of many, one has the machine for itself, too. Where the way takes longer, none is
# good however many there are.
WRITES, WINDOWS = (50, 3) if "REATTACH_SOAK_SECONDS" in os.environ else (15, 40)
WITHOUT = 1.0
QUIET = 2.0
"""Seconds until a session is right of which the last message was lost, and nothing came since."""

INC: Frame = {"op": "inc", "path": "/n", "by": 1}


class Swallower:
    """Passes on what a node and Valkey say, but loses, when told so, the messages of a channel.

    Unlike a connection that breaks off, neither end can know.
    """

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.channel: bytes | None = None
        """The end of the channel's name of which messages are lost."""
        self.lost = 0
        """How many commits were in what was lost: nodes tell each other who is there, too."""
        self._there = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError):
                there, up = await asyncio.open_connection("127.0.0.1", self._there)
                await asyncio.gather(self._said(reader, up), self._heard(there, writer))
        finally:
            writer.transport.abort()
            if up is not None:
                up.transport.abort()

    async def _said(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    async def _heard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                answer, words = await _answer(reader)
                if words[:1] == [b"message"] and self._loses(words[1]):
                    self.lost += b"state_update" in words[2]
                    continue
                writer.write(answer)
                await writer.drain()
        writer.close()

    def _loses(self, channel: bytes) -> bool:
        return self.channel is not None and channel.endswith(self.channel)


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """One answer of Valkey as it came, and the strings in it (RESP: `*`, `>`, `%`, `$`)."""
    line = await reader.readuntil(b"\r\n")
    kind, rest = line[:1], line[1:-2]
    if kind == b"$" and int(rest) >= 0:
        body = await reader.readexactly(int(rest) + 2)
        return line + body, [body[:-2]]
    words: list[bytes] = []
    if kind in b"*>~%":
        for _ in range(int(rest) * (2 if kind == b"%" else 1)):
            part, more = await _answer(reader)
            line += part
            words += more
    return line, words


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """For both tests: the one that kills Valkey is the last."""
    async with Stack(tmp_path_factory.mktemp("stack"), app=None) as stack:
        yield stack


@pytest.fixture
def stack(running: Stack, witnesses: Witnesses) -> Stack:
    witnesses.append(("the full stack", running.logs))
    return running


async def seconds(writer: WireClient, reader: WireClient, writes: int) -> list[float]:
    """How long after each write begins the reader shows it, one write after the other."""
    took = []
    for _ in range(writes):
        assert reader.version is not None
        wanted = reader.version + 1
        begun = time.monotonic()
        await writer.change(INC)
        await reader.at(wanted)
        took.append(time.monotonic() - begun)
        await writer.settled()
    return took


def told(what: str, took: list[float]) -> str:
    """Figures for people."""
    p99 = quantiles(took, n=100, method="inclusive")[-1]
    return f"{what}: median {median(took) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"


async def test_a_quiet_session_whose_last_message_was_lost_is_right_within_two_seconds(
    stack: Stack, tmp_path: Path
) -> None:
    """The message is lost between Valkey and the node, and nothing else ever comes to tell of it:
    neither a broken connection nor a later version.
    """
    async with (
        Swallower(stack.valkey.port) as wire,
        ServerProcess(
            tmp_path / "third",
            database_url=stack.database,
            app=None,
            arguments=("--redis", wire.url),
        ) as deaf,
        WireClient(stack.nodes[0].ws_url, "quiet", "writes", create={"n": 0}) as writer,
        WireClient(deaf.ws_url, "quiet", "reads") as reader,
    ):
        await seconds(writer, reader, 2)
        for number in range(1, 4):
            wire.channel = b":s:quiet"
            took = await seconds(writer, reader, 1)
            assert wire.lost == number, "expected the message to come, and to be lost"
            assert took[0] <= QUIET
            wire.channel = None
            await seconds(writer, reader, 1)
        assert writer.state == reader.state == {"n": 8}


async def test_a_write_on_one_node_is_seen_on_the_other_at_once_and_without_valkey_in_a_second(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    """From before the write is sent to after its frame was taken in, the commit included."""
    one, other = stack.nodes
    figures = []
    async with (
        WireClient(one.ws_url, "live", "writes", create={"n": 0}) as writer,
        WireClient(other.ws_url, "live", "reads") as reader,
    ):
        await seconds(writer, reader, 5)  # what is done once is done
        windows: list[list[float]] = []
        while not windows or (min(map(median, windows)) > WITH_VALKEY and len(windows) < WINDOWS):
            windows.append(await seconds(writer, reader, WRITES))
        best = min(windows, key=median)
        figures.append(told(f"with Valkey, the best of {len(windows)} times {WRITES}", best))
        await stack.valkey.kill()
        without = await seconds(writer, reader, 5)
        figures.append(told("without Valkey", without))
        with capsys.disabled():
            sys.stdout.write("".join(f"\n  live across nodes, {one}" for one in figures))
        assert writer.state == reader.state == {"n": 5 + len(windows) * WRITES + 5}
    assert median(best) <= WITH_VALKEY, figures
    assert max(without) <= WITHOUT, without
