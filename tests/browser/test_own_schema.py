"""A form of somebody's own JSON Schema: pasted or dropped, filled in, offline too, and finished."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser
from tests.browser.test_application import assert_for_everybody, in_scheme
from tests.conftest import Serve
from tests.support.chromium import Browser
from tests.support.example import (
    answer,
    back,
    connection,
    gap,
    join,
    offline_ready,
    saved,
    sheet,
    title,
)
from tests.support.server import ServerProcess

pytestmark = pytest.mark.browser

TRIP: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Field trip",
    "type": "object",
    "required": ["place", "when"],
    "properties": {
        "place": {"type": "string", "title": "Where to", "description": "A town, or a lake."},
        "when": {"type": "string", "format": "date"},
        "by train": {"type": "boolean"},
        "class": {"enum": ["5a", "5b", "6a"]},
        "what to bring": {"type": "array", "items": {"type": "string"}},
        "people": {"type": "array", "items": {"$ref": "#/$defs/person"}},
        "code": {"type": "string", "pattern": "^[A-Z]{3}$"},
    },
    "$defs": {
        "person": {
            "type": "object",
            "required": ["full name"],
            "properties": {
                "full name": {"type": "string", "description": "As in the register."},
                "age": {"type": "integer", "minimum": 3},
                "swims": {"type": "boolean"},
            },
        }
    },
}


@pytest.fixture
async def server(serve: Serve) -> ServerProcess:
    return await serve()


async def open_start(browser: Browser, server: ServerProcess) -> Page:
    page = await browser.open(server.url)
    await page.get_by_text("Bring your own schema").click()
    return page


async def make_form(page: Page, schema: Any) -> None:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    await page.get_by_label("A JSON Schema, pasted or dropped here").fill(text)
    await page.get_by_role("button", name="Make its form").click()


async def test_it_is_pasted_filled_in_offline_reloaded_and_finished(
    browser: Browser, new_browser: NewBrowser, server: ServerProcess
) -> None:
    page = await open_start(browser, server)
    await make_form(page, TRIP)
    await expect(title(page)).to_have_text("Where to")
    await expect(page.locator("#count")).to_have_text("0 of 2 gaps resolved")
    await expect(page.locator("#description")).to_have_text("A town, or a lake.")
    await back(page)
    await offline_ready(page)

    await server.kill()
    await expect(connection(page)).to_have_text("Reconnecting…")
    await answer(page).fill("Lake Constance")
    await gap(page, "People")
    await page.get_by_label("Full name").fill("Kim")
    await page.get_by_label("Age").fill("11")
    await page.get_by_label("Swims").check()
    await page.get_by_role("button", name="Add another one").click()
    await page.get_by_role("group", name="People 2").get_by_label("Full name").fill("Sam")
    await expect(saved(page)).to_have_text("Saved on this device")
    # The page, its form and all that was typed are there without the server.
    page = await browser.reopen(server.url)
    await expect(title(page)).to_have_text("People")
    second = page.get_by_role("group", name="People 2").get_by_label("Full name")
    await expect(second).to_have_value("Sam")
    await expect(page.get_by_label("Swims").first).to_be_checked()
    await gap(page, "By train")
    await page.get_by_role("radio", name="Yes").check()
    await gap(page, "What to bring")
    await answer(page).fill("boots\nrain coat")
    await server.restart()
    await back(page)

    await gap(page, "Code")
    await answer(page).fill("abc")
    await gap(page, "When")
    await answer(page).fill("2026-07-01")
    await answer(page).press("Enter")
    # What may be missing may not be wrong.
    await expect(page.locator(".gaps")).to_contain_text("needs another answer")
    await gap(page, "Code")
    await expect(page.locator("#verdict")).to_contain_text("^[A-Z]{3}$")
    other = await join(new_browser(), page)
    await gap(other, "Code")
    await answer(other).fill("ABC")
    await answer(other).press("Enter")
    await expect(title(other)).to_have_text("The file is complete")
    await expect(sheet(page)).to_contain_text("ABC")
    async with other.expect_download() as waiting:
        await other.locator("#download").click()
    download = await waiting.value
    assert download.suggested_filename == "field-trip.json"
    document = json.loads((await download.path()).read_text())
    Draft202012Validator(TRIP).validate(document)
    assert document == {
        "place": "Lake Constance",
        "when": "2026-07-01",
        "by train": True,
        "what to bring": ["boots", "rain coat"],
        "people": [{"full name": "Kim", "age": 11, "swims": True}, {"full name": "Sam"}],
        "code": "ABC",
    }


async def test_a_bad_schema_says_what_is_wrong(browser: Browser, server: ServerProcess) -> None:
    page = await open_start(browser, server)
    for schema, said in (
        ('{"properties": {', "at line 1, column 17"),
        ({"type": "array"}, 'expected "object" at the top'),
        (
            {"properties": {"a": {"$ref": "https://example.org/a"}}},
            "a reference within this schema",
        ),
        ({"properties": {"a": {"$ref": "#"}}}, "refers to itself"),
        ("[" * 50_000, "nested less"),
        ('{"a": "' + "x" * 70_000 + '"}', "at most 64000 characters"),
    ):
        await make_form(page, schema)
        await expect(page.get_by_role("alert")).to_contain_text(said)
    # What was pasted is still there to be mended.
    await make_form(page, {"properties": {"note": {"type": "string"}}})
    await expect(title(page)).to_have_text("Note")


async def test_a_dropped_file_is_read(
    browser: Browser, server: ServerProcess, tmp_path: Path
) -> None:
    page = await open_start(browser, server)
    drop = await page.evaluate_handle(
        """text => {
          const carried = new DataTransfer();
          carried.items.add(new File([text], "trip.schema.json", { type: "application/json" }));
          return carried;
        }""",
        json.dumps(TRIP),
    )
    field = page.get_by_label("A JSON Schema, pasted or dropped here")
    await field.dispatch_event("drop", {"dataTransfer": drop})
    await expect(field).to_have_value(json.dumps(TRIP))
    # And so is a chosen one.
    file = tmp_path / "other.json"
    file.write_text('{"properties": {"note": {}}}')
    await page.locator("details[open] input[type=file]").set_input_files(file)
    await expect(field).to_have_value('{"properties": {"note": {}}}')


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_its_views_are_accessible_and_fit_a_phone(
    browser: Browser, server: ServerProcess, scheme: Any
) -> None:
    page = await in_scheme(await open_start(browser, server), scheme)
    check = functools.partial(assert_for_everybody, page)
    await check("start, with a place for a schema")
    await make_form(page, {"properties": {"a": {"type": "a-type-that-nobody-ever-heard-of" * 3}}})
    await expect(page.get_by_role("alert")).to_contain_text("at properties/a/type")
    await check("start, with a schema that is none")
    await make_form(page, TRIP)
    await expect(title(page)).to_have_text("Where to")
    await check("text")
    await gap(page, "By train")
    await check("yes or no")
    await gap(page, "People")
    await page.get_by_role("button", name="Add another one").click()
    await check("form, with a box to check and a number")
    await gap(page, "Code")
    await page.get_by_role("button", name="Finish").click()
    await expect(title(page)).to_have_text("Not quite complete")
    await check("the end, with gaps left")
