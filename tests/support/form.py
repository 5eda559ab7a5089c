"""The form of examples/plain_form as a page whose origin outlives its server, and its typist."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import httpx

from examples.plain_form.app import CHECKOUT, PAGE
from tests.support.cdp import Chrome, Gone, Page
from tests.support.front import Front
from tests.support.network import Network
from tests.support.server import ServerProcess

FIELD = "document.querySelector('textarea')"
STATUS = "document.getElementById('status').textContent"
ONLINE = f"{STATUS} === 'saved, online'"
READY = f"{STATUS} !== 'Opening …'"
SOON = {"REATTACH_HEARTBEAT_INTERVAL_MS": "400", "REATTACH_HEARTBEAT_TIMEOUT_MS": "1200"}
"""Settings of a server whose pages soon notice silence."""

# When the page showed what: [[ms since 1970, text], …].
_DIARY = """
addEventListener("DOMContentLoaded", () => {
  const status = document.getElementById("status");
  if (status === null) return;
  window.diary = [];
  const look = () => diary.push([Date.now(), status.textContent]);
  new MutationObserver(look).observe(status, { childList: true, subtree: true });
});
addEventListener("pageshow", ({ persisted }) => { window.persisted = persisted; });
"""

# What the page shows as saved while it shows the words: told whenever it says so.
_WITNESS = f"""
addEventListener("DOMContentLoaded", () => {{
  const status = document.getElementById("status");
  if (status === null) return;
  const field = {FIELD};
  new MutationObserver(() => {{
    if (status.textContent.startsWith("saved")) claim(field.value.slice(-300));
  }}).observe(status, {{ childList: true, characterData: true, subtree: true }});
}});
"""
_WORD = re.compile(r"w(\d{5}) ")


def lay(pages: Path) -> Path:
    """Makes a folder with the page and the client's modules, for a Front."""
    pages.mkdir()
    own = 'new URL("sessions", location.href).href'
    assert own in PAGE
    page = PAGE.replace(own, "location.origin").replace(
        "bindForm(document", "window.session = session; bindForm(document"
    )
    (pages / "index.html").write_text(page)
    (pages / "other.html").write_text("<!doctype html><title>Elsewhere</title>")
    (pages / "reattach").symlink_to(CHECKOUT / "packages" / "client" / "dist")
    return pages


class Place:
    """The form, its origin, the network behind it and who serves the session.

    async with Place(tmp_path, [server]) as place:
        await page.go(place.url)
    """

    def __init__(
        self,
        folder: Path,
        servers: Sequence[ServerProcess],
        *,
        chance: random.Random | None = None,
    ) -> None:
        self.network = Network([server.port for server in servers], chance=chance)
        self.servers = servers
        self._front = Front(lay(folder / "pages"), self.network.port)
        self.origin = self._front.url
        self.url = f"{self.origin}/#form"
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self.network)
        await self._open.enter_async_context(self._front)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def message(self) -> str:
        """The text that the server has."""
        message: str = (await self._ask("form"))["state"]["order"].get("message", "")
        return message

    async def devices(self, session: str = "form") -> list[dict[str, Any]]:
        """The session's devices, as the server has them."""
        items: list[dict[str, Any]] = (await self._ask(f"{session}/devices"))["items"]
        return items

    async def _ask(self, path: str) -> Any:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{self.servers[0].url}/api/v0/session/{path}")
            answer.raise_for_status()
            return answer.json()


class Typist:
    """Types numbered words into the form's message, whatever becomes of the page.

    `claimed` has those that the page showed as saved, on this device or on the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.typed = 0
        self.claimed: set[int] = set()
        self._typing: asyncio.Task[None] | None = None

    async def open(self, chrome: Chrome, *, background: bool = False) -> Page:
        """A page with the form, ready to be typed into."""
        page = await chrome.open(background=background)
        await page.bind("claim", self._claim)
        await page.script(_WITNESS)
        await page.go(self.url)
        await page.until(READY, within=10)
        return page

    async def begin(self, page: Page, pause: float = 0.02) -> None:
        """Goes on at the end of the text, a word every `pause` seconds, until `stop`."""
        await self.stop()
        await page.run(f"(({FIELD}).focus(), {FIELD}.setSelectionRange({FIELD}.value.length, 1e9))")

        async def type_on() -> None:
            try:
                while True:
                    self.typed += 1
                    await page.type(f"w{self.typed:05} ")
                    await asyncio.sleep(pause)
            except Gone:
                return

        self._typing = asyncio.create_task(type_on())

    async def stop(self) -> None:
        """Takes the hands off."""
        if self._typing is not None:
            self._typing.cancel()
            await asyncio.gather(self._typing, return_exceptions=True)
            self._typing = None

    def judge(self, text: str) -> None:
        """Holds a final text against what was claimed."""
        words = [int(word) for word in _WORD.findall(text)]
        assert words == sorted(set(words)), f"twice or out of order: {_odd(words)}"
        lost = sorted(self.claimed - set(words))
        assert lost == [], f"shown as saved and lost: {lost} of {self.typed}"

    def _claim(self, text: str) -> None:
        self.claimed.update(int(word) for word in _WORD.findall(text))


def _odd(words: list[int]) -> list[tuple[int, int]]:
    return [(one, other) for one, other in pairwise(words) if other <= one]


async def open_form(chrome: Chrome, url: str, *, background: bool = False) -> Page:
    """A page with the form, online, which keeps a diary of what it shows."""
    page = await chrome.open(background=background)
    await page.script(_DIARY)
    await page.go(url)
    await page.until(ONLINE, within=20)
    return page


async def shown_at(page: Page, pattern: str, *, after: float, within: float) -> float:
    """Seconds after the moment `after` (of time.time()) until the page showed what matches."""
    moment = (
        f"(diary.find(([at, text]) => at >= {after * 1000} && /{pattern}/.test(text)) ?? [null])[0]"
    )
    await page.until(f"{moment} !== null", within=within)
    return float(await page.run(moment)) / 1000 - after
