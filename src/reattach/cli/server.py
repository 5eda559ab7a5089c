"""The process, or the several, that ``reattach serve`` is."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import structlog
import typer
import uvicorn

from reattach import logs
from reattach.cli.finding import load
from reattach.cli.output import Exit, Refused, ending, err, out
from reattach.server import collector
from reattach.server.app import Reattach
from reattach.server.metrics import Crew
from reattach.server.uvicorn_ws import UvicornProtocol
from reattach.server.workers import Workers

__all__ = ["Wanted", "run"]

log = structlog.get_logger("reattach.serve")

_LAST_RESORT: Final = 0.7
"""Seconds beyond the shutdown timeout after which the process ends, whatever hangs."""


@dataclass(frozen=True)
class Wanted:
    """What is to be served, as the options have it."""

    app: str | None
    database: str | None
    auth: str | None
    redis: str | None
    anonymous: bool
    allow_origins: Sequence[str]
    inspector: Literal["read", "write"] | None
    log_level: logs.Level
    json_logs: bool

    def prepare(self) -> Reattach:
        """Return the server; raises what keeps it from being one."""
        logs.configure(self.log_level, json=self.json_logs)
        served = load(self.app, self.database, self.auth)
        if self.redis is not None:
            served.use_redis(self.redis)
        if self.anonymous:
            served.allow_anonymous()
        if self.allow_origins:
            served.allow_origins(self.allow_origins)
        if self.inspector is not None:
            served.use_inspector(self.inspector)
        return served


def run(wanted: Wanted, host: str, port: int, workers: int) -> int:
    """Serve until a signal comes; returns the exit code, raises what keeps it from starting."""
    served = wanted.prepare()
    served.check_workers(workers)
    _check_host(served, host)
    sockets = _bind(host, port)
    ready = partial(_say_ready, host, sockets)
    if workers == 1:
        _Server(served, sockets, ready).run()
        return Exit.FINE
    with tempfile.TemporaryDirectory(prefix="reattach-") as folder:
        work = partial(_work, wanted, Path(folder), workers)
        grace = served.settings.shutdown_timeout_ms / 1000 + 2 * _LAST_RESORT
        return Workers(workers, work, sockets, ready=ready, grace=grace).run()


def _work(
    wanted: Wanted,
    folder: Path,
    count: int,
    number: int,
    sockets: Sequence[socket.socket],
    ready: Callable[[], None],
) -> int:
    """Serve as one of several, in a process of its own."""
    try:
        with ending():
            served = wanted.prepare()
            served.join(Crew(folder, number, count))
            _Server(served, list(sockets), ready).run()
    except typer.Exit as end:
        return end.exit_code
    return Exit.FINE


class _Server(uvicorn.Server):
    """uvicorn, with our WebSockets, and an end of ours."""

    def __init__(
        self,
        reattach: Reattach,
        sockets: list[socket.socket],
        ready: Callable[[], None],
    ) -> None:
        config = uvicorn.Config(
            reattach,
            loop="uvloop",
            http="httptools",
            ws=partial(UvicornProtocol, reattach),  # type: ignore[arg-type]  # it is called, no more
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        super().__init__(config)
        self._reattach = reattach
        self._sockets = sockets
        self._ready = ready

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes; raises what keeps it from starting."""
        del sockets
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._start_and_serve())

    async def _start_and_serve(self) -> None:
        # Before uvicorn, which would make a traceback and an exit of what goes wrong.
        await self._reattach.start()
        try:
            await self.serve(self._sockets)
        finally:
            await self._reattach.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        try:
            await super().startup(sockets)
        except OSError as error:
            raise Refused(_in_the_way(error, self._sockets[0].getsockname())) from None
        if self.started:
            collector.settle()
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, finish what is under way, say 1012 to every connection, end.

        The sessions come first: so everybody is told, and streams end by themselves. What is left
        of the time goes to clients that are slow to go.
        """
        budget = self._reattach.settings.shutdown_timeout_ms / 1000
        begun = time.monotonic()
        last_resort = threading.Timer(budget + _LAST_RESORT, _end_now)
        last_resort.daemon = True
        last_resort.start()
        log.info("stopping", connections=len(self.server_state.connections))
        for server in self.servers:
            server.close()
        await self._reattach.stop()
        left = max(0.1, begun + budget - time.monotonic())
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # seconds
        await super().shutdown(sockets)
        log.info("stopped", seconds=round(time.monotonic() - begun, 3))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals as what they are here: the wish to end in good order, with exit code 0."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def _end_now() -> None:
    """End although something hangs: nobody was told of anything that is not durable."""
    err().print("reattach: the database hangs, ending without it: nothing that was saved is lost")
    os._exit(0)


def _check_host(served: Reattach, host: str) -> None:
    if served.authenticate is None and not _is_loopback(host):
        raise Refused(
            f"expected a loopback host (127.0.0.1, ::1 or localhost), got {host}: without"
            " authentication (--auth none) whoever reaches the server may read and write"
            " everything. Serve with --auth jwt or --anonymous, or an --app whose Reattach has an"
            " authenticate",
            Exit.WRONG,
        )


def _bind(host: str, port: int) -> list[socket.socket]:
    """Take the addresses, before anything is opened that would have to be closed again."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise Refused(f"cannot listen on {host}: {error.strerror}", Exit.WRONG) from None
    sockets: list[socket.socket] = []
    for family, _, _, _, wanted in dict.fromkeys(found):
        one = socket.socket(family, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken = sockets[0].getsockname()[1] if sockets else port
        address = (wanted[0], taken, *wanted[2:])
        try:
            one.bind(address)
        except OSError as error:
            for bound in (*sockets, one):
                bound.close()
            raise Refused(_in_the_way(error, address)) from None
        sockets.append(one)
    return sockets


def _in_the_way(error: OSError, address: tuple[object, ...]) -> str:
    where = f"{address[0]} port {address[1]}"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot listen on {where}: {reason}. Stop what listens there, or give another --port"


def _say_ready(host: str, sockets: list[socket.socket]) -> None:
    name = f"[{host}]" if ":" in host else host
    out().print(f"Reattach serves http://{name}:{sockets[0].getsockname()[1]}", markup=False)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
