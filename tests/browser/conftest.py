"""A browser for each test that asks for one, and as many more as it wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from playwright.async_api import Playwright, async_playwright

from tests.conftest import Witnesses
from tests.support.chromium import Browser

NewBrowser = Callable[..., Browser]
"""Takes further flags of Chromium's."""


@pytest.fixture(scope="module")
def moving() -> float | None:
    """With two nodes pages are moved from one to the other now and then."""
    return 4.0


@pytest.fixture
async def playwright() -> AsyncIterator[Playwright]:
    async with async_playwright() as instance:
        yield instance


@pytest.fixture
async def new_browser(
    playwright: Playwright, tmp_path: Path, witnesses: Witnesses
) -> AsyncIterator[NewBrowser]:
    """Makes browsers, each with a profile of its own: a device each."""
    browsers: list[Browser] = []

    def make(*flags: str) -> Browser:
        browser = Browser(playwright, tmp_path / f"profile-{len(browsers)}", flags=flags)
        browsers.append(browser)
        witnesses.append((f"console of {browser.profile.name}", browser.console))
        return browser

    yield make
    for browser in browsers:
        await browser.kill_all()


@pytest.fixture
def browser(new_browser: NewBrowser) -> Browser:
    return new_browser()
