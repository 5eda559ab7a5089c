"""Pages that are hidden, throttled, frozen, put aside and woken up: by a whole Chromium."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support.cdp import NEEDED, Chrome, Page, full_chromium
from tests.support.form import FIELD, ONLINE, SOON, Place, open_form, shown_at
from tests.support.waiting import until

pytestmark = pytest.mark.browser

# Ten seconds, not five minutes, until a hidden page's timers run once a minute.
INTENSIVE = "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/10"
NAP = float(os.environ.get("REATTACH_TEST_NAP", "20" if NEEDED else "4"))
"""Seconds for which the whole browser is stopped."""
LONG = pytest.mark.skipif(not NEEDED, reason="takes minutes: make test-browsers")


@pytest.fixture
async def place(tmp_path: Path, serve: Serve) -> AsyncIterator[Place]:
    """The form on a server that soon notices silence."""
    async with Place(tmp_path, [await serve(app=None, environment=SOON)]) as place:
        yield place


@pytest.fixture
async def calm(tmp_path: Path, serve: Serve) -> AsyncIterator[Place]:
    """The form on a server with its own heartbeat."""
    async with Place(tmp_path, [await serve(app=None)]) as place:
        yield place


@pytest.fixture
async def chrome(tmp_path: Path) -> AsyncIterator[Chrome]:
    async with Chrome(full_chromium(), tmp_path / "full", flags=[INTENSIVE]) as chrome:
        yield chrome


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Chrome]:
    """Another device."""
    async with Chrome(full_chromium(), tmp_path / "other") as other:
        yield other


async def woken(place: Place, page: Page, other: Page, wake: Callable[[], Awaitable[None]]) -> None:
    """Right again within a second of waking, the same device, with what the other one wrote."""
    await other.run(f"({FIELD}.focus(), 1)")
    await other.type("meanwhile ")
    await other.until(ONLINE, within=5)
    began = time.time()
    await wake()
    await page.until(f"{ONLINE} && {FIELD}.value.includes('meanwhile ')", within=20, every=0.01)
    took = time.time() - began
    assert took < 1.0, f"right again only {took:.2f} s after it was woken"
    await page.run(f"({FIELD}.focus(), {FIELD}.setSelectionRange(1e9, 1e9))")
    await page.type("and on")
    await other.until(f"{FIELD}.value === 'meanwhile and on'", within=5)
    ids = {device["id"] for device in await place.devices()}
    assert len(ids) == 2, "this one and the other"
    assert page.errors == []


async def test_a_frozen_page_is_right_again_within_a_second_of_its_resuming(
    place: Place, chrome: Chrome, other: Chrome
) -> None:
    page, there = await open_form(chrome, place.url), await open_form(other, place.url)
    await chrome.open()
    await page.until("document.visibilityState === 'hidden'", within=5)
    await page.freeze(True)
    await until(lambda: _offline(place), within=10, what="the server to miss the frozen page")
    await woken(place, page, there, lambda: page.freeze(False))


async def test_a_page_that_is_gone_back_to_is_right_again_within_a_second(
    place: Place, chrome: Chrome, other: Chrome
) -> None:
    page, there = await open_form(chrome, place.url), await open_form(other, place.url)
    await page.run("window.kept = 'the same page'")
    await page.go(f"{place.origin}/other.html")
    await until(lambda: _offline(place), within=10, what="the server to miss the page put aside")

    async def back() -> None:
        await page.run("void history.back()")
        await page.until("window.kept === 'the same page' && window.persisted", within=5)

    await woken(place, page, there, back)
    # And forward, and back once more.
    await page.run("void history.forward()")
    await page.until("location.pathname === '/other.html'", within=5)
    await page.run("void history.back()")
    await page.until(f"window.kept === 'the same page' && {ONLINE}", within=5)
    assert len(await place.devices()) == 2


@pytest.mark.timeout(60 + 2 * NAP)
async def test_a_browser_that_was_stopped_is_right_again_within_a_second(
    place: Place, chrome: Chrome, other: Chrome
) -> None:
    page, there = await open_form(chrome, place.url), await open_form(other, place.url)
    chrome.signal(signal.SIGSTOP)
    await asyncio.sleep(NAP)  # the machine sleeps: nothing is waited for
    assert await _offline(place)

    async def wake() -> None:
        chrome.signal(signal.SIGCONT)

    await woken(place, page, there, wake)


async def test_a_frozen_tab_hands_the_line_over_within_a_second(
    place: Place, chrome: Chrome
) -> None:
    leading = await open_form(chrome, place.url)
    following = await open_form(chrome, place.url)
    await leading.until("document.visibilityState === 'hidden'", within=5)
    await following.run(f"({FIELD}.focus(), 1)")
    await leading.freeze(True)
    began = time.time()
    await following.type("on")
    took = await shown_at(following, "^saved, online$", after=began, within=20)
    assert await place.message() == "on"
    assert took < 1.0, f"handed over only after {took:.2f} s"
    await leading.freeze(False)
    await leading.until(f"{ONLINE} && {FIELD}.value === 'on'", within=1.0)


@LONG
async def test_a_dead_line_is_known_within_the_heartbeat_of_a_server_as_it_comes(
    calm: Place, chrome: Chrome
) -> None:
    page = await open_form(chrome, calm.url)
    began = time.time()
    calm.network.darken(forget=True)
    assert await shown_at(page, "reconnecting", after=began, within=25) < 15.5


@LONG
@pytest.mark.timeout(240)
async def test_a_hidden_page_knows_a_dead_line_within_one_throttled_wake_up(
    calm: Place, chrome: Chrome
) -> None:
    page = await open_form(chrome, calm.url)
    await chrome.open()
    await page.until("document.visibilityState === 'hidden'", within=5)
    # Timers are throttled once one comes late by a good part of a minute.
    await page.run(
        "void (async () => { for (;;) { const began = Date.now();"
        " await new Promise((done) => setTimeout(done, 3000));"
        " if (Date.now() - began > 20000) { window.throttled = true; return; } } })()"
    )
    await page.until("window.throttled", within=150, every=0.5)
    assert await page.run(ONLINE), "pongs keep the line of a hidden page"
    began = time.time()
    calm.network.darken(forget=True)
    took = await shown_at(page, "reconnecting", after=began, within=150)
    assert took < 75, f"known only after {took:.0f} s"


@LONG
@pytest.mark.timeout(240)
async def test_a_page_that_becomes_visible_knows_a_dead_line_within_a_second(
    calm: Place, chrome: Chrome
) -> None:
    page = await open_form(chrome, calm.url)
    await chrome.open()
    await page.until("document.visibilityState === 'hidden'", within=5)
    calm.network.darken(forget=True)
    calm.network.lighten()
    began = time.time()
    await page.front()
    await page.until("document.visibilityState === 'visible'", within=5)
    took = await shown_at(page, "reconnecting", after=began, within=40)
    assert took < 1.0, f"known only after {took:.2f} s"
    await page.until(ONLINE, within=5)


async def _offline(place: Place) -> bool:
    return any(not device["online"] for device in await place.devices())
