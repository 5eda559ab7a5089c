"""Behind a proxy that lets no WebSocket through, and then does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser
from tests.conftest import Serve
from tests.support.chromium import Browser
from tests.support.example import (
    answer,
    back,
    connection,
    draft_on,
    gap,
    join,
    saved,
    start,
)
from tests.support.front import Front
from tests.support.paths import ROOT
from tests.support.server import ServerProcess

pytestmark = pytest.mark.browser

PAGES = ROOT / "examples" / "gap_resolution" / "pages"

REMEMBER = """
globalThis.seen = [];
new MutationObserver(() => {
  seen.push(document.querySelector('[data-part="connection"]').textContent);
}).observe(document.body, { subtree: true, childList: true, characterData: true });
"""


async def typed(page: Page, other: Page, text: str) -> None:
    await answer(page).focus()
    await page.keyboard.press("End")
    await page.keyboard.type(text)
    await expect(saved(page)).to_have_text("Saved")
    await expect(answer(other)).to_have_value(await answer(page).input_value())


@pytest.fixture
async def server(serve: Serve) -> ServerProcess:
    return await serve()


@pytest.fixture
async def front(server: ServerProcess) -> AsyncIterator[Front]:
    async with Front(PAGES, server.port) as front:
        front.refuses_upgrades = True
        yield front


async def test_everything_works_without_websockets(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess, front: Front
) -> None:
    here = await start(browser, front.url)
    there = await join(new_browser(), here)
    for page in (here, there):
        await gap(page, "Message")
    await typed(here, there, "Please ")
    await typed(there, here, "cite ")
    # The line fails, and comes again; what is typed meanwhile is not lost.
    front.cut()
    await typed(here, there, "it ")
    # The page is loaded again: its stream resumes.
    await there.reload()
    await back(there)
    await expect(answer(there)).to_have_value("Please cite it ")
    # Offline, and back.
    await here.context.set_offline(True)
    await here.keyboard.type("all.")
    await expect(saved(here)).to_have_text("Saved on this device")
    await here.context.set_offline(False)
    await back(here)
    await expect(answer(there)).to_have_value("Please cite it all.")
    await server.restart()
    await back(here, there)
    await typed(there, here, " Thanks.")
    assert await draft_on(server, here, "message") == "Please cite it all. Thanks."
    assert front.sockets == 0


@pytest.mark.timeout(120)  # half a minute is what it may take
async def test_websockets_that_are_allowed_again_are_back_within_30_s(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess, front: Front
) -> None:
    pages = [await start(browser, front.url)]
    pages.append(await join(new_browser(), pages[0]))
    for page in pages:
        await gap(page, "Message")
        await page.evaluate(REMEMBER)
    here, there = pages
    front.refuses_upgrades = False
    allowed = time.monotonic()
    words = 0
    while front.sockets < len(pages) and time.monotonic() < allowed + 40:
        await typed(here, there, f"{words} ")
        words += 1
    assert time.monotonic() - allowed < 30
    await typed(there, here, "end")
    for page in pages:
        await expect(connection(page)).to_have_text("Online")
        # Nobody was sent away for it.
        assert set(await page.evaluate("seen")) <= {"Online"}
    text = "".join(f"{word} " for word in range(words))
    assert await draft_on(server, here, "message") == f"{text}end"
