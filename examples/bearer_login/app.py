"""A FastAPI application whose users sign in with bearer tokens, and whose notes are sessions.

    uvicorn --factory examples.bearer_login.app:make_app

A token lasts five minutes. The page gets a fresh one for each connection, with what it was given
for its password. No cookie is set, so that there is nothing that another site could make use of.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.staticfiles import StaticFiles

from reattach import NotAuthenticated, Reattach, User

__all__ = ["make_app"]

PASSWORDS: Final = {"ann": "ann's password", "bob": "bob's password"}
"""An application of yours has its users in a database, with hashes of slow passwords."""

LASTS_S: Final = 300.0
CHECKOUT: Final = Path(__file__).parents[2]
CACHED: Final = {"Cache-Control": "no-cache"}


class Login(BaseModel):
    """What the form asks for."""

    name: str
    password: str


class Pass(BaseModel):
    """What a browser keeps to get tokens with."""

    refresh: str


class Tokens:
    """Whose token or pass it is, by its hash, and until when. Yours would be in a database."""

    def __init__(self, lasts_s: float) -> None:
        self._lasts_ms = int(lasts_s * 1000)
        self._tokens: dict[bytes, tuple[str, int]] = {}
        self._passes: dict[bytes, str] = {}

    def __call__(self, connection: HTTPConnection) -> User:
        """Return who is there, as `Reattach` asks for each request and connection.

        At its ``expires_at`` Reattach ends the connection (4401), and the client asks the page for
        a fresh token.
        """
        name, ends_at = self._tokens.get(_hash(connection.state.token or ""), ("", 0))
        if ends_at <= _now():
            raise NotAuthenticated("expected a token that is not over: get a fresh one")
        return User(name, expires_at=ends_at)

    def sign_in(self, name: str) -> str:
        """Return a pass."""
        refresh = secrets.token_urlsafe(32)
        self._passes[_hash(refresh)] = name
        return refresh

    def sign_out(self, refresh: str) -> None:
        """End a pass: the last token that it got is over in a while."""
        self._passes.pop(_hash(refresh), None)

    def fresh(self, refresh: str) -> str | None:
        """Return a token for a pass, None for one that is over."""
        name = self._passes.get(_hash(refresh))
        if name is None:
            return None
        now, token = _now(), secrets.token_urlsafe(32)
        self._tokens = {key: one for key, one in self._tokens.items() if one[1] > now}
        self._tokens[_hash(token)] = (name, now + self._lasts_ms)
        return token


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _now() -> int:
    return time.time_ns() // 1_000_000


def make_app(database: str = "sqlite:///bearer-login.db", lasts_s: float = LASTS_S) -> FastAPI:
    """Return the application; its notes are sessions in ``database``."""
    tokens = Tokens(lasts_s)
    reattach = Reattach(database=database, authenticate=tokens)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with reattach:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/login")
    async def login(login: Login) -> dict[str, str]:
        known = PASSWORDS.get(login.name, "")
        right = hmac.compare_digest(known.encode(), login.password.encode())
        if not (known and right):
            raise HTTPException(401, "expected another name or password")
        return {"user": login.name, "refresh": tokens.sign_in(login.name)}

    @app.post("/token")
    async def token(given: Pass) -> dict[str, str]:
        fresh = tokens.fresh(given.refresh)
        if fresh is None:
            raise HTTPException(401, "expected somebody who is signed in")
        return {"token": fresh}

    @app.post("/logout", status_code=204)
    async def logout(given: Pass) -> None:
        tokens.sign_out(given.refresh)

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
  <form id="login" hidden>
    <label>Name <input name="name" autocomplete="username" required></label>
    <label>Password
      <input name="password" type="password" autocomplete="current-password" required>
    </label>
    <button>Sign in</button>
  </form>
  <section id="notes" hidden>
    <p><span id="who"></span> <button id="logout">Sign out</button></p>
    <label>Your note <textarea id="note" rows="8" disabled></textarea></label>
  </section>
  <p id="status" role="status"></p>
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

  // Who is signed in on this browser, also without a server: {"user", "refresh"}.
  const kept = JSON.parse(localStorage.getItem("signed-in"));
  const keep = (value) => localStorage.setItem("signed-in", JSON.stringify(value));

  // A tab that is open when somebody signs out, or in as somebody else, begins anew.
  const tabs = new BroadcastChannel("signed-in");
  tabs.onmessage = () => location.reload();

  if (kept === null) {
    at("login").hidden = false;
    at("login").onsubmit = async (event) => {
      event.preventDefault();
      const answer = await post("login", Object.fromEntries(new FormData(event.target)));
      if (!answer.ok) return (at("status").textContent = "Wrong name or password.");
      keep(await answer.json());
      tabs.postMessage("in");
      location.reload();
    };
  } else {
    const { user, refresh } = kept;
    at("notes").hidden = false;
    at("who").textContent = user;
    const session = connect({
      url: new URL("sessions", location.href).href,
      session: new URLSearchParams(location.search).get("note") ?? `note-of-${user}`,
      // Whose the outbox in this browser is: another user's stays where it is.
      user,
      // For each connection, also after the one before ended because its token was over.
      token: async () => {
        const answer = await post("token", { refresh });
        if (!answer.ok) throw new Error("expected to be signed in: sign out, and in again");
        return (await answer.json()).token;
      },
      create: { state: { note: "" } },
    });
    const show = () => {
      const { connection, saved, error } = session.status;
      const where = saved ? "saved" : "on this device";
      at("status").textContent = error?.message ?? `${connection}, ${where}`;
      if (at("note").value !== session.state.note) at("note").value = session.state.note;
    };
    at("note").oninput = ({ target }) => session.set("/note", target.value);
    at("logout").onclick = async () => {
      await session.close();
      keep(null);
      await post("logout", { refresh }).catch(() => {});
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
