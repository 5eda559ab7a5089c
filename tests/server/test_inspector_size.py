"""The inspector over 100,000 sessions, one of them with 50,000 commits: how long each answer takes.

Takes half a minute to fill a database, so ``make inspect-many`` runs it.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from reattach.server.app import Reattach
from reattach.settings import Settings
from reattach.store.base import Append, Expected, Store
from reattach.testing.store import T0, advance, commit, creation
from tests.server.test_rest import client_of

MANY = int(os.environ.get("REATTACH_INSPECT_SESSIONS", "0"))
COMMITS = MANY // 2
BATCH = 1_000
SHORT_MS = 1_000
"""An answer that takes longer is felt as one. The machine may be busy with other tests."""

pytestmark = [
    pytest.mark.skipif(not MANY, reason="make inspect-many fills a large database"),
    pytest.mark.timeout(600),
]


async def fill(store: Store) -> None:
    chance = random.Random(7)
    for first in range(0, MANY, BATCH):
        parts = [
            creation(
                f"s{number:06}",
                user_id=f"user-{chance.randrange(MANY // 10):05}",
                last_activity=T0 + chance.randrange(10**9),
                schema_name=chance.choice(("order", "note", None)),
            )
            for number in range(first, first + BATCH)
        ]
        await store.append(parts)
    await store.append([creation("long", schema_name=None)])
    row = creation("long").session
    assert row is not None
    for before in range(0, COMMITS, BATCH):
        after = before + BATCH
        commits = [
            replace(
                commit(n, client_id=f"c{n % 3}", seq=n // 3 + 1),
                body=b'{"type":"state_update","version":%d,"at":%d,"by":{"client_id":"c%d",'
                b'"device_id":"d%d","source":"device"},'
                b'"patch":[{"op":"add","path":"/n%d","value":%d}]}'
                % (n, n, n % 3, n % 3, n % 99, n),
            )
            for n in range(before + 1, after + 1)
        ]
        clients = [
            advance(0, 0, client_id=f"c{n}", device_id=f"d{n}")
            for n in range(3 if not before else 0)
        ]
        await store.append(
            [
                Append(
                    session_id="long",
                    expected=Expected(version=before, epoch=row.epoch, access_version=0),
                    session=replace(row, version=after, last_activity=T0 + 10**9 + after),
                    commits=commits,
                    clients=clients,
                )
            ]
        )


async def test_every_answer_is_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(inspector="read")
    async with Reattach(database=f"sqlite:///{tmp_path / 'r.db'}", settings=settings) as reattach:
        registry = await reattach.running()
        await fill(registry.store)
        async with client_of(reattach) as api:
            slow: dict[str, float] = {}
            told: list[str] = []
            for name, path in asked().items():
                taken = sorted([await timed(api, path) for _ in range(5)])
                told.append(f"{name:44} median {taken[2]:7.1f} ms, longest {taken[4]:7.1f} ms")
                if taken[2] > SHORT_MS:
                    slow[name] = taken[2]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(told) + "\n")
    assert slow == {}


def asked() -> dict[str, str]:
    last, half = COMMITS, COMMITS // 2
    deep = f"{T0 + 10**9 // 2}.s{MANY // 2:06}"
    return {
        "sessions, first page": "sessions",
        "sessions, a page in the middle": f"sessions?next={deep}",
        "sessions of one user": "sessions?q=user-00042",
        "sessions by the beginning of an id": "sessions?q=s0777",
        "sessions, a search for nothing": "sessions?q=none",
        "sessions, a search for nearly all": "sessions?q=s",
        "sessions of a schema": "sessions?schema=order",
        "sessions of a schema that there is not": "sessions?schema=none",
        "sessions online": "sessions?online=true",
        "sessions of a week": f"sessions?since={T0 + 10**8}&until={T0 + 2 * 10**8}",
        "a long session": "sessions/long",
        "its timeline": f"sessions/long/timeline?first=1&last={last}",
        "its newest commits": f"sessions/long/commits?first={last - 199}&last={last}",
        "commits in its middle": f"sessions/long/commits?first={half}&last={half + 199}",
        "its activity": "sessions/long/activity?limit=500",
    }


async def timed(api: httpx.AsyncClient, path: str) -> float:
    begun = time.perf_counter()
    answer = await api.get(f"/inspector/api/{path}")
    taken = (time.perf_counter() - begun) * 1_000
    assert answer.status_code == 200, answer.text
    return taken
