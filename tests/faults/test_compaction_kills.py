"""A compaction that is killed at any moment leaves every retained version as it was seen."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reattach.core.limits import Limits
from reattach.core.past import document_of
from reattach.core.retention import DAY_MS
from reattach.core.session import empty_index
from reattach.runtime.clock import SystemClock
from reattach.runtime.compaction import Compactor
from reattach.store.base import (
    Append,
    CheckpointRecord,
    CommitRecord,
    Expected,
    SavedState,
    SessionRecord,
)
from reattach.store.sqlite import SQLiteStore
from reattach.wire import encode
from tests.support.paths import ROOT

MOMENTS = int(os.environ.get("REATTACH_TEST_MOMENTS", "5"))
"""50 take a minute: `REATTACH_TEST_MOMENTS=50`."""
COMMITS = 2_000
OLD = 1_700
"""The last version that is older than what is kept."""
MARKS = range(100, COMMITS, 150)
NOW = SystemClock().now()


def state(version: int) -> dict[str, Any]:
    """What is at a version: one of seven keys changes with each."""
    return {f"k{key}": max(range(key, version + 1, 7)) for key in range(1, 8) if key <= version}


def row(version: int) -> SessionRecord:
    return SessionRecord(
        session_id="s",
        user_id="u",
        epoch="e",
        epoch_version=0,
        version=version,
        created_at=0,
        last_activity=0,
    )


def commit(version: int) -> CommitRecord:
    path = f"/k{(version - 1) % 7 + 1}"
    step = {"op": "add" if version <= 7 else "replace", "path": path, "value": version}
    by = {"client_id": "c", "seq": version}
    frame = {"type": "state_update", "version": version, "patch": [step], "by": by}
    return CommitRecord(
        version=version,
        body=encode(frame),
        writes=encode([["s", path]]),
        at=NOW - (31 if version <= OLD else 1) * DAY_MS,
        client_id="c",
        seq=version,
        client_at=0,
    )


async def fill(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    first = SavedState(version=0, state=b"{}", index=empty_index())
    await store.append([Append(session_id="s", expected=None, session=row(0), state=first)])
    part = Append(
        session_id="s",
        expected=Expected(version=0, epoch="e", access_version=0),
        session=row(COMMITS),
        commits=[commit(version) for version in range(1, COMMITS + 1)],
        checkpoints=[
            CheckpointRecord(checkpoint_id=f"m{n}", kind="named", version=n, created_at=0)
            for n in MARKS
        ],
    )
    await store.append([part])
    await store.close()


async def compact(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await Compactor(store, SystemClock(), Limits(), "me", history_days=30).sweep()
    await store.close()


async def look(path: Path) -> int:
    """Reads every version that has to be there; returns how many commits are left."""
    store = SQLiteStore(path)
    await store.open()
    try:
        log = await store.log("s", first=0)
        assert [one.version for one in log] == list(range(log[0].version, COMMITS + 1))
        listed = (await store.checkpoints("s", None, 100)).items
        assert {one.version for one in listed} == set(MARKS)
        for version in sorted({*MARKS, *range(log[0].version - 1, COMMITS + 1, 149), COMMITS}):
            loaded = await store.load_at("s", version)
            assert loaded is not None, version
            document, reached = document_of(loaded)
            assert (document.state, reached) == (state(version), version)
        return len(log)
    finally:
        await store.close()


def fork(work: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(work)
        finally:
            os._exit(0)
    work.close()
    return child


def play(folder: Path, moments: int) -> dict[str, int]:
    """Kills a compaction so often, on a copy each time; returns how far those came."""
    chance = random.Random(5)
    full, whole = folder / "full.db", folder / "whole.db"
    asyncio.run(fill(full))
    shutil.copy(full, whole)
    began = time.monotonic()
    os.waitpid(fork(compact(whole)), 0)
    takes = time.monotonic() - began
    assert asyncio.run(look(whole)) == COMMITS - OLD
    left = {"nothing done": 0, "a part": 0, "all": 0}
    for moment in range(moments):
        path = folder / f"{moment}.db"
        shutil.copy(full, path)
        child = fork(compact(path))
        time.sleep(chance.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        count = asyncio.run(look(path))
        left[{COMMITS: "nothing done", COMMITS - OLD: "all"}.get(count, "a part")] += 1
        if moment % 10 == 0:
            asyncio.run(compact(path))
            assert asyncio.run(look(path)) == COMMITS - OLD
        path.unlink()
    return left


@pytest.mark.timeout(240)
def test_a_compaction_killed_at_any_moment(tmp_path: Path) -> None:
    """Rule RT2, in a process of its own, which has no threads when it forks."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(tmp_path), str(MOMENTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert sum(left.values()) == MOMENTS


if __name__ == "__main__":
    sys.stdout.write(json.dumps(play(Path(sys.argv[1]), int(sys.argv[2]))))
