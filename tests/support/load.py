"""The load of many clients, and what must be true of it whatever was killed meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.wire_client import Frame, WireClient

IN_FLIGHT = 6

Commits = Sequence[tuple[int, str, int]]
"""A session's log as its database has it: version, client and number of each commit."""


class Worker:
    """One client and its load: it changes the session whenever few of its changes are undecided.

    Between two changes it pauses for up to `pause` seconds.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        session_id: str,
        name: str,
        seed: str,
        *,
        pause: float = 0.04,
        ping: float | None = None,
    ) -> None:
        self.client = WireClient(
            url,
            session_id,
            name,
            create={"n": 0, "items": [], "refused": 0, "last": {}},
            stay=True,
            ping=ping,
        )
        self.random = random.Random(seed)
        self.pause = pause
        self.added: dict[int, int] = {}
        """What each of its changes adds to `n`."""
        self.told: dict[int, int] = {}
        """Its acknowledged changes and their versions, noted when the acknowledgement came."""
        self.made: dict[int, float] = {}
        """When it made each of its changes."""
        self.waited: list[tuple[float, float]] = []
        """For each acknowledgement, when its change was made, and how many seconds it took."""
        self.client.on_frame = self._note

    def _note(self, frame: Frame) -> None:
        if frame["type"] == "state_update" and frame["by"]["client_id"] == self.client.client_id:
            number = frame["by"]["seq"]
            self.told[number] = frame["version"]
            made = self.made[number]
            self.waited.append((made, time.monotonic() - made))

    async def run(self) -> None:
        client = self.client
        while True:
            await client.wait(
                lambda: client.live and len(client.outbox) < IN_FLIGHT,
                within=60,
                what="a line and few undecided changes",
            )
            number, by = client.given + 1, self.random.randint(1, 5)
            ops: list[Frame] = [
                {"op": "inc", "path": "/n", "by": by},
                {
                    "op": "insert",
                    "path": "/items",
                    "value": {"id": f"{client.client_id}.{number}"},
                },
                {"op": "set", "path": f"/last/{client.client_id}", "value": number},
            ]
            if self.random.random() < 0.1:
                ops.append({"op": "set", "path": "/no/such/parent", "value": 1})
                by = 0
            self.added[number] = by
            self.made[number] = time.monotonic()
            await client.change(*ops)
            await asyncio.sleep(self.random.uniform(0, self.pause))


async def acknowledged(workers: Sequence[Worker], target: int) -> None:
    """Waits until so many changes were acknowledged to the workers, all in all."""
    async with asyncio.timeout(20):
        while sum(len(worker.told) for worker in workers) < target:
            for worker in workers:
                if worker.client.lie is not None:
                    raise worker.client.lie
            await asyncio.sleep(0.002)


async def check(url: str, workers: Sequence[Worker], log: Commits) -> None:
    """Holds what one session's workers were told against its log and its state."""
    session_id = workers[0].client.session_id
    assert [version for version, _, _ in log] == list(range(1, len(log) + 1))
    decided = {(name, seq): version for version, name, seq in log}
    assert len(decided) == len(log), "a change was committed twice"
    for worker in workers:
        client = worker.client
        for seq, version in worker.told.items():
            assert decided.get((client.client_id, seq)) == version, "acknowledged, and missing"
        refused = {seq for seq, by in worker.added.items() if by == 0}
        assert set(client.rejected) == refused
        assert {seq for name, seq in decided if name == client.client_id} == (
            set(worker.added) - refused
        )
    async with WireClient(url, session_id, f"{session_id}-reader") as reader:
        state: dict[str, Any] = reader.state
        assert state["n"] == sum(sum(worker.added.values()) for worker in workers)
        items = [item["id"] for item in state["items"]]
        assert len(items) == len(set(items))
        # The log's order: each client's own inserts stand in the order of their numbers.
        assert items == [f"{name}.{seq}" for _, name, seq in log]
        for worker in workers:
            client = worker.client
            last = max(seq for seq, by in worker.added.items() if by)
            assert state["last"][client.client_id] == last
            if client.version == reader.version:
                assert client.state == state
