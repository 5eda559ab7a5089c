"""The harness itself: tests that kill a browser prove something only if it really dies."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.browser.conftest import NewBrowser
from tests.support.chromium import Browser, none_runs
from tests.support.waiting import until

pytestmark = pytest.mark.browser

OPEN = """
const open = () => new Promise((resolve, reject) => {
  const request = indexedDB.open("harness", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("kept");
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});
"""
WRITE = f"""async (value) => {{
  {OPEN}
  const db = await open();
  await new Promise((resolve, reject) => {{
    const tx = db.transaction("kept", "readwrite", {{ durability: "strict" }});
    tx.objectStore("kept").put(value, "key");
    tx.oncomplete = resolve;
    tx.onabort = () => reject(tx.error);
  }});
}}"""
READ = f"""async () => {{
  {OPEN}
  const db = await open();
  return await new Promise((resolve, reject) => {{
    const request = db.transaction("kept").objectStore("kept").get("key");
    request.onsuccess = () => resolve(request.result ?? null);
    request.onerror = () => reject(request.error);
  }});
}}"""


class BlankPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>blank</title>")

    def log_request(self, *_: object) -> None:
        """Says nothing: the tests' output is for failures."""


@pytest.fixture
def origin() -> Iterator[str]:
    """A page with an origin: IndexedDB needs one."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BlankPage) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


async def test_a_strict_write_outlives_the_death_of_every_process(
    browser: Browser, origin: str
) -> None:
    page = await browser.open(origin)
    await page.evaluate(WRITE, "survives")

    processes = browser.processes()
    assert len(processes) > 1, "a browser is several processes"
    await browser.kill_all()
    assert none_runs(processes)
    assert browser.processes() == []

    page = await browser.reopen(origin)
    assert await page.evaluate(READ) == "survives"


async def test_two_browsers_are_two_devices(
    browser: Browser, origin: str, new_browser: NewBrowser
) -> None:
    other = new_browser()
    first, second = await browser.open(origin), await other.open(origin)
    await first.evaluate(WRITE, "mine")
    assert await second.evaluate(READ) is None

    await browser.kill_all()
    assert await second.evaluate("1 + 1") == 2, "killing one leaves the other alone"


async def test_the_console_and_uncaught_errors_are_kept(browser: Browser, origin: str) -> None:
    page = await browser.open(origin)
    async with page.expect_event("pageerror"):
        await page.evaluate(
            "() => { console.log('hello'); setTimeout(() => { throw new Error('oops') }) }"
        )
    await until(lambda: len(browser.messages) == 2, within=5, what="two messages")
    assert browser.messages[0] == "log: hello"
    assert "oops" in browser.messages[1]
