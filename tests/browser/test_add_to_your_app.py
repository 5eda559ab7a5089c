"""What docs/add-to-your-app.md shows works as it stands: its files are bundled, served, opened."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser
from tests.server.hosts import uvicorn_of
from tests.support.chromium import Browser
from tests.support.paths import NODE, ROOT
from tests.test_schema_docs import run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.one_node("what the document shows is one application on a file of SQLite"),
]

PAGE = (ROOT / "docs" / "add-to-your-app.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
SERVER = "The server"
FORM = "A form, in plain JavaScript"
REACT = "The same, in React"
COOKIE = "Your users, by your cookie"
TOKEN = "Your users, by your token"

KEY = "a key of thirty-two bytes or more"
LOGIN = """
export const user = "ann";
export const freshToken = async () => (await fetch("/token.txt", { cache: "no-store" })).text();
"""


def files(section: str) -> dict[str, str]:
    """The files that a section shows, by their names."""
    return dict(
        re.findall(
            r"^`([\w./-]+)`:\n\n```\w+\n(.*?)```", SECTIONS[section], re.DOTALL | re.MULTILINE
        )
    )


class Folder:
    """A developer's folder. It lies in the checkout, whose packages a bundler finds from there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *sections: str) -> None:
        """The files of the sections; a later one replaces an earlier one's of the same name."""
        for section in sections:
            for name, text in files(section).items():
                path = self.path / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)

    def bundle(self, section: str) -> None:
        """By the command that the section gives."""
        (command,) = re.findall(r"^    npx esbuild (.*)$", SECTIONS[section], re.MULTILINE)
        esbuild = ROOT / "node_modules" / ".bin" / "esbuild"
        self._node(esbuild, *shlex.split(command))

    def check(self, *names: str) -> None:
        """The types, as strictly as this project does."""
        options = {"noEmit": True, "jsx": "react-jsx"}
        config = {"extends": str(ROOT / "tsconfig.base.json"), "compilerOptions": options}
        (self.path / "tsconfig.json").write_text(json.dumps(config | {"include": names}))
        self._node(ROOT / "node_modules" / "typescript" / "bin" / "tsc", "-p", ".")

    def app(self) -> Any:
        """What `uvicorn app:app` would import."""
        names: dict[str, Any] = {"__name__": "app"}
        run((self.path / "app.py").read_text(), names)
        return names

    def _node(self, *command: Path | str) -> None:
        program = [*NODE, *map(str, command)]
        done = subprocess.run(program, cwd=self.path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Folder:
    path = ROOT / ".cache" / "add-to-your-app" / request.node.name
    path.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(path)
    for database in path.glob("work.db*"):
        database.unlink()
    return Folder(path)


async def is_saved(page: Page) -> None:
    await expect(page.locator("#status")).to_have_text("Saved", timeout=20_000)


async def test_a_form_and_react_share_an_order_that_survives_the_browser(
    folder: Folder, browser: Browser, new_browser: NewBrowser
) -> None:
    folder.write(SERVER, FORM, REACT)
    folder.check("react.tsx")
    folder.bundle(FORM)
    folder.bundle(REACT)
    async with uvicorn_of(folder.app()["app"]) as address:
        form = await browser.open(f"http://{address}/form.html")
        await is_saved(form)
        await form.get_by_label("Name").fill("Ann")
        await form.get_by_label("Size").select_option("large")
        await is_saved(form)
        await browser.kill_all()

        form = await browser.reopen(f"http://{address}/form.html")
        await expect(form.get_by_label("Name")).to_have_value("Ann")
        await expect(form.get_by_label("Size")).to_have_value("large")

        react = await new_browser().open(f"http://{address}/react.html")
        await expect(react.get_by_label("Name")).to_have_value("Ann")
        await react.get_by_label("Name").press("End")
        await react.keyboard.type("a")
        await react.get_by_label("It is a present").check()
        await expect(react.locator("[data-saved=server]")).to_be_visible()
        await expect(form.get_by_label("Name")).to_have_value("Anna")
        await expect(form.get_by_label("It is a present")).to_be_checked()


async def test_each_user_has_an_order_by_the_applications_cookie(
    folder: Folder, browser: Browser
) -> None:
    folder.write(FORM, COOKIE)
    folder.bundle(FORM)
    names = folder.app()
    async with uvicorn_of(names["app"]) as address:
        url = f"http://{address}/form.html"
        page = await browser.open(url)
        await expect(page.locator("#status")).to_have_text("Sign in first")
        for user in ("ann", "bob", "ann"):
            names["logins"][f"cookie of {user}"] = user
            cookie = {"name": "login", "value": f"cookie of {user}", "url": url}
            await browser.context.add_cookies([cookie])  # type: ignore[list-item]
            await page.goto(url)
            await is_saved(page)
            if await page.get_by_label("Name").input_value() == "":
                await page.get_by_label("Name").fill(user)
                await is_saved(page)
            await expect(page.get_by_label("Name")).to_have_value(user)
        reattach = names["reattach"]
        for user in ("ann", "bob"):
            found = await reattach.sessions.get(f"order-of-{user}")
            assert found.state["order"]["name"] == user


async def test_a_user_is_let_in_by_the_applications_token(
    folder: Folder, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_KEY", KEY)
    folder.write(FORM, TOKEN)
    (folder.path / "login.js").write_text(LOGIN)
    folder.bundle(FORM)

    def give(*, lasts_s: int) -> None:
        claims = {"sub": "ann", "exp": int(time.time()) + lasts_s}
        token = jwt.encode(claims, KEY, "HS256")
        (folder.path / "pages" / "token.txt").write_text(token)

    names = folder.app()
    async with uvicorn_of(names["app"]) as address:
        give(lasts_s=-60)
        page = await browser.open(f"http://{address}/form.html")
        await expect(page.locator("#status")).to_contain_text("get a fresh one")
        give(lasts_s=60)
        await page.reload()
        await is_saved(page)
        await page.get_by_label("Name").fill("Ann")
        await is_saved(page)
        found = await names["reattach"].sessions.get("order-of-ann")
        assert found.state["order"]["name"] == "Ann"
