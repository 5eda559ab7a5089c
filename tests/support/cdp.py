"""Chromium by its DevTools protocol alone: pages that hide, freeze, crash and come back.

Playwright keeps every page focused, so that none is ever hidden or throttled; and a browser that is
started and killed once a second had better start quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.chromium import FLAGS
from tests.support.paths import ROOT
from tests.support.waiting import until

Params = dict[str, Any]

_PATIENCE = 20.0
NEEDED = os.environ.get("REATTACH_TEST_BROWSERS") == "1"
"""Whether a test that finds no browser for itself fails: `make test-browsers`."""


@functools.cache
def browser_at(name: str) -> Path | None:
    """A whole "chromium" or "firefox", as tools/browsers.py finds it."""
    found = subprocess.run(
        [sys.executable, "-c", f"import browsers; print(browsers.find({name!r}) or '')"],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return Path(found) if found else None


def full_chromium() -> Path:
    """A Chromium that hides, throttles and freezes pages: the headless shell never does."""
    path = browser_at("chromium")
    if path is None:
        if NEEDED:
            pytest.fail("no Chromium is installed: make test-browsers installs one")
        pytest.skip("not run: headless shell")
    return path


class Gone(Exception):
    """The page or the browser that was asked is no more."""


class Chrome:
    """One browser profile, and the browser that has it open, if any.

    async with Chrome(path, tmp_path / "profile") as chrome:
        page = await chrome.open(url)
        chrome.kill()              # SIGKILL: nothing gets to run its last words
        await chrome.start()
    """

    def __init__(self, executable: Path, profile: Path, *, flags: Sequence[str] = ()) -> None:
        self.profile = profile
        self._argv = [str(executable), "--headless=new", *FLAGS, "--remote-debugging-port=0"]
        self._argv += [f"--user-data-dir={profile}", "--mute-audio", *flags, "about:blank"]
        self._process: subprocess.Popen[bytes] | None = None
        self._devtools: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = 0
        self._asked: dict[int, tuple[str | None, asyncio.Future[Params]]] = {}
        self._pages: dict[str, Page] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Starts the browser on its profile."""
        self.profile.mkdir(parents=True, exist_ok=True)
        # Left by a killed one: the port of then, and a lock that is nobody's.
        for stale in ("DevToolsActivePort", "SingletonLock", "SingletonCookie", "SingletonSocket"):
            (self.profile / stale).unlink(missing_ok=True)
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # One that wants to show a dialog or ring somebody finds nobody.
            env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": "disabled:"},
            start_new_session=True,
        )
        where = self.profile / "DevToolsActivePort"

        def listens() -> bool:
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"the browser ended with {self._process.returncode}")
            return where.exists() and where.read_text().count("\n") == 1

        await until(listens, within=_PATIENCE, what="the browser's DevTools")
        port, path = where.read_text().split("\n")
        self._devtools = await connect(
            f"ws://127.0.0.1:{port}{path}", ping_interval=None, max_size=None, compression=None
        )
        self._reader = asyncio.create_task(self._read(self._devtools))

    async def open(self, url: str = "about:blank", *, background: bool = False) -> Page:
        """Opens a page in a tab of its own; it is in front unless `background`."""
        target = await self.call("Target.createTarget", url="about:blank", background=background)
        page = Page(self, target["targetId"])
        attached = await self.call("Target.attachToTarget", targetId=page.target, flatten=True)
        page.session = attached["sessionId"]
        self._pages[page.session] = page
        await page.call("Page.enable")
        await page.call("Runtime.enable")
        if url != "about:blank":
            await page.go(url)
        return page

    async def call(self, method: str, *, session: str | None = None, **params: Any) -> Params:
        """Calls a method of the protocol. Gone when the browser or the page has ended."""
        if self._devtools is None:
            raise Gone("the browser does not run")
        self._numbers += 1
        number = self._numbers
        future: asyncio.Future[Params] = asyncio.get_running_loop().create_future()
        self._asked[number] = (session, future)
        message: Params = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        try:
            await self._devtools.send(json.dumps(message))
            # Not wait_for: that of Python 3.11 may swallow a cancellation.
            async with asyncio.timeout(_PATIENCE):
                return await future
        except ConnectionClosed:
            raise Gone(f"the browser ended before it answered {method}") from None
        finally:
            self._asked.pop(number, None)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to every process of the browser."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, to every process of it. On return none is left."""
        victims = self._family()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            for process in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await until(
                lambda: not any(_runs(process) for process in victims),
                within=10,
                what="the killed browser to be gone",
                every=0.005,
            )
            self._process.wait()
            self._process = None
        if self._devtools is not None:
            self._devtools.transport.abort()
            self._devtools = None
        if self._reader is not None:
            await self._reader
            self._reader = None

    async def remove(self) -> None:
        """Kills it and forgets its profile."""
        await self.kill()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _family(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            browser = psutil.Process(self._process.pid)
            return [browser, *browser.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    async def _read(self, devtools: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in devtools:
                self._hear(json.loads(text))
        for session in list(self._pages):
            self._end(session)
        self._end(None)

    def _hear(self, message: Params) -> None:
        if "id" in message:
            _, future = self._asked.get(message["id"], (None, None))
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(Gone(message["error"]["message"]))
                else:
                    future.set_result(message["result"])
        elif message["method"] == "Target.detachedFromTarget":
            self._end(message["params"]["sessionId"])
        elif message["method"] == "Inspector.targetCrashed":
            self._end(message["sessionId"])
        elif page := self._pages.get(message.get("sessionId", "")):
            page.hear(message["method"], message["params"])

    def _end(self, session: str | None) -> None:
        """A page ended, or the browser (None): whoever waits for its answer waits in vain."""
        if page := self._pages.pop(session or "", None):
            page.dead = True
        for of, future in self._asked.values():
            if of == session and not future.done():
                future.set_exception(Gone("it ended before it answered"))


class Page:
    """One tab. Made by `Chrome.open`."""

    def __init__(self, chrome: Chrome, target: str) -> None:
        self.chrome = chrome
        self.target = target
        self.session = ""
        self.dead = False
        """It was closed, or it crashed."""
        self.errors: list[str] = []
        """What its scripts threw and nobody caught."""
        self._bound: dict[str, Callable[[Any], None]] = {}
        self._loaded = False

    async def call(self, method: str, **params: Any) -> Params:
        """Calls a method of the protocol on this page. Gone when it is no more."""
        if self.dead:
            raise Gone("the page is closed or crashed")
        return await self.chrome.call(method, session=self.session, **params)

    async def go(self, url: str) -> None:
        """Loads `url`, all of it."""
        self._loaded = False
        answer = await self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise Gone(f"{url}: {answer['errorText']}")
        await self.loaded()

    async def reload(self) -> None:
        """Loads its page anew."""
        self._loaded = False
        await self.call("Page.reload")
        await self.loaded()

    async def loaded(self) -> None:
        """Waits for the load that has begun."""
        await until(lambda: self.dead or self._loaded, within=_PATIENCE, what="the page to load")
        if self.dead:
            raise Gone("the page ended before it was loaded")

    async def run(self, script: str) -> Any:
        """What an expression comes to; a promise is waited for."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    async def until(self, condition: str, *, within: float, every: float = 0.02) -> None:
        """Waits until an expression is true."""

        async def holds() -> bool:
            return bool(await self.run(condition))

        try:
            await until(holds, within=within, what=condition, every=every)
        except TimeoutError as error:
            shown = await self.run("document.body.innerText.slice(0, 400)")
            raise TimeoutError(f"{error}; the page shows {shown!r}, threw {self.errors}") from None

    async def bind(self, name: str, told: Callable[[Any], None]) -> None:
        """Has `name(text)` in the page, from now on and after a load, call `told`."""
        self._bound[name] = told
        await self.call("Runtime.addBinding", name=name)

    async def script(self, source: str) -> None:
        """Runs a script in the page after each load, before its own."""
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=source)

    async def type(self, text: str) -> None:
        """Types into what has the focus, in one input event."""
        await self.call("Input.insertText", text=text)

    async def press(self, text: str) -> None:
        """Types character by character, each a real key."""
        for character in text:
            await self.call("Input.dispatchKeyEvent", type="keyDown", text=character)
            await self.call("Input.dispatchKeyEvent", type="keyUp")

    async def crash(self) -> None:
        """Has its renderer die at once."""
        with contextlib.suppress(Gone):
            await self.call("Page.crash")

    async def close(self) -> None:
        """Closes the tab as a user does: it hears `pagehide`."""
        await self.chrome.call("Target.closeTarget", targetId=self.target)

    async def front(self) -> None:
        """Brings its tab to the front."""
        await self.call("Page.bringToFront")

    async def offline(self, offline: bool) -> None:
        """Takes its network away. A WebSocket that stands stalls; it is not closed."""
        await self.call("Network.enable")
        await self.call(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    async def freeze(self, frozen: bool) -> None:
        """Freezes it as browsers do with tabs that nobody looks at, or wakes it up."""
        await self.call("Page.setWebLifecycleState", state="frozen" if frozen else "active")

    def hear(self, method: str, params: Params) -> None:
        """Takes an event of the protocol."""
        match method:
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.bindingCalled":
                if params["name"] in self._bound:
                    self._bound[params["name"]](params["payload"])
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(
                    details.get("exception", {}).get("description") or details["text"]
                )


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
