"""Whatever dies while somebody types: what the page showed as saved is there, once, in order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve, Witnesses
from tests.support.cdp import Chrome, Page
from tests.support.chromium import chromium_path
from tests.support.form import ONLINE, SOON, Place, Typist
from tests.support.network import Network
from tests.support.server import ServerProcess
from tests.support.stack import Stack

pytestmark = [pytest.mark.browser, pytest.mark.faults]

KILLS = int(os.environ.get("REATTACH_TEST_KILLS", "40"))
ON_STACK = KILLS // 4
SEED = int(os.environ.get("REATTACH_TEST_KILLS_SEED", "0")) or random.SystemRandom().getrandbits(32)


class Story:
    """One user, one form, and what befalls them, all of it by chance."""

    def __init__(
        self,
        chrome: Chrome,
        typist: Typist,
        network: Network,
        servers: Sequence[ServerProcess],
        chance: random.Random,
    ) -> None:
        self.told: list[str] = []
        self._chrome = chrome
        self._typist = typist
        self._network = network
        self._servers = servers
        self._chance = chance
        self._repairs: set[asyncio.Task[None]] = set()
        self._broken: set[ServerProcess] = set()
        self._kinds = {
            "page closed": self._page_closed,
            "tab taken over": self._tab_taken_over,
            "renderer crashed": self._renderer_crashed,
            "browser killed": self._browser_killed,
            "offline": self._offline,
            "server killed": self._server_killed,
            "server stopped": self._server_stopped,
            "black hole": self._black_hole,
        }

    async def play(self, kills: int) -> Page:
        """Has so many things go wrong; then everything is put right, and a fresh page is shown."""
        page = await self._typist.open(self._chrome)
        await self._typist.begin(page)
        for number in range(kills):
            kind = self._chance.choice(sorted(self._kinds))
            self.told.append(f"{number}: {kind}, {self._typist.typed} words typed")
            await self._breathe(0.4)
            page = await self._kinds[kind](page)
            await self._typist.begin(page)
        await self._typist.stop()
        await asyncio.gather(*self._repairs)
        await page.reload()
        await page.until(ONLINE, within=30)
        assert page.errors == []
        return page

    async def _breathe(self, longest: float) -> None:
        # How long somebody types before the next thing happens; nothing is waited for.
        await asyncio.sleep(self._chance.uniform(0, longest))

    async def _page_closed(self, page: Page) -> Page:
        await page.close()
        return await self._typist.open(self._chrome)

    async def _tab_taken_over(self, page: Page) -> Page:
        other = await self._typist.open(self._chrome)
        await page.crash()
        return other

    async def _renderer_crashed(self, page: Page) -> Page:
        await page.crash()
        return await self._typist.open(self._chrome)

    async def _browser_killed(self, _: Page) -> Page:
        await self._chrome.kill()
        await self._chrome.start()
        return await self._typist.open(self._chrome)

    async def _offline(self, page: Page) -> Page:
        await page.offline(True)
        await self._breathe(1.0)
        await page.offline(False)
        return page

    async def _server_killed(self, page: Page) -> Page:
        server = await self._sound()
        await server.kill()
        self._repair(server, self._start(server))
        return page

    async def _server_stopped(self, page: Page) -> Page:
        server = await self._sound()
        server.signal(signal.SIGSTOP)
        self._repair(server, self._go_on(server))
        return page

    async def _black_hole(self, page: Page) -> Page:
        self._network.darken(forget=self._chance.random() < 0.7)
        await self._breathe(1.5)
        self._network.lighten()
        return page

    async def _sound(self) -> ServerProcess:
        """A server with which nothing is wrong."""
        while not (sound := [one for one in self._servers if one not in self._broken]):
            await asyncio.wait(self._repairs, return_when=asyncio.FIRST_COMPLETED)
        return self._chance.choice(sound)

    def _repair(self, server: ServerProcess, repair: Coroutine[Any, Any, None]) -> None:
        """Puts a server right while things go on."""
        self._broken.add(server)
        task = asyncio.create_task(repair)
        self._repairs.add(task)

        def done(_: asyncio.Task[None]) -> None:
            self._broken.discard(server)
            self._repairs.discard(task)

        task.add_done_callback(done)

    async def _start(self, server: ServerProcess) -> None:
        await self._breathe(0.5)
        await server.start()

    async def _go_on(self, server: ServerProcess) -> None:
        # Longer than silence may last, now and then.
        await self._breathe(2.0)
        server.signal(signal.SIGCONT)


async def kill_at_random(
    tmp_path: Path,
    servers: Sequence[ServerProcess],
    witnesses: Witnesses,
    kills: int,
) -> None:
    chance = random.Random(SEED)
    began = time.monotonic()
    async with (
        Place(tmp_path, servers, chance=chance) as place,
        Chrome(Path(chromium_path()), tmp_path / "profile") as chrome,
    ):
        typist = Typist(place.url)
        story = Story(chrome, typist, place.network, servers, chance)
        witnesses.append((f"REATTACH_TEST_KILLS_SEED={SEED}", lambda: "\n".join(story.told)))
        page = await story.play(kills)
        shown = await page.run("document.querySelector('textarea').value")
        assert await place.message() == shown
        typist.judge(shown)
        assert len(await place.devices()) == 1
        assert len(typist.claimed) > kills, "the story proves something only if much was saved"
    took = time.monotonic() - began
    print(  # noqa: T201 - what the run was, for who repeats it
        f"\n{kills} kills, {typist.typed} words typed, {len(typist.claimed)} shown as saved, "
        f"none lost; {took:.0f} s, REATTACH_TEST_KILLS_SEED={SEED}"
    )


@pytest.mark.timeout(60 + 5 * KILLS)
async def test_what_was_shown_as_saved_outlives_every_kill(
    tmp_path: Path, serve: Serve, witnesses: Witnesses
) -> None:
    server = await serve(app=None, environment=SOON)
    await kill_at_random(tmp_path, [server], witnesses, KILLS - ON_STACK)


@pytest.mark.timeout(60 + 5 * KILLS)
async def test_what_was_shown_as_saved_outlives_every_kill_on_the_full_stack(
    tmp_path: Path, witnesses: Witnesses
) -> None:
    async with Stack(tmp_path, app=None, environment=SOON) as stack:
        witnesses.append(("the stack", stack.logs))
        await kill_at_random(tmp_path, stack.nodes, witnesses, ON_STACK)
