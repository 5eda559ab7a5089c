"""Every version of a session reads back as it was seen, also after compactions that were killed.

A live client notes what it sees at each version. Then a part of the log is made to be older than
what is kept, and a compaction is killed at random moments, on a copy of the database each time.
`make history` plays 2,000 commits and 50 moments on each store.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from reattach.core.limits import Limits
from reattach.core.past import document_of
from reattach.core.retention import DAY_MS
from reattach.runtime import compaction
from reattach.runtime.clock import SystemClock
from reattach.runtime.compaction import Compactor
from reattach.server.app import store_at
from reattach.store.base import Store
from reattach.wire import encode
from tests.conftest import Serve, Witnesses
from tests.support.database import behind
from tests.support.paths import ROOT
from tests.support.postgres import Postgres
from tests.support.server import ServerProcess
from tests.support.waiting import until
from tests.support.wire_client import Frame, WireClient, all_settled

pytestmark = pytest.mark.faults

COMMITS = int(os.environ.get("REATTACH_TEST_HISTORY", "130"))
MOMENTS = int(os.environ.get("REATTACH_TEST_MOMENTS", "2"))
SEED = os.environ.get("REATTACH_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
IN_FLIGHT = 8

Seen = dict[int, str]
"""What was seen at each version, as a hash."""


def digest(state: Any) -> str:
    """What makes states equal."""
    plain = json.dumps(state, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


# --- A life


def something(chance: random.Random, client: WireClient, n: int) -> Frame:
    """Any operation."""
    items = [one["id"] for one in client.state["items"]]
    text = client.state["text"]
    key = f"/k{chance.randrange(12)}"
    element = f"/items/#{chance.choice(items)}" if items else "/items/#none"
    after = chance.choice([*items, None]) if items else None
    new = {"id": f"{client.client_id}.{n}", "n": n, "words": ["lorem ipsum"] * chance.randrange(4)}
    return chance.choice(
        [
            {"op": "set", "path": key, "value": {"n": n, "is": "x" * chance.randrange(200)}},
            {"op": "set", "path": key, "value": n + 0.5},
            {"op": "unset", "path": key},
            {"op": "inc", "path": "/n", "by": chance.randrange(9)},
            {"op": "insert", "path": "/items", "value": new, "after": after},
            {"op": "insert", "path": "/items", "value": new},
            {"op": "set", "path": f"{element}/n", "value": n},
            {"op": "move", "path": element, "after": after},
            {"op": "unset", "path": element},
            {
                "op": "splice",
                "path": "/text",
                "index": chance.randrange(len(text) + 1),
                "delete": 0,
                "insert": chance.choice(["a", "é𝄞", "word "]),
            },
        ]
    )


async def write(client: WireClient, chance: random.Random, most: int) -> None:
    """Changes the session until it stands at a version."""
    while (client.version or 0) < most:
        await client.wait(lambda: len(client.outbox) < IN_FLIGHT, what="few undecided changes")
        lot = chance.random()
        version = client.version or 0
        if lot < 0.01 and version > 9:
            await client.change({"op": "restore", "version": chance.randrange(version)})
        else:
            await client.change(something(chance, client, client.given + 1))
        if lot > 0.98:
            await client.send(type="save_checkpoint", ref=str(client.given))
        if lot > 0.7:
            await asyncio.sleep(0)


async def lived(server: ServerProcess, chance: random.Random) -> Seen:
    """A session with a history, as somebody saw it who never wrote."""
    create = {"n": 0, "items": [], "text": ""}
    watcher = WireClient(server.ws_url, "s", "watcher", create=create)
    seen: Seen = {}

    def note(_: Frame) -> None:
        assert watcher.version is not None
        seen.setdefault(watcher.version, digest(watcher.state))

    watcher.on_frame = note
    async with watcher:
        note({})
        writers = [WireClient(server.ws_url, "s", f"w{n}") for n in range(2)]
        await asyncio.gather(*(one.__aenter__() for one in writers))
        async with asyncio.TaskGroup() as group:
            for one in writers:
                group.create_task(write(one, random.Random(chance.random()), COMMITS))
        await all_settled(writers)
        assert writers[0].version is not None
        await watcher.at(max(one.version or 0 for one in writers))
        await asyncio.gather(*(one.close() for one in writers))
    assert sorted(seen) == list(range(max(seen) + 1))
    return seen


async def shown(server: ServerProcess, version: int) -> str:
    async with httpx.AsyncClient(base_url=f"{server.url}/api/v0") as api:
        answer = await api.get("/session/s", params={"version": version})
        assert answer.status_code == 200, (version, answer.text)
        return digest(answer.json()["state"])


# --- Compactions that are killed, in a process of its own: it forks, and has no threads then


async def compact(url: str, begins: Callable[[], object] = lambda: None) -> None:
    store = store_at(url)
    await store.open()
    begins()
    await Compactor(store, SystemClock(), Limits(), "me", history_days=30).sweep()
    await store.close()


async def read(store: Store, version: int) -> str | None:
    loaded = await store.load_at("s", version)
    if loaded is None:
        return None
    document, reached = document_of(loaded)
    return digest(json.loads(encode(document.state))) if reached == version else None


async def look(url: str, seen: Seen, chance: random.Random | None) -> int:
    """Reads what has to be there, or by lot a part of it; returns the last version that is gone."""
    store = store_at(url)
    await store.open()
    try:
        newest = max(seen)
        log = [one.version for one in await store.log("s", first=0)]
        assert log == list(range(log[0], newest + 1)), (log[0], log[-1], newest)
        floor = log[0] - 1
        listed = (await store.checkpoints("s", None, 10_000)).items
        marks = {one.version for one in listed}
        assert marks
        must = {floor, *log, *marks}
        if chance is not None:
            must = {floor, newest, *chance.sample(log, 20), *chance.sample(sorted(marks), 3)}
        for version in sorted(must):
            assert await read(store, version) == seen[version], version
        if chance is None:
            gone = {version for version in range(floor) if await read(store, version) is None}
            assert not gone & marks
            # What can be read below the floor is what it was, too.
            for version in set(range(floor)) - gone:
                assert await read(store, version) == seen[version], version
        return floor
    finally:
        await store.close()


async def copied(url: str, name: str) -> str:
    """Another database with the same in it."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        shutil.copy(path, path.with_name(name))
        return f"sqlite:///{path.with_name(name)}"
    base, _, original = url.rpartition("/")
    db = await asyncpg.connect(f"{base}/postgres")
    await db.execute(f"DROP DATABASE IF EXISTS {name}")
    await db.execute(f"CREATE DATABASE {name} TEMPLATE {original}")
    await db.close()
    return f"{base}/{name}"


async def let_go(url: str) -> None:
    """Waits until nobody works in a database who was killed."""
    if url.startswith("sqlite"):
        return
    db = await asyncpg.connect(url)
    working = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"

    async def alone() -> bool:
        return bool(await db.fetchval(working) == 1)

    await until(alone, within=20, what="the killed one's connections to end", every=0.01)
    await db.close()


def begun(url: str) -> int:
    """A process that has just begun to compact."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        # By so many commits at a time that there are moments between.
        compaction._STEP = max(10, COMMITS // 20)  # type: ignore[misc]  # for this process alone
        try:
            asyncio.run(compact(url, lambda: os.write(tells, b"!")))
        finally:
            os._exit(0)
    os.close(tells)
    assert os.read(told, 1) == b"!"
    os.close(told)
    return child


def play(url: str, seen: Seen, old: int) -> dict[str, int]:
    """Kills a compaction so often, on a copy each time; returns how far those came."""
    chance = random.Random(SEED)
    assert asyncio.run(look(url, seen, None)) == 0
    whole = asyncio.run(copied(url, "whole"))
    child, began = begun(whole), time.monotonic()
    os.waitpid(child, 0)
    takes = time.monotonic() - began
    assert asyncio.run(look(whole, seen, None)) == old
    left = {"nothing done": 0, "a part": 0, "all": 0}
    for moment in range(MOMENTS):
        copy = asyncio.run(copied(url, "copy"))
        child = begun(copy)
        time.sleep(chance.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        asyncio.run(let_go(copy))
        floor = asyncio.run(look(copy, seen, chance))
        left[{0: "nothing done", old: "all"}.get(floor, "a part")] += 1
        if moment % 10 == 0:
            asyncio.run(compact(copy))
            assert asyncio.run(look(copy, seen, None)) == old
    return left


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["sqlite", *(["postgres"] if COMMITS >= 1_000 else [])])
async def test_every_version_reads_as_it_was_seen_whenever_a_compaction_is_killed(
    serve: Serve, postgres: Postgres, tmp_path: Path, witnesses: Witnesses, kind: str
) -> None:
    # Rules RT2, T7
    witnesses.append(("seed", lambda: f"REATTACH_TEST_SEED={SEED}"))
    chance = random.Random(SEED)
    options = {} if kind == "sqlite" else {"database_url": await postgres.own_database()}
    server = await serve(app=None, **options)
    seen = await lived(server, chance)
    for version in chance.sample(range(max(seen)), 10):
        assert await shown(server, version) == seen[version], version
    assert await server.stop() == 0
    old = max(seen) * 5 // 6
    behind(server).execute(
        f"UPDATE commits SET at = at - {31 * DAY_MS} WHERE version <= {old}"  # noqa: S608  # our own
    )
    (tmp_path / "seen").write_text(json.dumps(seen))
    url = server.database_url or f"sqlite:///{server.database}"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", __name__, url, str(tmp_path / "seen"), str(old)],
        cwd=ROOT,
        env=os.environ | {"REATTACH_TEST_SEED": SEED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert sum(left.values()) == MOMENTS
    sys.stdout.write(f"{kind}: {max(seen)} commits, {old} old, {MOMENTS} kills: {left}\n")


if __name__ == "__main__":
    numbered = {int(one): what for one, what in json.loads(Path(sys.argv[2]).read_text()).items()}
    sys.stdout.write(json.dumps(play(sys.argv[1], numbered, int(sys.argv[3]))))
