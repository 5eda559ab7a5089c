"""Hot snapshots: held in a real Valkey, taken where they are true, and never believed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from reattach.bus.redis_snapshots import RedisSnapshots
from reattach.bus.snapshots import WORTH_BYTES, Snapshot, pack, proof, unpack
from reattach.core.limits import Limits
from reattach.runtime.access import User
from reattach.runtime.clock import SystemClock
from reattach.runtime.registry import Registry
from reattach.sessions import Sessions
from reattach.store.base import Append, Expected, SavedState, SessionRecord
from reattach.store.memory import MemoryStore
from tests.runtime.rig import FaultyStore
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until

KEY = "reattach:database:snapshot:s"


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with ValkeyServer(tmp_path) as server:
        yield server


@pytest.fixture
async def held(valkey: ValkeyServer) -> AsyncIterator[RedisSnapshots]:
    snapshots = RedisSnapshots(valkey.url)
    await snapshots.open("database")
    yield snapshots
    await snapshots.close()


def snapshot(version: int, *, epoch: str = "e", state: bytes = b"{}") -> Snapshot:
    return Snapshot(
        session_id="s",
        epoch=epoch,
        proof=proof(b"body"),
        saved=SavedState(version=version, state=state, index=b"\x00\xff"),
        conflicts=[],
        log_bytes=7,
    )


async def stored(snapshots: RedisSnapshots) -> None:
    await snapshots._all_stored.wait()


# What Redis holds


async def test_a_snapshot_comes_back_as_it_was(held: RedisSnapshots, valkey: ValkeyServer) -> None:
    assert await held.get("s") == []
    mine = snapshot(3, state=bytes(range(256)) * 4096)
    held.put(mine)
    await stored(held)
    assert await held.get("s") == [mine]
    assert await held.get("another") == []
    lifetime = await valkey.call("PTTL", KEY)
    assert isinstance(lifetime, int)
    assert 0 < lifetime <= 600_000


async def test_an_older_one_never_replaces_a_newer_one(held: RedisSnapshots) -> None:
    for version in (3, 2, 5, 4):
        held.put(snapshot(version))
        await stored(held)
    assert [one.saved.version for one in await held.get("s")] == [5]


async def test_of_an_erased_session_nothing_is_held(
    held: RedisSnapshots, valkey: ValkeyServer
) -> None:
    held.put(snapshot(3))
    await stored(held)
    held.put(snapshot(4))
    await held.drop("s")
    assert await held.get("s") == []
    # From a node that has not heard of it.
    held.put(snapshot(5))
    await stored(held)
    assert await held.get("s") == []
    assert await valkey.call("HKEYS", KEY) == [b"gone"]
    await valkey.kill()
    with capture_logs() as logs:
        await held.drop("s")
    assert [entry["log_level"] for entry in logs if entry["log_level"] != "debug"] == ["warning"]


async def test_epochs_do_not_touch_each_other(held: RedisSnapshots) -> None:
    held.put(snapshot(9, epoch="old"))
    held.put(snapshot(3, epoch="new"))
    await stored(held)
    held.put(snapshot(10, epoch="old"))
    await stored(held)
    assert {(one.epoch, one.saved.version) for one in await held.get("s")} == {
        ("old", 10),
        ("new", 3),
    }


@pytest.mark.parametrize(
    "spoilt",
    [b"", b"nonsense", pack(snapshot(3))[:-1], b"2" + pack(snapshot(3))[1:]],
)
async def test_what_is_damaged_or_foreign_is_ignored_with_a_warning(
    held: RedisSnapshots, valkey: ValkeyServer, spoilt: bytes
) -> None:
    await valkey.call("HSET", KEY, "d:e", spoilt)
    with capture_logs() as logs:
        assert await held.get("s") == []
        assert await held.get("s") == []
    assert [entry["log_level"] for entry in logs] == ["warning"]


async def test_one_of_another_session_is_not_taken(
    held: RedisSnapshots, valkey: ValkeyServer
) -> None:
    await valkey.call("HSET", "reattach:database:snapshot:t", "d:e", pack(snapshot(3)))
    assert await held.get("t") == []


def test_every_bit_that_flips_is_seen() -> None:
    data = pack(snapshot(3))
    for at in range(len(data)):
        with pytest.raises(ValueError, match="whole"):
            unpack(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


async def test_a_redis_that_stands_still_costs_a_moment_once(
    held: RedisSnapshots, valkey: ValkeyServer
) -> None:
    held.put(snapshot(1))
    await stored(held)
    valkey.stop()
    try:
        begun = time.monotonic()
        for _ in range(20):
            assert await held.get("s") == []
        assert time.monotonic() - begun < 0.6
        held.put(snapshot(2))  # never waits
    finally:
        valkey.go_on()

    async def again() -> bool:
        return bool(await held.get("s"))

    await until(again, within=5, what="it to be used again")


# What a node makes of them


class Shelf:
    """Snapshots in a dictionary, which a test may look at and alter."""

    def __init__(self) -> None:
        self.held: dict[str, list[Snapshot]] = {}

    async def open(self, identity: str) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def get(self, session_id: str) -> Sequence[Snapshot]:
        return self.held.get(session_id, [])

    def put(self, snapshot: Snapshot) -> None:
        self.held[snapshot.session_id] = [unpack(pack(snapshot))]

    async def drop(self, session_id: str) -> None:
        self.held.pop(session_id, None)


class Place:
    """One database and one shelf, with a node after the other."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.shelf = Shelf()
        self.calls: list[str] = []

    def node(self, shelf: Any = None) -> tuple[Registry, Sessions]:
        faulty = FaultyStore(self.store)
        self.calls = faulty.calls
        registry = Registry(
            faulty,
            Limits(),
            SystemClock(),
            store_timeout_ms=5_000,
            idle_session_ms=60_000,
            snapshots=shelf or self.shelf,
        )

        async def running() -> Registry:
            return registry

        return registry, Sessions(running)

    async def fill(self, changes: int) -> None:
        """Makes a session with a heavy log, with a node that then stops."""
        registry, sessions = self.node()
        await registry.start()
        await registry.create(User("u"), session_id="s", state={"n": 0, "text": "", "keep": {}})
        await self.write(sessions, changes)
        await registry.stop(timeout_ms=1_000)
        await self.store.open()

    @staticmethod
    async def write(sessions: Sessions, changes: int) -> None:
        for n in range(changes):
            await sessions.update(
                "s",
                [
                    {"op": "inc", "path": "/n", "by": 1},
                    {"op": "set", "path": f"/keep/k{n % 40}", "value": f"{n} " * 300},
                ],
            )

    async def opened(self, shelf: Any = None) -> tuple[dict[str, Any], list[str]]:
        """The state as a fresh node opens it, and what it asked the database for."""
        registry, sessions = self.node(shelf)
        await registry.start()
        self.calls.clear()
        found = await sessions.get("s")
        calls = list(self.calls)
        await self.write(sessions, 1)
        assert (await sessions.get("s")).state["n"] == found.state["n"] + 1
        await registry.stop(timeout_ms=1_000)
        await self.store.open()
        return found.state, calls


@pytest.fixture
async def place() -> Place:
    place = Place()
    await place.store.open()
    await place.fill(80)
    assert "s" in place.shelf.held
    return place


async def test_a_session_is_opened_from_its_snapshot_and_the_log_after_it(place: Place) -> None:
    (first,) = place.shelf.held["s"]
    state, calls = await place.opened()
    assert state["n"] == 80
    assert "load_many" not in calls
    # With what was written since, which weighs too little for another one.
    assert place.shelf.held["s"] == [first]
    state, calls = await place.opened()
    assert state["n"] == 81
    assert "load_many" not in calls
    loaded = await place.opened(Shelf())
    assert loaded[0]["n"] == 82
    assert "load_many" in loaded[1]


async def test_what_the_database_has_yet_to_save_is_not_forgotten_by_snapshots(
    place: Place,
) -> None:
    """Else a log would grow for ever beside its snapshots."""
    (first,) = place.shelf.held["s"]
    assert first.log_bytes > WORTH_BYTES
    registry, sessions = place.node()
    await registry.start()
    await sessions.get("s")
    assert registry.hosts["s"].room.session.log_bytes == first.log_bytes
    await registry.stop(timeout_ms=1_000)


async def test_a_light_log_is_not_worth_a_snapshot() -> None:
    place = Place()
    await place.store.open()
    await place.fill(3)
    assert place.shelf.held == {}


@pytest.mark.parametrize("how", ["another epoch", "ahead", "another history", "no such version"])
async def test_one_that_is_not_of_the_history_in_the_database_is_not_taken(
    place: Place, how: str
) -> None:
    """The cache never answers with what the database does not say."""
    (first,) = place.shelf.held["s"]
    saved = msgspec.structs.replace(first.saved, state=b'{"n":-1}')
    if how == "another epoch":
        wrong = msgspec.structs.replace(first, saved=saved, epoch="before")
    elif how == "another history":
        wrong = msgspec.structs.replace(first, saved=saved, proof=proof(b"elsewhere"))
    else:
        away = 50 if how == "ahead" else -200
        saved = msgspec.structs.replace(saved, version=saved.version + away)
        wrong = msgspec.structs.replace(first, saved=saved)
    place.shelf.held["s"] = [wrong]
    state, calls = await place.opened()
    assert state["n"] == 80
    assert "load_many" in calls


async def test_a_new_epoch_leaves_old_snapshots_behind(place: Place) -> None:
    row = await place.store.session("s")
    assert isinstance(row, SessionRecord)
    expected = Expected(version=row.version, epoch=row.epoch, access_version=row.access_version)
    fresh = msgspec.structs.replace(row, epoch="another", epoch_version=row.version)
    await place.store.append([Append(session_id="s", expected=expected, session=fresh)])
    _, calls = await place.opened()
    assert "load_many" in calls


async def test_conflicts_come_with_the_snapshot(place: Place) -> None:
    """What a load from the database knows, one from a snapshot knows, too."""
    registry, _ = place.node()
    await registry.start()
    with_snapshot = (await registry.open("s")).room.session
    await registry.stop(timeout_ms=1_000)
    await place.store.open()
    registry, _ = place.node(Shelf())
    await registry.start()
    without = (await registry.open("s")).room.session
    saved, loaded = with_snapshot.save(), without.save()
    assert saved.state == loaded.state
    assert sorted(saved.index) == sorted(loaded.index), "what merging knows, in some order"
    assert with_snapshot.unresolved_records() == without.unresolved_records()
    assert with_snapshot.log_bytes == without.log_bytes
    await registry.stop(timeout_ms=1_000)
