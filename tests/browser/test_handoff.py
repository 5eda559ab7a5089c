"""Going on with another device: the link, its QR code, and a phone in the local network."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import zxingcpp
from playwright.async_api import Locator, Page, Route, expect

from tests.browser.conftest import NewBrowser
from tests.browser.test_application import assert_for_everybody, in_scheme
from tests.conftest import Serve
from tests.support.chromium import Browser
from tests.support.example import (
    BACK_MS,
    answer,
    back,
    begin,
    join,
    link_from,
    saved,
    session_of,
    start,
    title,
)
from tests.support.server import ServerProcess

pytestmark = pytest.mark.browser

EVERYWHERE = "0.0.0.0"  # noqa: S104 - a phone is to reach it
PHONE = "phone.test"
AS_A_PHONE = f"--host-resolver-rules=MAP {PHONE} 127.0.0.1"
"""A browser that reaches this machine by a name that is not loopback's: no secure context."""


@pytest.fixture
async def server(serve: Serve) -> ServerProcess:
    return await serve(arguments=["--host", EVERYWHERE])


def network(server: ServerProcess) -> str:
    return f"http://{PHONE}:{server.port}"


def code(page: Page) -> Locator:
    return page.get_by_role("img", name="QR code")


PIXELS = """async (png) => {
    const bytes = Uint8Array.from(atob(png), (one) => one.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const { data } = canvas.getImageData(0, 0, image.width, image.height);
    let grey = "";
    for (let at = 0; at < data.length; at += 4) grey += String.fromCharCode(data[at]);
    return [image.width, image.height, btoa(grey)];
}"""


async def read_code(page: Page) -> str:
    """What a camera reads."""
    await expect(code(page)).to_be_visible()
    await code(page).scroll_into_view_if_needed()
    png = base64.b64encode(await code(page).screenshot(scale="css")).decode()
    reader = await page.context.new_page()
    width, height, grey = await reader.evaluate(PIXELS, png)
    await reader.close()
    pixels: Any = memoryview(base64.b64decode(grey)).cast("B", (height, width))
    (found,) = zxingcpp.read_barcodes(pixels)
    return found.text


async def type_both_ways(here: Page, there: Page) -> None:
    await answer(here).fill("from here")
    await expect(answer(there)).to_have_value("from here")
    await answer(there).fill("from there")
    await expect(answer(here)).to_have_value("from there")
    await back(here, there)


async def test_a_link_opened_in_another_browser_shows_the_same_document_live(
    browser: Browser, new_browser: NewBrowser, serve: Serve
) -> None:
    # Rules A34, A35
    server = await serve()
    here = await start(browser, server.url)
    there = await join(new_browser(), here)
    assert session_of(there) == session_of(here)
    await expect(here.locator(".devices li")).to_have_count(2)
    await type_both_ways(here, there)
    # Without the server, and after it: it was let in for good.
    await server.kill()
    await answer(there).fill("and on")
    await expect(saved(there)).to_have_text("Saved on this device")
    await server.restart()
    await expect(answer(here)).to_have_value("and on", timeout=BACK_MS)
    await there.reload()
    await expect(answer(there)).to_have_value("and on")
    # A server that listens on loopback says so.
    await expect(here.get_by_text("a phone cannot open it")).to_be_visible()
    await expect(code(here)).to_have_count(0)


async def test_a_phone_goes_on_in_the_local_network_without_a_secure_context(
    new_browser: NewBrowser, server: ServerProcess
) -> None:
    # Rule A36
    here = await start(new_browser(AS_A_PHONE), network(server))
    assert await here.evaluate("[isSecureContext, 'locks' in navigator]") == [False, False]
    link = await link_from(here)
    assert link.startswith(f"{network(server)}/#handoff=")
    assert await read_code(here) == link
    await expect(here.get_by_text("of this computer alone")).to_have_count(0)
    there = await new_browser(AS_A_PHONE).open(link)
    await expect(title(there)).to_have_text("Title")
    assert there.url == here.url
    await type_both_ways(here, there)
    # There is no clipboard: the field is there to be copied from.
    await here.get_by_role("button", name="Copy").click()
    await expect(here.get_by_text("Copy it from the field.")).to_be_visible()

    # What is typed without the server survives the tab.
    await server.kill()
    await answer(there).fill("in a tunnel")
    await expect(saved(there)).to_have_text("Saved on this device")
    url, again = there.url, await there.context.new_page()
    await there.close()
    await server.restart()
    await again.goto(url)
    await expect(answer(again)).to_have_value("in a tunnel")
    await back(again)
    await expect(answer(here)).to_have_value("in a tunnel", timeout=BACK_MS)


async def test_a_page_at_loopback_sends_a_phone_to_the_address_of_the_network(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    # Whatever network this machine is in, or none.
    async def addresses(route: Route) -> None:
        await route.fulfill(json={"address": network(server), "reachable": True})

    page = await browser.open()
    await page.context.route("**/address", addresses)
    here = await start(browser, server.url)
    link = await link_from(here)
    assert link.startswith(f"{network(server)}/#handoff=")
    await expect(here.get_by_text(network(server), exact=True)).to_be_visible()
    assert await read_code(here) == link
    there = await new_browser(AS_A_PHONE).open(link)
    await expect(title(there)).to_have_text("Title")
    await type_both_ways(here, there)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_link_and_its_code_are_accessible_and_fit_a_phone(
    new_browser: NewBrowser, server: ServerProcess, scheme: Any
) -> None:
    page = await in_scheme(await new_browser(AS_A_PHONE).open(network(server)), scheme)
    await begin(page)
    await link_from(page)
    await read_code(page)
    await assert_for_everybody(page, "the link and its code")
