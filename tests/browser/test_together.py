"""Several people in one document at once: each keeps every letter, and their own caret."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from reattach.client import connect
from tests.browser.conftest import NewBrowser
from tests.conftest import Serve
from tests.support.chromium import Browser
from tests.support.example import (
    BACK_MS,
    PYPROJECT,
    answer,
    back,
    callout,
    connection,
    draft_on,
    gap,
    join,
    keep_token,
    read,
    saved,
    session_of,
    sheet,
    start,
    title,
    token_of,
)
from tests.support.front import Front
from tests.support.paths import ROOT
from tests.support.server import ServerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.browser

PAGES = ROOT / "examples" / "gap_resolution" / "pages"


@pytest.fixture
async def server(serve: Serve) -> ServerProcess:
    return await serve()


@pytest.fixture
async def front(server: ServerProcess) -> AsyncIterator[Front]:
    async with Front(PAGES, server.port) as front:
        yield front


async def selection(field: Locator) -> tuple[int, int]:
    start, end = await field.evaluate("e => [e.selectionStart, e.selectionEnd]")
    return int(start), int(end)


async def select(field: Locator, start: int, end: int) -> None:
    await field.focus()
    await field.evaluate("(e, [start, end]) => e.setSelectionRange(start, end)", [start, end])


# One field

SECONDS = 30
CUTS = 20


async def test_two_people_type_at_once_into_one_field_over_a_network_that_fails(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess, front: Front
) -> None:
    here = await start(browser, front.url)
    there = await join(new_browser(), here)
    for page in (here, there):
        await gap(page, "Abstract")
        await answer(page).focus()
    over = time.monotonic() + SECONDS

    async def type_on(page: Page, letters: str) -> str:
        typed = ""
        for letter in itertools.cycle(letters):
            await page.keyboard.type(letter)
            typed += letter
            if time.monotonic() > over:
                return typed
            # As people do, in bursts.
            await asyncio.sleep(random.uniform(0.01, 0.09))
        raise AssertionError("the letters have no end")

    async def cut() -> None:
        for n in range(CUTS):
            await asyncio.sleep(max(0.0, over - time.monotonic()) / (CUTS + 1 - n))
            # Every other time the browsers are told of it; what is on its way is lost in any case.
            told = n % 2 == 0
            for page in (here, there):
                await page.context.set_offline(told)
            front.cut()
            await asyncio.sleep(random.uniform(0.1, 0.4))
            for page in (here, there):
                await page.context.set_offline(False)

    # Both begin at one place; a letter says whose it is.
    small, great, _ = await asyncio.gather(
        type_on(here, "abcdefghijklm\U0001f600 "),
        type_on(there, "ABCDEFGHIJ\n"),
        cut(),
    )
    assert front.cuts >= CUTS, "lines that were back in time to be cut again"
    await back(here, there)
    text = await answer(here).input_value()
    assert "".join(one for one in text if one in set(small)) == small
    assert "".join(one for one in text if one in set(great)) == great
    assert len(text) == len(small) + len(great)
    await expect(answer(there)).to_have_value(text)
    assert await draft_on(server, here, "abstract") == text
    for page in (here, there):
        assert await callout(page).count() == 0


async def test_each_types_where_their_caret_is(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    here = await start(browser, server.url)
    await gap(here, "Abstract")
    await answer(here).fill("(\U0001f600)(\U0001f600)")
    there = await join(new_browser(), here)
    await expect(answer(there)).to_have_value("(\U0001f600)(\U0001f600)")
    # In UTF-16, as fields count.
    await select(answer(here), 3, 3)
    await select(answer(there), 7, 7)
    first, second = "typed in front ", "and behind it "
    await asyncio.gather(here.keyboard.type(first, delay=15), there.keyboard.type(second, delay=20))
    text = f"(\U0001f600{first})(\U0001f600{second})"
    for page in (here, there):
        await expect(answer(page)).to_have_value(text)
    assert await selection(answer(here)) == (3 + len(first),) * 2
    assert await selection(answer(there)) == (7 + len(first) + len(second),) * 2


# After each of the edits below.
NOTES = {
    " four": "one two three four",
    "zero ": "zero one two three four",
    "+": "zero one tw+o three four",
}


async def test_a_selection_stays_on_its_letters(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    here = await start(browser, server.url)
    notes = here.locator("#notes")
    await notes.fill("one two three")
    there = await join(new_browser(), here)
    await expect(there.locator("#notes")).to_have_value("one two three")
    await select(notes, 4, 7)
    for place, letters in ((13, " four"), (0, "zero "), (11, "+")):
        await select(there.locator("#notes"), place, place)
        await there.keyboard.type(letters)
        await expect(there.locator("#notes")).to_have_value(NOTES[letters])
    await expect(notes).to_have_value("zero one tw+o three four")
    assert await selection(notes) == (9, 13)
    await here.keyboard.press("Backspace")
    await expect(there.locator("#notes")).to_have_value("zero one  three four")


async def test_a_selection_stays_on_its_letters_when_much_comes_at_once(
    browser: Browser, new_browser: NewBrowser, front: Front
) -> None:
    here = await start(browser, front.url)
    notes = here.locator("#notes")
    await notes.fill("one two three")
    there = await join(new_browser(), here)
    await expect(there.locator("#notes")).to_have_value("one two three")
    await select(notes, 5, 7)
    await here.context.set_offline(True)
    front.cut()
    await expect(connection(here)).to_have_text("Offline")
    await back(there)
    for place, letters in ((13, " four"), (0, "zero ")):
        await select(there.locator("#notes"), place, place)
        await there.keyboard.type(letters)
    await there.keyboard.press("Delete")
    await back(there)
    await here.context.set_offline(False)
    await expect(notes).to_have_value("zero ne two three four")
    assert await selection(notes) == (9, 11)


async def test_what_an_input_method_composes_is_left_alone_until_it_is_done(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    here = await start(browser, server.url)
    there = await join(new_browser(), here)
    devtools = await here.context.new_cdp_session(here)
    await answer(here).focus()
    compose = {"text": "し", "selectionStart": 1, "selectionEnd": 1}
    await devtools.send("Input.imeSetComposition", compose)
    await expect(answer(here)).to_have_value("し")
    await there.locator("#notes").fill("seen")
    await answer(there).focus()
    await there.keyboard.type("Tide")
    # It is there, and not yet in the field.
    await there.keyboard.press("Tab")
    await expect(sheet(here)).to_contain_text("title: Tide")
    await expect(answer(here)).to_have_value("し")
    await devtools.send("Input.insertText", {"text": "潮"})
    for page in (here, there):
        await expect(answer(page)).to_have_value("Tide潮")
    await back(here, there)
    assert await draft_on(server, here) == "Tide潮"


async def test_two_people_fill_in_one_form_of_several_parts(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    here = await start(browser, server.url, PYPROJECT)
    there = await join(new_browser(), here)
    for page in (here, there):
        await gap(page, "Authors")
    # One field of it both, and then one field each; an author is added meanwhile.
    for page in (here, there):
        await page.get_by_label("Name").focus()
    await asyncio.gather(here.keyboard.type("alex", delay=20), there.keyboard.type("SAM", delay=20))
    await here.get_by_label("Email").focus()
    await here.keyboard.type("a@example")
    await there.get_by_role("button", name="Add another author").click()
    # Another author comes, and nobody loses the field that they are in.
    await expect(here.get_by_role("group", name="Author 2")).to_be_visible()
    await expect(here.get_by_label("Email").first).to_be_focused()
    second = there.get_by_role("group", name="Author 2").get_by_label("Name")
    await second.focus()
    await asyncio.gather(here.keyboard.type(".org", delay=20), there.keyboard.type("Kim", delay=20))
    for page in (here, there):
        name = page.get_by_role("group", name="Author 1").get_by_label("Name")
        await until(functools.partial(_has, name, "alex", "SAM"), within=10, what="both names")
        await expect(page.get_by_label("Email").first).to_have_value("a@example.org")
        await expect(page.get_by_role("group", name="Author 2").get_by_label("Name")).to_have_value(
            "Kim"
        )
    await here.get_by_role("button", name="Next").click()
    await expect(sheet(there)).to_contain_text("Kim")
    await expect(sheet(there)).not_to_contain_text("id =")


async def _has(field: Locator, *parts: str) -> bool:
    text = await field.input_value()
    letters = [[one for one in text if one in part] for part in parts]
    return ["".join(one) for one in letters] == list(parts)


# Sessions from before there was a schema


async def test_a_session_without_a_schema_opens_and_goes_on(
    browser: Browser, server: ServerProcess
) -> None:
    page = await start(browser, server.url, PYPROJECT)
    state = (await read(server, page, f"/api/v0/session/{session_of(page)}"))["state"]
    # As they were: no notes, the lists typed as lists, the forms as nothing.
    del state["notes"]
    state["context"]["settled"] = {}
    for response in state["user_responses"]:
        if response["gap"].endswith("authors"):
            response["draft"] = ""
    state["user_responses"][0]["draft"] = ["one", "two"]
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        made = await client.post("/api/v0/session", json={"state": state, "session_id": "old"})
        assert made.status_code == 201, made.text
    await keep_token(page, "old", made.json()["token"])
    await page.goto(f"{server.url}/#old")
    await expect(title(page)).to_have_text("Name")
    await gap(page, "Authors")
    await page.get_by_label("Name").press_sequentially("Alex")
    await page.locator("#notes").press_sequentially("hello")
    await page.get_by_role("button", name="Next").click()
    await expect(saved(page)).to_have_text("Saved")
    await expect(sheet(page)).to_contain_text("Alex")
    now: dict[str, Any] = (await read(server, page, "/api/v0/session/old"))["state"]
    assert now["notes"] == "hello"


# One person and a stream

CHUNKS = 5_000


async def test_a_stream_of_tokens_is_whole_over_reloads_and_a_killed_server(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess, tmp_path: Path
) -> None:
    here = await start(browser, server.url)
    there = await join(new_browser(), here)
    notes = here.locator("#notes")
    await notes.fill("How high is ?\n")
    await back(here)
    # What lets a browser in lets a program in, too.
    token = await token_of(here)
    chunks = [f"{n}{'🌊' if n % 100 == 0 else ' '}" for n in range(CHUNKS)]
    written = 0

    async def stream() -> None:
        nonlocal written
        outbox = tmp_path / "worker.db"
        async with (
            connect(server.url, session_of(here), token=token, outbox=outbox) as session,
            session.text("/notes") as out,
        ):
            for chunk in chunks:
                await out.write(chunk)
                written += 1
                # As a model does, token by token.
                await asyncio.sleep(0.002)

    async def streamed(part: float) -> None:
        await until(lambda: written >= part * CHUNKS, within=60, what=f"{part} of the tokens")

    async def reload() -> None:
        for n in range(1, 6):
            await streamed(n / 6)
            await there.reload()

    async def kill() -> None:
        await streamed(2 / 5)
        await server.restart()

    async def ask() -> None:
        await select(notes, 12, 12)
        await here.keyboard.type("the water at the harbour tonight", delay=150)

    await asyncio.gather(stream(), reload(), kill(), ask())
    whole = "How high is the water at the harbour tonight?\n" + "".join(chunks)
    for page in (here, there):
        await back(page)
        await expect(page.locator("#notes")).to_have_value(whole, timeout=BACK_MS)
    state = (await read(server, here, f"/api/v0/session/{session_of(here)}"))["state"]
    assert state["notes"] == whole
    # The caret is where its user is.
    assert await selection(notes) == (44, 44)
    assert await callout(here).count() == 0
