"""The application as it is meant to be used: tabs, devices, no network, no server, no disk."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any

import psutil
import pytest
from playwright.async_api import Error, JSHandle, Page, expect

from tests.browser.conftest import NewBrowser
from tests.conftest import Serve
from tests.support.chromium import Browser
from tests.support.example import (
    CITATION,
    PYPROJECT,
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
    link_from,
    offline_ready,
    saved,
    session_of,
    sheet,
    start,
    title,
    token_of,
)
from tests.support.paths import ROOT
from tests.support.server import ServerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.browser

WORDS = " ".join(f"w{n}" for n in range(1, 16))


@pytest.fixture
async def server(serve: Serve) -> ServerProcess:
    return await serve()


async def type_into(page: Page, text: str, **options: Any) -> None:
    await answer(page).focus()
    await page.keyboard.press("End")
    await page.keyboard.type(text, **options)


# Two devices


async def go_offline(*pages: Page) -> None:
    for page in pages:
        await page.context.set_offline(True)
        await expect(connection(page)).to_have_text("Offline")


async def come_back(*pages: Page) -> None:
    for page in pages:
        await page.context.set_offline(False)
    await back(*pages)


@pytest.fixture
async def impatient(serve: Serve) -> ServerProcess:
    """A server whose pages soon notice silence: a network that is gone says nothing."""
    heartbeat = {"REATTACH_HEARTBEAT_INTERVAL_MS": "400", "REATTACH_HEARTBEAT_TIMEOUT_MS": "1200"}
    return await serve(environment=heartbeat)


async def version(page: Page, number: int) -> str:
    """The value of one of the two versions that the first notice shows."""
    return await callout(page).first.locator(".version .value").nth(number).inner_text()


@pytest.mark.parametrize(
    ("choice", "offline"),
    [
        pytest.param("Keep this one", False, id="keep"),
        pytest.param("Take this one", True, id="take, offline"),
        pytest.param("Use this", True, id="another, offline"),
    ],
)
async def test_two_answers_given_apart_are_settled_from_the_other_browser(
    browser: Browser, new_browser: NewBrowser, impatient: ServerProcess, choice: str, offline: bool
) -> None:
    """Open until somebody chooses, and then settled for everybody."""
    server = impatient
    here = await start(browser, server.url)
    there = await join(new_browser(), here)
    pages = here, there
    await go_offline(*pages)
    # One field each, and one field both.
    for page, own, text, both in (
        (here, "Message", "Please cite it.", "Tidewatch"),
        (there, "Abstract", "Reads tide gauges.", "Harbour"),
    ):
        await gap(page, own)
        await type_into(page, text)
        await gap(page, "Title")
        await type_into(page, both)
        await answer(page).press("Enter")
        await expect(saved(page)).to_have_text("Saved on this device")
    await come_back(*pages)

    for page in pages:
        await expect(callout(page)).to_have_count(1)
        await expect(callout(page)).to_contain_text("You are asked")
        await gap(page, "Title")
        assert {await version(page, 0), await version(page, 1)} == {"Tidewatch", "Harbour"}
    assert await draft_on(server, here, "message") == "Please cite it."
    assert await draft_on(server, here, "abstract") == "Reads tide gauges."

    chosen = {
        "Keep this one": await version(there, 0),
        "Take this one": await version(there, 1),
        "Use this": "Tidewatch Harbour",
    }[choice]
    if offline:
        await go_offline(there)
    if choice == "Use this":
        await callout(there).get_by_label("Or neither of them, but").fill(chosen)
    await callout(there).get_by_role("button", name=choice).click()
    await expect(callout(there)).to_have_count(0)
    await expect(answer(there)).to_have_value(chosen)
    if offline:
        await expect(saved(there)).to_have_text("Saved on this device")
        await expect(callout(here)).to_have_count(1)
        await come_back(there)
    for page in pages:
        await expect(callout(page)).to_have_count(0)
        await expect(answer(page)).to_have_value(chosen)
        await expect(sheet(page)).to_contain_text(f"title: {chosen}")
        await expect(page.locator("#verdict")).to_have_text("Resolved.")
    # It stays settled, for whoever comes later too.
    await back(*pages)
    await here.reload()
    await expect(answer(here)).to_have_value(chosen)
    await back(here)
    assert await callout(here).count() == 0


async def test_whoever_chooses_second_hears_that_somebody_has_chosen(
    browser: Browser, new_browser: NewBrowser, impatient: ServerProcess
) -> None:
    here = await start(browser, impatient.url)
    there = await join(new_browser(), here)
    pages = here, there
    for page in pages:
        await gap(page, "Type")
    await go_offline(*pages)
    for page, kind in ((here, "software"), (there, "dataset")):
        await page.get_by_role("radio", name=kind).check()
        await expect(saved(page)).to_have_text("Saved on this device")
    await come_back(*pages)
    for page in pages:
        await expect(callout(page)).to_contain_text("Which answer to “Type”?")
    first = await version(here, 0)
    await go_offline(there)
    await callout(there).get_by_role("button", name="Take this one").click()
    await callout(here).get_by_role("button", name="Keep this one").click()
    await back(here)
    await come_back(there)
    await expect(callout(there)).to_contain_text("Somebody else has chosen first")
    await callout(there).get_by_role("button", name="All right").click()
    for page in pages:
        await expect(callout(page)).to_have_count(0)
        await expect(page.get_by_role("radio", name=first)).to_be_checked()


async def test_of_two_formats_the_later_stands_and_nobody_has_to_do_anything(
    browser: Browser, new_browser: NewBrowser, impatient: ServerProcess
) -> None:
    here = await start(browser, impatient.url)
    there = await join(new_browser(), here)
    pages = here, there
    await go_offline(*pages)
    for page, syntax in ((here, "toml"), (there, "json")):
        await page.get_by_label("Its format").select_option(syntax)
        await expect(saved(page)).to_have_text("Saved on this device")
    await come_back(*pages)
    for page in pages:
        await expect(callout(page)).to_contain_text("nobody has to do anything")
        assert [await version(page, 0), await version(page, 1)] == ["json", "toml"]
        await expect(page.get_by_label("Its format")).to_have_value("json")
    await callout(there).get_by_role("button", name="Take this one").click()
    for page in pages:
        await expect(callout(page)).to_have_count(0)
        await expect(page.get_by_label("Its format")).to_have_value("toml")


async def test_a_document_is_its_owners_and_those_of_the_link(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    stranger = await new_browser().open(page.url)
    await expect(stranger.get_by_role("heading", level=1)).to_have_text("There is no such document")
    link = await link_from(page)
    forged = await new_browser().open(link.replace("#handoff=reattach_link_", "#handoff=x"))
    await expect(forged.get_by_role("heading", level=1)).to_have_text("This link is over")

    # The stranger is let in on this document; what is in the link does not stay in the address.
    await stranger.goto(link)
    await expect(title(stranger)).to_have_text("Title")
    assert stranger.url == page.url
    await expect(page.locator(".devices li")).to_have_count(2)
    await token_of(stranger)
    cookies = await stranger.context.cookies()
    assert all(one.get("httpOnly") and one.get("sameSite") == "Strict" for one in cookies)
    # It was for one device.
    third = await new_browser().open(link)
    await expect(third.get_by_role("heading", level=1)).to_have_text("This link is over")


# Tabs


def connections(server: ServerProcess) -> int:
    """How many TCP connections the server has: WebSockets, and what HTTP keeps for 5 s."""
    return sum(
        one.status == psutil.CONN_ESTABLISHED and one.laddr.port == node.port
        for node in server.nodes
        for one in psutil.Process(node.pid).net_connections(kind="tcp")
    )


async def test_three_tabs_share_one_connection_and_show_each_others_work_offline(
    browser: Browser, server: ServerProcess
) -> None:
    opened: list[str] = []
    first = await browser.open()
    browser.context.on(
        "page", lambda page: page.on("websocket", lambda socket: opened.append(socket.url))
    )
    first.on("websocket", lambda socket: opened.append(socket.url))
    await first.goto(server.url)
    await begin(first)
    tabs = [first]
    for _ in range(2):
        tabs.append(await browser.open(first.url))
        await back(tabs[-1])
    assert len(opened) == 1, "only the leading tab has a line"
    await until(lambda: connections(server) == 1, within=40, what="one connection at the server")
    await expect(first.locator(".devices li")).to_have_count(1)

    await server.kill()
    for tab in tabs:
        await expect(connection(tab)).to_have_text("Reconnecting…")
    await type_into(tabs[1], "Tide")
    for tab in tabs:
        await expect(answer(tab)).to_have_value("Tide")
        await expect(saved(tab)).to_have_text("Saved on this device")
    await type_into(tabs[2], "watch")
    for tab in tabs:
        await expect(answer(tab)).to_have_value("Tidewatch")
    await server.restart()
    await back(*tabs)
    assert_typed_once(await drafts_in_order(server, first), "Tidewatch")
    assert len(set(opened)) == 1


async def crash(page: Page) -> None:
    """Kills the page's renderer. Each tab must have one of its own for that."""
    session = await page.context.new_cdp_session(page)
    crashed = asyncio.Event()
    page.on("crash", lambda _: crashed.set())
    # The command itself is never answered: who would?
    command = asyncio.ensure_future(session.send("Page.crash"))
    await asyncio.wait_for(crashed.wait(), 10)
    command.cancel()
    with contextlib.suppress(asyncio.CancelledError, Error):
        await command


async def test_the_leading_tab_dies_while_somebody_types(
    browser: Browser, server: ServerProcess
) -> None:
    leader = await start(browser, server.url)
    follower = await browser.open(leader.url)
    await back(follower)

    async def shows(page: Page, length: int) -> bool:
        return len(await answer(page).input_value()) >= length

    # It dies while another tab is typed into …
    typing = asyncio.create_task(type_into(follower, WORDS, delay=25))
    await until(functools.partial(shows, follower, 10), within=10, what="some words")
    await crash(leader)
    assert not typing.done()
    await typing
    await expect(answer(follower)).to_have_value(WORDS)
    await back(follower)
    assert_typed_once(await drafts_in_order(server, follower), WORDS)

    # … and while it is itself typed into: what others saw of it is not lost, and comes once.
    leader, follower = follower, await browser.open(follower.url)
    for page in (leader, follower):
        await gap(page, "Message")
    await back(leader, follower)
    typing = asyncio.create_task(type_into(leader, WORDS, delay=25))
    await until(functools.partial(shows, follower, 10), within=10, what="some words there")
    await crash(leader)
    typing.cancel()
    with contextlib.suppress(asyncio.CancelledError, Error):
        await typing
    await back(follower)
    left = await answer(follower).input_value()
    assert len(left) >= 10
    assert WORDS.startswith(left)
    await type_into(follower, WORDS[len(left) :])
    await expect(answer(follower)).to_have_value(WORDS)
    await back(follower)
    assert_typed_once(await drafts_in_order(server, follower, 1), WORDS)


# No server


async def test_without_its_server_the_page_comes_with_the_offline_work(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    await offline_ready(page)
    await server.kill()
    await expect(connection(page)).to_have_text("Reconnecting…")
    await type_into(page, "Tidewatch")
    await expect(saved(page)).to_have_text("Saved on this device")

    await page.reload()
    await expect(answer(page)).to_have_value("Tidewatch")
    await expect(saved(page)).to_have_text("Saved on this device")
    await type_into(page, ", offline")
    await expect(saved(page)).to_have_text("Saved on this device")

    # A cold start, by the address that people know.
    page = await browser.reopen(server.url)
    await expect(answer(page)).to_have_value("Tidewatch, offline")
    await expect(saved(page)).to_have_text("Saved on this device")
    await server.restart()
    await back(page)
    assert await draft_on(server, page) == "Tidewatch, offline"


async def test_the_offline_start_keeps_its_hands_off_everything_else(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    await offline_ready(page)
    kept = await page.evaluate(
        """async () => {
          const names = await caches.keys();
          const requests = await Promise.all(
            names.map(async (name) => (await caches.open(name)).keys()));
          return requests.flat().map(({ url }) => new URL(url).pathname);
        }"""
    )
    assert "/" in kept
    assert [path for path in kept if not path.startswith(("/assets/", "/favicon"))] == ["/"]
    await server.kill()
    for path in ("/api/v0/session", "/documents/x/file", "/worker.js"):
        with pytest.raises(Error, match="fetch"):
            await page.evaluate("path => fetch(path)", path)


# Back after a kill


async def test_a_killed_browser_comes_back_to_the_gap_the_caret_and_the_half_typed_text(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    await page.set_viewport_size({"width": 800, "height": 400})
    await gap(page, "Keywords")
    # An empty line is no keyword: the document's list has two, the field three lines.
    await answer(page).focus()
    await page.keyboard.type("tides\n\nsea level")
    for _ in range(5):
        await page.keyboard.press("ArrowLeft")
    await page.evaluate("scrollTo(0, 120)")
    await until(
        functools.partial(page.evaluate, "Math.abs(scrollY - 120) < 1"), within=5, what="scrolling"
    )
    # The power goes 50 ms after the last act, whatever has been written by then.
    await asyncio.sleep(0.05)
    await browser.kill_all()

    page = await browser.open()
    await page.set_viewport_size({"width": 800, "height": 400})
    await page.goto(server.url)
    await expect(title(page)).to_have_text("Keywords")
    await expect(answer(page)).to_have_value("tides\n\nsea level")
    await expect(answer(page)).to_be_focused()
    assert await answer(page).evaluate("e => [e.selectionStart, e.selectionEnd]") == [11, 11]
    assert await page.evaluate("scrollY") == pytest.approx(120, abs=2)
    await page.keyboard.type("*")
    await expect(answer(page)).to_have_value("tides\n\nsea *level")


async def test_anothers_typing_moves_nobodys_caret(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    here = await start(browser, server.url)
    await type_into(here, "Tidewatch")
    there = await join(new_browser(), here)
    await expect(answer(there)).to_have_value("Tidewatch")
    await answer(there).focus()
    await there.keyboard.press("Home")
    await there.keyboard.press("ArrowRight")
    await type_into(here, ", or so")
    await expect(answer(there)).to_have_value("Tidewatch, or so")
    assert await answer(there).evaluate("e => e.selectionStart") == 1


# No disk


@pytest.mark.parametrize("lack", ["indexeddb", "quota"])
async def test_without_a_disk_nothing_pretends_to_be_saved(
    browser: Browser, server: ServerProcess, lack: str
) -> None:
    page = await browser.open()
    if lack == "indexeddb":
        await browser.context.add_init_script(
            "Object.defineProperty(globalThis, 'indexedDB', { value: undefined })"
        )
    else:
        devtools = await browser.context.new_cdp_session(page)
        quota = {"origin": server.url, "quotaSize": 1}
        await devtools.send("Storage.overrideQuotaForOrigin", quota)
    await page.goto(server.url)
    await begin(page)
    await expect(callout(page)).to_contain_text("keeps nothing")
    await type_into(page, "Tide")
    await expect(saved(page)).to_have_text("Saved")
    await server.kill()
    await expect(connection(page)).to_have_text("Reconnecting…")
    words = await words_of(page)
    await type_into(page, "watch")
    await expect(saved(page)).to_have_text("Not saved")
    await expect(page.locator("#verdict")).to_have_text("It counts when you go on.")
    assert await words.evaluate("words => words") == ["Saved", "Not saved"]
    await server.restart()
    await back(page)
    assert await draft_on(server, page) == "Tidewatch"


async def test_a_full_disk_is_told_and_the_work_goes_on(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    assert await callout(page).count() == 0
    # As the browser answers when its quota is used up; by itself it reckons in portions, and lets
    # small changes pass for a while after the quota has shrunk.
    await page.evaluate(
        """() => {
          IDBObjectStore.prototype.put = function () {
            this.transaction.abort();
            throw new DOMException("the quota has been exceeded", "QuotaExceededError");
          };
        }"""
    )
    await type_into(page, "Tide")
    await expect(callout(page)).to_contain_text("keeps nothing")
    await expect(saved(page)).to_have_text("Saved")
    await server.kill()
    await expect(connection(page)).to_have_text("Reconnecting…")
    words = await words_of(page)
    await type_into(page, "watch")
    await expect(saved(page)).to_have_text("Not saved")
    await expect(page.locator("#verdict")).to_have_text("It counts when you go on.")
    assert await words.evaluate("words => words") == ["Saved", "Not saved"]
    await server.restart()
    await back(page)
    assert await draft_on(server, page) == "Tidewatch"


async def words_of(page: Page) -> JSHandle:
    """Collects every word that the page says of where the work is, however short it is there."""
    return await saved(page).evaluate_handle(
        """element => {
          const words = [element.textContent];
          new MutationObserver(() => words.push(element.textContent)).observe(
            element, { characterData: true, childList: true, subtree: true });
          return words;
        }"""
    )


# What the server refuses


async def test_a_refused_change_is_kept_and_can_be_mended(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    await gap(page, "Abstract")
    await answer(page).fill("x" * 300_000)
    await expect(callout(page)).to_contain_text("did not take your answer to “Abstract”")
    await expect(answer(page)).to_have_value("")
    # It is there after a reload as well.
    await page.reload()
    await expect(callout(page)).to_be_visible()
    async with page.expect_download() as waiting:
        await callout(page).get_by_role("button", name="Keep a copy").click()
    copy = await (await waiting.value).path()
    assert "x" * 300_000 in copy.read_text()
    await callout(page).get_by_role("button", name="Edit it").click()
    await page.get_by_label("The refused answer").fill("Reads tide gauges.")
    await page.get_by_role("button", name="Send this").click()
    await expect(callout(page)).to_have_count(0)
    await expect(answer(page)).to_have_value("Reads tide gauges.")
    await back(page)

    await answer(page).fill("y" * 300_000)
    await expect(callout(page)).to_be_visible()
    await callout(page).get_by_role("button", name="Discard").click()
    await expect(callout(page)).to_have_count(0)


# Documents


async def test_a_pyproject_is_filled_in_with_a_form_of_several_parts(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url, PYPROJECT)
    await gap(page, "Authors")
    await page.get_by_label("Name").fill("Alex Example")
    await page.get_by_label("Email").fill("alex@example")
    await page.get_by_role("button", name="Add another author").click()
    second = page.get_by_role("group", name="Author 2")
    await second.get_by_label("Email").fill("sam@example.org")
    await page.get_by_role("button", name="Next").click()
    # An address that is none is a gap of its own.
    await expect(page.locator(".gaps")).to_contain_text("needs another answer")
    await gap(page, "Authors")
    await expect(page.locator("#verdict")).to_contain_text("email address")
    await page.get_by_role("group", name="Author 1").get_by_label("Email").fill("alex@example.org")
    await page.get_by_role("button", name="Next").click()
    await expect(sheet(page)).to_contain_text("sam@example.org")
    await expect(page.locator("#count")).to_have_text("1 of 9 gaps resolved")
    await page.get_by_label("Its format").select_option("json")
    await expect(sheet(page)).to_contain_text('"email": "sam@example.org"')
    await expect(page.get_by_role("heading", level=1)).to_have_text("pyproject.json")
    assert browser.messages == []


async def test_somebodys_own_file(browser: Browser, server: ServerProcess) -> None:
    page = await browser.open(server.url)
    await page.get_by_text("Bring your own file").click()
    text = page.get_by_label("Its text")
    await text.fill("title: [")
    await page.get_by_role("button", name="Find its gaps").click()
    await expect(page.get_by_role("alert")).to_contain_text("expected YAML")
    await text.fill('{"title": "Mine", "cff-version": "1.2.0", "colour": "green"}')
    await page.get_by_role("button", name="Find its gaps").click()
    await expect(title(page)).to_have_text("Message")
    await expect(page.get_by_role("heading", level=1)).to_have_text("CITATION.json")
    await gap(page, "Colour")
    await page.get_by_role("radio", name="Take it out").check()
    await expect(page.locator("#verdict")).to_have_text("Resolved.")
    await expect(sheet(page)).not_to_contain_text("colour")


# For everybody

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"


async def violations(page: Page) -> list[str]:
    # Evaluated from outside, past the policy that keeps scripts out of the page.
    await page.evaluate(AXE.read_text())
    found = await page.evaluate(
        "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations)"
    )
    return [f"{one['id']}: {[node['html'][:160] for node in one['nodes']]}" for one in found]


async def assert_for_everybody(page: Page, view: str) -> None:
    """Holds what is shown against axe and against its window, wide and on a phone."""
    for width in (1280, 360):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await violations(page) == [], f"{view}, {width} px"
        overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow == 0, f"{view} is wider than {width} px"


async def in_scheme(page: Page, scheme: Any) -> Page:
    # Colours in the middle of a transition are nobody's.
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_view_is_accessible_and_fits_a_phone(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess, scheme: Any
) -> None:
    page = await in_scheme(await browser.open(server.url), scheme)
    check = functools.partial(assert_for_everybody, page)
    await page.get_by_text("Bring your own file").click()
    await check("start")
    await page.get_by_label("Its text").fill("title: [")
    await page.get_by_role("button", name="Find its gaps").click()
    await expect(page.get_by_role("alert")).to_contain_text("at line 1, column 9")
    await check("start, with a file that cannot be read")
    await begin(page, PYPROJECT)
    await check("text")
    await gap(page, "Authors")
    await check("form")
    await page.get_by_role("button", name="Start anew").click()
    await begin(page, CITATION)
    await gap(page, "Type")
    await check("choice")
    await gap(page, "License")
    await check("search")
    await gap(page, "Title")
    other = await join(new_browser(), page)
    await expect(page.get_by_text("a phone cannot open it")).to_be_visible()
    await check("a link for another device")
    await server.kill()
    for one, text, syntax in ((page, "Tidewatch", "toml"), (other, "Harbour", "json")):
        await expect(connection(one)).to_have_text("Reconnecting…")
        await type_into(one, text)
        await answer(one).press("Enter")
        await one.get_by_label("Its format").select_option(syntax)
        await expect(saved(one)).to_have_text("Saved on this device")
    await check("offline")
    await server.restart()
    await back(page, other)
    await expect(callout(page)).to_have_count(2)
    await expect(callout(page).nth(1)).to_contain_text("nobody has to do anything")
    await check("conflicts, an open and an automatic one")
    await callout(other).first.get_by_role("button", name="Keep this one").click()
    await expect(callout(page)).to_have_count(1)
    assert session_of(page) == session_of(other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_refused_a_finished_and_an_erased_document_are_accessible_and_fit_a_phone(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess, scheme: Any
) -> None:
    page = await in_scheme(await start(browser, server.url), scheme)
    check = functools.partial(assert_for_everybody, page)
    await gap(page, "Abstract")
    await answer(page).fill("x" * 300_000)
    await expect(callout(page)).to_contain_text("did not take your answer")
    await check("refused")
    await callout(page).get_by_role("button", name="Edit it").click()
    await check("refused, being mended")
    await page.get_by_label("The refused answer").fill("Reads tide gauges.")
    await page.get_by_role("button", name="Send this").click()
    await expect(callout(page)).to_have_count(0)

    await gap(page, "Date released")
    await page.get_by_role("button", name="Finish").click()
    await expect(title(page)).to_have_text("Not quite complete")
    await check("the end, with gaps left")
    await page.get_by_role("button", name="To “Title”").click()
    await expect(title(page)).to_have_text("Title")
    await gap(page, "Type")
    await page.get_by_role("radio", name="software").check()
    for name, text in TEXTS.items():
        await gap(page, name)
        await answer(page).fill(text)
    await page.get_by_role("button", name="Finish").click()
    await expect(title(page)).to_have_text("The file is complete")
    await check("finished")

    await erase(page)
    await expect(callout(page)).to_contain_text("closed for good")
    await check("erased, and still on this device")
    other = await in_scheme(await new_browser().open(server.url), scheme)
    # One that may see the document, and never has.
    await keep_token(other, session_of(page), await token_of(page))
    await other.goto(page.url)
    await expect(other.get_by_role("heading", level=1)).to_have_text(
        "This document is closed for good"
    )
    await assert_for_everybody(other, "erased")


TEXTS = {
    "Title": "Tidewatch",
    "Message": "Please cite it.",
    "ORCID of author 1": "https://orcid.org/0000-0002-1825-0097",
    "Email of author 2": "sam@example.org",
    "Keywords": "tides",
    "License": "Apache-2.0",
    "Date released": "2026-06-30",
}


async def erase(page: Page) -> None:
    """Erases the document, as its owner may."""
    status = await page.evaluate(
        """([id, token]) => fetch(`/api/v0/session/${id}`, {
            method: "DELETE", headers: { Authorization: `Bearer ${token}` }
        }).then(({ status }) => status)""",
        [session_of(page), await token_of(page)],
    )
    assert status == 204


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_missing_and_an_awaited_document_are_accessible_and_fit_a_phone(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess, scheme: Any
) -> None:
    known = await start(new_browser(), server.url)
    link, token = await link_from(known), await token_of(known)
    page = await in_scheme(await browser.open(f"{server.url}/#no-such-document"), scheme)
    heading = page.get_by_role("heading", level=1)
    check = functools.partial(assert_for_everybody, page)
    await expect(heading).to_have_text("There is no such document")
    await check("missing")
    await page.goto(f"{server.url}/#handoff=forged")
    await expect(heading).to_have_text("This link is over")
    await check("a link that is over")
    await offline_ready(page)
    await keep_token(page, session_of(known), token)

    await server.kill()
    await page.goto(f"{server.url}/#{session_of(known)}")
    await expect(heading).to_have_text("Looking for your document")
    await check("awaited")
    await page.get_by_role("button", name="Start anew").click()
    await page.get_by_role("button", name=CITATION).click()
    await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    await check("start, without a server")
    await page.goto(link)
    await expect(heading).to_have_text("This link needs the server")
    await check("a link, without a server")
    await server.restart()
    await page.get_by_role("button", name="Try again").click()
    await expect(title(page)).to_have_text("Title")
    assert page.url == known.url


async def test_a_notice_that_comes_up_out_of_sight_says_so(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    await page.set_viewport_size({"width": 360, "height": 640})
    await gap(page, "Abstract")
    beckon = page.locator(".beckon")
    await answer(page).fill("x" * 300_000)
    await expect(callout(page)).to_have_count(1)
    await page.mouse.wheel(0, 2_000)
    await expect(beckon).to_have_text("One thing needs a look")
    assert await violations(page) == []
    await beckon.click()
    await expect(callout(page)).to_be_in_viewport()
    await expect(beckon).to_have_count(0)
    await page.keyboard.press("Tab")
    await expect(callout(page).get_by_role("button").first).to_be_focused()


async def test_whoever_goes_on_sees_what_is_asked(browser: Browser, server: ServerProcess) -> None:
    page = await start(browser, server.url)
    await page.set_viewport_size({"width": 360, "height": 640})
    # The field is in sight, and in the same place for the next question: what is asked is not.
    await page.evaluate(
        """scrollBy(0, document.querySelector("#answer").getBoundingClientRect().top
                       - document.querySelector(".top").getBoundingClientRect().bottom - 8)"""
    )
    await answer(page).press("Enter")
    await expect(title(page)).to_have_text("Message")
    hidden = await page.evaluate(
        """document.querySelector(".top").getBoundingClientRect().bottom
           - document.querySelector("#title").getBoundingClientRect().top"""
    )
    assert hidden <= 0, f"{hidden} px of the question are behind the page's top"


async def test_the_keyboard_alone_will_do(browser: Browser, server: ServerProcess) -> None:
    page = await start(browser, server.url)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="To the question")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(answer(page)).to_be_focused()
    await page.keyboard.type("Tidewatch")
    await page.keyboard.press("Enter")
    await expect(title(page)).to_have_text("Message")
    await expect(answer(page)).to_be_focused()
    await page.keyboard.type("Please cite it.")
    await page.keyboard.press("Enter")
    await expect(title(page)).to_have_text("Type")
    await page.keyboard.press("Space")
    await expect(page.get_by_role("radio").first).to_be_checked()
    await expect(page.locator("#verdict")).to_have_text("Resolved.")


async def test_a_press_counts_although_leaving_the_field_moves_what_is_below_the_finger(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url)
    await page.set_viewport_size({"width": 360, "height": 780})
    await server.kill()
    await expect(connection(page)).to_have_text("Reconnecting…")
    for name in ("Keywords", "Title", "Abstract", "Message"):
        await gap(page, name)
        await answer(page).fill("tides")
