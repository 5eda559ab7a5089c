"""`bindForm`: a form of plain HTML that survives, and that several people fill in at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from examples.plain_form.app import make_app
from tests.browser.conftest import NewBrowser
from tests.server.hosts import uvicorn_of
from tests.support.chromium import Browser

pytestmark = pytest.mark.browser

ALL = {
    "name": "Añn 😀",
    "email": "ann@example.org",
    "message": "two\nlines",
    "count": "12",
    "date": "2026-11-24",
    "size": "large",
    "delivery": "bike",
    "extras": {"card": False, "ribbon": True},
    "gift": True,
}


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with uvicorn_of(make_app(f"sqlite:///{tmp_path}/forms.db")) as address:
        yield f"http://{address}/#form"


async def opened(browser: Browser, url: str) -> Page:
    page = await browser.open(url)
    await saved(page)
    return page


async def saved(page: Page) -> None:
    await expect(page.get_by_role("status")).to_have_text("saved, online", timeout=20_000)


async def order(url: str) -> Any:
    """What the server has."""
    base = url.removesuffix("#form")
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{base}sessions/api/v0/session/form")
        return answer.json()["state"]["order"]


def message(page: Page) -> Locator:
    return page.get_by_label("Message")


async def fill_in(page: Page) -> None:
    await page.get_by_label("Name").fill("Añn 😀")
    await page.get_by_label("E-mail").fill("ann@example.org")
    await message(page).fill("two\nlines")
    await page.get_by_label("How many").fill("12")
    await page.get_by_label("When").fill("2026-11-24")
    await page.get_by_label("Size").select_option("large")
    await page.get_by_label("by bike").check()
    await page.get_by_label("a ribbon").check()
    await page.get_by_label("It is a present").check()
    await page.get_by_label("Coupon").fill("secret")


async def shows_all(page: Page) -> None:
    await expect(page.get_by_label("Name")).to_have_value("Añn 😀")
    await expect(page.get_by_label("E-mail")).to_have_value("ann@example.org")
    await expect(message(page)).to_have_value("two\nlines")
    await expect(page.get_by_label("How many")).to_have_value("12")
    await expect(page.get_by_label("When")).to_have_value("2026-11-24")
    await expect(page.get_by_label("Size")).to_have_value("large")
    await expect(page.get_by_label("by bike")).to_be_checked()
    await expect(page.get_by_label("by post")).not_to_be_checked()
    await expect(page.get_by_label("a ribbon")).to_be_checked()
    await expect(page.get_by_label("a card")).not_to_be_checked()
    await expect(page.get_by_label("It is a present")).to_be_checked()
    await expect(page.get_by_label("Coupon")).to_have_value("")


async def test_every_kind_of_field_is_there_after_a_kill_and_on_another_device(
    browser: Browser, new_browser: NewBrowser, url: str
) -> None:
    page = await opened(browser, url)
    there = await opened(new_browser(), url)
    await fill_in(page)
    await saved(page)
    assert await order(url) == ALL, "and no password"
    await shows_all(there)
    await browser.kill_all()
    await shows_all(await browser.reopen(url))


async def test_two_people_type_into_one_field_and_no_caret_jumps(
    browser: Browser, new_browser: NewBrowser, url: str
) -> None:
    here, there = await opened(browser, url), await opened(new_browser(), url)
    await message(here).fill("()[]")
    await expect(message(there)).to_have_value("()[]")
    for page, at in ((here, 1), (there, 3)):
        await message(page).focus()
        await message(page).evaluate("(e, at) => e.setSelectionRange(at, at)", at)
    await asyncio.gather(
        here.keyboard.type("typed at the front 😀", delay=15),
        there.keyboard.type("and behind", delay=20),
    )
    for page in (here, there):
        await expect(message(page)).to_have_value("(typed at the front 😀)[and behind]")
    carets = [await message(page).evaluate("e => e.selectionStart") for page in (here, there)]
    assert carets == [len("(typed at the front ##"), len("(typed at the front ##)[and behind")]


async def test_two_people_choose_at_once(
    browser: Browser, new_browser: NewBrowser, url: str
) -> None:
    here, there = await opened(browser, url), await opened(new_browser(), url)
    await here.get_by_label("a card").check()
    await expect(there.get_by_label("a card")).to_be_checked()
    for page in (here, there):
        await page.context.set_offline(True)
    await here.get_by_label("a card").uncheck()
    await there.get_by_label("a ribbon").check()
    for page in (here, there):
        await page.context.set_offline(False)
    for page in (here, there):
        await expect(page.get_by_label("a card")).not_to_be_checked(timeout=40_000)
        await expect(page.get_by_label("a ribbon")).to_be_checked(timeout=40_000)


async def test_what_is_typed_before_the_session_is_ready_is_kept(
    browser: Browser, url: str
) -> None:
    page = await opened(browser, url)
    await message(page).fill("here")
    await saved(page)
    # The client comes late: until then the form is only a form.
    release = asyncio.Event()

    async def late(route: Any) -> None:
        await release.wait()
        await route.continue_()

    await page.route("**/reattach/form.js", late)
    await page.reload(wait_until="commit")
    await page.get_by_label("Name").fill("in time")
    await page.get_by_label("It is a present").check()
    release.set()
    await expect(message(page)).to_have_value("here")
    await expect(page.get_by_label("Name")).to_have_value("in time")
    await expect(page.get_by_label("It is a present")).to_be_checked()
    await saved(page)
    assert await order(url) == {"message": "here", "name": "in time", "gift": True}


async def test_what_is_typed_while_the_device_still_reads_is_put_into_what_it_finds(
    browser: Browser, url: str
) -> None:
    page = await opened(browser, url)
    await message(page).fill("here")
    await saved(page)
    await page.evaluate(
        """async () => {
            const { connect, memoryStore } = await import("reattach");
            const { bindForm } = await import("reattach/form");
            const form = document.createElement("form");
            form.innerHTML = '<input name="message" aria-label="Late">';
            document.body.append(form);
            const store = memoryStore();
            const gate = new Promise((open) => { window.release = open; });
            const transaction = async (...args) => (await gate, store.transaction(...args));
            const session = connect({
              url: new URL("sessions", location.href).href, session: "form",
              store: { durable: false, transaction, close() {} },
            });
            bindForm(form, session, "/order");
        }"""
    )
    await page.get_by_label("Late").focus()
    await page.keyboard.type(" and more")
    await page.evaluate("window.release()")
    await expect(message(page)).to_have_value("here and more")
    await expect(page.get_by_label("Late")).to_have_value("here and more")


async def test_starting_over_empties_every_field_everywhere(
    browser: Browser, new_browser: NewBrowser, url: str
) -> None:
    page, there = await opened(browser, url), await opened(new_browser(), url)
    await fill_in(page)
    await page.get_by_role("button", name="Start over").click()
    await saved(page)
    await expect(message(there)).to_have_value("")
    await expect(there.get_by_label("by post")).to_be_checked()
    await expect(there.get_by_label("How many")).to_have_value("1")
    await expect(there.get_by_label("It is a present")).not_to_be_checked()


async def test_a_field_that_comes_later_is_bound_too(browser: Browser, url: str) -> None:
    page = await opened(browser, url)
    add = """() => {
        const field = Object.assign(document.createElement("input"), {name: "more"});
        field.setAttribute("aria-label", "More");
        document.forms[0].append(field);
    }"""
    await page.evaluate(add)
    await page.get_by_label("More").fill("and more")
    await saved(page)
    await page.reload()
    await saved(page)
    await page.evaluate(add)
    await expect(page.get_by_label("More")).to_have_value("and more")


async def test_a_form_without_its_object_says_what_to_do(browser: Browser, url: str) -> None:
    page = await opened(browser, url)
    said = await page.evaluate(
        """async () => {
            const { connect } = await import("reattach");
            const { bindForm } = await import("reattach/form");
            const session = connect({
              url: new URL("sessions", location.href).href, session: "none", create: { state: {} },
            });
            await session.ready;
            try {
              bindForm(document.forms[0], session, "/order");
            } catch (error) {
              return [error.code, error.message];
            }
        }"""
    )
    assert said == [
        "not_bound",
        'expected an object at "/order" in the state: begin with one, as in create: { state: … }',
    ]
