"""The sessions that are open on this node, and the parts that it is made of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog

from reattach.bus.base import Bus
from reattach.bus.snapshots import Snapshots
from reattach.core.connection import Close
from reattach.core.effects import Request
from reattach.core.guard import Guard
from reattach.core.inbox import Backlog
from reattach.core.limits import Limits
from reattach.core.room import Room
from reattach.core.schema import Schema
from reattach.core.session import Edit, Proposal, empty_index
from reattach.core.values import check
from reattach.errors import (
    AlreadyExists,
    ChangeRefused,
    ReattachError,
    StoreError,
    StoreRefused,
    TooLarge,
    Unavailable,
)
from reattach.runtime.access import Authorize, User
from reattach.runtime.clock import Clock
from reattach.runtime.committer import Committer
from reattach.runtime.compaction import Compactor
from reattach.runtime.connections import Connections
from reattach.runtime.counts import Counts
from reattach.runtime.expiry import Expiring, Expiry
from reattach.runtime.host import Host
from reattach.runtime.loader import Loader
from reattach.runtime.members import Members, member_hash, token_member
from reattach.runtime.nodes import Nodes
from reattach.runtime.reactions import Reaction, Reactions
from reattach.runtime.tasks import Tasks
from reattach.runtime.upkeep import Upkeep
from reattach.store.base import (
    Activity,
    Append,
    ClientRecord,
    CredentialRecord,
    DeviceRecord,
    Expected,
    IdempotencyRecord,
    Outcome,
    RefusalRecord,
    SavedState,
    SessionRecord,
    Store,
    Tombstone,
)
from reattach.store.shared import MAX_INTEGER
from reattach.wire import Op, encode

__all__ = ["Registry"]

log = structlog.get_logger("reattach.registry")

_TICK_MS: Final = 1_000
_FILES: Final = 2
"""Sessions that are exported or imported at once: each takes its file's size a few times over."""
_SNAPSHOTS_MS: Final = 500
"""How long a node that stops takes, at most, to have snapshots held."""
_RESTARTS: Final = "the server restarts: come back"


class _Single:
    """A part of a batch that stands alone: a session's creation or its erasure."""

    def __init__(self, part: Append) -> None:
        self.part = part
        self.session_id = part.session_id
        self.done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def cut(self) -> Append:
        return self.part

    def landed(self, outcome: Outcome) -> None:
        if not self.done.done():
            self.done.set_result(outcome)

    def lost(self, error: BaseException) -> None:
        self._fail(Unavailable(f"the database does not answer ({error}): try again"))

    def broken(self, error: Exception) -> None:
        self._fail(ReattachError(f"the server failed: {error}", code="internal"))

    def refused(self, error: StoreRefused) -> None:
        self._fail(error)

    def _fail(self, error: ReattachError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Registry:
    """Opens sessions when they are needed, and forgets them when nobody uses them."""

    def __init__(  # noqa: PLR0913 - all that a node is made of
        self,
        store: Store,
        limits: Limits,
        clock: Clock,
        *,
        store_timeout_ms: int,
        idle_session_ms: int,
        schemas: Sequence[Schema] = (),
        bus: Bus | None = None,
        authorize: Authorize | None = None,
        snapshots: Snapshots | None = None,
        reactions: Sequence[Reaction] = (),
        activity_days: int = 0,
        history_days: int | None = None,
        expire_days: int = 0,
        expiring: Sequence[Expiring] = (),
    ) -> None:
        """Make a node. ``bus`` leads to the others that serve the same database, if there are;
        ``authorize`` is the application's word on who may do what; ``snapshots`` holds states for
        whoever opens a session next; ``reactions`` are called when something was committed. Lines
        of activity are kept for ``activity_days``, 0 for ever. History is compacted to
        ``history_days``, with None not at all. Sessions that nobody has used for ``expire_days``
        are ended (0: none), and ``expiring`` is called before.
        """
        self.store = store
        self.limits = limits
        self.clock = clock
        self.schemas = {schema.name: schema for schema in schemas}
        self.identity = ""
        """The database's."""
        self.server_client = f"server:{clock.new_id()}"
        """The client id of what this process writes on its own, or for HTTP."""
        self.stopping = False
        self.timeout_ms = store_timeout_ms
        self.hosts: dict[str, Host] = {}
        self.tasks = Tasks()
        self.counts = Counts()
        """What this node has done."""
        self._committer = Committer(store, clock, timeout_ms=store_timeout_ms, counts=self.counts)
        self.outage = self._committer.outage
        """Whether the database is away."""
        self.loader = Loader(
            store,
            snapshots,
            self.tasks,
            timeout_ms=store_timeout_ms,
            counts=self.counts,
            outage=self.outage,
        )
        self.nodes = Nodes(
            self.server_client.partition(":")[2],
            self.hosts,
            store,
            self.loader,
            clock,
            self.tasks,
            bus,
            timeout_ms=store_timeout_ms,
        )
        self.members = Members(self, authorize)
        self.connections = Connections(self)
        self.files = asyncio.Semaphore(_FILES)
        """Held by whoever exports or imports."""
        self.backlog = Backlog(limits.max_backlog_bytes)
        """The changes that wait here."""
        self._idle_ms = idle_session_ms
        self.bus = bus
        self._snapshots = snapshots
        self._reactions = Reactions(store, clock, self.nodes.name, reactions)
        self._upkeep = Upkeep(self, activity_days=activity_days)
        self._expiry = Expiry(self, days=expire_days, listeners=expiring)
        self._opening: dict[str, asyncio.Task[Host]] = {}
        self._compactor: Compactor | None = None
        if history_days is not None:
            self._compactor = Compactor(
                store, clock, limits, self.nodes.name, history_days=history_days
            )

    async def start(self, *, serves: bool = True) -> None:
        """Open the database and begin. A node that does not serve does what it is told, no more:
        it leaves reactions, upkeep and compaction to those that do.
        """
        self.identity = await self.store.open()
        self._committer.start()
        await self.nodes.start(self.identity)
        if self._snapshots is not None:
            await self._snapshots.open(self.identity)
        self.tasks.spawn(self._tick())
        if not serves:
            return
        self._reactions.start()
        self.tasks.spawn(self._upkeep.run())
        self.tasks.spawn(self._expiry.run())
        if self._compactor is not None:
            self.tasks.spawn(self._compactor.run())

    async def stop(self, *, timeout_ms: int) -> None:
        """Say 1012 to everybody, let the batch in flight and what waits become durable, end."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 2_000):
                await self._reactions.stop()
        self.nodes.hear_no_more()
        for host in list(self.hosts.values()):
            room = host.room
            for connection in (*room.connections.values(), *room.observers):
                room.hang(connection, Close.RESTART, _RESTARTS)
            host.flush()
        self.connections.send_away(Close.RESTART, _RESTARTS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self._committer.stop()
        until = self.clock.monotonic() + _SNAPSHOTS_MS
        for host in list(self.hosts.values()):
            if self.clock.monotonic() < until:
                self._hold(host)
            host.close(Close.RESTART, _RESTARTS)
        await self.tasks.stop()
        await self.nodes.stop()
        if self._snapshots is not None:
            await self._snapshots.close()
        await self.store.close()

    def can_commit(self) -> bool:
        """Say, of a database that has just committed something, whether it does what is asked."""
        if self.outage.away and not any(host.room.has_work for host in self.hosts.values()):
            # Nothing is left that it could be seen by.
            self.outage.works()
        return not self.outage.away

    # Sessions

    async def open(self, session_id: str) -> Host:
        """Return the host of a session, opened if need be.

        Raises `SessionNotFound`, or `Unavailable`; never opens what it could not load.
        """
        host = self.hosts.get(session_id)
        if host is not None:
            host.used_at = self.clock.monotonic()
            return host
        if self.stopping:
            raise Unavailable(_RESTARTS)
        task = self._opening.get(session_id)
        if task is None:
            task = self._opening[session_id] = asyncio.create_task(self._open(session_id))
            task.add_done_callback(lambda _: self._opening.pop(session_id, None))
        return await asyncio.shield(task)

    async def _open(self, session_id: str) -> Host:
        """Open a session; what others say of it is heard from before it is read."""
        if self.bus is None:
            return await self._load(session_id)
        self.bus.watch(session_id)
        try:
            host = await self._load(session_id)
        finally:
            if session_id not in self.hosts:
                self.bus.unwatch(session_id)
        self.nodes.announce(host, asks=True)
        return host

    async def _load(self, session_id: str) -> Host:
        loaded, log_bytes = await self.loader.load(session_id)
        schema = self._schema(loaded.session)
        room = Room(
            loaded, self.limits, schema, backlog=self.backlog, welcomes=self.counts.welcomes
        )
        room.session.log_bytes += log_bytes
        room.reactions = self._reactions.names(loaded.session.schema_name)
        host = Host(
            room,
            self.loader,
            self._committer,
            self.clock,
            timeout_ms=self.timeout_ms,
            keeper=self,
            bus=self.bus,
            node=self.nodes.name,
        )
        host.log_bytes_held = log_bytes
        if schema is not None and (loaded.session.schema_version or 1) < schema.version:
            try:
                await self._upgrade(host, schema)
            except Unavailable:
                if not await self._upgraded(session_id, schema):
                    raise
                # Another node, which loaded it at the same moment, was quicker.
                return await self._load(session_id)
        self.hosts[session_id] = host
        self._hold(host)
        return host

    def committed(self, host: Host) -> None:
        """Something was committed here."""
        self._reactions.wake(host.session_id, host.room.reactions)

    def readmit(self, host: Host) -> None:
        """Who may do what has changed: have it so on every connection."""
        self.members.readmit(host)

    def seated(self, host: Host) -> None:
        """Somebody came to a session here, or left."""
        self.nodes.seated(host)

    def _hold(self, host: Host) -> None:
        """Have a snapshot of a session held, if it is worth it."""
        snapshot = None if self._snapshots is None else host.snapshot()
        if self._snapshots is not None and snapshot is not None:
            self._snapshots.put(snapshot)

    def _schema(self, record: SessionRecord) -> Schema | None:
        """Return a session's schema; raises `Unavailable` where only a newer node has it."""
        if record.schema_name is None or not self.schemas:
            return None
        schema = self.schemas.get(record.schema_name)
        version = record.schema_version or 1
        if schema is None or version > schema.version:
            log.warning(
                "a session's schema is not known here: deploy what has it, or keep the old name",
                session=record.session_id,
                schema=record.schema_name,
                version=version,
            )
            raise Unavailable(
                f"this node does not know schema {record.schema_name} {version}: come back"
            )
        return schema

    async def _upgrade(self, host: Host, schema: Schema) -> None:
        """Make a session's state one of its schema's present version, by a commit."""
        request = await self.request(host, upgrades=True)
        try:
            await host.submit(request)
        except ChangeRefused as refused:
            log.exception(
                "a session cannot be upgraded to its schema's present version, and stays as it is",
                session=host.session_id,
                schema=schema.name,
                version=schema.version,
                path=refused.path,
            )
            raise Unavailable("the session's schema is being changed: come back") from refused

    async def _upgraded(self, session_id: str, schema: Schema) -> bool:
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                found = await self.store.session(session_id)
        except (TimeoutError, StoreError):
            return False
        return isinstance(found, SessionRecord) and found.schema_version == schema.version

    async def client(
        self, host: Host, client_id: str, *, told: int | None = None
    ) -> tuple[ClientRecord | None, Sequence[RefusalRecord]]:
        """Read a client's record, and have the session stand where its numbers were decided.

        Another node may have decided some of them, and this one not have heard of the commits.
        ``told`` is the highest number of whose decision the client knows, and of its commit: the
        refusals above it come with the record, none where it is None.
        """
        after = MAX_INTEGER if told is None else told
        record, refusals = await self.loader.client(host.session_id, client_id, after)
        session = host.room.session
        known = session.clients.get(client_id)
        # What was heard of it is in the log that was read here: it stands there.
        here = max(session.heard.get(client_id, 0), 0 if known is None else known.seq)
        if record is not None and record.seq > max(told or 0, here):
            await self.nodes.level(host)
        return record, refusals

    async def request(
        self,
        host: Host,
        *,
        edit: Edit | None = None,
        resolve: Op | None = None,
        restore: Op | None = None,
        upgrades: bool = False,
        user_id: str | None = None,
        role: str | None = None,
        access_version: int | None = None,
    ) -> Request:
        """Make a change by this process, the session's next of its own client.

        ``user_id`` says on whose behalf; it stands in the commit's ``by``. It may write what
        ``role`` may, None everything, and only while the access version is the one given.
        """
        name = self.server_client
        record, _ = await self.client(host, name)

        def know(room: Room) -> None:
            if name not in room.session.clients:
                mine = record or ClientRecord(client_id=name, user_id="", device_id="")
                room.session.know(mine, known=record is not None, source="server")

        await host.at_rest(know)
        proposal = Proposal(
            client_id=name,
            edit=edit,
            resolve=resolve,
            restore=restore,
            upgrades=upgrades,
            user_id=user_id,
            role=role,
            access_version=access_version,
        )
        return Request(proposal=proposal)

    def forget(self, host: Host) -> None:
        """A session is no longer in memory."""
        if self.hosts.get(host.room.session_id) is host:
            del self.hosts[host.room.session_id]
            if self.bus is not None:
                self.bus.unwatch(host.room.session_id)

    async def create(
        self,
        user: User,
        *,
        session_id: str | None = None,
        state: dict[str, Any] | None = None,
        schema: str | None = None,
        device: DeviceRecord | None = None,
        credentials: Sequence[CredentialRecord] = (),
        idempotency: Callable[[SessionRecord], IdempotencyRecord] | None = None,
        role: str | None = None,
    ) -> SessionRecord:
        """Create a session, durably; raises `AlreadyExists`, or what is wrong with the state.

        With a ``schema`` it has the defaults of what the state lacks. The state may have what
        ``role`` may write, None everything. ``credentials`` open the session.
        """
        state = self.begin(schema, state, role)
        known = None if schema is None else self.schemas.get(schema)
        encoded = encode(state)
        if len(encoded) > self.limits.max_state_bytes:
            raise TooLarge(
                f"expected a state of at most {self.limits.max_state_bytes} bytes,"
                f" got {len(encoded)}"
            )
        now = self.clock.now()
        record = SessionRecord(
            session_id=session_id or self.clock.new_id(),
            user_id=user.id,
            epoch=self.clock.new_id(),
            epoch_version=0,
            version=0,
            access_version=1 if credentials else 0,
            schema_name=schema,
            schema_version=None if known is None else known.version,
            created_at=now,
            last_activity=now,
        )
        part = Append(
            session_id=record.session_id,
            expected=None,
            session=record,
            state=SavedState(version=0, state=encoded, index=empty_index(record.schema_version)),
            devices=[] if device is None else [device],
            credentials=[*credentials],
            activity=[Activity(activity_type="created", at=now, user_id=user.id)],
            idempotency=None if idempotency is None else idempotency(record),
        )
        if await self.write(part) is not Outcome.OK:
            raise AlreadyExists(f"the session id {record.session_id!r} is taken: choose another")
        return record

    def begin(
        self, schema: str | None, state: dict[str, Any] | None, role: str | None = None
    ) -> dict[str, Any]:
        """Return a new session's state: with a schema, the defaults of what it lacks are in it.

        Raises `ChangeRefused` for what no state can be, or none that a ``role`` makes.
        """
        state = {} if state is None else state
        check(state, depth=self.limits.max_nesting, path="")
        if schema is None or not self.schemas:
            return state
        known = self.schemas.get(schema)
        if known is None:
            names = ", ".join(sorted(self.schemas))
            raise ChangeRefused(
                f"expected one of the schemas {names}, got {schema[:80]!r}", code="unknown_schema"
            )
        if role is not None:
            Guard(known.fields).begin(role, state)
        return known.begin(state)

    async def erase(self, session_id: str) -> None:
        """Erase a session with its history; what stays lets its members be told."""
        outcome = None
        while outcome is not Outcome.OK:
            host = await self.open(session_id)
            tokens = await self.store.credentials(session_id)
            part = await host.at_rest(partial(self._erasure, host, tokens))
            try:
                outcome = await self.write(part)
            finally:
                # Nobody is told before it is durable. Where it is not, or nobody knows, or
                # somebody else wrote meanwhile, the session is to be loaded again.
                if outcome is Outcome.OK:
                    host.close(Close.ENDED, "the session was erased")
                    if self._snapshots is not None:
                        await self._snapshots.drop(session_id)
                else:
                    host.close(Close.RESTART, "the session is being opened anew: come back")

    def _erasure(self, host: Host, kept: Sequence[CredentialRecord], room: Room) -> Append:
        host.hold()
        record = room.recorded
        salt = self.clock.new_id().encode()
        tokens = [token_member(one.secret_hash) for one in kept if one.kind == "token"]
        everybody = (record.user_id, *room.members, *tokens)
        members = [member_hash(salt, member) for member in everybody]
        tombstone = Tombstone(erased_at=self.clock.now(), salt=salt, members=members)
        return Append(session_id=record.session_id, expected=Expected.of(record), erase=tombstone)

    async def write(self, part: Append) -> Outcome:
        """Have a part of a batch written that stands alone, and say what became of it."""
        if self.stopping:
            raise Unavailable(_RESTARTS)
        single = _Single(part)
        self._committer.want(single)
        return await single.done

    # Upkeep

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(_TICK_MS)
            self.connections.check()
            self.nodes.look_after()
            for host in list(self.hosts.values()):
                host.tick()
                if host.idle and self.clock.monotonic() - host.used_at >= self._idle_ms:
                    self._hold(host)
                    self.forget(host)
