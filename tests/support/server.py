"""A real server in a process of its own, which a test may kill."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx

from tests.support.paths import BIN, ROOT
from tests.support.waiting import until

EXAMPLE = "examples.gap_resolution.app:reattach"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on.

    It lies below the range that the kernel gives to outgoing connections (Linux: from 32768). In
    that range a client that reconnects while the server is down may be given the server's own port,
    connect to itself and keep the server from ever binding it again. Tests that run side by side
    have ports apart: a server that is down for a moment finds its own free.
    """
    side = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    sides = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for _ in range(200):
        port = random.randrange(11_000 + side, 32_000, sides)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 11000 and 32000 in 200 tries")


class ServerProcess:
    """`reattach serve` on this machine, always on the same port and database.

        async with ServerProcess(tmp_path / "reattach.db") as server:
            ...
            await server.kill()     # SIGKILL: the whole process group is gone on return
            await server.restart()  # ready again

    Everything that it prints goes to one file, `log`, over all its lives.
    """

    def __init__(
        self,
        database: Path,
        *,
        database_url: str | None = None,
        app: str | None = EXAMPLE,
        arguments: Sequence[str] = (),
        command: Sequence[str] = (str(BIN / "reattach"),),
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        cwd: Path = ROOT,
        ready_within: float = 20.0,
    ) -> None:
        """Describes the server; `start` starts it.

        `database` is a file, or only gives the log its name, where there is a `database_url`.
        `app=None` serves without an application of one's own. `command` may put something in
        front (`strace`). `environment` is added to the tests' own.
        """
        self.database = database
        self.database_url = database_url
        self.log = database.with_name(f"{database.name}.server.log")
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}"
        self._argv = [*command, "serve", "--host", host, "--port", str(self.port)]
        self._argv += ["--database", database_url or f"sqlite:///{database}"]
        self._argv += [] if app is None else ["--app", app]
        self._argv += arguments
        self._environment = os.environ | dict(environment or {})
        self._cwd = cwd
        self._ready_within = ready_within
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the server's present life."""
        return self._running().pid

    @property
    def nodes(self) -> Sequence[ServerProcess]:
        """The servers that it consists of: itself, unless it is a `ServerPair`."""
        return [self]

    @property
    def alive(self) -> bool:
        """Whether the process runs (a stopped one does, too)."""
        return self._process is not None and self._process.poll() is None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self, *, ready: bool = True) -> None:
        """Starts it and waits until /readyz says 200, unless `ready=False`."""
        if self.alive:
            raise RuntimeError(f"the server runs already, as process {self.pid}")
        with self.log.open("ab") as log:
            # A group of its own, so that killing it leaves no child behind.
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if ready:
            await self.ready()

    async def ready(self) -> None:
        """Waits until it answers /readyz with 200; fails at once when the process ends."""
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:

            async def answers() -> bool:
                code = self._running().poll()
                if code is not None:
                    raise RuntimeError(
                        f"the server ended with {code} instead of starting\n{self.log_tail()}"
                    )
                try:
                    response = await client.get(f"{self.url}/readyz")
                except httpx.TransportError:
                    return False
                return response.status_code == 200

            try:
                await until(answers, within=self._ready_within, what="/readyz", every=0.02)
            except TimeoutError as error:
                await self.kill()
                raise TimeoutError(f"{error}\n{self.log_tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and its children, at once: SIGSTOP, SIGCONT, SIGTERM."""
        if self.alive:
            os.killpg(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL. On return the process is gone, its port free and its file locks dropped."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._ended(within=10.0)

    async def stop(self, *, within: float = 10.0) -> int:
        """SIGTERM, and its exit code; TimeoutError and SIGKILL if that takes over `within` s."""
        self.signal(signal.SIGTERM)
        try:
            return await self._ended(within=within)
        except TimeoutError:
            await self.kill()
            raise

    async def restart(self) -> None:
        """Kills it if it runs, and starts it again on the same port and database."""
        await self.kill()
        await self.start()

    def log_tail(self, lines: int = 80) -> str:
        """The end of what it printed."""
        if not self.log.exists():
            return "(it was never started)"
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(text[-lines:]) or "(it printed nothing)"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server was not started: await server.start()")
        return self._process

    async def _ended(self, *, within: float) -> int:
        process = self._running()
        await until(lambda: process.poll() is not None, within=within, what="the server to end")
        return process.wait()
