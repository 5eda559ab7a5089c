"""A form of plain HTML that outlives its tab, its browser and the network.

    uvicorn --factory examples.plain_form.app:make_app

One line binds it: `bindForm(form, session, "/order")`. Open the page's address in a second browser,
and both fill in one form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from reattach import Reattach

__all__ = ["make_app"]

CHECKOUT: Final = Path(__file__).parents[2]


def make_app(database: str = "sqlite:///plain-form.db") -> FastAPI:
    """Return the application; its forms are sessions in ``database``."""
    reattach = Reattach(database=database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with reattach:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"Cache-Control": "no-cache"})

    app.mount("/sessions", reattach)
    # An application of yours has a bundler instead, or a CDN.
    app.mount("/reattach", StaticFiles(directory=CHECKOUT / "packages" / "client" / "dist"))
    return app


PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Order</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
  body { max-width: 36rem; margin: 2rem auto; padding: 0 1rem; }
  form { display: grid; gap: 1rem; }
  fieldset { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
  label.above { display: grid; gap: .25rem; }
  input, select, textarea, button { font: inherit; }
  label.above > * { padding: .4rem; width: 100%; box-sizing: border-box; }
  button { justify-self: start; padding: .4rem 1rem; }
</style>
<script type="importmap">
  {"imports": {"reattach": "./reattach/index.js", "reattach/form": "./reattach/form.js"}}
</script>

<main>
  <h1>Order</h1>
  <p id="status" role="status">Opening …</p>
  <form>
    <label class="above">Name <input name="name" autocomplete="name"></label>
    <label class="above">E-mail <input name="email" type="email" autocomplete="email"></label>
    <label class="above">Message <textarea name="message" rows="5"></textarea></label>
    <label class="above">How many <input name="count" type="number" min="1" value="1"></label>
    <label class="above">When <input name="date" type="date"></label>
    <label class="above">Size
      <select name="size">
        <option>small</option><option>medium</option><option>large</option>
      </select>
    </label>
    <fieldset><legend>Delivery</legend>
      <label><input type="radio" name="delivery" value="post" checked> by post</label>
      <label><input type="radio" name="delivery" value="bike"> by bike</label>
    </fieldset>
    <fieldset><legend>Extras</legend>
      <label><input type="checkbox" name="extras" value="card"> a card</label>
      <label><input type="checkbox" name="extras" value="ribbon"> a ribbon</label>
    </fieldset>
    <label><input type="checkbox" name="gift"> It is a present</label>
    <label class="above">Coupon (kept nowhere)
      <input name="coupon" type="password" autocomplete="off"></label>
    <button type="reset">Start over</button>
  </form>
</main>

<script type="module">
  import { connect } from "reattach";
  import { bindForm } from "reattach/form";

  // Whoever has the address has the form.
  if (location.hash === "") location.hash = crypto.randomUUID();
  const session = connect({
    url: new URL("sessions", location.href).href,
    session: location.hash.slice(1),
    create: { state: { order: {} } },
  });
  bindForm(document.querySelector("form"), session, "/order");

  const show = () => {
    const { connection, saved, savedOnDevice } = session.status;
    const where = saved ? "saved" : savedOnDevice ? "saved on this device" : "not saved";
    document.getElementById("status").textContent = `${where}, ${connection}`;
  };
  session.subscribe(show);
  session.ready.then(show, (error) => {
    document.getElementById("status").textContent = error.message;
  });
</script>
"""
