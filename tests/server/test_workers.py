"""`reattach serve --workers`: several processes behind one address, started, lost and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Self

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.waiting import until

pytestmark = pytest.mark.faults


class Crew:
    """The parent and its workers (`tests/server/crew.py`)."""

    def __init__(self, count: int, how: str = "well") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.crew", str(count), how],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.count = count
        self.port = 0

    @property
    def workers(self) -> dict[int, psutil.Process]:
        """Its workers by process id (what else it has as children are Python's own helpers)."""
        found = {}
        for one in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
                if "spawn_main" in " ".join(one.cmdline()):
                    found[one.pid] = one
        return found

    async def serves(self) -> Self:
        """Waits until it says that all serve; what it says is the port."""
        assert self.process.stdout is not None
        self.port = int(await asyncio.to_thread(self.process.stdout.readline))
        return self

    async def ask(self) -> int:
        """The process that answers a new connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return int(said)

    async def ended(self, within: float) -> int:
        """Waits for the parent's end: its exit code."""
        await until(lambda: self.process.poll() is not None, within=within, what="its end")
        return self.process.wait()

    def kill(self) -> None:
        for pid in [*self.workers, self.process.pid] if self.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    crew = Crew(*getattr(request, "param", (3,)))
    yield crew
    crew.kill()


async def all_gone(workers: dict[int, psutil.Process], within: float) -> None:
    await until(
        lambda: not any(one.is_running() and one.status() != "zombie" for one in workers.values()),
        within=within,
        what="the workers to be gone",
    )


async def test_workers_share_an_address_and_end_together(crew: Crew) -> None:
    await crew.serves()
    workers = crew.workers
    assert len(workers) == 3
    assert {await crew.ask() for _ in range(20)} <= set(workers)
    crew.process.send_signal(signal.SIGTERM)
    assert await crew.ended(within=10) == 0
    await all_gone(workers, within=1)


async def test_one_that_is_killed_is_started_again_while_the_others_serve(crew: Crew) -> None:
    await crew.serves()
    before = crew.workers
    victim = next(iter(before))
    os.kill(victim, signal.SIGKILL)
    assert await crew.ask() in set(before) - {victim}
    await until(
        lambda: len(set(crew.workers) - {victim}) == 3, within=20, what="another one to be there"
    )
    (fresh,) = set(crew.workers) - set(before)

    async def answers() -> bool:
        others = [pid for pid in crew.workers if pid != fresh]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            return await asyncio.wait_for(crew.ask(), 10) == fresh
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    await until(answers, within=20, what="the new one to answer")


async def test_one_that_stands_still_keeps_nobody_waiting(crew: Crew) -> None:
    await crew.serves()
    stopped = next(iter(crew.workers))
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert stopped not in {await crew.ask() for _ in range(20)}
    finally:
        os.kill(stopped, signal.SIGCONT)


async def test_if_the_parent_is_killed_the_workers_end(crew: Crew) -> None:
    await crew.serves()
    workers = crew.workers
    crew.process.kill()
    await all_gone(workers, within=10)


@pytest.mark.parametrize("crew", [(3, "broken")], indirect=True)
async def test_one_that_cannot_start_ends_them_all(crew: Crew) -> None:
    """What is in the way was said by it; the exit code says so."""
    assert await crew.ended(within=20) == 7


@pytest.mark.parametrize("crew", [(2, "stubborn")], indirect=True)
async def test_one_that_does_not_end_is_killed(crew: Crew) -> None:
    await crew.serves()
    workers = crew.workers
    crew.process.send_signal(signal.SIGINT)
    assert await crew.ended(within=10) == 0
    await all_gone(workers, within=1)
