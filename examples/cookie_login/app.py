"""A FastAPI application whose users sign in with a cookie, and whose notes are sessions.

    uvicorn --factory examples.cookie_login.app:make_app

A note may be begun without an account: it becomes that of who signs in on the same browser later.

What keeps other sites out: the cookie is `HttpOnly` and `SameSite`, Reattach takes no write and no
WebSocket that comes with a cookie and without an `Origin`, nor one of a foreign `Origin`, and the
routes below are let in by the same check.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.staticfiles import StaticFiles

from reattach import NotAuthenticated, Reattach, User

__all__ = ["make_app"]

PASSWORDS: Final = {"ann": "ann's password", "bob": "bob's password"}
"""An application of yours has its users in a database, with hashes of slow passwords."""

COOKIE: Final = "signed-in"
CHECKOUT: Final = Path(__file__).parents[2]
CACHED: Final = {"Cache-Control": "no-cache"}

Mine = Annotated[str | None, Cookie(alias=COOKIE)]


class Login(BaseModel):
    """What the form asks for."""

    name: str
    password: str


class Logins:
    """Who is signed in on which browser: the hash of its cookie, and the user."""

    def __init__(self) -> None:
        self._users: dict[bytes, str] = {}

    def __call__(self, connection: HTTPConnection) -> User:
        """Return who is there, as `Reattach` asks for each request and connection."""
        name = self.name_of(connection.cookies.get(COOKIE))
        if name is None:
            raise NotAuthenticated("expected somebody who has signed in: show the form")
        return User(name)

    def name_of(self, cookie: str | None) -> str | None:
        """Return whose cookie it is."""
        return None if cookie is None else self._users.get(_hash(cookie))

    def begin(self, name: str) -> str:
        """Sign somebody in; returns the cookie."""
        cookie = secrets.token_urlsafe(32)
        self._users[_hash(cookie)] = name
        return cookie

    def end(self, cookie: str) -> None:
        """Sign somebody out: their cookie is worth nothing from now on, wherever it is."""
        self._users.pop(_hash(cookie), None)


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).digest()


def make_app(database: str = "sqlite:///cookie-login.db") -> FastAPI:
    """Return the application; its notes are sessions in ``database``."""
    logins = Logins()
    reattach = Reattach(database=database, authenticate=logins)
    reattach.allow_anonymous()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with reattach:
            yield

    def from_here(request: Request) -> None:
        # A form of another site could sign its victim in as somebody else, or out.
        reattach.auth.check_host_and_origin(request)
        if "origin" not in request.headers:
            raise HTTPException(403, "expected a request of this site's own page")

    app = FastAPI(lifespan=lifespan)

    @app.get("/me")
    async def me(cookie: Mine = None) -> dict[str, str | None]:
        return {"user": logins.name_of(cookie)}

    @app.post("/login", dependencies=[Depends(from_here)])
    async def login(request: Request, response: Response, login: Login) -> dict[str, str]:
        known = PASSWORDS.get(login.name, "")
        right = hmac.compare_digest(known.encode(), login.password.encode())
        if not (known and right):
            raise HTTPException(401, "expected another name or password")
        response.set_cookie(
            COOKIE,
            logins.begin(login.name),
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return {"user": login.name}

    @app.post("/logout", status_code=204, dependencies=[Depends(from_here)])
    async def logout(response: Response, cookie: Mine = None) -> None:
        logins.end(cookie or "")
        response.delete_cookie(COOKIE)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers=CACHED)

    app.mount("/sessions", reattach)
    # An application of yours has a bundler instead, or a CDN.
    app.mount("/reattach", StaticFiles(directory=CHECKOUT / "packages" / "client" / "dist"))
    return app


PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Notes</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
  body { max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
  label { display: block; margin: 0 0 1rem; }
  input, textarea { box-sizing: border-box; width: 100%; font: inherit; padding: .4rem; }
  button { font: inherit; padding: .4rem 1rem; }
</style>
<script type="importmap">
  {"imports": {"reattach": "./reattach/index.js"}}
</script>

<main>
  <h1>Notes</h1>
  <section id="notes" hidden>
    <p><span id="who"></span> <button id="logout" hidden>Sign out</button></p>
    <label>Your note <textarea id="note" rows="8" disabled></textarea></label>
  </section>
  <p id="status" role="status"></p>
  <p><button id="begin" hidden>Begin without an account</button></p>
  <form id="login" hidden>
    <label>Name <input name="name" autocomplete="username" required></label>
    <label>Password
      <input name="password" type="password" autocomplete="current-password" required>
    </label>
    <button>Sign in</button>
  </form>
</main>

<script type="module">
  import { connect } from "reattach";

  const at = (id) => document.getElementById(id);
  const post = (path, body) =>
    fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });

  // A tab that is open when somebody signs out, or in as somebody else, begins anew.
  const tabs = new BroadcastChannel("signed-in");
  tabs.onmessage = () => location.reload();

  // A note that was begun on this browser before anybody signed in: {"id", "token", "secret"}.
  const draft = JSON.parse(localStorage.getItem("draft"));
  const keep = (value) => localStorage.setItem("draft", JSON.stringify(value));

  const { user } = await (await fetch("me")).json();
  const asked = new URLSearchParams(location.search).get("note");

  const signIn = async (event) => {
    event.preventDefault();
    const answer = await post("login", Object.fromEntries(new FormData(event.target)));
    if (!answer.ok) return (at("status").textContent = "Wrong name or password.");
    tabs.postMessage("in");
    location.reload();
  };

  const begin = async () => {
    const answer = await post("sessions/api/v0/session", { state: { note: "" } });
    const { session_id: id, token, claim_secret: secret } = await answer.json();
    keep({ id, token, secret });
    location.reload();
  };

  const newest = async () => {
    const { items } = await (await fetch("sessions/api/v0/session")).json();
    return items[0]?.session_id ?? `note-of-${user}`;
  };

  const open = async () => {
    const url = new URL("sessions", location.href).href;
    if (draft === null) {
      // With whose the outbox in this browser is: another user's stays where it is.
      const id = asked ?? (await newest());
      return connect({ url, session: id, user, create: { state: { note: "" } } });
    }
    // Nobody's yet. Who has signed in is known by the cookie, and claims it.
    const token = user === null ? draft.token : undefined;
    const session = connect({ url, session: draft.id, token: () => token });
    if (user !== null) {
      // Until it was heard that this worked, the next page tries again.
      session.claim(draft.secret).then(
        () => localStorage.removeItem("draft"),
        (error) => (at("status").textContent = error.message),
      );
    }
    return session;
  };

  at("login").hidden = user !== null;
  at("logout").hidden = user === null;
  at("begin").hidden = user !== null || draft !== null;
  at("login").onsubmit = signIn;
  at("begin").onclick = begin;
  if (user !== null || draft !== null) {
    at("notes").hidden = false;
    at("who").textContent = user ?? "Nobody has signed in: do so to find it everywhere.";
    const session = await open();
    const show = () => {
      const { connection, saved, error } = session.status;
      const where = saved ? "saved" : "on this device";
      at("status").textContent = error?.message ?? `${connection}, ${where}`;
      if (at("note").value !== session.state.note) at("note").value = session.state.note;
    };
    at("note").oninput = ({ target }) => session.set("/note", target.value);
    at("logout").onclick = async () => {
      await session.close();
      await post("logout", {});
      tabs.postMessage("out");
      location.reload();
    };
    session.ready.then(
      () => {
        at("note").disabled = false;
        session.subscribe(show);
        show();
      },
      (error) => {
        at("status").textContent = error.message;
      },
    );
  }
</script>
"""
