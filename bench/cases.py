"""What is measured, each on a server that was just started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import httpx
import msgspec
import psutil

from bench import machine
from bench.load import Line, connect
from tests.support.paths import BIN, ROOT
from tests.support.postgres import Postgres
from tests.support.server import ServerProcess, free_port
from tests.support.valkey import ValkeyServer

__all__ = ["LOADS", "STORES", "Bench", "Case"]


class Case(msgspec.Struct, frozen=True):
    """A load: what it is called, and its arguments for `bench.load`."""

    name: str
    arguments: Mapping[str, float | bool]
    on: Sequence[str] = ()
    """The stores that it is measured on; empty: all."""


STORES: Final = ("SQLite", "PostgreSQL", "PostgreSQL + Valkey", "two nodes")

LOADS: Final = (
    Case("200 sessions × 1 in flight", {"sessions": 200, "in-flight": 1}),
    Case("200 sessions × 16 in flight", {"sessions": 200, "in-flight": 16}),
    Case("500 edits/s over 50 sessions", {"sessions": 50, "rate": 500}),
    Case(
        "tokens: 50 texts × 20 words/s", {"sessions": 50, "rate": 1000, "stream": True}, ("SQLite",)
    ),
    Case("state of 1 KB", {"sessions": 20, "in-flight": 4}, ("SQLite",)),
    Case("state of 1 MB", {"sessions": 20, "in-flight": 4, "state-bytes": 1_000_000}, ("SQLite",)),
    Case("1 viewer", {"sessions": 1, "each": 1}, ("SQLite",)),
    Case("10 viewers", {"sessions": 1, "each": 10}, ("SQLite",)),
    Case("100 viewers", {"sessions": 1, "each": 100}, ("SQLite",)),
    Case("1,000 viewers", {"sessions": 1, "each": 1000}, ("SQLite",)),
)

_PINS: Final = len(psutil.Process().cpu_affinity() or ()) > 1 if sys.platform == "linux" else False
"""Whether servers and load can have cores of their own."""
_CONNECTIONS: Final = 1_000
_COLD: Final = 200
_MISSED: Final = 100
_REPEATS: Final = 20
_TEN_KB: Final = {"rest": ["x" * 1000] * 10}
_HEAVY: Final = {"rest": ["x" * 1000] * 100}
"""More than what is missed: so it is that which is sent."""


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """Have a command run on one core alone, where that can be: 0 is the servers', 1 the load's."""
    return ["taskset", "-c", str(core), *command] if _PINS else list(command)


class Bench:
    """The databases that servers are measured on, as long as it is open."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """``seconds`` is how long a load is measured."""
        self._folder = folder
        self._seconds = seconds
        self._postgres = Postgres({"shared_buffers": "128MB"})
        self._valkey = ValkeyServer(folder)
        self._open = AsyncExitStack()
        self._made = 0

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._postgres)
        await self._open.enter_async_context(self._valkey)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def limits(self) -> dict[str, float]:
        """Measure what the machine can do by itself."""
        url = await self._postgres.empty_database()
        return {
            "fsyncs/s": await asyncio.to_thread(machine.fsyncs, self._folder, 1.0),
            "SQLite rows/s, 200 each": await asyncio.to_thread(
                machine.sqlite_rows, self._fresh("rows"), 1.0
            ),
            "PostgreSQL rows/s, 200 each": await machine.postgres_rows(url, 1.0),
            "WebSocket echoes/s": await self._echo(),
        }

    @asynccontextmanager
    async def servers(self, store: str) -> AsyncIterator[list[ServerProcess]]:
        """Start the servers of a kind on an empty database."""
        folder = self._fresh("server")
        arguments = ["--redis", self._valkey.url] if store in STORES[2:] else []
        url = None if store == "SQLite" else await self._postgres.own_database()
        command = pinned(0, [str(BIN / "reattach")])
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    ServerProcess(
                        folder / f"{number}.db",
                        database_url=url,
                        app=None,
                        arguments=arguments,
                        command=command,
                    )
                )
                for number in range(2 if store == "two nodes" else 1)
            ]

    async def load(self, servers: Sequence[ServerProcess], case: Case, run: int) -> dict[str, Any]:
        """Put a load on servers: the writers' is the first, the watchers' the last."""
        arguments = ["--writers", servers[0].ws_url, "--watchers", servers[-1].ws_url]
        arguments += ["--seconds", str(self._seconds), "--prefix", f"bench-{run}-"]
        for name, value in case.arguments.items():
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        process = await asyncio.create_subprocess_exec(
            *pinned(1, [sys.executable, "-m", "bench.load", *arguments]),
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(120):
                await process.stdout.readline()
                before = _cpu(servers)
                found: dict[str, Any] = json.loads(await process.stdout.readline())
                found["cpu_s_10k"] = (_cpu(servers) - before) / max(1, found["edits"]) * 10_000
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return found

    async def memory(self) -> dict[str, float]:
        """Return what connections and sessions weigh that do nothing, in KB each."""
        async with self.servers("SQLite") as (server, *_):
            await _open(server, ["warm-up"])
            before = _resident(server)
            await _open(server, ["warm-up"] * _CONNECTIONS)
            between = _resident(server)
            await _open(server, [f"open-{number}" for number in range(_CONNECTIONS)], _TEN_KB)
            after = _resident(server)
        connection = (between - before) / _CONNECTIONS / 1000
        session = (after - between) / _CONNECTIONS / 1000
        return {"KB per idle connection": connection, "KB per open session of 10 KB": session}

    async def opening(self) -> dict[str, float]:
        """Return how long it takes to come back and to open what is not in memory, in ms."""
        async with self.servers("SQLite") as (server, *_):
            names = [f"cold-{number}" for number in range(_COLD)]
            await _open(server, names, _TEN_KB)
            (writer,) = await _open(server, ["missed"], _HEAVY)
            writer_done = asyncio.get_running_loop().create_future()
            base, epoch = writer.version, writer.epoch

            def on_commit(seq: int) -> None:
                if seq == _MISSED and not writer_done.done():
                    writer_done.set_result(None)

            writer.on_commit = on_commit
            for seq in range(1, _MISSED + 1):
                op = {"op": "set", "path": "/n", "value": seq}
                change = {"type": "change", "seq": seq, "base": base, "epoch": epoch, "at": 0}
                writer.send({**change, "ops": [op]})
            await writer_done
            missed = {"epoch": epoch, "version": base}
            delta = await _timed(server, "missed", missed, "resumed")
            snapshot = await _timed(server, names[0], {}, "initial_state")
            await server.stop()
            await server.start()
            cold = []
            async with httpx.AsyncClient(base_url=server.url) as client:
                await client.get("/healthz")
                for name in names:
                    begun = time.perf_counter()
                    (await client.get(f"/api/v0/session/{name}")).raise_for_status()
                    cold.append(1000 * (time.perf_counter() - begun))
        return {
            f"ms to resume after {_MISSED} commits": delta,
            "ms to be welcomed with a state of 10 KB": snapshot,
            "ms to read a cold session of 10 KB": statistics.median(cold),
        }

    def _fresh(self, name: str) -> Path:
        self._made += 1
        folder = self._folder / f"{name}-{self._made}"
        folder.mkdir()
        return folder

    async def _echo(self) -> float:
        port = str(free_port())
        command = [sys.executable, "-m", "bench.echo", port]
        server = await asyncio.create_subprocess_exec(
            *pinned(0, command), stderr=subprocess.DEVNULL, cwd=ROOT
        )
        try:
            load = await asyncio.create_subprocess_exec(
                *pinned(1, [*command, "--load"]), stdout=subprocess.PIPE, cwd=ROOT
            )
            said, _ = await asyncio.wait_for(load.communicate(), 60)
        finally:
            server.kill()
            await server.wait()
        return float(json.loads(said)["messages_s"])


async def _open(
    server: ServerProcess, names: Sequence[str], state: dict[str, Any] | None = None
) -> list[Line]:
    gate = asyncio.Semaphore(50)

    async def line(name: str) -> Line:
        async with gate:
            return await connect(server.ws_url, name, {"create": {"state": state or {}}})

    return await asyncio.gather(*map(line, names))


async def _timed(server: ServerProcess, name: str, hello: dict[str, Any], expected: str) -> float:
    """Return how long it takes, as a median, from the hello of a new connection to its welcome."""
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        line = await connect(server.ws_url, name, hello)
        times.append(1000 * (time.perf_counter() - begun))
        assert line.welcomed.result()["type"] == expected, line.welcomed.result()["type"]
        line.transport.disconnect()
    return statistics.median(times)


def _cpu(servers: Sequence[ServerProcess]) -> float:
    times = [psutil.Process(server.pid).cpu_times() for server in servers]
    return sum(one.user + one.system for one in times)


def _resident(server: ServerProcess) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)
