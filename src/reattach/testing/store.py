"""The law of `reattach.store.base`, as tests that any store must pass.

A back end joins with one fixture, which makes stores on one and the same place::

    class TestMyStore(DurableStoreSuite):
        @pytest.fixture
        def make_store(self, tmp_path: Path) -> MakeStore:
            return lambda: MyStore(tmp_path / "sessions")

A store whose data ends with the object takes `StoreSuite` instead; one that several nodes may share
takes `SeatingSuite`, too. The tests are coroutines, run by pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from reattach.errors import BadRequest, StoreRefused, StoreUnavailable
from reattach.store.base import (
    Activity,
    Append,
    CheckpointRecord,
    Claim,
    ClientAdvance,
    ClientRecord,
    CommitRecord,
    CommitSlot,
    Compaction,
    ConflictRecord,
    CredentialRecord,
    Decision,
    DeviceRecord,
    Expected,
    IdempotencyRecord,
    Loaded,
    MemberRecord,
    Outcome,
    Page,
    RefusalRecord,
    SavedState,
    Search,
    SessionRecord,
    Standing,
    Store,
    Tombstone,
)
from reattach.store.seating import LEFT, Neighbour, Seated, Seating

__all__ = [
    "DurableStoreSuite",
    "MakeStore",
    "SeatingSuite",
    "StoreSuite",
    "advance",
    "change",
    "commit",
    "creation",
    "refusal",
    "row",
]

MakeStore = Callable[[], Store]

OK, STALE, EXISTS = Outcome.OK, Outcome.STALE, Outcome.EXISTS
T0 = 1_764_000_000_000
DAY_MS = 24 * 60 * 60 * 1000
EPOCH = "epoch-1"
USER = "ann"
AWKWARD = (b"", b"\x00", b"a\x00b\xff\xfe", '{"k":"\u0000\U0001f600"}'.encode(), bytes(range(256)))
MIB = bytes(range(256)) * 4096
AWKWARD_USER = "user\u0000\U0001f600 \uffff%"


# --- What the tests write: plain records, each with what a test does not care about filled in -----


def row(session_id: str, version: int = 0, **fields: Any) -> SessionRecord:
    """Make a session's row at ``version``."""
    plain: dict[str, Any] = {
        "session_id": session_id,
        "user_id": USER,
        "epoch": EPOCH,
        "epoch_version": 0,
        "version": version,
        "created_at": T0,
        "last_activity": T0 + version,
    }
    return SessionRecord(**(plain | fields))


def creation(session_id: str, *, state: bytes = b"{}", **fields: Any) -> Append:
    """Make the part that creates a session; ``fields`` are its row's."""
    return Append(
        session_id=session_id,
        expected=None,
        session=row(session_id, **fields),
        state=SavedState(version=fields.get("version", 0), state=state, index=b"[]"),
    )


def commit(version: int, *, client_id: str | None = "c1", seq: int | None = None) -> CommitRecord:
    """Make a commit, by ``client_id``'s number ``seq`` (the version when None)."""
    mine = client_id is not None
    return CommitRecord(
        version=version,
        body=b'{"version":%d}' % version,
        writes=b"[%d]" % version,
        at=T0 + version,
        client_id=client_id,
        seq=(version if seq is None else seq) if mine else None,
        client_at=T0 - version if mine else None,
    )


def refusal(seq: int, *, client_id: str = "c1") -> RefusalRecord:
    """Make the refusal of a client's number."""
    return RefusalRecord(client_id=client_id, seq=seq, client_at=T0 - seq, body=b'{"seq":%d}' % seq)


def advance(
    before: int, seq: int, *, client_id: str = "c1", user_id: str = USER, device_id: str = "d1"
) -> ClientAdvance:
    """Make the step of a client's number from ``before`` to ``seq``."""
    return ClientAdvance(
        client=ClientRecord(
            client_id=client_id,
            user_id=user_id,
            device_id=device_id,
            seq=seq,
            at=T0 + seq if seq else None,
        ),
        before=before,
    )


def change(session_id: str, before: int, *, count: int = 1, **fields: Any) -> Append:
    """Make the part that takes a session from version ``before`` on by ``count`` commits of ``c1``.

    ``fields`` replace the part's own; ``after`` (a dict) replaces fields of the row.
    """
    after: dict[str, Any] = fields.pop("after", {})
    plain: dict[str, Any] = {
        "expected": Expected(version=before, epoch=EPOCH, access_version=0),
        "session": row(session_id, **({"version": before + count} | after)),
        "commits": [commit(before + n) for n in range(1, count + 1)],
        "clients": [advance(before, before + count)] if count else [],
    }
    return Append(session_id=session_id, **(plain | fields))


def erasure(session_id: str, before: int) -> Append:
    """Make the part that erases a session."""
    return Append(
        session_id=session_id,
        expected=Expected(version=before, epoch=EPOCH, access_version=0),
        erase=Tombstone(erased_at=T0 + 1_000, salt=b"salt", members=[b"one", b"two\x00"]),
    )


def conflict(conflict_id: str, version: int, *, status: str = "auto") -> ConflictRecord:
    """Make a conflict of a merge at ``version``."""
    return ConflictRecord(
        conflict_id=conflict_id,
        path="/a/#\u0000é~1",
        status=status,
        version=version,
        body=b'{"id":"%s"}' % conflict_id.encode(),
    )


def checkpoint(checkpoint_id: str, version: int, **fields: Any) -> CheckpointRecord:
    """Make a mark on a version."""
    plain: dict[str, Any] = {"kind": "named", "created_at": T0 + version}
    return CheckpointRecord(checkpoint_id=checkpoint_id, version=version, **(plain | fields))


def device(device_id: str, **fields: Any) -> DeviceRecord:
    """Make a device of a session."""
    plain: dict[str, Any] = {
        "device_id": device_id,
        "user_id": USER,
        "created_at": T0,
        "last_activity": T0,
    }
    return DeviceRecord(**(plain | fields))


def member(user_id: str, role: str = "editor") -> MemberRecord:
    """Make a member of a session."""
    return MemberRecord(user_id=user_id, role=role)


def credential(secret_hash: bytes, **fields: Any) -> CredentialRecord:
    """Make a credential of a session."""
    plain: dict[str, Any] = {
        "secret_hash": secret_hash,
        "kind": "token",
        "user_id": USER,
        "role": "owner",
        "created_at": T0,
    }
    return CredentialRecord(**(plain | fields))


def access(session_id: str, version: int, before: int, **fields: Any) -> Append:
    """Make the part that changes who may use a session, at access version ``before``.

    ``fields`` replace the part's own; ``after`` (a dict) replaces fields of the row.
    """
    after: dict[str, Any] = fields.pop("after", {})
    plain: dict[str, Any] = {
        "expected": Expected(version=version, epoch=EPOCH, access_version=before),
        "session": row(session_id, **({"version": version, "access_version": before + 1} | after)),
    }
    return Append(session_id=session_id, **(plain | fields))


def answer(key: str, *, created_at: int | None = None, body: bytes = b"{}") -> IdempotencyRecord:
    """Make the answer to a request with an idempotency key, given now when not told otherwise."""
    return IdempotencyRecord(
        user_id=USER,
        route="POST /session",
        key=key,
        request=b"\x00hash",
        status=201,
        headers=b"[]",
        body=body,
        created_at=now() if created_at is None else created_at,
    )


def now() -> int:
    """Read the time: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


async def pages(
    read: Callable[..., Awaitable[Page]], *whose: str | None, limit: int = 100
) -> list[list[Any]]:
    """Read a list from its first page to its last; ``whose`` are the arguments before the mark."""
    found: list[list[Any]] = []
    after: str | None = None
    while True:
        page = await read(*whose, after, limit)
        found.append(list(page.items))
        if page.next is None:
            return found
        after = page.next


async def everything(store: Store, session_id: str) -> tuple[object, ...]:
    """Read all that a store holds of a session, to compare before with after."""
    loaded = await store.load(session_id)
    return (
        await store.session(session_id),
        None if loaded is None else parts_of(loaded),
        list(await store.log(session_id, first=0)),
        [await store.client(session_id, name) for name in ("c1", "c2")],
        [list(await store.refusals(session_id, name, 0)) for name in ("c1", "c2")],
        await pages(store.conflicts, session_id, None),
        await pages(store.activity, session_id),
        list(await store.devices(session_id)),
        list(await store.members(session_id)),
        list(await store.credentials(session_id)),
        await pages(store.checkpoints, session_id),
    )


def parts_of(loaded: Loaded) -> tuple[object, ...]:
    """Take apart what was loaded, so that lists and tuples compare alike."""
    return (
        loaded.session,
        loaded.saved,
        list(loaded.tail),
        list(loaded.conflicts),
        list(loaded.devices),
        list(loaded.members),
    )


def stales() -> list[Any]:
    """List the parts that do not fit a session at version 1 with ``c1`` of Ann at number 1."""
    here: dict[str, Any] = {"version": 1, "epoch": EPOCH, "access_version": 0}

    def expecting(**fields: Any) -> Append:
        return change("s1", 1, expected=Expected(**(here | fields)))

    def advancing(step: ClientAdvance) -> Append:
        return change("s1", 1, clients=[step])

    parts = {
        "version-behind": expecting(version=0),
        "version-ahead": expecting(version=2),
        "epoch": expecting(epoch="epoch-2"),
        "access-version": expecting(access_version=1),
        "number-behind": advancing(advance(0, 2)),
        "number-ahead": advancing(advance(2, 3)),
        "unknown-client": advancing(advance(1, 2, client_id="c9")),
        "second-client-wrong": change(
            "s1", 1, clients=[advance(1, 2), advance(5, 6, client_id="c2")]
        ),
        "other-user-advances": advancing(advance(1, 2, user_id="bob")),
        "other-user-meets": advancing(advance(0, 0, user_id="bob")),
        "row-left-as-it-is": Append(
            session_id="s1", expected=Expected(**(here | {"version": 7})), activity=[activity(1)]
        ),
        "erase": erasure("s1", 7),
    }
    return [pytest.param(part, id=name) for name, part in parts.items()]


def activity(number: int) -> Activity:
    """Make a line of the activity log."""
    return Activity(
        activity_type="connected",
        at=T0 + number,
        user_id=USER,
        device_id="d1",
        data=b'{"n":%d}' % number,
    )


# --- The suite ------------------------------------------------------------------------------------


@pytest.mark.asyncio
class StoreSuite:
    """What every store must pass."""

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """Return what makes a store; each call gives another one on the same place."""
        raise NotImplementedError("override the fixture make_store: see reattach.testing.store")

    @pytest_asyncio.fixture
    async def store(self, make_store: MakeStore) -> AsyncIterator[Store]:
        """Open a store for one test."""
        store = make_store()
        await store.open()
        yield store
        await store.close()

    # --- Being open

    async def test_identity(self, make_store: MakeStore) -> None:
        """The identity is a string that stays when the store is opened again."""
        store = make_store()
        first = await store.open()
        await store.close()
        again = await store.open()
        await store.close()
        assert first
        assert again == first

    async def test_closed(self, make_store: MakeStore) -> None:
        """A store that is not open cannot be reached; closing it twice is nothing."""
        store = make_store()
        with pytest.raises(StoreUnavailable):
            await store.check()
        await store.open()
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable):
            await store.append([creation("s1")])
        with pytest.raises(StoreUnavailable):
            await store.load("s1")

    async def test_check(self, store: Store) -> None:
        """A store that can commit says so, as often as it is asked."""
        await store.check()
        await store.check()

    async def test_nothing_there(self, store: Store) -> None:
        """Of an unknown session there is nothing, and no error."""
        assert await store.load("s1") is None
        assert await store.load_at("s1", 0) is None
        assert await store.decision("s1", "c1", 1) is None
        assert await store.idempotent(USER, "POST /session", "k1") is None
        assert await everything(store, "s1") == (
            None,
            None,
            [],
            [None, None],
            [[], []],
            [[]],
            [[]],
            [],
            [],
            [],
            [[]],
        )
        assert await store.standings([("s1", USER)]) == [None]
        assert await store.credential("s1", b"hash") is None
        assert await store.checkpoint("s1", "k1") is None
        assert await store.checkpoint("s1", None) is None

    # --- Creating

    async def test_create(self, store: Store) -> None:
        """What was created is loaded as it was given."""
        part = creation(
            "s1",
            state=b'{"a":1}',
            access_version=3,
            schema_name="form",
            schema_version=2,
            is_active=False,
            disconnected_at=T0 + 5,
            reconnected_at=T0 + 6,
        )
        assert list(await store.append([part])) == [OK]
        assert await store.session("s1") == part.session
        loaded = await store.load("s1")
        assert loaded is not None
        assert parts_of(loaded) == (part.session, part.state, [], [], [], [])

    async def test_create_with_everything(self, store: Store) -> None:
        """A session may be created with its commits, clients and the rest, in one part."""
        part = creation("s1", version=1)
        part.commits = [commit(1)]
        part.clients = [advance(0, 1)]
        part.devices = [device("d1")]
        part.activity = [activity(1)]
        assert list(await store.append([part])) == [OK]
        assert list(await store.log("s1", first=0)) == part.commits
        assert await store.client("s1", "c1") == part.clients[0].client
        assert list(await store.devices("s1")) == part.devices

    async def test_create_exists(self, store: Store) -> None:
        """A taken id is EXISTS, and the session that has it stays as it was."""
        await store.append([creation("s1", state=b'{"first":1}')])
        before = await everything(store, "s1")
        outcomes = await store.append(
            [creation("s2"), creation("s1", user_id="bob"), creation("s3")]
        )
        assert list(outcomes) == [OK, EXISTS, OK]
        assert await everything(store, "s1") == before
        assert await store.session("s2") == row("s2")
        assert await store.session("s3") == row("s3")

    @pytest.mark.parametrize(
        "part",
        [
            pytest.param(replace(creation("s1"), session=None), id="no-row"),
            pytest.param(replace(creation("s1"), state=None), id="no-state"),
            pytest.param(replace(creation("s1"), session=row("s2")), id="the-row-of-another"),
            pytest.param(replace(erasure("s1", 0), expected=None), id="erase-unseen"),
        ],
    )
    async def test_create_malformed(self, store: Store, part: Append) -> None:
        """A part without meaning is refused with its whole batch."""
        with pytest.raises(StoreRefused):
            await store.append([creation("s0"), part])
        assert await store.session("s0") is None
        assert await store.session("s1") is None

    # --- Appending

    async def test_append_nothing(self, store: Store) -> None:
        """An empty batch is nothing."""
        assert list(await store.append([])) == []

    async def test_append_everything(self, store: Store) -> None:
        """Law 2: a part takes effect whole."""
        await store.append([creation("s1")])
        part = change(
            "s1",
            0,
            count=3,
            after={"last_activity": T0 + 99, "disconnected_at": T0 + 98, "is_active": False},
            refusals=[refusal(4), refusal(1, client_id="c2")],
            clients=[advance(0, 4), advance(0, 1, client_id="c2", device_id="d2")],
            conflicts=[conflict("k1", 2), conflict("k2", 3, status="open")],
            devices=[device("d1", name="Phone", info=b'{"os":1}', is_primary=True), device("d2")],
            activity=[activity(1), activity(2)],
            state=SavedState(version=2, state=b'{"at":2}', index=b"[2]"),
        )
        assert list(await store.append([part])) == [OK]
        loaded = await store.load("s1")
        assert loaded is not None
        assert parts_of(loaded) == (
            part.session,
            part.state,
            part.commits[2:],
            part.conflicts,
            part.devices,
            [],
        )
        assert list(await store.log("s1", first=1)) == part.commits
        assert await store.client("s1", "c1") == part.clients[0].client
        assert await store.client("s1", "c2") == part.clients[1].client
        assert list(await store.refusals("s1", "c1", 0)) == [refusal(4)]
        assert (await store.activity("s1", None, 10)).items[::-1] == part.activity

    async def test_append_leaves_the_rest(self, store: Store) -> None:
        """What is empty or None in a part is left as it is."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, devices=[device("d1")], conflicts=[conflict("k1", 1)])])
        before = await everything(store, "s1")
        part = change("s1", 1, count=0, session=None, activity=[activity(1)])
        assert list(await store.append([part])) == [OK]
        after = await everything(store, "s1")
        assert [before[n] == after[n] for n in range(11)] == [n != 6 for n in range(11)]

    async def test_append_order(self, store: Store) -> None:
        """Outcomes stand in the order of the batch, whatever it holds."""
        names = ["z", "a", "m", "b", "y"]
        await store.append([creation(name) for name in names])
        batch = [
            change("z", 0),
            change("a", 5),
            creation("m"),
            erasure("b", 0),
            creation("new"),
            change("y", 0, clients=[advance(3, 4)]),
            change("unknown", 0),
        ]
        outcomes = list(await store.append(batch))
        assert outcomes == [OK, STALE, EXISTS, OK, OK, STALE, STALE]
        versions = [await store.session(name) for name in ("z", "a", "m", "new", "y", "unknown")]
        assert versions == [row("z", 1), row("a"), row("m"), row("new"), row("y"), None]
        assert isinstance(await store.session("b"), Tombstone)

    async def test_append_large_batch(self, store: Store) -> None:
        """Law 1: one batch over many sessions, with a stale one in its midst."""
        names = [f"s{number:03}" for number in range(300)]
        await store.append([creation(name) for name in names])
        batch = [change(name, 1 if name == "s150" else 0, count=2) for name in names]
        outcomes = list(await store.append(batch))
        assert outcomes == [STALE if name == "s150" else OK for name in names]
        for name in ("s000", "s149", "s151", "s299"):
            assert len(await store.log(name, first=1)) == 2
        assert list(await store.log("s150", first=1)) == []

    @pytest.mark.parametrize("part", stales())
    async def test_append_stale(self, store: Store, part: Append) -> None:
        """Law 2: a part that does not fit does nothing, and its neighbours stand."""
        await store.append([creation("s1"), creation("n1"), creation("n2")])
        await store.append([change("s1", 0)])
        before = await everything(store, "s1")
        part = replace(
            part,
            conflicts=[conflict("k1", 2)],
            devices=[device("d1")],
            idempotency=answer("k1"),
        )
        outcomes = await store.append([change("n1", 0), part, change("n2", 0)])
        assert list(outcomes) == [OK, STALE, OK]
        assert await everything(store, "s1") == before
        assert await store.idempotent(USER, "POST /session", "k1") is None
        for name in ("n1", "n2"):
            assert list(await store.log(name, first=1)) == [commit(1)]
            assert await store.client(name, "c1") == advance(0, 1).client
        # And what fits goes on from there.
        assert list(await store.append([change("s1", 1)])) == [OK]

    async def test_append_twice(self, store: Store) -> None:
        """The same part again is STALE: that is how a lost answer does no harm."""
        await store.append([creation("s1")])
        assert list(await store.append([change("s1", 0)])) == [OK]
        before = await everything(store, "s1")
        assert list(await store.append([change("s1", 0)])) == [STALE]
        assert await everything(store, "s1") == before

    async def test_append_one_session_twice(self, store: Store) -> None:
        """A session has one part in a batch: two are refused, and nothing is done."""
        await store.append([creation("s1"), creation("s2")])
        with pytest.raises(StoreRefused):
            await store.append([change("s2", 0), change("s1", 0), change("s1", 1)])
        assert await store.session("s1") == row("s1")
        assert await store.session("s2") == row("s2")

    async def test_append_refused(self, store: Store) -> None:
        """Law 3: StoreRefused means that nothing of the batch was done, and the store goes on."""
        await store.append([creation("s1"), creation("n1")])
        await store.append([change("s1", 0)])
        before = await everything(store, "s1")
        poisoned = change("s1", 1, commits=[commit(1)])
        with pytest.raises(StoreRefused):
            await store.append([change("n1", 0), poisoned])
        assert await everything(store, "s1") == before
        assert await store.session("n1") == row("n1")
        assert list(await store.append([change("n1", 0)])) == [OK]
        assert list(await store.append([change("s1", 1)])) == [OK]

    async def test_append_race(self, store: Store) -> None:
        """Of two appends at once to one session one is OK and the other STALE."""
        await store.append([creation("s1"), creation("n1"), creation("n2")])
        for version in range(10):
            one, other = await asyncio.gather(
                store.append([change("s1", version), change("n1", version)]),
                store.append([change("n2", version), change("s1", version)]),
            )
            assert {one[0], other[1]} == {OK, STALE}
            assert (one[1], other[0]) == (OK, OK)
        found = await store.log("s1", first=1)
        assert [commit.version for commit in found] == list(range(1, 11))

    async def test_append_cancelled(self, store: Store) -> None:
        """An append whose caller is cancelled is done whole or not at all, and harms nobody."""
        await store.append([creation("s1")])
        for version in range(5):
            task = asyncio.ensure_future(store.append([change("s1", version, count=1)]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # Either it was done, or this does it: once the cancelled one lets go of the session.
            while (await store.versions(["s1"]))["s1"][1] == version:
                assert list(await store.append([change("s1", version)])) in ([OK], [STALE])
        found = await store.log("s1", first=1)
        assert [commit.version for commit in found] == [1, 2, 3, 4, 5]

    async def test_reads_from_one_moment(self, store: Store) -> None:
        """Law 4: a load never sees half of an append."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, count=3, devices=[device("d1", last_activity=T0 + 3)])])

        async def write() -> None:
            for version in range(3, 90, 3):
                seen = [device("d1", last_activity=T0 + version + 3)]
                await store.append([change("s1", version, count=3, devices=seen)])

        async def read() -> None:
            while not writing.done():
                loaded = await store.load("s1")
                assert loaded is not None
                version = loaded.session.version
                assert [one.version for one in loaded.tail] == list(range(1, version + 1))
                assert [one.last_activity for one in loaded.devices] == [T0 + version]
                assert version % 3 == 0

        writing = asyncio.ensure_future(write())
        await asyncio.gather(writing, read(), read())

    # --- Bytes

    @pytest.mark.parametrize("value", [*AWKWARD, MIB], ids=lambda value: f"{len(value)}-bytes")
    async def test_bytes(self, store: Store, value: bytes) -> None:
        """Law 5: bytes come back as they went in."""
        await store.append([creation("s1", state=value)])
        part = change(
            "s1",
            0,
            commits=[replace(commit(1), body=value, writes=value)],
            refusals=[replace(refusal(2), body=value)],
            conflicts=[replace(conflict("k1", 1), body=value)],
            devices=[device("d1", info=value)],
            activity=[replace(activity(1), data=value)],
            idempotency=replace(answer("k1", body=value), request=value, headers=value),
        )
        await store.append([part])
        loaded = await store.load("s1")
        assert loaded is not None
        assert loaded.saved.state == value
        assert list(loaded.tail) == part.commits
        assert list(loaded.conflicts) == part.conflicts
        assert list(loaded.devices) == part.devices
        assert list(await store.refusals("s1", "c1", 0)) == part.refusals
        assert list((await store.activity("s1", None, 10)).items) == part.activity
        assert await store.idempotent(USER, "POST /session", "k1") == part.idempotency
        saved = SavedState(version=1, state=b"{}", index=value)
        await store.append([change("s1", 1, count=0, state=saved)])
        loaded = await store.load("s1")
        assert loaded is not None
        assert loaded.saved == saved

    async def test_text(self, store: Store) -> None:
        """Names and ids of people come back as they went in, and are told apart by every bit."""
        users = ["ann", "Ann", "ann ", "änn", "a\u0308nn", "' OR 1=1 --", "%", "\U0001f600" * 60]
        users += ["a\u0000nn", "a\u0001nn", "a\u0001\u0001nn", "\u0000\u0001\u0002", "\u0001\u0000"]
        await store.append(
            [creation(f"s{number}", user_id=user) for number, user in enumerate(users)]
        )
        for number, user in enumerate(users):
            assert (await store.sessions(user, None, 10)).items == [row(f"s{number}", user_id=user)]
        names = ["Ann\u2019s \U0001f4f1 \n'\"", "", "\u0000", "\u0001"]
        named = [
            device(f"d{number}", name=name, given_name=names[-number])
            for number, name in enumerate(names)
        ]
        await store.append([change("s0", 0, devices=named)])
        assert list(await store.devices("s0")) == named

    async def test_large_numbers(self, store: Store) -> None:
        """Versions and times are integers of 64 bits; one may ask for greater ones."""
        far = 2**53
        await store.append([creation("s1", version=far, created_at=2**62, last_activity=2**62)])
        found = await store.session("s1")
        assert found == row("s1", far, created_at=2**62, last_activity=2**62)
        assert list(await store.log("s1", first=2**70)) == []
        assert list(await store.log("s1", first=0, last=2**70)) == []

    # --- Loading

    async def test_load_newest_state(self, store: Store) -> None:
        """A load gives the newest saved state and the log after it, and no more."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, count=4)])
        for version in (2, 4):
            saved = SavedState(version=version, state=b'{"at":%d}' % version, index=b"[]")
            before = 4 if version == 2 else 5
            await store.append([change("s1", before, state=saved)])
        loaded = await store.load("s1")
        assert loaded is not None
        assert loaded.saved.state == b'{"at":4}'
        assert list(loaded.tail) == [commit(5), commit(6)]

    async def test_load_many(self, store: Store) -> None:
        """Each is what loading it alone gives; what weighs too much is left for another time."""
        await store.append([creation(f"s{n}", state=b"x" * 1_000 * n) for n in range(1, 6)])
        await store.append(
            [change("s2", 0, count=3, conflicts=[conflict("f1", 3)]), change("s3", 0)]
        )
        await store.append(
            [
                access("s1", 0, 0, members=[member("bob")]),
                change("s5", 0, devices=[device("d1", name="\x00"), device("d2")], count=0),
            ]
        )
        asked = ["s3", "none", "s1", "s2", "s5"]
        found = await store.load_many(asked, 1 << 20)
        assert found == {name: await store.load(name) for name in asked}
        assert found["none"] is None
        assert found["s5"] is not None
        assert len(found["s5"].devices) == 2
        assert found["s2"] is not None
        assert len(found["s2"].tail) == 3
        assert await store.load_many([], 1) == {}
        assert list(await store.load_many(asked, 0)) == ["s3"]
        assert list(await store.load_many(asked, 3_500)) == ["s3", "none", "s1"]
        assert list(await store.load_many(["none", "gone", "s1", "s5"], 0)) == [
            "none",
            "gone",
            "s1",
        ]

    async def test_load_at(self, store: Store) -> None:
        """A version of the past is the newest state at or below it and the log up to it."""
        await store.append([creation("s1")])
        await store.append(
            [change("s1", 0, count=3, state=SavedState(version=2, state=b"2", index=b"i"))]
        )
        for version, saved, tail in [
            (0, 0, []),
            (1, 0, [1]),
            (2, 2, []),
            (3, 2, [3]),
            (9, 2, [3]),
        ]:
            loaded = await store.load_at("s1", version)
            assert loaded is not None
            assert loaded.session == row("s1", 3)
            assert loaded.saved.version == saved
            assert list(loaded.tail) == [commit(number) for number in tail]

    async def test_load_at_below_every_state(self, store: Store) -> None:
        """Below the oldest saved state nothing can be loaded."""
        await store.append([creation("s1", version=5)])
        assert await store.load_at("s1", 4) is None
        assert await store.load_at("s1", -1) is None

    async def test_load_state_replaced(self, store: Store) -> None:
        """A state saved again at its version replaces the earlier one."""
        await store.append([creation("s1", state=b'{"old":1}')])
        saved = SavedState(version=0, state=b'{"new":1}', index=b"[1]")
        await store.append([change("s1", 0, count=0, state=saved)])
        loaded = await store.load("s1")
        assert loaded is not None
        assert loaded.saved == saved

    async def test_load_unresolved_conflicts(self, store: Store) -> None:
        """A load gives the conflicts that are ``auto`` or ``open``."""
        found = [
            conflict("k1", 1, status="auto"),
            conflict("k2", 1, status="open"),
            conflict("k3", 1, status="resolved"),
        ]
        await store.append([creation("s1")])
        await store.append([change("s1", 0, conflicts=found)])
        loaded = await store.load("s1")
        assert loaded is not None
        assert sorted(one.conflict_id for one in loaded.conflicts) == ["k1", "k2"]

    # --- The log

    async def test_log_bounds(self, store: Store) -> None:
        """Both bounds are included; limit and weight end it early."""
        await store.append([creation("s1"), creation("s2")])
        await store.append([change("s1", 0, count=12), change("s2", 0, count=1)])

        async def versions(**bounds: Any) -> list[int]:
            return [commit.version for commit in await store.log("s1", **bounds)]

        assert await versions(first=1) == list(range(1, 13))
        assert await versions(first=-5) == list(range(1, 13))
        assert await versions(first=3, last=5) == [3, 4, 5]
        assert await versions(first=5, last=5) == [5]
        assert await versions(first=6, last=5) == []
        assert await versions(first=13) == []
        assert await versions(first=11, last=99) == [11, 12]
        assert await versions(first=2, limit=3) == [2, 3, 4]
        assert await versions(first=2, limit=0) == []
        weight = len(commit(1).body)
        assert await versions(first=1, max_bytes=0) == [1]
        assert await versions(first=1, max_bytes=weight - 1) == [1]
        assert await versions(first=1, max_bytes=weight) == [1, 2]
        assert await versions(first=1, max_bytes=3 * weight) == [1, 2, 3, 4]
        assert await versions(first=1, max_bytes=10**9) == list(range(1, 13))
        assert await versions(first=1, max_bytes=3 * weight, limit=2) == [1, 2]
        assert await versions(first=12, max_bytes=0) == [12]

    async def test_log_of_a_client(self, store: Store) -> None:
        """The log can be read for one client; the server's commits are of none."""
        authors = ["c1", "c2", None, "c1", "c2", "c1"]
        numbers = [1, 1, None, 2, 2, 3]
        commits = [
            commit(version, client_id=author, seq=seq)
            for version, (author, seq) in enumerate(zip(authors, numbers, strict=True), start=1)
        ]
        await store.append([creation("s1")])
        steps = [advance(0, 3), advance(0, 2, client_id="c2")]
        await store.append([change("s1", 0, commits=commits, after={"version": 6}, clients=steps)])

        async def versions(**bounds: Any) -> list[int]:
            return [commit.version for commit in await store.log("s1", **bounds)]

        assert list(await store.log("s1", first=1)) == commits
        assert await versions(first=1, client_id="c1") == [1, 4, 6]
        assert await versions(first=2, last=5, client_id="c1") == [4]
        assert await versions(first=1, client_id="c1", limit=2) == [1, 4]
        assert await versions(first=1, client_id="c2") == [2, 5]
        assert await versions(first=1, client_id="c2", max_bytes=0) == [2]
        assert await versions(first=1, client_id="c9") == []

    # --- Clients, decisions, refusals

    async def test_client_met(self, store: Store) -> None:
        """A client becomes known without a number, keeps to its user, and starts from 0."""
        await store.append([creation("s1")])
        met = Append(session_id="s1", expected=change("s1", 0).expected, clients=[advance(0, 0)])
        assert list(await store.append([met])) == [OK]
        assert await store.client("s1", "c1") == advance(0, 0).client
        assert list(await store.append([met])) == [OK]
        stranger = replace(met, clients=[advance(0, 0, user_id="bob")])
        assert list(await store.append([stranger])) == [STALE]
        starting = change("s1", 0, clients=[advance(0, 1, user_id="bob")])
        assert list(await store.append([starting])) == [STALE]
        assert await store.client("s1", "c1") == advance(0, 0).client
        assert list(await store.append([change("s1", 0)])) == [OK]
        assert await store.client("s1", "c1") == advance(0, 1).client

    async def test_client_met_again(self, store: Store) -> None:
        """A client that is known already is left as it is."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, count=2)])
        again = change("s1", 2, count=0, clients=[advance(0, 0, device_id="d9")])
        assert list(await store.append([again])) == [OK]
        assert await store.client("s1", "c1") == advance(0, 2).client

    async def test_client_steps(self, store: Store) -> None:
        """One part may make a client known and take it on by several steps."""
        await store.append([creation("s1")])
        steps = [advance(0, 0), advance(0, 1), advance(1, 2)]
        assert list(await store.append([change("s1", 0, count=2, clients=steps)])) == [OK]
        assert await store.client("s1", "c1") == advance(1, 2).client

    async def test_clients_of_two_sessions(self, store: Store) -> None:
        """One id in two sessions is two clients."""
        await store.append([creation("s1"), creation("s2")])
        theirs = change("s2", 0, clients=[advance(0, 1, user_id="bob")])
        assert list(await store.append([change("s1", 0), theirs])) == [OK, OK]
        assert await store.client("s1", "c1") == advance(0, 1).client
        assert await store.client("s2", "c1") == advance(0, 1, user_id="bob").client

    async def test_decision(self, store: Store) -> None:
        """Of each number one can learn what became of it."""
        await store.append([creation("s1", version=10)])
        part = change(
            "s1",
            10,
            after={"version": 14},
            commits=[
                commit(11, seq=1),
                commit(12, client_id=None),
                commit(13, client_id="c2", seq=1),
                commit(14, seq=4),
            ],
            refusals=[refusal(2), refusal(3), refusal(2, client_id="c2")],
            clients=[advance(0, 4), advance(0, 2, client_id="c2")],
        )
        assert list(await store.append([part])) == [OK]
        committed = Decision(seq=1, client_at=T0 - 11, refusal=None)
        assert await store.decision("s1", "c1", 1) == committed
        for seq in (2, 3):
            refused = Decision(seq=seq, client_at=T0 - seq, refusal=refusal(seq).body)
            assert await store.decision("s1", "c1", seq) == refused
        last = Decision(seq=4, client_at=T0 - 14, refusal=None)
        assert await store.decision("s1", "c1", 4) == last
        theirs = Decision(seq=1, client_at=T0 - 13, refusal=None)
        assert await store.decision("s1", "c2", 1) == theirs
        for seq in (0, 5, -1, 2**70):
            assert await store.decision("s1", "c1", seq) is None
        assert await store.decision("s1", "c9", 1) is None
        assert await store.decision("s2", "c1", 1) is None

    async def test_decision_after_numbers_without_one(self, store: Store) -> None:
        """A decision is found, too, where a client's numbers ran ahead of what is in the log."""
        await store.append([creation("s1")])
        steps = [advance(0, 500)]
        await store.append([change("s1", 0, commits=[commit(1, seq=500)], clients=steps)])
        found = Decision(seq=500, client_at=T0 - 1, refusal=None)
        assert await store.decision("s1", "c1", 500) == found
        assert await store.decision("s1", "c1", 499) is None

    async def test_refusals(self, store: Store) -> None:
        """A client's refusals above a number, in order, without other clients' ones."""
        await store.append([creation("s1"), creation("s2")])
        mine = [refusal(seq) for seq in (10, 2, 9)]
        part = change(
            "s1",
            0,
            count=0,
            refusals=[*mine, refusal(3, client_id="c2")],
            clients=[advance(0, 10), advance(0, 3, client_id="c2")],
        )
        await store.append([part])
        assert list(await store.refusals("s1", "c1", 0)) == [refusal(2), refusal(9), refusal(10)]
        assert list(await store.refusals("s1", "c1", 2)) == [refusal(9), refusal(10)]
        assert list(await store.refusals("s1", "c1", 10)) == []
        assert list(await store.refusals("s2", "c1", 0)) == []

    async def test_clients(self, store: Store) -> None:
        """Many at once, in the order in which they were asked for."""
        await store.append([creation("s1"), creation("s2")])
        refused = [refusal(2), refusal(3), refusal(1, client_id="c2")]
        steps = [advance(0, 3), advance(0, 1, client_id="c2")]
        await store.append([change("s1", 0, refusals=refused, clients=steps), change("s2", 0)])
        asked = [
            ("s1", "c1", 2),
            ("s2", "c1", 0),
            ("s1", "none", 0),
            ("s1", "c1", 0),
            ("no", "c1", 0),
        ]
        found = await store.clients([*asked, ("s1", "c2", 0)])
        one, two = await store.client("s1", "c1"), await store.client("s1", "c2")
        assert found == [
            (one, [refusal(3)]),
            (await store.client("s2", "c1"), []),
            (None, []),
            (one, [refusal(2), refusal(3)]),
            (None, []),
            (two, [refusal(1, client_id="c2")]),
        ]
        assert await store.clients([]) == []

    async def test_since(self, store: Store) -> None:
        """Many at once, in the order in which they were asked for."""
        await store.append([creation("s1"), creation("s2"), creation("s3")])
        await store.append([change("s1", 0, count=3), change("s2", 0)])
        await store.append([erasure("s3", 0)])
        asked = [("s2", 0), ("s1", 1), ("no", 0), ("s1", 3), ("s3", 0), ("s1", 0), ("s2", 9)]
        one, two = await store.session("s1"), await store.session("s2")
        commits = list(await store.log("s1", first=1))
        found = [one and (one[0], list(one[1])) for one in await store.since(asked)]
        assert found == [
            (two, list(await store.log("s2", first=1))),
            (one, commits[1:]),
            None,
            (one, []),
            None,
            (one, commits),
            (two, []),
        ]
        assert await store.since([]) == []

    async def test_refusal_twice(self, store: Store) -> None:
        """A number is decided once: a second refusal of it is refused."""
        await store.append([creation("s1")])
        first = change("s1", 0, count=0, refusals=[refusal(1)], clients=[advance(0, 1)])
        await store.append([first])
        second = change("s1", 0, count=0, refusals=[refusal(1)], clients=[advance(1, 2)])
        with pytest.raises(StoreRefused):
            await store.append([second])
        assert await store.client("s1", "c1") == advance(0, 1).client

    # --- What is replaced by its id

    async def test_conflict_replaced(self, store: Store) -> None:
        """A conflict written again is the later one."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, conflicts=[conflict("k1", 1, status="open")])])
        settled = replace(conflict("k1", 2, status="resolved"), body=b'{"kept":1}', path="/b")
        await store.append([change("s1", 1, conflicts=[settled])])
        assert list((await store.conflicts("s1", None, None, 10)).items) == [settled]
        assert list((await store.conflicts("s1", "open", None, 10)).items) == []

    async def test_device_replaced(self, store: Store) -> None:
        """A device written again is the later one, but as old as it was."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, devices=[device("d1", name="old")])])
        later = device(
            "d1",
            user_id="bob",
            name="new",
            info=b'{"n":2}',
            is_primary=True,
            created_at=T0 + 50,
            last_activity=T0 + 60,
            given_name="given",
            revoked_at=T0 + 55,
            version=7,
        )
        await store.append([change("s1", 1, devices=[later])])
        assert list(await store.devices("s1")) == [replace(later, created_at=T0)]

    async def test_devices_oldest_first(self, store: Store) -> None:
        """Devices stand in the order in which they came to the session."""
        given = [device(name, created_at=T0 + age) for name, age in [("a", 3), ("b", 1), ("c", 2)]]
        await store.append([creation("s1"), creation("s2")])
        await store.append([change("s1", 0, devices=given), change("s2", 0, devices=[device("x")])])
        assert [found.device_id for found in await store.devices("s1")] == ["b", "c", "a"]

    # --- Lists

    async def test_sessions_pages(self, store: Store) -> None:
        """A user's sessions come newest activity first, each once, equal times included."""
        ages = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
        await store.append(
            [creation(f"s.{number}", last_activity=T0 + age) for number, age in enumerate(ages)]
        )
        await store.append([creation("theirs", user_id="bob")])
        for limit in (1, 2, 5, 11, 100):
            found = await pages(store.sessions, USER, limit=limit)
            flat = [one for page in found for one in page]
            assert [one.last_activity - T0 for one in flat] == sorted(ages, reverse=True)
            assert len({one.session_id for one in flat}) == len(ages)
            assert all(len(page) == limit for page in found[:-1])
            assert len(found[-1]) in range(1, limit + 1)
        assert [one.session_id for one in (await store.sessions("bob", None, 9)).items] == [
            "theirs"
        ]
        assert await store.sessions("nobody", None, 10) == Page(items=[], next=None)

    async def test_search_by_name_and_time(self, store: Store) -> None:
        """All users' sessions come newest activity first, by whatever they are looked for."""
        ages = {"a1": 3, "a2": 1, "b1": 4, "b2": 1, "c": 5}
        for name, age in ages.items():
            fields: dict[str, Any] = {"user_id": f"user {name[0]}", "last_activity": T0 + age}
            if name == "c":
                fields |= {"user_id": AWKWARD_USER, "schema_name": "form", "schema_version": 1}
            await store.append([creation(name, **fields)])
        member = MemberRecord(user_id=AWKWARD_USER, role="viewer")
        fields = {"user_id": "user a", "last_activity": T0 + 1, "access_version": 1}
        await store.append([change("a2", 0, count=0, members=[member], after=fields)])

        async def found(**fields: Any) -> list[str]:
            whole = [
                one.session_id for one in (await store.search(Search(**fields), None, 9)).items
            ]
            for limit in (1, 2):
                some = await pages(partial(store.search, Search(**fields)), limit=limit)
                assert [one.session_id for page in some for one in page] == whole
                assert all(len(page) == limit for page in some[:-1])
            return whole

        assert await found() == ["c", "b1", "a1", "b2", "a2"]
        assert await found(text="a") == ["a1", "a2"]
        assert await found(text="user b") == ["b1", "b2"]
        assert await found(text=AWKWARD_USER) == ["c", "a2"]
        assert await found(text=AWKWARD_USER, schema_name="form") == ["c"]
        assert await found(text="User") == []
        assert await found(text="%") == []
        assert await found(active_since=T0 + 3) == ["c", "b1", "a1"]
        assert await found(active_since=T0 + 1, active_until=T0 + 3) == ["a1", "b2", "a2"]
        assert await found(schema_name="none") == []
        assert await found(within=["a1", "c", "no such"]) == ["c", "a1"]
        assert await found(within=[]) == []
        assert await found(without=["c", "b2"], text="user") == ["b1", "a1", "a2"]

    async def test_commit_slots(self, store: Store) -> None:
        """Commits are counted by slot and client, the server's own among them."""
        commits = [commit(n, client_id=who) for n, who in enumerate("abba", start=1)]
        commits.append(commit(5, client_id=None))
        steps = [advance(0, 4, client_id=who) for who in "ab"]
        await store.append([creation("s1")])
        part = change("s1", 0, commits=commits, clients=steps, after={"version": 5})
        assert list(await store.append([part])) == [OK]

        def slot(number: int, who: str | None, *versions: int) -> CommitSlot:
            first, last = versions[0], versions[-1]
            return CommitSlot(
                slot=number,
                client_id=who,
                commits=len(versions),
                bytes=sum(len(commits[n - 1].body) for n in versions),
                first_version=first,
                last_version=last,
                first_at=T0 + first,
                last_at=T0 + last,
            )

        assert list(await store.commit_slots("s1", 1, 5, 2)) == [
            *(slot(0, "a", 1), slot(0, "b", 2), slot(1, "a", 4), slot(1, "b", 3), slot(2, None, 5))
        ]
        assert list(await store.commit_slots("s1", 2, 4, 9)) == [
            slot(0, "a", 4),
            slot(0, "b", 2, 3),
        ]
        assert list(await store.commit_slots("s2", 1, 5, 2)) == []
        assert [one.client_id for one in await store.session_clients("s1")] == ["a", "b"]
        assert list(await store.session_clients("s2")) == []

    async def test_refusals_of_all_clients(self, store: Store) -> None:
        """They come newest change first, page by page."""
        theirs = [refusal(n, client_id=who) for n in (1, 2) for who in ("c.1", "b")]
        steps = [advance(0, 2, client_id=who) for who in ("c.1", "b")]
        await store.append([creation("s1")])
        await store.append([change("s1", 0, count=0, refusals=theirs, clients=steps)])
        for limit in (1, 3, 4, 9):
            found = await pages(store.session_refusals, "s1", limit=limit)
            assert [one for page in found for one in page] == theirs
            assert len(found[0]) == min(limit, 4)
        assert await store.session_refusals("s2", None, 9) == Page(items=[], next=None)
        for mark in ("", "1", "1.b", "1.b.x", "1..1"):
            with pytest.raises(BadRequest):
                await store.session_refusals("s1", mark, 9)

    async def test_versions(self, store: Store) -> None:
        """Where sessions stand is read for all at once; what is not there is left out."""
        await store.append([creation(name) for name in ("s1", "s2", "gone", "other")])
        await store.append([change("s2", 0, count=3), erasure("gone", 0)])
        await store.append([change("s1", 0, count=0, after={"epoch": "epoch-2"})])
        found = await store.versions(["s1", "s2", "gone", "never"])
        assert dict(found) == {"s1": ("epoch-2", 0, 0), "s2": (EPOCH, 3, 0)}
        assert dict(await store.versions([])) == {}
        many = [f"n{number}" for number in range(40_000)]
        assert dict(await store.versions([*many, "s2"])) == {"s2": (EPOCH, 3, 0)}
        await store.append([access("s2", 3, 0, members=[member("bob")])])
        assert dict(await store.versions(["s2"])) == {"s2": (EPOCH, 3, 1)}

    async def test_sessions_follow_their_rows(self, store: Store) -> None:
        """Activity moves a session up; a new owner has it in his list."""
        await store.append([creation("s1"), creation("s2", last_activity=T0 + 1)])
        await store.append([change("s1", 0, after={"last_activity": T0 + 2})])
        found = (await store.sessions(USER, None, 10)).items
        assert [one.session_id for one in found] == ["s1", "s2"]
        await store.append([change("s2", 0, after={"user_id": "bob"})])
        assert [one.session_id for one in (await store.sessions(USER, None, 10)).items] == ["s1"]
        assert [one.session_id for one in (await store.sessions("bob", None, 10)).items] == ["s2"]

    async def test_conflicts_pages(self, store: Store) -> None:
        """Conflicts come newest first, all or of one status, each once."""
        given = [
            conflict(f"k.{number}", 1 + number // 3, status="open" if number % 2 else "auto")
            for number in range(10)
        ]
        await store.append([creation("s1"), creation("s2")])
        await store.append(
            [
                change("s1", 0, count=4, conflicts=given),
                change("s2", 0, conflicts=[conflict("x", 1)]),
            ]
        )
        for status, wanted in [(None, given), ("open", given[1::2]), ("auto", given[::2])]:
            for limit in (1, 3, 100):
                found = await pages(store.conflicts, "s1", status, limit=limit)
                flat = [one for page in found for one in page]
                assert [one.version for one in flat] == sorted(
                    (one.version for one in wanted), reverse=True
                )
                assert {one.conflict_id for one in flat} == {one.conflict_id for one in wanted}
                assert len(flat) == len(wanted)
        assert await store.conflicts("s1", "resolved", None, 10) == Page(items=[], next=None)

    async def test_checkpoints(self, store: Store) -> None:
        """Marks come newest version first, each once; one whose id is there stays as it was."""
        given = [
            checkpoint("m0", 0, kind="automatic"),
            checkpoint("m1", 1, name="\x00é", step=b'"s"', data=b'{"a":"\\u0000"}'),
            checkpoint("m2", 1),
            checkpoint("m3", 3, kind="before_restore"),
        ]
        await store.append([creation("s1"), creation("s2")])
        assert list(await store.append([change("s1", 0, count=3, checkpoints=given[:2])])) == [OK]
        later = [*given[2:], checkpoint("m1", 3), checkpoint("m2", 9)]
        stale = change("s1", 0, checkpoints=[checkpoint("m4", 3)])
        assert list(await store.append([stale])) == [STALE]
        part = change("s1", 3, count=0, session=None, checkpoints=later)
        assert list(await store.append([part, creation("s3")])) == [OK, OK]
        for limit in (1, 3, 100):
            found = await pages(store.checkpoints, "s1", limit=limit)
            assert [one for page in found for one in page] == given[::-1]
        assert await store.checkpoint("s1", "m1") == given[1]
        assert await store.checkpoint("s1", "m4") is None
        assert await store.checkpoint("s2", "m1") is None
        assert await store.checkpoint("s1", None) == given[2]

    async def test_compact(self, store: Store) -> None:
        """Law 8: what is at the floor, above it or kept can be read, and nothing else."""
        await store.append([creation("s1"), creation("s2")])
        marks = [checkpoint("m1", 2), checkpoint("m2", 3)]
        await store.append(
            [
                change("s1", 0, count=6, checkpoints=marks),
                change("s2", 0, count=3, checkpoints=marks),
            ]
        )
        other = await everything(store, "s2")
        states = [SavedState(version=n, state=b"{%d}" % n, index=b"[]") for n in (2, 3, 4)]
        compaction = Compaction(
            session_id="s1",
            epoch=EPOCH,
            floor=4,
            states=states,
            kept=[2],
            checkpoints_removed=["m2", "nothing"],
        )
        assert not await store.compact(replace(compaction, epoch="another"))
        assert not await store.compact(replace(compaction, session_id="nowhere"))
        assert list(await store.saved_versions("s1")) == [0]
        for _ in range(2):
            assert await store.compact(compaction)
            assert list(await store.saved_versions("s1")) == [2, 4]
            assert [one.version for one in await store.log("s1", first=0)] == [5, 6]
            assert (await store.checkpoints("s1", None, 9)).items == [marks[0]]
        for version, tail in ((2, []), (4, []), (5, [5]), (6, [5, 6])):
            loaded = await store.load_at("s1", version)
            assert loaded is not None
            assert loaded.saved.version == min(version, 4)
            assert [one.version for one in loaded.tail] == tail
        assert await store.load_at("s1", 1) is None
        assert await everything(store, "s2") == other
        assert list(await store.append([change("s1", 6)])) == [OK]

    async def test_log_times(self, store: Store) -> None:
        """The oldest commits, without what is in them."""
        await store.append([creation("s1"), creation("s2")])
        await store.append([change("s1", 0, count=4), change("s2", 0)])
        times = [(version, commit(version).at) for version in range(1, 5)]
        assert [tuple(one) for one in await store.log_times("s1", 9)] == times
        assert [tuple(one) for one in await store.log_times("s1", 3)] == times[:3]
        assert list(await store.log_times("none", 9)) == []

    async def test_aged_sessions(self, store: Store) -> None:
        """Those with something old, by their ids, so many looked at for each page."""
        names = ["a", "b", "c", "d", "e"]
        await store.append([creation(name) for name in names])
        old = checkpoint("m1", 0, kind="automatic")
        named = checkpoint("m1", 0, kind="named")
        await store.append(
            [
                change("b", 0, count=2),
                change("c", 0, count=0, checkpoints=[old]),
                change("d", 0, count=0, checkpoints=[named]),
                change("e", 0, count=1),
            ]
        )
        at = commit(1).at
        assert await store.aged_sessions(at + 1, old.created_at + 1, "", 9) == (
            ["b", "c", "e"],
            None,
        )
        assert await store.aged_sessions(at, old.created_at, "", 9) == ([], None)
        assert await store.aged_sessions(at + 1, old.created_at, "", 3) == (["b"], "c")
        assert await store.aged_sessions(at + 1, old.created_at, "c", 3) == (["e"], None)
        assert await store.aged_sessions(at, old.created_at + 1, "", 3) == (["c"], "c")

    async def test_search(self, store: Store) -> None:
        """Sessions of everybody, by what is asked for, newest activity first, page by page."""
        parts = [
            creation("a-1", user_id="ann", last_activity=T0 + 1),
            creation("a-2", user_id="bob", last_activity=T0 + 3, schema_name="order"),
            creation("a:3", user_id="bob", last_activity=T0 + 2, access_version=1),
            creation("b~4", user_id="ann", last_activity=T0 + 2, schema_name="note"),
        ]
        parts[2].members = [MemberRecord(user_id="ann", role="viewer")]
        await store.append(parts)

        async def found(**asked: Any) -> list[str]:
            names: list[str] = []
            after: str | None = None
            while True:
                page = await store.search(Search(**asked), after, 2)
                assert len(page.items) <= 2
                names += [one.session_id for one in page.items]
                if page.next is None:
                    return names
                after = page.next

        assert await found() == ["a-2", "b~4", "a:3", "a-1"]
        assert (await store.search(Search(), None, 1)).items == [parts[1].session]
        assert await found(begins="a") == ["a-2", "a:3", "a-1"]
        assert await found(begins="b~4") == ["b~4"]
        assert await found(begins="a%") == []
        assert await found(user_id="ann") == ["b~4", "a:3", "a-1"]
        assert await found(user_id="bob") == ["a-2", "a:3"]
        assert await found(schema_name="note") == ["b~4"]
        assert await found(active_since=T0 + 2) == ["a-2", "b~4", "a:3"]
        assert await found(user_id="ann", begins="a", active_since=T0 + 2) == ["a:3"]
        assert await found(user_id="nobody") == []
        with pytest.raises(BadRequest):
            await store.search(Search(), "elsewhere", 2)

    async def test_renew_epochs(self, store: Store) -> None:
        """Every session goes on in the new epoch, and what was decided on the old one is stale."""
        await store.append([creation("s1"), creation("s2")])
        await store.append([change("s1", 0)])
        assert await store.renew_epochs("epoch-2") == 2
        first, second = await store.session("s1"), await store.session("s2")
        assert first == row("s1", 1, epoch="epoch-2", epoch_version=1)
        assert second == row("s2", epoch="epoch-2")
        assert list(await store.append([change("s1", 1)])) == [STALE]
        assert [one.version for one in await store.log("s1", first=0)] == [1]

    async def test_lease(self, store: Store) -> None:
        """One owner at a time, and as long as it wants to."""
        assert await store.lease("work", "one", 60_000)
        assert not await store.lease("work", "two", 60_000)
        assert await store.lease("other work", "two", 60_000)
        assert await store.lease("work", "one", 0)
        assert await store.lease("work", "two", 60_000)

    async def test_activity_pages(self, store: Store) -> None:
        """The activity log comes newest first; lines of one moment as they were written."""
        await store.append([creation("s1"), creation("s2")])
        lines = [activity(number // 2) for number in range(5)]
        anonymous = Activity(activity_type="expired", at=T0 + 9)
        await store.append([change("s1", 0, activity=lines[:2]), change("s2", 0, activity=lines)])
        await store.append([change("s1", 1, activity=lines[2:])])
        await store.append([change("s1", 2, activity=[anonymous])])
        wanted = [*lines, anonymous][::-1]
        for limit in (1, 2, 3, 6, 100):
            found = await pages(store.activity, "s1", limit=limit)
            assert [line for page in found for line in page] == wanted
            assert all(len(page) == limit for page in found[:-1])
            assert found[-1]

    async def test_everything(self, store: Store) -> None:
        """All of a session comes at once, in order; nothing of others, and no secret."""
        await store.append([creation("s1"), creation("s2")])
        await store.append([change("s2", 0, activity=[activity(1)], devices=[device("x")])])
        assert await store.everything("none") is None
        part = change(
            "s1",
            0,
            count=3,
            conflicts=[conflict("k2", 2), conflict("k1", 2, status="resolved")],
            devices=[device("d1", given_name="\u0000")],
            activity=[activity(3), activity(1)],
        )
        await store.append([part])
        found = await store.everything("s1")
        loaded = await store.load_at("s1", 0)
        assert found is not None
        assert loaded is not None
        assert (found.session, found.saved) == (await store.session("s1"), loaded.saved)
        assert list(found.commits) == list(await store.log("s1", first=1))
        assert [one.conflict_id for one in found.conflicts] == ["k1", "k2"]
        assert list(found.devices) == part.devices
        assert list(found.activity) == part.activity
        assert list(found.kept) == []
        for client in found.clients:
            assert await store.client("s1", client.client_id) == client

    async def test_everything_that_was_compacted(self, store: Store) -> None:
        """States of marks from before the log come too, and can be brought along."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, count=6, checkpoints=[checkpoint("m1", 2)])])
        states = [SavedState(version=n, state=b"{%d}" % n, index=b"[]") for n in (2, 4)]
        compaction = Compaction(
            session_id="s1", epoch=EPOCH, floor=4, states=states, kept=[2], checkpoints_removed=()
        )
        assert await store.compact(compaction)
        found = await store.everything("s1")
        assert found is not None
        assert (list(found.kept), found.saved) == (states[:1], states[1])
        again = creation("s2")
        again.state, again.kept_states = found.saved, list(found.kept)
        assert list(await store.append([again])) == [OK]
        assert list(await store.saved_versions("s2")) == [2, 4]
        loaded = await store.load_at("s2", 2)
        assert loaded is not None
        assert loaded.saved == states[0]

    async def test_old_activity_is_removed(self, store: Store) -> None:
        """The oldest lines go first, of whatever session, at most as many as are asked for."""
        await store.append([creation("s1"), creation("s2")])
        lines = [activity(number) for number in range(6)]
        await store.append([change("s1", 0, activity=lines[1::2])])
        await store.append([change("s2", 0, activity=lines[::2])])
        assert await store.trim_activity(T0 + 4, 3) == 3
        assert (await store.activity("s1", None, 10)).items == [lines[5], lines[3]]
        assert (await store.activity("s2", None, 10)).items == [lines[4]]
        assert await store.trim_activity(lines[4].at, 3) == 1
        assert await store.trim_activity(lines[4].at, 3) == 0
        assert (await store.activity("s1", None, 10)).items == [lines[5]]
        await store.append([change("s1", 1, activity=[activity(7)])])
        assert (await store.activity("s1", None, 10)).items == [activity(7), lines[5]]

    async def test_pages_while_growing(self, store: Store) -> None:
        """What comes on top between two pages shifts nothing."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, activity=[activity(number) for number in range(4)])])
        first = await store.activity("s1", None, 2)
        await store.append([change("s1", 1, activity=[activity(9)])])
        second = await store.activity("s1", first.next, 2)
        assert [*first.items, *second.items] == [activity(number) for number in (3, 2, 1, 0)]

    @pytest.mark.parametrize(
        "mark", ["", "x", "-", "1", "1.", "1e9.s", "9" * 30 + ".s", "\u0661.s"]
    )
    async def test_pages_bad_mark(self, store: Store, mark: str) -> None:
        """A mark that no page gave is a bad request, never a wrong page."""
        with pytest.raises(BadRequest):
            await store.sessions(USER, mark, 10)
        with pytest.raises(BadRequest):
            await store.search(Search(), mark, 10)
        with pytest.raises(BadRequest):
            await store.conflicts("s1", None, mark, 10)
        if mark != "1":
            with pytest.raises(BadRequest):
                await store.activity("s1", mark, 10)

    # --- Access

    async def test_members(self, store: Store) -> None:
        """Members are put and removed in the transaction of an access version, and loaded."""
        await store.append([creation("s1"), creation("n1")])
        given = [member("zoe", "owner"), member("bob"), member("eve", "viewer")]
        assert list(await store.append([access("s1", 0, 0, members=given)])) == [OK]
        wanted = [given[1], given[2], given[0]]
        assert list(await store.members("s1")) == wanted
        assert list(await store.members("n1")) == []
        loaded = await store.load("s1")
        assert loaded is not None
        assert list(loaded.members) == wanted
        assert loaded.session.access_version == 1
        # Removed first, then put: one that is in both has its new role.
        part = access(
            "s1", 0, 1, members=[member("bob", "viewer")], members_removed=["eve", "bob", "nobody"]
        )
        assert list(await store.append([part])) == [OK]
        assert list(await store.members("s1")) == [member("bob", "viewer"), member("zoe", "owner")]

    async def test_standings(self, store: Store) -> None:
        """Of sessions one learns what somebody is to each."""
        await store.append([creation("s1"), creation("s3", user_id="bob"), creation("gone")])
        await store.append([access("s1", 0, 0, members=[member("bob", "viewer")])])
        await store.append([erasure("gone", 0)])
        found = row("s1", access_version=1)
        others = (USER, "eve", "BOB", "", "b\x00b")
        answers = await store.standings(
            [("s2", "bob"), ("s1", "bob"), ("gone", "bob"), *(("s1", one) for one in others)]
        )
        assert answers == [
            None,
            Standing(session=found, role="viewer"),
            await store.session("gone"),
            *(Standing(session=found, role=None) for _ in others),
        ]
        assert await store.standings([("s3", "bob")]) == [
            Standing(session=row("s3", user_id="bob"), role=None)
        ]

    async def test_credentials(self, store: Store) -> None:
        """Credentials are found by session and hash, until they are removed."""
        token = credential(b"\x00hash", device_id="d1", expires_at=T0 + 9, role="viewer")
        secret = credential(b"other", kind="claim", created_at=T0 + 1, user_id="anonymous")
        first = creation("s1", access_version=1)
        first.credentials = [secret, token]
        assert list(await store.append([first, creation("s2")])) == [OK, OK]
        assert await store.credential("s1", b"\x00hash") == token
        assert await store.credential("s1", b"other") == secret
        assert await store.credential("s1", b"\x00has") is None
        assert await store.credential("s2", b"other") is None
        assert list(await store.credentials("s1")) == [token, secret]
        again = replace(token, user_id="ann", role="owner", expires_at=None)
        part = access("s1", 0, 1, credentials=[again], credentials_removed=[b"other", b"nothing"])
        assert list(await store.append([part])) == [OK]
        assert list(await store.credentials("s1")) == [again]

    async def test_claim(self, store: Store) -> None:
        """A claim moves a session with the clients and devices of one user, and nobody else's."""
        await store.append([creation("s1", user_id="anonymous"), creation("n1")])
        mine = {"user_id": "anonymous"}
        part = change(
            "s1",
            0,
            after=mine,
            clients=[
                advance(0, 1, user_id="anonymous"),
                advance(0, 0, client_id="c2", user_id="bob"),
            ],
            devices=[device("d1", **mine), device("d2", user_id="bob")],
        )
        other = change("n1", 0, clients=[advance(0, 1, user_id="anonymous")])
        assert list(await store.append([part, other])) == [OK, OK]
        members = [member("ann"), member("bob")]
        assert list(await store.append([access("s1", 1, 0, after=mine, members=members)])) == [OK]
        claim = access(
            "s1",
            1,
            1,
            claim=Claim(before="anonymous", after="ann"),
            credentials_removed=[b"claim"],
            activity=[activity(1)],
        )
        assert list(await store.append([claim])) == [OK]
        assert await store.session("s1") == row("s1", 1, access_version=2)
        assert await store.client("s1", "c1") == advance(0, 1).client
        theirs = await store.client("s1", "c2")
        assert theirs is not None
        assert theirs.user_id == "bob"
        assert [one.user_id for one in await store.devices("s1")] == ["ann", "bob"]
        # The owner of record is no member besides, and everybody has it once in their list.
        assert list(await store.members("s1")) == [member("bob")]
        assert [one.session_id for one in (await store.sessions("ann", None, 9)).items] == [
            "s1",
            "n1",
        ]
        assert (await store.sessions("anonymous", None, 9)).items == []
        untouched = await store.client("n1", "c1")
        assert untouched is not None
        assert untouched.user_id == "anonymous"
        # The client goes on where it was.
        more = change("s1", 1, after={"access_version": 2})
        more.expected = Expected(version=1, epoch=EPOCH, access_version=2)
        assert list(await store.append([more])) == [OK]

    async def test_access_is_guarded(self, store: Store) -> None:
        """Law 6: what was decided before the access changed is STALE after it."""
        await store.append([creation("s1")])
        assert list(await store.append([access("s1", 0, 0, members=[member("bob")])])) == [OK]
        before = await everything(store, "s1")
        late = [
            change("s1", 0),
            access("s1", 0, 0, members_removed=["bob"]),
            access("s1", 0, 0, credentials=[credential(b"h")]),
            access("s1", 0, 0, after={"user_id": "eve"}, claim=Claim(before=USER, after="eve")),
            erasure("s1", 0),
        ]
        for part in late:
            assert list(await store.append([part])) == [STALE]
        assert await everything(store, "s1") == before

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"members": [member("bob")]}, id="member"),
            pytest.param({"members_removed": ["bob"]}, id="member-removed"),
            pytest.param({"credentials": [credential(b"h")]}, id="credential"),
            pytest.param({"credentials_removed": [b"h"]}, id="credential-removed"),
            pytest.param({"claim": Claim(before="bob", after=USER)}, id="claim"),
        ],
    )
    async def test_access_raises_its_version(self, store: Store, fields: dict[str, Any]) -> None:
        """Law 6: a part that changes access without raising its version is refused."""
        await store.append([creation("s1")])
        before = await everything(store, "s1")
        for part in (change("s1", 0, **fields), change("s1", 0, session=None, **fields)):
            part.clients = []
            with pytest.raises(StoreRefused, match="access version"):
                await store.append([creation("s2"), part])
        with pytest.raises(StoreRefused, match="access version"):
            await store.append([replace(creation("s2"), **fields)])
        assert await store.session("s2") is None
        assert await everything(store, "s1") == before

    async def test_access_malformed(self, store: Store) -> None:
        """The owner of record as a member is refused, and so is a claim that says two things."""
        await store.append([creation("s1")])
        moves = Claim(before=USER, after="bob")
        for part in (
            access("s1", 0, 0, members=[member(USER)]),
            access("s1", 0, 0, claim=moves),
            access("s1", 0, 0, after={"user_id": "bob"}, claim=moves, clients=[advance(0, 0)]),
            access("s1", 0, 0, after={"user_id": "bob"}, claim=moves, devices=[device("d1")]),
        ):
            with pytest.raises(StoreRefused):
                await store.append([part])
        assert await store.session("s1") == row("s1")

    async def test_sessions_of_a_member(self, store: Store) -> None:
        """A member's list has both: what is theirs and what they may use, each once, in order."""
        ages = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
        for number, age in enumerate(ages):
            owner = "bob" if number % 3 == 0 else USER
            part = creation(f"s.{number}", last_activity=T0 + age, user_id=owner, access_version=1)
            part.members = [] if owner == "bob" else [member("bob"), member("eve")]
            await store.append([part])
        await store.append([creation("theirs")])
        for limit in (1, 2, 5, 11, 100):
            found = await pages(store.sessions, "bob", limit=limit)
            flat = [one for page in found for one in page]
            assert [one.last_activity - T0 for one in flat] == sorted(ages, reverse=True)
            assert len({one.session_id for one in flat}) == len(ages)
            assert all(len(page) == limit for page in found[:-1])
        assert len((await store.sessions("eve", None, 100)).items) == 7

    async def test_sessions_of_a_member_follow_their_rows(self, store: Store) -> None:
        """Activity moves a session up for its members, too; one who is removed has it no more."""
        for number in (1, 2):
            part = creation(f"s{number}", last_activity=T0 + number, access_version=1)
            part.members = [member("bob"), member("eve")]
            await store.append([part])

        async def listed(user_id: str) -> list[str]:
            return [one.session_id for one in (await store.sessions(user_id, None, 9)).items]

        assert await listed("bob") == ["s2", "s1"]
        part = change("s1", 0, after={"last_activity": T0 + 3, "access_version": 1})
        part.expected = Expected(version=0, epoch=EPOCH, access_version=1)
        assert list(await store.append([part])) == [OK]
        assert await listed("bob") == ["s1", "s2"]
        assert (await store.sessions("bob", None, 9)).items[0] == part.session
        part = access("s2", 0, 1, members_removed=["bob"], after={"last_activity": T0 + 2})
        assert list(await store.append([part])) == [OK]
        assert await listed("bob") == ["s1"]
        assert await listed("eve") == ["s1", "s2"]
        # One who becomes the owner of record has it once.
        part = access(
            "s2",
            0,
            2,
            members=[member(USER)],
            members_removed=["eve"],
            after={"last_activity": T0 + 2, "user_id": "eve"},
        )
        assert list(await store.append([part])) == [OK]
        assert await listed("eve") == ["s1", "s2"]
        assert await listed(USER) == ["s1", "s2"]

    # --- Idempotency keys

    async def test_reactions(self, store: Store) -> None:
        """Law 7: due from the first part that names it, and held by one owner at a time."""
        await store.append([creation("s1"), creation("s2")])
        assert await store.due_reactions(["a", "b"], 10) == []
        assert await store.lease_reaction("s1", "a", "n1", 60_000) is None, "nothing names it"
        await store.append([change("s1", 0)])
        await store.append([change("s1", 1, reactions=["a", "b"])])
        assert sorted(await store.due_reactions(["a", "b"], 10)) == [("s1", "a"), ("s1", "b")]
        assert await store.due_reactions(["b", "c"], 10) == [("s1", "b")]
        assert len(await store.due_reactions(["a", "b"], 1)) == 1
        assert await store.due_reactions([], 10) == []
        # It begins before the first commit that was due, and is held by one.
        assert await store.lease_reaction("s1", "a", "n1", 60_000) == 1
        assert await store.lease_reaction("s1", "a", "n2", 60_000) is None
        assert await store.due_reactions(["a", "b"], 10) == [("s1", "b")]
        assert not await store.advance_reaction("s1", "a", "n2", 2, 60_000)
        assert await store.lease_reaction("s1", "a", "n1", 60_000) == 1
        assert await store.advance_reaction("s1", "a", "n1", 2, 60_000)
        # What comes meanwhile is due when it is let go.
        await store.append([change("s1", 2, count=2, reactions=["a"])])
        assert await store.due_reactions(["a"], 10) == []
        assert await store.advance_reaction("s1", "a", "n1", 2, 0)
        assert await store.due_reactions(["a"], 10) == [("s1", "a")]
        assert not await store.advance_reaction("s1", "a", "n1", 3, 0), "it was let go"
        assert await store.lease_reaction("s1", "a", "n2", 60_000) == 2
        assert await store.advance_reaction("s1", "a", "n2", 4, 0)
        assert await store.due_reactions(["a"], 10) == []
        assert await store.lease_reaction("s1", "a", "n1", 60_000) == 4
        assert await store.lease_reaction("nowhere", "a", "n1", 60_000) is None

    async def test_reactions_begin_with_a_batch(self, store: Store) -> None:
        """Before the first of several commits of one part; the second part moves nothing back."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, count=3, reactions=["a"])])
        await store.append([change("s1", 3, count=2, reactions=["a"])])
        assert await store.lease_reaction("s1", "a", "n1", 60_000) == 0

    async def test_reactions_of_a_part_that_is_stale(self, store: Store) -> None:
        """Nothing is due for what was not written."""
        await store.append([creation("s1")])
        assert await store.append([change("s1", 7, reactions=["a"])]) == [STALE]
        assert await store.due_reactions(["a"], 10) == []

    async def test_reactions_whose_lease_ends(self, store: Store) -> None:
        """Whoever holds one and dies keeps others waiting for its lease, and no longer."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, reactions=["a"])])
        assert await store.lease_reaction("s1", "a", "n1", 1) == 0
        async with asyncio.timeout(5):
            while not await store.due_reactions(["a"], 10):  # noqa: ASYNC110 - time tells nobody
                await asyncio.sleep(0.001)
        assert await store.lease_reaction("s1", "a", "n2", 60_000) == 0
        assert not await store.advance_reaction("s1", "a", "n1", 1, 60_000)

    async def test_reactions_are_erased(self, store: Store) -> None:
        """They go with the session."""
        await store.append([creation("s1")])
        await store.append([change("s1", 0, reactions=["a"])])
        await store.append([erasure("s1", 1)])
        assert await store.due_reactions(["a"], 10) == []
        assert await store.lease_reaction("s1", "a", "n1", 60_000) is None

    async def test_idempotency(self, store: Store) -> None:
        """An answer is recorded in the transaction of its effect, by user, route and key."""
        given = answer("k1", body=b'{"session_id":"s1"}')
        part = creation("s1")
        part.idempotency = given
        await store.append([part])
        assert await store.idempotent(USER, "POST /session", "k1") == given
        assert await store.idempotent("bob", "POST /session", "k1") is None
        assert await store.idempotent(USER, "PATCH /session", "k1") is None
        assert await store.idempotent(USER, "POST /session", "k2") is None

    async def test_idempotency_taken(self, store: Store) -> None:
        """A key that has its answer makes a part STALE: two requests at once have one effect."""
        first, second, third = creation("s1"), creation("s2"), creation("s3")
        first.idempotency = answer("k1", body=b"1")
        second.idempotency = answer("k1", body=b"2")
        third.idempotency = answer("k2", body=b"3")
        assert list(await store.append([first])) == [OK]
        assert list(await store.append([second, third])) == [STALE, OK]
        assert await store.session("s2") is None
        assert await store.idempotent(USER, "POST /session", "k1") == first.idempotency
        fourth, fifth = creation("s4"), creation("s5")
        fourth.idempotency = fifth.idempotency = answer("k9")
        assert list(await store.append([fourth, fifth])) == [OK, STALE]

    async def test_idempotency_expires(self, store: Store) -> None:
        """After a day an answer is not given any more, and its key is free."""
        old, new = creation("s1"), creation("s2")
        old.idempotency = answer("k1", created_at=now() - DAY_MS - 60_000, body=b"old")
        new.idempotency = answer("k1", body=b"new")
        await store.append([old])
        assert await store.idempotent(USER, "POST /session", "k1") is None
        assert list(await store.append([new])) == [OK]
        assert await store.idempotent(USER, "POST /session", "k1") == new.idempotency
        almost = creation("s3")
        almost.idempotency = answer("k2", created_at=now() - DAY_MS + 60_000)
        await store.append([almost])
        assert await store.idempotent(USER, "POST /session", "k2") == almost.idempotency

    # --- Erasing

    async def test_erase(self, store: Store) -> None:
        """Of an erased session nothing is left but its tombstone."""
        created = creation("s1", state=b'{"secret":1}')
        created.idempotency = answer("k1", body=b"secret")
        await store.append([created, creation("n1")])
        await store.append(
            [
                change(
                    name,
                    0,
                    count=2,
                    refusals=[refusal(3)],
                    clients=[advance(0, 3)],
                    conflicts=[conflict("k1", 1)],
                    checkpoints=[checkpoint("m1", 1)],
                    devices=[device("d1")],
                    activity=[activity(1)],
                )
                for name in ("s1", "n1")
            ]
        )
        for name in ("s1", "n1"):
            part = access(name, 2, 0, members=[member("bob")], credentials=[credential(b"h")])
            assert list(await store.append([part])) == [OK]
        neighbour = await everything(store, "n1")
        part = erasure("s1", 2)
        part.expected = Expected(version=2, epoch=EPOCH, access_version=1)
        assert list(await store.append([part])) == [OK]
        left = await store.session("s1")
        assert isinstance(left, Tombstone)
        assert part.erase is not None
        assert replace(left, members=list(left.members)) == part.erase
        assert (await everything(store, "s1"))[1:] == (
            None,
            [],
            [None, None],
            [[], []],
            [[]],
            [[]],
            [],
            [],
            [],
            [[]],
        )
        assert await store.standings([("s1", USER), ("s1", "eve")]) == [left, left]
        assert [one.session_id for one in (await store.sessions("bob", None, 9)).items] == ["n1"]
        assert await store.load_at("s1", 1) is None
        assert await store.decision("s1", "c1", 1) is None
        assert await store.idempotent(USER, "POST /session", "k1") is None
        assert [one.session_id for one in (await store.sessions(USER, None, 10)).items] == ["n1"]
        assert await everything(store, "n1") == neighbour

    async def test_erased_stays_erased(self, store: Store) -> None:
        """An erased id cannot be created, changed or erased again."""
        await store.append([creation("s1")])
        await store.append([erasure("s1", 0)])
        left = await store.session("s1")
        for part, outcome in [
            (creation("s1"), EXISTS),
            (change("s1", 0), STALE),
            (erasure("s1", 0), STALE),
        ]:
            assert list(await store.append([part])) == [outcome]
        assert await store.session("s1") == left


class DurableStoreSuite(StoreSuite):
    """What a store whose data outlives the object must pass, too."""

    async def test_reopen(self, make_store: MakeStore) -> None:
        """Law 1: another store on the same place sees everything, under the same identity."""
        first = make_store()
        identity = await first.open()
        gone = creation("gone")
        await first.append([creation("s1"), gone])
        await first.append(
            [
                change(
                    "s1",
                    0,
                    count=2,
                    refusals=[refusal(3)],
                    clients=[advance(0, 3)],
                    conflicts=[conflict("k1", 1)],
                    checkpoints=[checkpoint("m1", 2, name="a\x00b", step=b"1", data=b"[]")],
                    devices=[device("d1", is_primary=True)],
                    activity=[activity(1)],
                    idempotency=answer("k1"),
                    state=SavedState(version=1, state=MIB, index=b"[]"),
                ),
                erasure("gone", 0),
            ]
        )
        grant = access("s1", 2, 0, members=[member("bob")], credentials=[credential(b"h")])
        assert list(await first.append([grant])) == [OK]
        before = [await everything(first, name) for name in ("s1", "gone")]
        kept = await first.idempotent(USER, "POST /session", "k1")
        await first.close()
        second = make_store()
        try:
            assert await second.open() == identity
            assert [await everything(second, name) for name in ("s1", "gone")] == before
            assert kept is not None
            assert await second.idempotent(USER, "POST /session", "k1") == kept
            stands = Expected(version=2, epoch=EPOCH, access_version=1)
            assert list(await second.append([change("s1", 2, expected=stands)])) == [STALE]
            fitting: Sequence[ClientAdvance] = [advance(3, 4)]
            part = change("s1", 2, expected=stands, clients=list(fitting))
            assert list(await second.append([part])) == [OK]
        finally:
            await second.close()

    async def test_value_that_does_not_fit(self, store: Store) -> None:
        """What a column cannot hold is refused, and the store goes on."""
        for part in (creation("s1", created_at=2**63), creation("s1", user_id="\ud800")):
            with pytest.raises(StoreRefused):
                await store.append([creation("s0"), part])
            assert await store.session("s0") is None
        assert list(await store.append([creation("s0"), creation("s1")])) == [OK, OK]


@pytest.mark.asyncio
class SeatingSuite:
    """The law of `reattach.store.seating`, beside `StoreSuite`, whose ``store`` it takes."""

    @pytest.fixture
    def seating(self, store: Store) -> Seating:
        """Return what is tested."""
        assert store.seating is not None, "a store without it does not take this suite"
        return store.seating

    async def test_nodes_that_live(self, seating: Seating) -> None:
        """Each sees the others, and for how long."""
        assert await seating.renew("one", 60_000) == (0, [])
        assert _lives((await seating.renew("two", 60_000))[1], "one", 50_000, 60_000)
        assert _lives((await seating.renew("one", 30_000))[1], "two", 50_000, 60_000)
        assert _lives((await seating.look("two", []))[0], "one", 20_000, 30_000)

    async def test_a_lease_that_ends(self, seating: Seating) -> None:
        """Whoever does not renew it is gone, with all who were connected there."""
        await seating.renew("one", 1)
        await seating.seat("one", 1, [_seated("s1", "one", 1)])
        deadline = time.monotonic() + 5
        while (await seating.look("two", ["s1"])) != ([], []):
            assert time.monotonic() < deadline, "the lease of a millisecond has not ended"
            await asyncio.sleep(0.002)
        assert (await seating.renew("one", 60_000))[0] == 1, "nobody has swept it away"
        assert (await seating.look("two", ["s1"]))[1] == [_seated("s1", "one", 1)]

    async def test_who_is_connected(self, seating: Seating) -> None:
        """Only to other nodes, and only of the sessions that were asked for."""
        for node in ("one", "two", "three"):
            await seating.renew(node, 60_000)
        mine = [_seated("s1", "one", 4, body=b"\x00"), _seated("s2", "one", 5)]
        await seating.seat("one", 5, mine)
        await seating.seat("two", 7, [_seated("s1", "two", 7, body=b"theirs")])
        neighbours, found = await seating.look("three", ["s1", "nowhere"])
        assert {(one.node, one.told) for one in neighbours} == {("one", 5), ("two", 7)}
        assert sorted(found, key=lambda one: one.node) == [
            mine[0],
            _seated("s1", "two", 7, body=b"theirs"),
        ]
        assert (await seating.look("one", ["s1", "s2"]))[1] == [
            _seated("s1", "two", 7, body=b"theirs")
        ]

    async def test_who_left(self, seating: Seating) -> None:
        """A row goes with the last who was connected, and what was told tells so."""
        await seating.renew("one", 60_000)
        await seating.seat("one", 2, [_seated("s1", "one", 1), _seated("s2", "one", 2)])
        later = [_seated("s1", "one", 3, body=None), _seated("s2", "one", 4, body=b"fewer")]
        await seating.seat("one", 4, later)
        await seating.seat("one", 5, [])
        neighbours, found = await seating.look("two", ["s1", "s2"])
        assert [one.told for one in neighbours] == [5]
        assert found == [later[1]]

    async def test_a_node_that_leaves(self, seating: Seating) -> None:
        """It is not to be waited for, and may come again."""
        await seating.renew("one", 60_000)
        await seating.seat("one", 1, [_seated("s1", "one", 1)])
        await seating.leave("one")
        left = Neighbour(node="one", lives_ms=0, told=LEFT)
        assert await seating.look("two", ["s1"]) == ([left], [])
        assert (await seating.renew("two", 60_000))[1] == [left]
        assert (await seating.renew("one", 60_000))[0] == 0

    async def test_dead_nodes_are_swept_away(self, seating: Seating) -> None:
        """And those that were swept away by mistake are told to write all that they know."""
        for node in ("dead", "one", "two"):
            await seating.renew(node, 60_000 if node != "dead" else -1_000)
            await seating.seat(node, 1, [_seated("s1", node, 1)])
        await seating.sweep(10_000)
        assert (await seating.renew("dead", 60_000))[0] == 1, "it is not dead for long"
        await seating.renew("dead", -20_000)
        # Of a node that is not known: it wrote after it had been swept away.
        await seating.seat("unknown", 1, [_seated("s1", "unknown", 1)])
        await seating.sweep(10_000)
        assert (await seating.look("two", ["s1"]))[1] == [_seated("s1", "one", 1)]
        for node in ("dead", "unknown"):
            assert (await seating.renew(node, 60_000))[0] == 0
        assert (await seating.look("two", ["s1"]))[1] == [_seated("s1", "one", 1)]

    async def test_seats_go_with_their_session(self, store: Store, seating: Seating) -> None:
        """What is erased leaves nothing behind."""
        await store.append([creation("s1")])
        await seating.renew("one", 60_000)
        await seating.seat("one", 1, [_seated("s1", "one", 1)])
        assert list(await store.append([erasure("s1", 0)])) == [OK]
        assert (await seating.look("two", ["s1"]))[1] == []


def _seated(session_id: str, node: str, number: int, body: bytes | None = b"seats") -> Seated:
    return Seated(session_id=session_id, node=node, number=number, body=body)


def _lives(neighbours: Sequence[Neighbour], node: str, least: int, most: int) -> bool:
    """Say whether there is one neighbour, which has told nothing and lives so long, ms."""
    (one,) = neighbours
    return (one.node, one.told) == (node, 0) and least < one.lives_ms <= most
