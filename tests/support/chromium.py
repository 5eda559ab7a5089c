"""A real Chromium with a profile on disk, all of whose processes a test may kill."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
from playwright.async_api import BrowserContext, Page, Playwright

from tests.support.paths import NODE, ROOT
from tests.support.waiting import until

# Not @sparticuz/chromium's own list: --single-process, --no-zygote and --disable-web-security
# would make tests of crashes, of Origin and of CSP worthless.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@functools.cache
def chromium_path() -> str:
    """A Chromium that was seen to run. Without one the tests fail: they are never skipped."""
    tool = subprocess.run(
        [*NODE, str(ROOT / "tools" / "chromium.mjs")], capture_output=True, text=True, check=False
    )
    if tool.returncode != 0:
        raise RuntimeError(tool.stderr)
    return tool.stdout.strip()


# The server refuses the upgrade of a WebSocket that does not offer our subprotocol.
REFUSED_WEBSOCKETS = """
globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url, ["another"]);
  }
};
"""


class Browser:
    """One browser profile: a device, in the words of the protocol.

        page = await browser.open(server.url)
        await browser.kill_all()                # power cut: nothing gets to run its last words
        page = await browser.reopen(server.url)

    `messages` collects what all of its pages wrote to the console, and their uncaught errors.
    """

    def __init__(self, playwright: Playwright, profile: Path, *, flags: Sequence[str] = ()) -> None:
        self.profile = profile
        self.messages: list[str] = []
        self._playwright = playwright
        self._flags = [*FLAGS, *flags]
        self._context: BrowserContext | None = None
        self._gone = asyncio.Event()
        self._gone.set()

    @property
    def context(self) -> BrowserContext:
        """Playwright's context of the present life: further pages, offline, CDP sessions."""
        if self._context is None:
            raise RuntimeError("the browser is not open: await browser.open(url)")
        return self._context

    async def open(self, url: str | None = None) -> Page:
        """Starts the browser if it does not run, and opens `url` in a new page."""
        if self._context is None:
            self._context = await self._playwright.chromium.launch_persistent_context(
                self.profile,
                executable_path=chromium_path(),
                args=self._flags,
                chromium_sandbox=False,
                headless=True,
            )
            if os.environ.get("REATTACH_TEST_TRANSPORT") == "sse":
                await self._context.add_init_script(REFUSED_WEBSOCKETS)
            self._gone.clear()
            self._context.on("close", lambda _: self._gone.set())
            self._context.on("console", lambda m: self.messages.append(f"{m.type}: {m.text}"))
            self._context.on("weberror", lambda e: self.messages.append(f"uncaught: {e.error}"))
        # A persistent context starts with one blank page: it is the first to be used.
        blank = [page for page in self._context.pages if page.url == "about:blank"]
        page = blank[0] if blank else await self._context.new_page()
        if url is not None:
            await page.goto(url)
        return page

    async def reopen(self, url: str | None = None) -> Page:
        """The browser again, with the same profile; kills it first if it still runs."""
        await self.kill_all()
        return await self.open(url)

    def console(self) -> str:
        """What the pages said, for the report of a failed test."""
        return "\n".join(self.messages) or "(nothing)"

    def processes(self) -> list[psutil.Process]:
        """Every live process of this profile: the browser, its zygotes, renderers, utilities."""
        mark = f"--user-data-dir={self.profile}"
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    family = [process, *process.children(recursive=True)]
                    found.update({member.pid: member for member in family})
            except psutil.Error:
                continue  # it ended while we looked
        return [process for process in found.values() if _runs(process)]

    async def kill_all(self) -> None:
        """SIGKILL to every process of this profile. On return none of them is left."""
        while victims := self.processes():
            for process in victims:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            # Children that were being born do not carry the mark: they are among the victims of
            # the next round, or went down with their browser's pipes.
            await until(
                functools.partial(none_runs, victims),
                within=10,
                what="the killed browser processes to be gone",
            )
        # Playwright hears of it a moment later; only then may the profile be opened again.
        await asyncio.wait_for(self._gone.wait(), 10)
        self._context = None

    async def close(self) -> None:
        """Closes it in good order, as a user does."""
        context, self._context = self._context, None
        if context is not None:
            await context.close()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def none_runs(processes: Sequence[psutil.Process]) -> bool:
    """Whether all of them are gone; one that its parent has not yet buried counts as gone."""
    return not any(_runs(process) for process in processes)
