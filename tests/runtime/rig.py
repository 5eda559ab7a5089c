"""A node without a network: its registry, a store that fails as it is told, clients on bare lines.

Over a `MemoryStore` nothing happens unless the loop runs: `Node.settle` runs it until all is quiet.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from reattach.core.connection import Connection
from reattach.core.limits import Limits
from reattach.errors import StoreUnavailable
from reattach.runtime.access import User
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.sessions import Sessions
from reattach.store.base import (
    Append,
    CheckpointRecord,
    ClientRecord,
    CommitRecord,
    CommitSlot,
    Compaction,
    CredentialRecord,
    Decision,
    DeviceRecord,
    Everything,
    IdempotencyRecord,
    Loaded,
    MemberRecord,
    Outcome,
    Page,
    RefusalRecord,
    Search,
    SessionRecord,
    Standing,
    Store,
    Tombstone,
)
from reattach.store.memory import MemoryStore
from reattach.store.seating import Neighbour, Seated, Seating
from tests.support.wire_client import Frame, Replica

T = TypeVar("T")
Work = Callable[[], Awaitable[Any]]
Fault = Callable[[Work], Awaitable[Any]]
"""What happens instead of a call, given the call itself."""

USER = User("u")


def down(error: Exception | None = None) -> Fault:
    """The call fails, and nothing was done."""

    async def fault(_: Work) -> Any:
        raise error or StoreUnavailable("it is down")

    return fault


def answer_lost() -> Fault:
    """The call is done, and its answer does not come back."""

    async def fault(work: Work) -> Any:
        await work()
        raise StoreUnavailable("connection reset")

    return fault


def silent() -> Fault:
    """The call is never done, and never answered."""

    async def fault(_: Work) -> Any:
        await asyncio.Event().wait()

    return fault


def done_in_silence() -> Fault:
    """The call is done, and never answered."""

    async def fault(work: Work) -> Any:
        await work()
        await asyncio.Event().wait()

    return fault


class Gate:
    """A call waits here until the gate is opened; whoever gives up on it changes nothing."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.passed = asyncio.Event()
        self._open = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    def open(self) -> None:
        self._open.set()

    async def __call__(self, work: Work) -> Any:
        async def through() -> Any:
            await self._open.wait()
            try:
                return await work()
            finally:
                self.passed.set()

        self.reached.set()
        self._task = asyncio.create_task(through())
        return await asyncio.shield(self._task)


class FaultyStore:
    """A store whose next calls can be made to fail: `store.next("append", down(), down())`."""

    def __init__(self, inner: Store, *, shared: bool = False) -> None:
        self.inner = inner
        self.seating: Seating | None = None
        if shared:
            assert inner.seating is not None
            self.seating = FaultySeating(self._call, inner.seating)
        self.asked: list[Sequence[Append]] = []
        """The batches, as they were asked for."""
        self.calls: list[str] = []
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)

    def next(self, method: str, *faults: Fault) -> None:
        """The next calls of a method meet these faults, one each."""
        self._faults[method].extend(faults)

    def spoil(self, *methods: str, with_: Fault) -> Callable[[], None]:
        """All calls meet this fault, until the function that is returned is called."""
        for method in methods:
            self._faults[method] = deque([with_] * 10_000)

        def mend() -> None:
            for method in methods:
                self._faults[method].clear()

        return mend

    @property
    def parts(self) -> list[Append]:
        return [part for batch in self.asked for part in batch]

    async def _call(self, method: str, work: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(method)
        faults = self._faults[method]
        if faults:
            answer: T = await faults.popleft()(work)
            return answer
        return await work()

    async def open(self) -> str:
        return await self._call("open", self.inner.open)

    async def close(self) -> None:
        return await self._call("close", self.inner.close)

    async def check(self) -> None:
        return await self._call("check", self.inner.check)

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        self.asked.append(batch)
        return await self._call("append", lambda: self.inner.append(batch))

    async def load(self, session_id: str) -> Loaded | None:
        return await self._call("load", lambda: self.inner.load(session_id))

    async def load_many(
        self, session_ids: Sequence[str], max_bytes: int
    ) -> Mapping[str, Loaded | None]:
        return await self._call("load_many", lambda: self.inner.load_many(session_ids, max_bytes))

    async def load_at(self, session_id: str, version: int) -> Loaded | None:
        return await self._call("load_at", lambda: self.inner.load_at(session_id, version))

    async def session(self, session_id: str) -> SessionRecord | Tombstone | None:
        return await self._call("session", lambda: self.inner.session(session_id))

    async def standings(
        self, asked: Sequence[tuple[str, str]]
    ) -> Sequence[Standing | Tombstone | None]:
        return await self._call("standings", lambda: self.inner.standings(asked))

    async def versions(self, session_ids: Sequence[str]) -> Mapping[str, tuple[str, int, int]]:
        return await self._call("versions", lambda: self.inner.versions(session_ids))

    async def sessions(self, user_id: str, after: str | None, limit: int) -> Page:
        return await self._call("sessions", lambda: self.inner.sessions(user_id, after, limit))

    async def search(self, search: Search, after: str | None, limit: int) -> Page:
        return await self._call("search", lambda: self.inner.search(search, after, limit))

    async def renew_epochs(self, epoch: str) -> int:
        return await self._call("renew_epochs", lambda: self.inner.renew_epochs(epoch))

    async def log(
        self,
        session_id: str,
        *,
        first: int,
        last: int | None = None,
        client_id: str | None = None,
        limit: int | None = None,
        max_bytes: int | None = None,
    ) -> Sequence[CommitRecord]:
        def work() -> Awaitable[Sequence[CommitRecord]]:
            return self.inner.log(
                session_id,
                first=first,
                last=last,
                client_id=client_id,
                limit=limit,
                max_bytes=max_bytes,
            )

        return await self._call("log", work)

    async def client(self, session_id: str, client_id: str) -> ClientRecord | None:
        return await self._call("client", lambda: self.inner.client(session_id, client_id))

    async def clients(
        self, asked: Sequence[tuple[str, str, int]]
    ) -> Sequence[tuple[ClientRecord | None, Sequence[RefusalRecord]]]:
        return await self._call("clients", lambda: self.inner.clients(asked))

    async def since(
        self, asked: Sequence[tuple[str, int]]
    ) -> Sequence[tuple[SessionRecord, Sequence[CommitRecord]] | None]:
        return await self._call("since", lambda: self.inner.since(asked))

    async def refusals(
        self, session_id: str, client_id: str, after: int
    ) -> Sequence[RefusalRecord]:
        return await self._call(
            "refusals", lambda: self.inner.refusals(session_id, client_id, after)
        )

    async def decision(self, session_id: str, client_id: str, seq: int) -> Decision | None:
        return await self._call("decision", lambda: self.inner.decision(session_id, client_id, seq))

    async def conflicts(
        self, session_id: str, status: str | None, after: str | None, limit: int
    ) -> Page:
        return await self._call(
            "conflicts", lambda: self.inner.conflicts(session_id, status, after, limit)
        )

    async def checkpoints(self, session_id: str, after: str | None, limit: int) -> Page:
        return await self._call(
            "checkpoints", lambda: self.inner.checkpoints(session_id, after, limit)
        )

    async def checkpoint(
        self, session_id: str, checkpoint_id: str | None
    ) -> CheckpointRecord | None:
        return await self._call(
            "checkpoint", lambda: self.inner.checkpoint(session_id, checkpoint_id)
        )

    async def activity(self, session_id: str, after: str | None, limit: int) -> Page:
        return await self._call("activity", lambda: self.inner.activity(session_id, after, limit))

    async def devices(self, session_id: str) -> Sequence[DeviceRecord]:
        return await self._call("devices", lambda: self.inner.devices(session_id))

    async def members(self, session_id: str) -> Sequence[MemberRecord]:
        return await self._call("members", lambda: self.inner.members(session_id))

    async def credential(self, session_id: str, secret_hash: bytes) -> CredentialRecord | None:
        return await self._call(
            "credential", lambda: self.inner.credential(session_id, secret_hash)
        )

    async def credentials(self, session_id: str) -> Sequence[CredentialRecord]:
        return await self._call("credentials", lambda: self.inner.credentials(session_id))

    async def due_reactions(self, names: Sequence[str], limit: int) -> Sequence[tuple[str, str]]:
        return await self._call("due_reactions", lambda: self.inner.due_reactions(names, limit))

    async def lease_reaction(
        self, session_id: str, name: str, owner: str, lease_ms: int
    ) -> int | None:
        return await self._call(
            "lease_reaction",
            lambda: self.inner.lease_reaction(session_id, name, owner, lease_ms),
        )

    async def advance_reaction(
        self, session_id: str, name: str, owner: str, version: int, lease_ms: int
    ) -> bool:
        return await self._call(
            "advance_reaction",
            lambda: self.inner.advance_reaction(session_id, name, owner, version, lease_ms),
        )

    async def compact(self, compaction: Compaction) -> bool:
        return await self._call("compact", lambda: self.inner.compact(compaction))

    async def saved_versions(self, session_id: str) -> Sequence[int]:
        return await self._call("saved_versions", lambda: self.inner.saved_versions(session_id))

    async def commit_slots(
        self, session_id: str, first: int, last: int, width: int
    ) -> Sequence[CommitSlot]:
        return await self._call(
            "commit_slots", lambda: self.inner.commit_slots(session_id, first, last, width)
        )

    async def session_clients(self, session_id: str) -> Sequence[ClientRecord]:
        return await self._call("session_clients", lambda: self.inner.session_clients(session_id))

    async def session_refusals(self, session_id: str, after: str | None, limit: int) -> Page:
        return await self._call(
            "session_refusals", lambda: self.inner.session_refusals(session_id, after, limit)
        )

    async def log_times(self, session_id: str, limit: int) -> Sequence[tuple[int, int]]:
        return await self._call("log_times", lambda: self.inner.log_times(session_id, limit))

    async def aged_sessions(
        self, before: int, marks_before: int, after: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        return await self._call(
            "aged_sessions",
            lambda: self.inner.aged_sessions(before, marks_before, after, limit),
        )

    async def lease(self, name: str, owner: str, lease_ms: int) -> bool:
        return await self._call("lease", lambda: self.inner.lease(name, owner, lease_ms))

    async def everything(self, session_id: str) -> Everything | None:
        return await self._call("everything", lambda: self.inner.everything(session_id))

    async def trim_activity(self, before: int, limit: int) -> int:
        return await self._call("trim_activity", lambda: self.inner.trim_activity(before, limit))

    async def idempotent(self, user_id: str, route: str, key: str) -> IdempotencyRecord | None:
        return await self._call("idempotent", lambda: self.inner.idempotent(user_id, route, key))


class FaultySeating:
    """The part of a `FaultyStore` by which nodes know of each other: its methods fail as others."""

    def __init__(self, call: Callable[[str, Work], Awaitable[Any]], inner: Seating) -> None:
        self._call = call
        self._inner = inner

    async def renew(self, node: str, lease_ms: int) -> tuple[int, Sequence[Neighbour]]:
        found: tuple[int, Sequence[Neighbour]] = await self._call(
            "renew", lambda: self._inner.renew(node, lease_ms)
        )
        return found

    async def seat(self, node: str, told: int, seats: Sequence[Seated]) -> None:
        await self._call("seat", lambda: self._inner.seat(node, told, seats))

    async def look(
        self, node: str, session_ids: Sequence[str]
    ) -> tuple[Sequence[Neighbour], Sequence[Seated]]:
        found: tuple[Sequence[Neighbour], Sequence[Seated]] = await self._call(
            "look", lambda: self._inner.look(node, session_ids)
        )
        return found

    async def leave(self, node: str) -> None:
        await self._call("leave", lambda: self._inner.leave(node))

    async def sweep(self, dead_ms: int) -> None:
        await self._call("sweep", lambda: self._inner.sweep(dead_ms))


class HandClock:
    """Time that passes when a test says so."""

    def __init__(self, name: str = "id") -> None:
        self._now = 1_700_000_000_000
        self._name = name
        self._ids = 0
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    def now(self) -> int:
        return self._now

    def monotonic(self) -> int:
        return self._now

    async def sleep(self, ms: int) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + ms, woken))
        await woken

    def new_id(self) -> str:
        self._ids += 1
        return f"{self._name}-{self._ids}"

    def random(self) -> float:
        return 0.5

    async def pass_(self, ms: int, step: int = 10) -> None:
        """Lets time pass, in steps, and everybody do what is due."""
        end = self._now + ms
        while self._now < end:
            self._now = min(end, self._now + step)
            due = [one for one in self._sleepers if one[0] <= self._now]
            self._sleepers = [one for one in self._sleepers if one[0] > self._now]
            for _, woken in due:
                if not woken.done():
                    woken.set_result(None)
            await settle()


async def settle(turns: int = 60) -> None:
    """Runs the loop until nothing that can happen now is left, by all experience."""
    for _ in range(turns):
        await asyncio.sleep(0)


class BareLine:
    """One line of a client; what comes over it after the client took another is kept apart."""

    def __init__(self, client: LineClient) -> None:
        self.client = client
        self.closes: list[tuple[int, str]] = []
        self.sent: set[int] = set()
        self.late: list[Frame] = []
        self.paused = False
        self.pings = 0

    def send(self, frames: Sequence[bytes]) -> None:
        for data in frames:
            frame = json.loads(data)
            if self.closes or self.client.line is not self:
                self.late.append(frame)
                continue
            try:
                self.client.take(frame)
            except Exception as lie:  # noqa: BLE001
                self.client.lie = self.client.lie or lie
            if frame["type"] in {"initial_state", "resumed"}:
                # As over a network: not while the server is in the middle of something.
                asyncio.get_running_loop().call_soon(self.client.send_pending)

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def ping(self) -> None:
        self.pings += 1


class LineClient(Replica):
    """An honest client on bare lines; `Node.client` joins it."""

    def __init__(self, node: Node, session_id: str, client_id: str, **options: Any) -> None:
        self.user: User = options.pop("user", USER)
        super().__init__(session_id, client_id, **options)
        self.line = BareLine(self)
        self.connection: Connection | None = None
        self._node = node

    @property
    def closes(self) -> list[tuple[int, str]]:
        """How its present line was closed."""
        return self.line.closes

    async def connect(self, **hello: Any) -> None:
        """Says hello on a new line; what is undecided is sent after the welcome."""
        self.begin(**hello)
        await settle()

    @property
    def greeted(self) -> bool:
        """Whether it was welcomed on its present line."""
        return self._greeted

    def move_to(self, node: Node) -> None:
        """Is to go on at another node; its old line is not closed."""
        self._node = node
        node.clients.append(self)

    async def move(self, node: Node) -> None:
        """Goes on at another node; its old line is not closed."""
        self.move_to(node)
        await self.connect()

    def begin(self, **hello: Any) -> None:
        """Says hello on a new line."""
        self.line = BareLine(self)
        self.connection = self._node.registry.connections.connect(self.line)
        self.feed(self.greeting(**hello))

    def send_pending(self) -> None:
        """Sends what is undecided and was not sent on this line, if it was welcomed."""
        for seq in sorted(self.outbox):
            if seq not in self.line.sent and self._greeted and not self.closes:
                self.line.sent.add(seq)
                self.feed(self.outbox[seq])

    def change(self, *ops: Frame, **fields: Any) -> int:
        """Puts a change into the outbox, and sends it if there is a line."""
        number = self.put(*ops, **fields)
        self.send_pending()
        return number

    def feed(self, frame: Frame) -> None:
        """Sends a frame, as it is."""
        self.feed_bytes(json.dumps(frame).encode())

    def feed_bytes(self, data: bytes) -> None:
        assert self.connection is not None, "it has no line"

        async def identify(_: str | None) -> User:
            return self.user

        self._node.registry.connections.feed(self.connection, self.session_id, identify, data)

    def leave(self, why: str = "connection lost") -> None:
        """Its line is gone."""
        assert self.connection is not None, "it has no line"
        self._node.registry.connections.disconnected(self.connection, why)


class Node:
    """One server, without its network."""

    def __init__(self, store: FaultyStore, registry: Registry, clock: HandClock) -> None:
        self.store = store
        self.registry = registry
        self.clock = clock
        self.sessions = Sessions(self._running)
        self.clients: list[LineClient] = []

    async def _running(self) -> Registry:
        return self.registry

    def host(self, session_id: str = "s") -> Host:
        return self.registry.hosts[session_id]

    async def client(
        self, session_id: str = "s", client_id: str = "c", *, state: Frame | None = None, **o: Any
    ) -> LineClient:
        """A client that has joined; the session is created if it is not there."""
        client = LineClient(self, session_id, client_id, create=state or {}, **o)
        self.clients.append(client)
        await client.connect()
        return client

    def honest(self) -> None:
        """Every client was told the truth, and all who are at one version show one state."""
        for client in self.clients:
            if client.lie is not None:
                raise client.lie

    async def durable(self, session_id: str = "s") -> tuple[int, list[tuple[str | None, int]]]:
        """The version in the database, and who made which commit with which number."""
        found = await self.store.inner.session(session_id)
        assert isinstance(found, SessionRecord)
        log = await self.store.inner.log(session_id, first=1)
        assert [commit.version for commit in log] == list(range(1, found.version + 1))
        return found.version, [(commit.client_id, commit.seq or 0) for commit in log]

    async def fresh(self, session_id: str = "s") -> Frame:
        """The state as whoever opens the database next will see it."""
        other = Registry(
            self.store.inner, Limits(), self.clock, store_timeout_ms=5_000, idle_session_ms=60_000
        )
        state: Frame = (await other.open(session_id)).room.session.document.state
        return state


@asynccontextmanager
async def running(
    inner: Store | None = None, *, timeout_ms: int = 5_000, limits: Limits | None = None, **o: Any
) -> AsyncIterator[Node]:
    """A node that runs, and is stopped in good order. Nobody is silent for too long.

    With `shared` it knows of others by the database.
    """
    store = FaultyStore(inner or MemoryStore(), shared=o.pop("shared", False))
    clock = o.pop("clock", None) or HandClock()
    registry = Registry(
        store,
        limits or Limits(heartbeat_timeout_ms=10**12),
        clock,
        store_timeout_ms=timeout_ms,
        idle_session_ms=o.pop("idle_session_ms", 60_000),
        bus=o.pop("bus", None),
        schemas=o.pop("schemas", ()),
        authorize=o.pop("authorize", None),
        activity_days=o.pop("activity_days", 0),
        expire_days=o.pop("expire_days", 0),
        expiring=o.pop("expiring", ()),
    )
    node = Node(store, registry, clock)
    await registry.start()
    try:
        yield node
    finally:
        await registry.stop(timeout_ms=500)
    node.honest()


def inc(by: int = 1, path: str = "/n") -> Frame:
    return {"op": "inc", "path": path, "by": by}


def put(path: str, value: Any) -> Frame:
    return {"op": "set", "path": path, "value": value}
