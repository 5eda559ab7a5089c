"""The examples with a login, in a browser that two users share."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.async_api import Locator, Page, Response, expect
from websockets.exceptions import InvalidStatus

from examples.bearer_login.app import make_app as bearer_login
from examples.cookie_login.app import COOKIE
from examples.cookie_login.app import make_app as cookie_login
from tests.browser.conftest import NewBrowser
from tests.server.hosts import uvicorn_of
from tests.server.peer import opened
from tests.support.chromium import Browser
from tests.support.waiting import until

pytestmark = pytest.mark.browser

BACK_MS = 20_000
LASTS_S = 2.0
"""Of a bearer token, where one is to expire under the user's hands."""


@pytest.fixture(params=[cookie_login, bearer_login], ids=["cookie", "bearer"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    async with uvicorn_of(request.param(f"sqlite:///{tmp_path}/notes.db")) as address:
        yield f"http://{address}/"


def note(page: Page) -> Locator:
    return page.get_by_label("Your note")


def status(page: Page) -> Locator:
    return page.get_by_role("status")


async def sign_in(page: Page, name: str) -> None:
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Password").fill(f"{name}'s password")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#who")).to_have_text(name)


async def sign_out(page: Page) -> None:
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()


async def is_saved(page: Page) -> None:
    await expect(status(page)).to_have_text("online, saved", timeout=BACK_MS)


async def test_two_users_see_each_their_own_note(
    browser: Browser, new_browser: NewBrowser, url: str
) -> None:
    # Rule A3
    address = f"{url}?note=ours"
    ann, bob = await browser.open(address), await new_browser().open(address)
    await sign_in(ann, "ann")
    await note(ann).fill("hers")
    await is_saved(ann)
    await sign_in(bob, "bob")
    # The address does not help him: to him there is no such session.
    await expect(status(bob)).to_contain_text("no such session")
    await expect(note(bob)).to_be_disabled()
    await bob.goto(url)
    await note(bob).fill("his")
    await is_saved(bob)
    await expect(note(ann)).to_have_value("hers")


async def test_a_wrong_password_is_told(browser: Browser, url: str) -> None:
    page = await browser.open(url)
    await page.get_by_label("Name").fill("ann")
    await page.get_by_label("Password").fill("bob's password")
    await page.get_by_role("button", name="Sign in").click()
    await expect(status(page)).to_have_text("Wrong name or password.")


async def test_who_signs_in_on_the_same_profile_neither_sees_nor_sends_anothers_work(
    browser: Browser, url: str
) -> None:
    # Rule F4
    address = f"{url}?note=ours"
    page = await browser.open(address)
    tab = await browser.open(address)
    await sign_in(page, "ann")
    # The tab that was open all the time has begun anew, too.
    await expect(note(tab)).to_be_enabled()
    await note(page).fill("saved")
    await is_saved(page)
    await page.context.set_offline(True)
    await note(page).fill("saved, and more")
    await expect(status(page)).to_contain_text("on this device")
    # The line is held up, and she is gone before it is back.
    await page.evaluate("onbeforeunload = null")
    await tab.close()
    kept = await page.context.new_page()
    await page.close()
    await kept.context.set_offline(False)
    await kept.goto(url)
    await sign_out(kept)

    await sign_in(kept, "bob")
    await kept.goto(address)
    await expect(status(kept)).to_contain_text("no such session")
    await expect(note(kept)).to_have_value("")
    await sign_out(kept)

    await sign_in(kept, "ann")
    await expect(note(kept)).to_have_value("saved, and more")
    await is_saved(kept)


async def test_signing_out_reaches_the_other_tabs(browser: Browser, url: str) -> None:
    page, tab = await browser.open(url), await browser.open(url)
    await sign_in(page, "ann")
    await expect(tab.locator("#who")).to_have_text("ann")
    await sign_out(page)
    await expect(tab.get_by_role("button", name="Sign in")).to_be_visible()
    await sign_in(tab, "bob")
    await expect(page.locator("#who")).to_have_text("bob")
    for one in (page, tab):
        await expect(note(one)).to_have_value("")


async def test_a_token_is_refreshed_while_offline_edits_wait(
    browser: Browser, tmp_path: Path
) -> None:
    # Rule A9
    app = bearer_login(f"sqlite:///{tmp_path}/notes.db", lasts_s=LASTS_S)
    async with uvicorn_of(app) as address:
        url = f"http://{address}/"
        page = await browser.open(url)
        given: list[Response] = []
        page.on("response", lambda one: given.append(one) if one.url == f"{url}token" else None)
        await sign_in(page, "ann")
        await is_saved(page)
        (first,) = given
        bearer = {"Authorization": f"Bearer {(await first.json())['token']}"}
        await page.context.set_offline(True)
        await note(page).fill("typed in a tunnel")
        await expect(status(page)).to_contain_text("on this device")

        async with httpx.AsyncClient(base_url=url, trust_env=False, headers=bearer) as api:

            async def is_over() -> bool:
                answer = await api.get("sessions/api/v0/session/check-connection")
                return answer.status_code == 401

            await until(is_over, within=10, what="the token to be over")
        await note(page).fill("typed in a long tunnel")
        assert given == [first]
        await page.context.set_offline(False)
        await is_saved(page)
        assert len(given) > 1
        await page.reload()
        await expect(note(page)).to_have_value("typed in a long tunnel")


# Before signing in


async def test_a_note_begun_without_an_account_is_claimed_by_who_signs_in(
    browser: Browser, new_browser: NewBrowser, notes: str
) -> None:
    # Rules A31, A33, F4
    url = f"http://{notes}/"
    page, tab = await browser.open(url), await browser.open(url)
    await page.get_by_role("button", name="Begin without an account").click()
    await expect(note(page)).to_be_enabled()
    await note(page).fill("begun")
    await is_saved(page)
    await tab.reload()
    await expect(note(tab)).to_have_value("begun")
    draft: dict[str, str] = json.loads(await page.evaluate("localStorage.draft"))
    # It is this browser's: by its address it is nobody's.
    stranger = await new_browser().open(url)
    await sign_in(stranger, "bob")
    await stranger.goto(f"{url}?note={draft['id']}")
    await expect(status(stranger)).to_contain_text("no such session")

    await page.context.set_offline(True)
    await note(page).fill("begun, and typed in a tunnel")
    await expect(status(page)).to_contain_text("on this device")
    await page.context.set_offline(False)
    await sign_in(page, "ann")
    for one in (page, tab):
        await expect(one.locator("#who")).to_have_text("ann")
        await expect(note(one)).to_have_value("begun, and typed in a tunnel")
    await is_saved(page)
    await note(page).fill("hers")
    await expect(note(tab)).to_have_value("hers")

    # She finds it wherever she signs in; the token from before finds nothing.
    elsewhere = await new_browser().open(url)
    await sign_in(elsewhere, "ann")
    await expect(note(elsewhere)).to_have_value("hers")
    headers = {"Authorization": f"Bearer {draft['token']}"}
    async with httpx.AsyncClient(base_url=url, trust_env=False, headers=headers) as api:
        assert (await api.get(f"sessions/api/v0/session/{draft['id']}")).status_code == 401

    # On the browser where it began it is hers alone, too.
    await sign_out(page)
    await expect(page.get_by_role("button", name="Begin without an account")).to_be_visible()
    await sign_in(page, "bob")
    await expect(note(page)).to_have_value("")


# Cookies, and what other sites would like to do with them

EVIL = """<!doctype html><title>Free kittens</title><link rel="icon" href="data:,">
<form id="form" method="post" enctype="text/plain" action="{url}{path}" target="frame">
  <input name='{{"note": "kittens", "x": "' value='"}}'>
</form><iframe name="frame"></iframe>
<script>
  const tried = [];
  const attempts = [
    ["POST", "logout", "{{}}"],
    ["POST", "login", '{{"name": "bob", "password": "bob\\'s password"}}'],
    ["POST", "sessions/api/v0/session", '{{"session_id": "kittens"}}'],
    ["POST", "sessions/api/v0/session/heartbeat", '{{"session_id": "note-of-ann"}}'],
  ];
  const attack = async () => {{
    for (const [method, path, body] of attempts)
      for (const type of ["text/plain", "application/json"]) {{
        const headers = {{ "Content-Type": type }};
        const mode = type === "text/plain" ? "no-cors" : "cors";
        await fetch("{url}" + path, {{ method, mode, body, headers, credentials: "include" }})
          .then((answer) => tried.push(answer.type), () => tried.push("failed"));
      }}
    await fetch("{url}sessions/api/v0/session/note-of-ann", {{ credentials: "include" }})
      .then(() => tried.push("read"), () => tried.push("failed"));
    const socket = new WebSocket("{ws}sessions/ws/session/note-of-ann", "reattach.v1");
    tried.push(await new Promise((done) => {{
      socket.onopen = () => done("open");
      socket.onclose = () => done("closed");
    }}));
    const frame = document.querySelector("iframe");
    await new Promise((done) => {{
      frame.onload = done;
      document.querySelector("form").submit();
    }});
    return tried;
  }};
</script>"""


@pytest.fixture
async def notes(tmp_path: Path) -> AsyncIterator[str]:
    async with uvicorn_of(cookie_login(f"sqlite:///{tmp_path}/notes.db")) as address:
        yield address


@pytest.mark.parametrize("where", ["127.0.0.1", "localhost"], ids=["same-site", "cross-site"])
async def test_no_other_page_can_use_the_cookie(browser: Browser, notes: str, where: str) -> None:
    # Rules A4, A30: on another port SameSite does not help, and Origin has to.
    url = f"http://{notes}/"
    page = await browser.open(url)
    await sign_in(page, "ann")
    await note(page).fill("hers")
    await is_saved(page)

    evil = FastAPI()

    @evil.get("/", response_class=HTMLResponse)
    async def kittens(path: str) -> str:
        return EVIL.format(url=url, ws=f"ws://{notes}/", path=path)

    async with uvicorn_of(evil) as address:
        port = address.rpartition(":")[2]
        for path in ("logout", "sessions/api/v0/session/note-of-ann/changes"):
            other = await browser.open(f"http://{where}:{port}/?path={path}")
            tried: list[str] = await other.evaluate("attack()")
            # What came is opaque or was refused before it was sent; nothing was read or opened.
            assert set(tried) <= {"opaque", "failed", "closed"}
            assert len(tried) == 10
            await other.close()
    cookies = await page.context.cookies(url)
    (mine,) = [one for one in cookies if one.get("name") == COOKIE]
    assert (mine.get("httpOnly"), mine.get("sameSite")) == (True, "Lax")
    await page.reload()
    await expect(page.locator("#who")).to_have_text("ann")
    await expect(note(page)).to_have_value("hers")
    value = str(mine.get("value"))
    async with httpx.AsyncClient(base_url=url, trust_env=False, cookies={COOKIE: value}) as api:
        sessions = (await api.get("sessions/api/v0/session")).json()["items"]
    assert [one["session_id"] for one in sessions] == ["note-of-ann"]


async def test_a_cookie_without_an_origin_writes_nothing(notes: str) -> None:
    # Rule A30
    url = f"http://{notes}"
    origin = {"Origin": url}
    async with httpx.AsyncClient(base_url=url, trust_env=False) as api:
        login = {"name": "ann", "password": "ann's password"}
        assert (await api.post("/login", json=login)).status_code == 403
        assert (await api.post("/login", json=login, headers=origin)).status_code == 200
        answers: dict[str, httpx.Response] = {}
        create: dict[str, Any] = {"session_id": "s1", "state": {}}
        answers["bare"] = await api.post("/sessions/api/v0/session", json=create)
        foreign = {"Origin": "http://evil.example"}
        answers["foreign"] = await api.post(
            "/sessions/api/v0/session", json=create, headers=foreign
        )
        for answer in answers.values():
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_origin")
        mine = await api.post("/sessions/api/v0/session", json=create, headers=origin)
        assert mine.status_code == 201
        # Browsers name no origin when a page reads from its own server.
        assert (await api.get("/sessions/api/v0/session/s1")).status_code == 200
        cookie = {"Cookie": f"{COOKIE}={api.cookies[COOKIE]}"}
    ws = f"ws://{notes}/sessions"
    async with opened(ws, "s1", additional_headers=cookie) as peer:
        await peer.greet()
        assert (await peer.closed())[0] == 4403
    with pytest.raises(InvalidStatus, match="403"):
        async with opened(ws, "s1", additional_headers=cookie | foreign):
            pass
    async with opened(ws, "s1", additional_headers=cookie | origin) as peer:
        assert (await peer.hello())["user_id"] == "ann"
