"""All that Reattach runs on at scale, in processes of a test's own: PostgreSQL, Valkey, nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import asyncpg

from tests.support.postgres import Postgres
from tests.support.server import ServerProcess
from tests.support.valkey import ValkeyServer


class Stack:
    """PostgreSQL, Valkey and nodes on them, each of which a test may stop and kill.

    async with Stack(tmp_path) as stack:
        WireClient(stack.anywhere, "s", "c", stay=True)  # on another node each time it comes
    """

    def __init__(
        self,
        folder: Path,
        *,
        ports: Sequence[int | None] = (None, None),
        chance: random.Random | None = None,
        **options: Any,
    ) -> None:
        """Describes it: a node for each port (None: a free one); `options` are ServerProcess's."""
        self.postgres = Postgres()
        self.valkey = ValkeyServer(folder)
        self.nodes: Sequence[ServerProcess] = ()
        self.database = ""
        self._folder = folder
        self._ports = ports
        self._options = options
        self._chance = chance or random.Random()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await asyncio.gather(
                stack.enter_async_context(self.postgres), stack.enter_async_context(self.valkey)
            )
            self.database = await self.postgres.database()
            self.nodes = [self._node(number, port) for number, port in enumerate(self._ports)]
            await asyncio.gather(*(stack.enter_async_context(node) for node in self.nodes))
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def anywhere(self) -> str:
        """The WebSocket address of a node that is not known to be dead."""
        alive = [node for node in self.nodes if node.alive]
        return self._chance.choice(alive or self.nodes).ws_url

    async def committed(self, session_id: str) -> list[tuple[int, str, int]]:
        """A session's log: version, client and number of each commit."""
        db = await asyncpg.connect(self.database, timeout=10)
        try:
            rows = await db.fetch(
                "SELECT version, client_id, seq FROM commits WHERE session_id = $1"
                " ORDER BY version",
                session_id,
            )
        finally:
            await db.close()
        return [tuple(row) for row in rows]

    def logs(self) -> str:
        """The end of what each part printed."""
        parts = [self.postgres.log_tail(20), *(node.log_tail(20) for node in self.nodes)]
        return "\n\n".join(parts)

    def _node(self, number: int, port: int | None) -> ServerProcess:
        return ServerProcess(
            self._folder / f"node-{number}",
            database_url=self.database,
            port=port,
            arguments=("--redis", self.valkey.url),
            **self._options,
        )
