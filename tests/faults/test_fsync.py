"""Between a change and its acknowledgement there is an fsync: the calls are counted."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Serve
from tests.support.database import ON_POSTGRES
from tests.support.server import ServerProcess
from tests.support.wire_client import WireClient

pytestmark = pytest.mark.faults

SYNCS = {"fsync", "fdatasync"}
RECEIVES = {"read", "recv", "recvfrom", "recvmsg"}
SENDS = {"write", "writev", "send", "sendto", "sendmsg"}
LIBRARY_ONLY = {"recv", "send"}
"""Functions of the C library that the kernel knows as another one."""


class Call(NamedTuple):
    """One system call. `begin` and `end` order it among the others, of all threads."""

    begin: int
    end: int
    name: str
    target: str
    result: int
    data: bytes


Trace = Callable[[], Sequence[Call]]
"""Ends the tracing and returns what was seen."""


# strace, attached to the running server

CALL = re.compile(r"(\d+) +(\w+)\((\d+)<([^>]*)>(.*)$")
RESULT = re.compile(r"\) += (-?\d+)")
UNFINISHED = " <unfinished ...>"
RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)$")
BYTE = re.compile(r"\\x([0-9a-f]{2})")


def parse_strace(text: str) -> list[Call]:
    calls: list[Call] = []
    open_: dict[str, tuple[int, str, str, str]] = {}
    for at, line in enumerate(text.splitlines()):
        resumed = RESUMED.match(line)
        call = CALL.match(line)
        if resumed is not None:
            thread, name, rest = resumed.groups()
            if thread not in open_:
                continue  # it had begun before we looked
            begin, name, target, before = open_.pop(thread)
            rest = before + rest
        elif call is not None:
            thread, name, _, target, rest = call.groups()
            begin = at
            if rest.endswith(UNFINISHED):
                open_[thread] = at, name, target, rest.removesuffix(UNFINISHED)
                continue
        else:
            continue
        result = RESULT.search(rest)
        if result is not None:
            data = bytes.fromhex("".join(BYTE.findall(rest)))
            path = bytes.fromhex("".join(BYTE.findall(target))).decode(errors="replace")
            calls.append(Call(begin, at, name, path, int(result[1]), data))
    return calls


@asynccontextmanager
async def strace(serve: Serve, folder: Path) -> AsyncIterator[tuple[ServerProcess, Trace]]:
    program = shutil.which("strace")
    if program is None:
        pytest.skip("there is no strace here")
    server = await serve(app=None, environment={"UV_USE_IO_URING": "0"})
    log = folder / "strace.log"
    names = ",".join(sorted((SYNCS | SENDS | RECEIVES) - LIBRARY_ONLY))
    # Every string and path in hexadecimal, so that nothing in them looks like a line of ours.
    options = ["-f", "-y", "-xx", "-s", "2000", "-e", f"trace={names}", "-o", str(log)]
    tracer = subprocess.Popen(
        [program, *options, "-p", str(server.pid)], stderr=subprocess.PIPE, text=True
    )

    def stop() -> Sequence[Call]:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
        return parse_strace(log.read_text(errors="replace"))

    try:
        assert tracer.stderr is not None
        said = await asyncio.to_thread(tracer.stderr.readline)
        if "attached" not in said:
            pytest.skip(f"strace may not attach here: {said.strip()}")
        yield server, stop
    finally:
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(10)
        assert tracer.stderr is not None
        tracer.stderr.close()


# A library that is preloaded into the server


def parse_shim(text: str) -> list[Call]:
    calls = []
    for line in text.splitlines():
        _, begin, end, name, target, result, data = line.split(" ")
        calls.append(
            Call(int(begin), int(end), name, target, int(result), bytes.fromhex(data.strip()))
        )
    return calls


@asynccontextmanager
async def shim(serve: Serve, folder: Path) -> AsyncIterator[tuple[ServerProcess, Trace]]:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    library, log = folder / "shim.so", folder / "shim.log"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True
    )
    server = await serve(
        app=None,
        environment={
            "LD_PRELOAD": str(library),
            "SHIM_LOG": str(log),
            "UV_USE_IO_URING": "0",
        },
    )
    yield server, lambda: parse_shim(log.read_text())


@pytest.mark.skipif(ON_POSTGRES, reason="there the server itself syncs no file: PostgreSQL does")
@pytest.mark.parametrize("tracer", [strace, shim], ids=["strace", "shim"])
async def test_an_fsync_lies_between_each_change_and_its_acknowledgement(
    serve: Serve,
    tmp_path: Path,
    tracer: Callable[..., AsyncIterator[tuple[ServerProcess, Trace]]],
) -> None:
    names = [f"client-{n}" for n in range(6)]
    changes = 12
    async with tracer(serve, tmp_path) as (server, trace):  # type: ignore[attr-defined]

        async def work(name: str) -> None:
            # Each on a session of its own: so what goes over its socket is its own.
            async with WireClient(server.ws_url, name, name, create={"n": 0}) as client:
                for number in range(1, changes + 1):
                    if number % 4 == 0:
                        await client.change({"op": "set", "path": "/no/parent", "value": 1})
                    else:
                        await client.change({"op": "inc", "path": "/n", "by": 1})
                    await client.settled()

        await asyncio.gather(*map(work, names))
        # The shim writes a call down when it is over, and the last answer is here by then.
        assert await server.stop() == 0
        calls = trace()

    syncs = [
        call
        for call in calls
        if call.name in SYNCS and call.result == 0 and call.target.endswith("-wal")
    ]
    counts: list[int] = []
    for name in names:
        ours = [call for call in calls if call.target == socket_of(name, calls)]
        received = [call for call in ours if call.name in RECEIVES and call.result > 0]
        sent = [call for call in ours if call.name in SENDS and call.result > 0]
        welcome = next(call for call in sent if b'"type":"initial_state"' in call.data)
        answers = [welcome] + [
            next(call for call in sent if mark in call.data)
            for mark in (
                f'"type":"rejected","seq":{n},'.encode()
                if n % 4 == 0
                else f'"client_id":"{name}","seq":{n},'.encode()
                for n in range(1, changes + 1)
            )
        ]
        for answer in answers:
            # One at a time: what was received last is what is answered.
            asked = max((call for call in received if call.end < answer.begin), key=lambda c: c.end)
            between = [one for one in syncs if asked.end < one.begin and one.end < answer.begin]
            assert between, f"{name} was answered without an fsync: {json.dumps(str(answer))}"
            counts.append(len(between))
    assert len(counts) == len(names) * (changes + 1)
    # And there were fewer of them than answers: they are shared.
    assert 0 < len(syncs) < 3 * len(counts)


def socket_of(name: str, calls: Sequence[Call]) -> str:
    mark = f'"client_id":"{name}","seq":1,'.encode()
    return next(call.target for call in calls if call.name in SENDS and mark in call.data)
