"""The inspector in a real browser, on a session to which something happened."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import NewBrowser
from tests.conftest import NewServer, Serve
from tests.support.chromium import Browser
from tests.support.inspected import TRAP, put, write_history
from tests.support.paths import ROOT
from tests.support.server import ServerProcess
from tests.support.wire_client import WireClient

pytestmark = [pytest.mark.browser, pytest.mark.one_node]

AXE = (ROOT / "node_modules" / "axe-core" / "axe.min.js").read_text()
TABS = ("commits", "conflicts", "refusals", "checkpoints", "devices", "activity")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    new_server: NewServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServerProcess]:
    path = tmp_path_factory.mktemp("inspector") / "reattach.db"
    environment = {"REATTACH_INSPECTOR": "write"}
    async with new_server(path, app=None, environment=environment) as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture
async def session(server: ServerProcess) -> str:
    """A session of the test's own, with a history."""
    name = f"order:{next(_numbers)}"
    await write_history(server.ws_url, name)
    return name


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    page = await browser.open()
    await page.emulate_media(color_scheme="light", reduced_motion="reduce")
    yield page
    assert await page.title() != "owned", "text ran"
    away = "Failed to load resource"  # while a server starts again
    assert [one for one in browser.messages if away not in one] == []


async def show(page: Page, server: ServerProcess, /, **view: str) -> Page:
    query = "&".join(f"{name}={value}" for name, value in view.items())
    await page.goto(f"{server.url}/inspector/?{query}")
    return page


def sessions(page: Page) -> Locator:
    return page.get_by_role("listbox", name="Sessions").get_by_role("option")


def slider(page: Page) -> Locator:
    return page.get_by_role("slider", name="Version")


def state(page: Page) -> Locator:
    return page.locator(".panel.state")


async def stands_at(page: Page, version: int) -> None:
    await expect(slider(page)).to_have_value(str(version))
    await expect(state(page).locator("[data-version]")).to_have_attribute(
        "data-version", str(version)
    )


async def version_of(server: ServerProcess, session: str) -> int:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        answer = await http.get(f"/inspector/api/sessions/{session}")
    version: int = answer.json()["version"]
    return version


async def assert_for_everybody(page: Page, view: str) -> None:
    """Holds what is shown against axe and its window: light and dark, wide and on a phone."""
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        if not await page.evaluate("'axe' in window"):
            await page.evaluate(AXE)
        found = await page.evaluate(
            "axe.run(document, { resultTypes: ['violations'] }).then((r) => r.violations)"
        )
        wrong = [f"{one['id']}: {[x['html'][:200] for x in one['nodes']]}" for one in found]
        assert wrong == [], f"{view}, {scheme}"
    overflow = await page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow == 0, f"{view} is wider than its window"


async def test_a_session_is_found_and_read_by_keys_alone(
    page: Page, server: ServerProcess, session: str
) -> None:
    await show(page, server)
    await expect(sessions(page).first).to_be_visible()
    await page.keyboard.press("/")
    await page.keyboard.type(session)
    await expect(page).to_have_url(re.compile(r"\?q=order%3A\d+$"))
    await expect(sessions(page)).to_have_count(1)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text(session)
    last = await version_of(server, session)
    await stands_at(page, last)

    # The slider, and keys that work anywhere.
    await slider(page).focus()
    await page.keyboard.press("Home")
    await stands_at(page, 0)
    await expect(state(page).get_by_role("heading", level=3)).to_have_text(
        "The first version that is kept"
    )
    await page.keyboard.press("ArrowRight")
    await stands_at(page, 1)
    await page.keyboard.press("]")
    await stands_at(page, 2)
    await expect(page).to_have_url(re.compile(r"v=2$"))
    await expect(state(page).locator("ins")).to_have_text('"Quay 7,"')
    await page.keyboard.press("l")
    await stands_at(page, last)

    # A list: its rows are chosen with the arrows, and the state follows.
    commits = page.get_by_role("listbox", name="Commits, newest first")
    await commits.focus()
    await page.keyboard.press("ArrowDown")
    await stands_at(page, last - 1)
    await expect(commits.get_by_role("option", selected=True)).to_contain_text("/step")

    # The tree.
    tree = page.get_by_role("tree", name="State")
    await tree.focus()
    customer = tree.get_by_role("treeitem").filter(has_text="customer")
    await expect(customer).to_have_attribute("aria-expanded", "true")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("ArrowLeft")
    await expect(customer).to_have_attribute("aria-expanded", "false")
    await page.go_back()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sessions")


async def test_text_stays_text(page: Page, server: ServerProcess, session: str) -> None:
    """Whatever somebody wrote into keys, values and names."""
    await show(page, server, session=session)
    await expect(state(page)).to_contain_text(TRAP)
    for tab in ("devices", "conflicts", "checkpoints", "activity"):
        await page.get_by_role("tab", name=tab.capitalize()).click()
        shown = page.get_by_role("tabpanel")
        await expect(shown).to_contain_text("<img src=x onerror=")
    assert await page.locator("img").count() == 0
    assert await page.locator("body script").count() == 0


async def test_conflicts_show_both_values_and_gaps_are_seen(
    page: Page, server: ServerProcess, session: str
) -> None:
    await show(page, server, session=session, tab="conflicts")
    card = page.get_by_role("listitem").filter(has_text="/customer/name")
    await expect(card.locator(".side.kept pre")).to_have_text('"Ada Park-Lee"')
    await expect(card.locator(".side.lost pre")).to_contain_text("A. Park")
    await card.get_by_role("button", name="Version").click()
    await expect(page).to_have_url(re.compile(r"v=\d+$"))
    phone = page.locator(".band").nth(1)
    await expect(phone.locator(".present")).to_have_count(2)
    await expect(phone.locator(".gone")).to_have_count(2)
    await page.get_by_role("button", name="Address is known").click()
    await page.get_by_role("tab", name="Refusals").click()
    await expect(page.get_by_role("tabpanel")).to_contain_text("test_failed")


async def test_what_happens_is_seen_while_it_happens(
    page: Page, server: ServerProcess, session: str
) -> None:
    await show(page, server, session=session)
    last = await version_of(server, session)
    await stands_at(page, last)
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    async with WireClient(server.ws_url, session, "tablet") as tablet:
        await expect(page.get_by_role("tab", name="Devices")).to_contain_text("3")
        await tablet.change(put("/step", "confirmed"))
        await tablet.settled()
        await stands_at(page, last + 1)
        await expect(state(page).locator("ins")).to_have_text('"confirmed"')
        # Who looks at the past stays there.
        await page.keyboard.press("[")
        await stands_at(page, last)
        await tablet.change(put("/step", "sent"))
        await tablet.settled()
        await expect(page.locator(".panel-head .at").first).to_contain_text(f"of {last + 2}")
        await stands_at(page, last)
    await server.restart()
    await page.keyboard.press("l")
    await expect(page.get_by_text("Live", exact=True)).to_be_visible(timeout=10_000)
    await stands_at(page, last + 2)


async def test_a_session_is_restored_forked_marked_and_exported(
    page: Page, server: ServerProcess, session: str
) -> None:
    last = await version_of(server, session)
    await show(page, server, session=session, v="6")
    await stands_at(page, 6)
    await page.get_by_role("button", name="Save checkpoint").click()
    await page.get_by_role("textbox").fill("seen")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").last).to_contain_text("Saved a checkpoint")
    await page.get_by_role("button", name="Restore", exact=True).click()
    dialog = page.get_by_role("dialog", name="Restore version 6")
    await dialog.get_by_role("button", name="Cancel").click()
    await expect(dialog).to_be_hidden()
    assert await version_of(server, session) == last
    await page.get_by_role("button", name="Restore", exact=True).click()
    await dialog.get_by_role("button", name="Restore", exact=True).click()
    await stands_at(page, last + 1)
    await page.get_by_role("tab", name="Checkpoints").click()
    await expect(page.get_by_role("tabpanel")).to_contain_text("Before a restore")
    await expect(page.get_by_role("tabpanel")).to_contain_text("seen")
    async with page.expect_download() as waiting:
        await page.get_by_role("button", name="Export").click()
    download = await waiting.value
    assert download.suggested_filename == session.replace(":", "_") + ".json"
    exported: Any = json.loads((await download.path()).read_text())
    assert len(exported["commits"]) == last + 1
    await page.get_by_role("button", name="Fork").click()
    await page.get_by_role("dialog").get_by_role("button", name="Fork").click()
    await expect(page.get_by_role("heading", level=1)).not_to_have_text(session)
    await expect(page.locator(".facts")).to_contain_text("inspector")


@pytest.mark.parametrize("width", [1280, 360])
async def test_every_view_is_for_everybody(
    page: Page, server: ServerProcess, session: str, width: int
) -> None:
    await page.set_viewport_size({"width": width, "height": 800})
    await show(page, server)
    await expect(sessions(page).first).to_be_visible()
    await assert_for_everybody(page, "sessions")
    await page.get_by_role("searchbox").fill("nobody")
    await expect(page.get_by_text("No session is like that")).to_be_visible()
    async with WireClient(server.ws_url, session, "tablet"):
        await show(page, server, session=session, v="12")
        await stands_at(page, 12)
        for tab in TABS:
            await page.get_by_role("tab", name=tab.capitalize()).click()
            await expect(page.get_by_role("tabpanel")).not_to_be_empty()
            await assert_for_everybody(page, tab)
    await page.get_by_role("button", name="Restore", exact=True).click()
    await assert_for_everybody(page, "a question")
    await show(page, server, page="nodes")
    await expect(page.get_by_text("Commits a second")).to_be_visible()
    await assert_for_everybody(page, "nodes")


async def test_whoever_has_the_token_looks_and_no_more(
    new_browser: NewBrowser, serve: Serve
) -> None:
    token = "a token that nobody will ever guess, " * 2
    environment = {"REATTACH_INSPECTOR": "read", "REATTACH_INSPECTOR_TOKEN": token.strip()}
    server = await serve(app=None, environment=environment)
    page = await new_browser().open(f"{server.url}/inspector")
    await page.get_by_label("Token").fill("wrong")
    await page.get_by_role("button", name="Open").click()
    await expect(page.get_by_role("alert")).to_have_text("That token is not the one.")
    await assert_for_everybody(page, "who inspects")
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Open").click()
    await expect(page.get_by_text("No sessions yet")).to_be_visible()
    await expect(page.get_by_text("Read-only")).to_be_visible()
    async with WireClient(server.ws_url, "s", "c", create={"n": 1}):
        await sessions(page).first.click()
        await expect(page.get_by_role("tree")).to_contain_text("n")
        for name in ("Restore", "Fork", "Save checkpoint", "Export"):
            await expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)
