"""What a long history costs whoever opens its session: nothing, for states are saved by cost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from reattach import Reattach
from tests.support.postgres import Postgres
from tests.support.wire_client import Frame

SOAK = "REATTACH_SOAK_SECONDS" in os.environ
LONG = 50_000 if SOAK else 10_000
SHORT = 50
PAIRS = 5
MORE = 0.050
"""Seconds that the long one may take beyond the short one, on the median."""

BATCH = 250
FIELDS = 100
KEPT = 50
"""Elements that stay in the list: all others were inserted and are gone again."""
TEXTS = 3
"""What is typed goes into so many texts: more of it than the books of texts keep, in the long run.
"""

pytestmark = pytest.mark.timeout(180)


@asynccontextmanager
async def node(database: str) -> AsyncIterator[httpx.AsyncClient]:
    """A node with nothing in memory, and a way to ask it."""
    async with (
        Reattach(database=database) as reattach,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(reattach, client=("127.0.0.1", 1)),
            base_url="http://127.0.0.1/api/v0",
            timeout=30,
        ) as api,
    ):
        yield api


def ops(number: int) -> list[Frame]:
    """One user's work: fields, texts, and a list whose elements come and go."""
    match number % 5:
        case 0:
            value = {"id": f"e{number}", "done": False, "note": f"what {number} is about"}
            return [{"op": "insert", "path": "/items", "value": value}]
        case 1 if number > 5 * KEPT:
            return [{"op": "unset", "path": f"/items/#e{number - 1 - 5 * KEPT}"}]
        case 2 | 3:
            path, long = f"/texts/t{number % TEXTS}", typed(number)
            return [{"op": "splice", "path": path, "index": number % (long + 1)} | TYPE]
        case _:
            return [{"op": "set", "path": f"/fields/f{number % FIELDS}", "value": number}]


TYPE = {"delete": 0, "insert": "x"}


def typed(number: int) -> int:
    """How long the text is that a splice goes into."""
    whole, rest = divmod(number, 5 * TEXTS)
    return 2 * whole + sum(
        n % 5 in {2, 3} and n % TEXTS == number % TEXTS for n in range(number - rest, number)
    )


async def write(api: httpx.AsyncClient, session_id: str, count: int) -> None:
    """Makes a session and so many changes of it, each a commit: two clients take turns."""
    begin: Any = {"fields": {}, "items": [], "texts": {f"t{n}": "" for n in range(TEXTS)}}
    body = {"session_id": session_id, "state": begin}
    made = await api.post("/session", json=body)
    assert made.status_code == 201, made.text
    epoch = made.json()["epoch"]
    given = {"a": 0, "b": 0}
    for first in range(0, count, BATCH):
        name = "ab"[first // BATCH % 2]
        now = time.time_ns() // 1_000_000
        changes = [
            {"seq": given[name] + n + 1, "epoch": epoch, "base": first, "at": now}
            | {"ops": ops(first + n)}
            for n in range(min(BATCH, count - first))
        ]
        given[name] += len(changes)
        sent = {"client_id": name, "device": {"id": name}, "t": now, "changes": changes}
        answer = await api.post(f"/session/{session_id}/changes", json=sent)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["version"], told["rejected"]) == (first + len(changes), [])


async def opening(database: str, session_id: str, version: int) -> float:
    """The seconds that a node takes which has never seen the session."""
    async with node(database) as api:
        # The first of all has the database's connections made, and what is compiled at first use.
        assert (await api.get("/session/nobodys")).status_code == 404
        begun = time.perf_counter()
        answer = await api.get(f"/session/{session_id}")
        took = time.perf_counter() - begun
        assert answer.json()["version"] == version
        state = answer.json()["state"]
        assert len(state["items"]) <= KEPT + 1
        assert sum(map(len, state["texts"].values())) == version * 2 // 5
    return took


async def held(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.perf_counter()
    async with node(database) as api:
        await write(api, "long", LONG)
        await write(api, "short", SHORT)
    wrote = time.perf_counter() - begun
    long, short = [], []
    for _ in range(PAIRS):
        long.append(await opening(database, "long", LONG))
        short.append(await opening(database, "short", SHORT))
    more = median(long) - median(short)
    with capsys.disabled():
        sys.stdout.write(
            f"\n  {LONG:,} changes (written in {wrote:.1f} s) open in {median(long) * 1000:.1f} ms,"
            f" {SHORT} in {median(short) * 1000:.1f} ms"
        )
    assert more < MORE, (long, short)


async def test_a_long_history_opens_as_a_short_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await held(f"sqlite:///{tmp_path / 'reattach.db'}", capsys)


@pytest.mark.skipif(not SOAK, reason="for make soak")
async def test_a_long_history_on_postgresql_opens_as_a_short_one(
    postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    await held(await postgres.database(), capsys)
