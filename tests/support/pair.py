"""Two nodes that look like one server."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.balancer import Balancer
from tests.support.server import ServerProcess


class ServerPair(ServerProcess):
    """Two `reattach serve` on one database behind a `Balancer`, as one server of a test.

    Whoever comes to its address comes to either. What is done to it (killed, stopped, started) is
    done to both, and both write to its log. `chance` and `moving` are the balancer's, the other
    options `ServerProcess`'s, for each node.
    """

    def __init__(
        self,
        database: Path,
        *,
        chance: random.Random,
        moving: float | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(database, host=host, port=port, **options)
        self._nodes = [ServerProcess(database, host=host, **options) for _ in range(2)]
        self._balancer = Balancer(
            [node.port for node in self._nodes],
            host=_host(options.get("arguments", ()), host),
            port=self.port,
            chance=chance,
            moving=moving,
        )

    @property
    def pid(self) -> int:
        raise RuntimeError("two nodes are two processes: ask each of `nodes`")

    @property
    def nodes(self) -> Sequence[ServerProcess]:
        return self._nodes

    @property
    def alive(self) -> bool:
        return any(node.alive for node in self._nodes)

    async def start(self, *, ready: bool = True) -> None:
        await asyncio.gather(*(node.start(ready=False) for node in self._nodes))
        if ready:
            await self.ready()
        else:
            await self._balancer.open()

    async def ready(self) -> None:
        await asyncio.gather(*(node.ready() for node in self._nodes))
        await self._balancer.open()

    def signal(self, number: signal.Signals) -> None:
        for node in self._nodes:
            node.signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await asyncio.gather(*(node.kill() for node in self._nodes))
        await self._balancer.close()

    async def stop(self, *, within: float = 10.0) -> int:
        try:
            codes = await asyncio.gather(*(node.stop(within=within) for node in self._nodes))
        finally:
            await self._balancer.close()
        return max(codes, key=abs)


def _host(arguments: Sequence[str], host: str) -> str:
    """The address that the nodes listen on: the last one that they are given."""
    given = [host, *(two for one, two in pairwise(arguments) if one == "--host")]
    return given[-1]
