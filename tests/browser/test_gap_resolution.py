"""The example, as its user has it: a real browser, a real server, and both of them killed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import httpx
import pytest
import yaml
from playwright.async_api import expect

from examples.gap_resolution import gaps
from tests.browser.conftest import NewBrowser
from tests.conftest import Serve
from tests.support.chromium import Browser
from tests.support.example import (
    BACK_MS,
    answer,
    assert_typed_once,
    back,
    begin,
    callout,
    connection,
    draft_on,
    drafts_in_order,
    gap,
    join,
    keep_token,
    saved,
    session_of,
    sheet,
    start,
    title,
)
from tests.support.front import Front
from tests.support.paths import ROOT
from tests.support.server import ServerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.browser

PAGES = ROOT / "examples" / "gap_resolution" / "pages"

ANSWERS = {
    "Title": "Tidewatch",
    "Message": "Please cite this software using these metadata.",
    "Type": "software",
    "Abstract": "Reads tide gauges.\n\nTells, an hour ahead, when the water reaches the quay.",
    "ORCID of author 1": "https://orcid.org/0000-0002-1825-0097",
    "Email of author 2": "sam@example.org",
    "Keywords": "tides\nsea level",
    "License": "Apache-2.0",
    "Date released": "2026-06-30",
}
KEYS = "Tidewatch, or: what the water does next?"


@pytest.fixture
async def server(serve: Serve) -> ServerProcess:
    return await serve()


@pytest.fixture
async def front(server: ServerProcess) -> AsyncIterator[Front]:
    async with Front(PAGES, server.port) as front:
        yield front


async def test_the_whole_way_to_a_valid_file(browser: Browser, server: ServerProcess) -> None:
    page = await start(browser, server.url)
    assert await page.locator("#download").get_attribute("href") is None

    for name, text in ANSWERS.items():
        await expect(title(page)).to_have_text(name)
        if name == "Type":
            await page.get_by_role("radio", name=text).check()
            await page.get_by_role("button", name="Next").click()
        elif "\n" in text:
            await answer(page).fill(text)
            await answer(page).press("Control+Enter")
        elif name == "Email of author 2":
            # A wrong one first: the server says so, and what it said goes with the next one.
            await answer(page).fill("sam@example")
            await answer(page).press("Tab")
            await expect(page.locator("#verdict")).to_contain_text("email address")
            await expect(answer(page)).to_have_attribute("aria-invalid", "true")
            await answer(page).fill(text)
            await answer(page).press("Enter")
        else:
            await answer(page).fill(text)
            await answer(page).press("Enter")

    await expect(title(page)).to_have_text("The file is complete")
    await expect(page.locator("#count")).to_have_text("9 of 9 gaps resolved")
    await expect(saved(page)).to_have_text("Saved")
    async with page.expect_download() as waiting:
        await page.locator("#download").click()
    download = await waiting.value
    assert download.suggested_filename == "CITATION.cff"
    text = (await download.path()).read_text()
    # Read by somebody who knows nothing of this example.
    document = yaml.safe_load(text)
    assert gaps.is_valid(document)
    assert document["title"] == ANSWERS["Title"]
    assert document["abstract"] == ANSWERS["Abstract"]
    assert document["keywords"] == ["tides", "sea level"]
    shown = await page.locator("pre .line").all_text_contents()
    assert shown == text.splitlines(), "what the page shows is the file"


async def test_keys_outlive_a_dead_server_and_a_killed_browser(
    browser: Browser, server: ServerProcess, front: Front
) -> None:
    page = await start(browser, front.url)
    session_id = session_of(page)
    await server.kill()
    await expect(connection(page)).to_have_text("Reconnecting…")

    await answer(page).focus()
    await page.keyboard.type(KEYS, delay=20)
    # The power goes 50 ms after the last key, whatever has been written by then.
    await asyncio.sleep(0.05)
    await browser.kill_all()

    page = await browser.reopen(front.url)
    await expect(answer(page)).to_have_value(KEYS)
    assert session_of(page) == session_id, "the last document comes by itself"
    await expect(saved(page)).to_have_text("Saved on this device")

    await server.restart()
    await expect(connection(page)).to_have_text("Online", timeout=BACK_MS)
    await expect(saved(page)).to_have_text("Saved")
    assert await draft_on(server, page) == KEYS
    assert_typed_once(await drafts_in_order(server, page), KEYS)


async def test_keys_outlive_a_server_killed_in_mid_typing(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    await answer(page).focus()
    typing = asyncio.create_task(page.keyboard.type(KEYS, delay=40))

    async def begun() -> bool:
        return len(await answer(page).input_value()) >= len(KEYS) // 3

    await until(begun, within=10, what="a third of the keys")
    await server.kill()
    assert not typing.done()
    await typing
    await expect(answer(page)).to_have_value(KEYS)

    await server.restart()
    await expect(connection(page)).to_have_text("Online", timeout=BACK_MS)
    await expect(saved(page)).to_have_text("Saved")
    assert_typed_once(await drafts_in_order(server, page), KEYS)
    # The new server has been asked to go on with its part.
    await answer(page).press("Enter")
    await expect(sheet(page)).to_contain_text("what the water does next?")
    await expect(page.locator("#count")).to_have_text("1 of 9 gaps resolved")


async def test_an_answer_given_just_before_the_kill_is_taken_in_after_it(
    browser: Browser, server: ServerProcess, front: Front
) -> None:
    page = await start(browser, front.url)
    await server.kill()
    await expect(connection(page)).to_have_text("Reconnecting…")
    await answer(page).fill(ANSWERS["Title"])
    await answer(page).press("Enter")
    await expect(title(page)).to_have_text("Message")
    await expect(page.locator(".behind")).to_contain_text("when the server is back")
    await server.restart()
    await expect(sheet(page)).to_contain_text("title: Tidewatch", timeout=15_000)
    await expect(page.locator("#count")).to_have_text("1 of 9 gaps resolved")


async def test_two_browsers_are_live_on_one_document(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    first = await start(browser, server.url)
    second = await join(new_browser(), first)
    await expect(title(second)).to_have_text("Title")
    await expect(first.locator(".devices li")).to_have_count(2)

    await answer(first).focus()
    await first.keyboard.type("Tide", delay=10)
    await expect(answer(second)).to_have_value("Tide")

    await answer(second).focus()
    await second.keyboard.press("End")
    await second.keyboard.type("watch", delay=10)
    await expect(answer(first)).to_have_value("Tidewatch")

    # Going on leads the other one along, unless it is typing itself.
    await answer(second).press("Enter")
    await expect(title(second)).to_have_text("Message")
    await expect(sheet(second)).to_contain_text("title: Tidewatch")
    await expect(sheet(first)).to_contain_text("title: Tidewatch")
    await expect(first.locator(".elsewhere")).to_contain_text("Message")
    await first.get_by_role("button", name="Go there").click()
    await expect(title(first)).to_have_text("Message")
    assert await callout(first).count() == 0


async def test_of_two_answers_given_apart_one_stands_and_the_other_can_be_had(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    pages = [await start(browser, server.url)]
    pages.append(await join(new_browser(), pages[0]))
    await server.kill()
    for page, text in zip(pages, ("Tidewatch", "Harbour"), strict=True):
        await expect(connection(page)).to_have_text("Reconnecting…")
        await answer(page).focus()
        await page.keyboard.type(text)
        await answer(page).press("Enter")
        await expect(saved(page)).to_have_text("Saved on this device")
    await server.restart()
    await back(*pages)  # both: there are no two answers before
    for page in pages:
        await expect(callout(page)).to_have_count(1)
        await gap(page, "Title")
    # Whoever comes first is first: what was typed is one text, and of the answers people choose.
    typed = await answer(pages[0]).input_value()
    assert typed in {"TidewatchHarbour", "HarbourTidewatch"}
    waiting = callout(pages[0]).locator(".version").nth(1)
    chosen = await waiting.locator(".value").inner_text()
    await waiting.get_by_role("button", name="Take this one").click()
    for page in pages:
        await expect(answer(page)).to_have_value(chosen)
        await expect(callout(page)).to_have_count(0)
        await expect(sheet(page)).to_contain_text(f"title: {chosen}")


async def test_a_document_that_the_server_does_not_know(
    browser: Browser, server: ServerProcess
) -> None:
    page = await browser.open(f"{server.url}/#no-such-document")
    await expect(page.get_by_role("heading", level=1)).to_have_text("There is no such document")
    await page.get_by_role("button", name="Start anew").click()
    await begin(page)
    # Nor does a token help that it does not know.
    await keep_token(page, "no-such-document", f"reattach_token_{'x' * 43}.no-such-document")
    await page.goto(f"{server.url}/#no-such-document")
    await expect(page.get_by_role("heading", level=1)).to_have_text("There is no such document")


async def test_what_is_typed_into_a_document_that_is_gone_stays_on_the_device(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    session_id = session_of(page)
    await answer(page).fill("Tidewatch")
    await expect(saved(page)).to_have_text("Saved")
    await server.kill()
    for file in server.database.parent.glob(f"{server.database.name}*"):
        if file != server.log:
            file.unlink()
    await server.start()
    await expect(callout(page)).to_contain_text("does not know", timeout=15_000)
    await expect(answer(page)).to_have_value("Tidewatch")

    await page.get_by_role("button", name="Start anew").first.click()
    await begin(page)
    await expect(answer(page)).to_have_value("")
    await page.goto(f"{server.url}/#{session_id}")
    await expect(answer(page)).to_have_value("Tidewatch")


async def test_the_policy_is_strict_and_the_console_silent(
    browser: Browser, server: ServerProcess
) -> None:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        answered = await client.get("/")
        assets = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', answered.text)
        kept = [await client.get(f"/{asset}") for asset in assets]
    assert answered.content == (PAGES / "index.html").read_bytes()
    policy = answered.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert len(assets) == 2
    assert all("immutable" in one.headers["cache-control"] for one in kept)
    # Nothing written into the page that the policy would have to let through.
    assert not re.search(r"<script>|<style|\son\w+=|style=", answered.text)

    page = await start(browser, server.url)
    await answer(page).fill("Tidewatch")
    await answer(page).press("Enter")
    await expect(sheet(page)).to_contain_text("title: Tidewatch")
    for width in (360, 1280):
        await page.set_viewport_size({"width": width, "height": 800})
        overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow == 0, f"the page is wider than {width} px"
    await page.reload()
    await expect(title(page)).to_have_text("Message")
    assert browser.messages == []
