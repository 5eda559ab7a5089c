"""The example's page, as tests find their way on it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx
from playwright.async_api import Locator, Page, expect

from tests.support.chromium import Browser
from tests.support.server import ServerProcess
from tests.support.waiting import until

CITATION = "CITATION.cff"
PYPROJECT = "pyproject.toml"
BACK_MS = 31_000
"""A page pauses for at most 30 s between two attempts; how long, is chance."""


async def start(browser: Browser, url: str, document: str = CITATION) -> Page:
    """Opens a new document, and waits until its first question is there and all is saved."""
    page = await browser.open(url)
    await begin(page, document)
    return page


async def begin(page: Page, document: str = CITATION) -> None:
    await page.get_by_role("button", name=document).click()
    await expect(title(page)).to_have_text("Title" if document == CITATION else "Name")
    await expect(connection(page)).to_have_text("Online")
    await expect(saved(page)).to_have_text("Saved")


def title(page: Page) -> Locator:
    return page.locator("#title")


def answer(page: Page) -> Locator:
    return page.locator("#answer")


def connection(page: Page) -> Locator:
    return page.locator('[data-part="connection"]')


def saved(page: Page) -> Locator:
    return page.locator('[data-part="saved"]')


async def back(*pages: Page) -> None:
    """Waits until the pages are online and all is saved."""
    for page in pages:
        await expect(connection(page)).to_have_text("Online", timeout=BACK_MS)
        await expect(saved(page)).to_have_text("Saved")


def sheet(page: Page) -> Locator:
    return page.locator("pre")


def callout(page: Page) -> Locator:
    return page.locator(".callout")


async def gap(page: Page, name: str) -> None:
    """Goes to a gap by the list of all."""
    await page.locator(".gaps").get_by_role("button", name=name).click()
    await expect(title(page)).to_have_text(name)


async def link_from(page: Page) -> str:
    """The link that the page makes for another device."""
    await page.get_by_role("button", name="Continue on another device").click()
    return await page.get_by_label("The link for another device").input_value()


async def join(browser: Browser, page: Page) -> Page:
    """Another browser on the same document."""
    other = await browser.open(await link_from(page))
    await expect(title(other)).to_be_visible()
    await expect(connection(other)).to_have_text("Online")
    await expect(saved(other)).to_have_text("Saved")
    return other


async def offline_ready(page: Page) -> None:
    """Waits until the page would start without its server."""
    await page.evaluate("navigator.serviceWorker.ready.then(() => {})")


def session_of(page: Page) -> str:
    return page.url.partition("#")[2]


async def token_of(page: Page) -> str:
    """What opens the page's document: the page keeps it, and so does a cookie for its links."""
    name, found = f"gap-resolution-{session_of(page)}", [""]

    async def is_there() -> bool:
        cookies = await page.context.cookies()
        found[0] = next((str(one.get("value")) for one in cookies if one.get("name") == name), "")
        return found[0] != ""

    await until(is_there, within=10, what="the document's cookie")
    return found[0]


async def keep_token(page: Page, session_id: str, token: str) -> None:
    """Has the page's browser keep a token, as if it had been let in on a document."""
    await page.evaluate(
        """([key, token]) => new Promise((resolve, reject) => {
            const request = indexedDB.open("gap-resolution", 1);
            request.onupgradeneeded = () => request.result.createObjectStore("kept");
            request.onerror = () => reject(request.error);
            request.onsuccess = () => {
                const put = request.result.transaction("kept", "readwrite");
                put.objectStore("kept").put(token, key);
                put.oncomplete = () => (request.result.close(), resolve());
            };
        })""",
        [f"token:{session_id}", token],
    )


async def read(server: ServerProcess, page: Page, path: str) -> Any:
    """What the server says to whoever has the page's document."""
    headers = {"Authorization": f"Bearer {await token_of(page)}"}
    async with httpx.AsyncClient(
        base_url=server.url, trust_env=False, headers=headers, timeout=10
    ) as client:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def draft_on(server: ServerProcess, page: Page, gap: str = "title") -> str:
    state = (await read(server, page, f"/api/v0/session/{session_of(page)}"))["state"]
    (draft,) = [one["draft"] for one in state["user_responses"] if one["gap"] == gap]
    assert isinstance(draft, str)
    return draft


async def drafts_in_order(server: ServerProcess, page: Page, index: int = 0) -> list[str]:
    """Each text that an answer's draft ever was, from the session's history."""
    drafts: list[str] = []
    query, path, now = "from=1", f"/user_responses/{index}/draft", ""
    while query:
        found = await read(server, page, f"/api/v0/session/{session_of(page)}/history?{query}")
        for item in found["items"]:
            steps = [op for op in item["patch"] if op["path"] == path]
            for step in steps:
                now = _after(now, step)
            drafts += [now] if steps else []
        query = f"next={found['next']}" if found.get("next") else ""
    return drafts


def _after(text: str, step: dict[str, Any]) -> str:
    match step["op"]:
        case "str_ins":
            return text[: step["pos"]] + str(step["str"]) + text[step["pos"] :]
        case "str_del":
            return text[: step["pos"]] + text[step["pos"] + step["len"] :]
        case _:
            return str(step["value"])


def assert_typed_once(drafts: list[str], text: str) -> None:
    """Each draft goes on where the one before it ended, up to the whole text."""
    for before, after in pairwise(["", *drafts]):
        assert after.startswith(before)
        assert len(after) > len(before)
    assert drafts[-1] == text
