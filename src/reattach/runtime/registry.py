"""The sessions that are open on this node, and the way in for connections."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog

from reattach.bus.base import Beat, Bus, Message, Missed, Note, Roster, Watched, Whisper
from reattach.bus.snapshots import Snapshot, Snapshots, proof
from reattach.core.connection import Close, Connection, Phase, Role
from reattach.core.effects import Request
from reattach.core.guard import Guard
from reattach.core.limits import Limits
from reattach.core.room import Room
from reattach.core.schema import Schema
from reattach.core.session import Edit, Proposal, empty_index
from reattach.core.values import check
from reattach.errors import (
    AlreadyExists,
    ChangeRefused,
    Forbidden,
    LastOwner,
    NotAuthenticated,
    ReattachError,
    SessionErased,
    SessionNotFound,
    StoreError,
    StoreRefused,
    TooLarge,
    TooManyMembers,
    Unavailable,
)
from reattach.runtime.access import (
    Action,
    Authorize,
    SessionAccess,
    allows,
    at_most,
    effective_role,
    may,
)
from reattach.runtime.clock import Clock
from reattach.runtime.committer import Committer
from reattach.runtime.host import Host, Line
from reattach.runtime.reactions import Reaction, Reactions
from reattach.store.base import (
    Activity,
    Append,
    ClientRecord,
    CredentialRecord,
    DeviceRecord,
    Expected,
    IdempotencyRecord,
    Loaded,
    MemberRecord,
    Outcome,
    SavedState,
    SessionRecord,
    Standing,
    Store,
    Tombstone,
)
from reattach.wire import Error, Hello, Op, Unreadable, decode, encode

__all__ = ["Identify", "Registry", "User"]

log = structlog.get_logger("reattach.registry")

_TICK_MS = 1_000
_HURRY_MS = 500
"""How often the open sessions are compared with the database while no bus tells of them."""
_BEAT_MS = 2_000
_LEASE_MS = 7_000
"""How long a node counts as living after its last sign of life."""
_ANNOUNCE_MS = 10_000
"""How often it is told again who is connected to a session that other nodes have open, too."""
_ANNOUNCE_ALONE_MS = 60_000
"""How often where none is known to have: most sessions are open on one node."""
_HANDSHAKE_MS = 2
"""What the return of one connection may cost a node that is to take many: two cores' worth is the
spread, because another node's clients come as well."""
_SNAPSHOTS_MS = 500
"""How long a node that stops takes, at most, to have snapshots held."""
_LOOK_MS = 30_000
"""How long, at most, a clock is trusted to run on evenly until a token expires."""
_MOST_MEMBERS = 1_000
"""Members of a session beside its owner of record: all are read when it is opened."""
_MOVED = "who may do what here changed meanwhile: come back"
_ATTEMPTS = 10
"""How often the log is read on, while others write faster, before a state is sent instead."""


class User(msgspec.Struct, frozen=True):
    """Who somebody is: ``id`` is any string up to 255 bytes.

    ``expires_at``, in milliseconds since 1970, is when this has to be shown anew: connections are
    closed then (4401). None: never. Who came with a token for one session alone is let in on
    ``session_id`` and no other, with at most ``role``.
    """

    id: str
    expires_at: int | None = None
    session_id: str | None = None
    role: str | None = None


Identify = Callable[[str | None], Awaitable[User]]
"""Says who is on a line, given the token of its hello; raises `NotAuthenticated`."""


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
    ) -> None:
        """Make a node. ``bus`` leads to the others that serve the same database, if there are;
        ``authorize`` is the application's word on who may do what; ``snapshots`` holds states for
        whoever opens a session next; ``reactions`` are called when something was committed.
        """
        self.store = store
        self.limits = limits
        self.clock = clock
        self.schemas = {schema.name: schema for schema in schemas}
        self.identity = ""
        """The database's."""
        self.server_client = f"server:{clock.new_id()}"
        """The client id of what this process writes on its own, or for HTTP."""
        self.node = self.server_client.partition(":")[2]
        """What this process is called on the bus."""
        self.stopping = False
        self.connections: dict[Connection, Host | None] = {}
        self.hosts: dict[str, Host] = {}
        self._committer = Committer(store, clock, timeout_ms=store_timeout_ms)
        self._timeout_ms = store_timeout_ms
        self._idle_ms = idle_session_ms
        self._bus = bus
        self._authorize = authorize
        self._snapshots = snapshots
        self._reactions = Reactions(store, clock, self.node, reactions)
        self._unsubscribe: Callable[[], None] | None = None
        self._comparing = False
        self._nodes: dict[str, int] = {}
        """The other nodes, and when they last gave a sign of life."""
        self._beat_at = 0
        self._opening: dict[str, asyncio.Task[Host]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the database and begin."""
        self.identity = await self.store.open()
        self._committer.start()
        if self._bus is not None:
            self._unsubscribe = self._bus.subscribe(self._hear)
            await self._bus.open(self.identity)
        if self._snapshots is not None:
            await self._snapshots.open(self.identity)
        self._reactions.start()
        self._spawn(self._tick())
        self._spawn(self._hurry())

    async def stop(self, *, timeout_ms: int) -> None:
        """Say 1012 to everybody, let the batch in flight and what waits become durable, end."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 2_000):
                await self._reactions.stop()
        if self._unsubscribe is not None:
            self._unsubscribe()
        for host in list(self.hosts.values()):
            room = host.room
            for connection in (*room.connections.values(), *room.observers):
                room.hang(connection, Close.RESTART, "the server restarts: come back")
            host.flush()
        for connection, joined in list(self.connections.items()):
            if joined is None:
                connection.line.close(Close.RESTART, "the server restarts: come back")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self._committer.stop()
        until = self.clock.monotonic() + _SNAPSHOTS_MS
        for host in list(self.hosts.values()):
            if self.clock.monotonic() < until:
                self._hold(host)
            host.close(Close.RESTART, "the server restarts: come back")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._bus is not None:
            self._bus.publish(Beat(node=self.node, leaves=True))
            await self._bus.close()
        if self._snapshots is not None:
            await self._snapshots.close()
        await self.store.close()

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
            raise Unavailable("the server restarts: come back")
        task = self._opening.get(session_id)
        if task is None:
            task = self._opening[session_id] = asyncio.create_task(self._open(session_id))
            task.add_done_callback(lambda _: self._opening.pop(session_id, None))
        return await asyncio.shield(task)

    async def _open(self, session_id: str) -> Host:
        """Open a session; what others say of it is heard from before it is read."""
        if self._bus is None:
            return await self._load(session_id)
        self._bus.watch(session_id)
        try:
            host = await self._load(session_id)
        finally:
            if session_id not in self.hosts:
                self._bus.unwatch(session_id)
        host.announce(asks=True)
        return host

    async def _load(self, session_id: str) -> Host:
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                loaded, log_bytes = await self._read(session_id)
        except (TimeoutError, StoreError) as error:
            raise _not_loaded(session_id, error) from error
        if loaded is None:
            raise SessionNotFound("there is no such session")
        schema = self._schema(loaded.session)
        room = Room(loaded, self.limits, schema)
        room.session.log_bytes += log_bytes
        room.reactions = self._reactions.names(loaded.session.schema_name)
        host = Host(
            room,
            self.store,
            self._committer,
            self.clock,
            timeout_ms=self._timeout_ms,
            keeper=self,
            bus=self._bus,
            node=self.node,
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

    async def _read(self, session_id: str) -> tuple[Loaded | None, int]:
        """Read a session, from a snapshot on if there is one that is worth it.

        With it comes what the log weighs between the newest state in the database and that one.
        """
        held = [] if self._snapshots is None else await self._snapshots.get(session_id)
        for snapshot in held:
            loaded = await self._read_on(snapshot)
            if loaded is not None:
                return loaded, snapshot.log_bytes
        return await self.store.load(session_id), 0

    async def _read_on(self, snapshot: Snapshot) -> Loaded | None:
        """Read what came after a snapshot; None where it is not of the history in the database.

        The session's row is read first: what came after it is found by the next comparison.
        """
        session_id, version = snapshot.session_id, snapshot.saved.version
        record = await self.store.session(session_id)
        if not isinstance(record, SessionRecord) or record.epoch != snapshot.epoch:
            return None
        commits = await self.store.log(session_id, first=version, last=record.version)
        if len(commits) != record.version - version + 1 or proof(commits[0].body) != snapshot.proof:
            return None
        return Loaded(
            session=record,
            saved=snapshot.saved,
            tail=commits[1:],
            conflicts=snapshot.conflicts,
            devices=await self.store.devices(session_id),
            members=await self.store.members(session_id),
        )

    def committed(self, host: Host) -> None:
        """Something was committed here."""
        self._reactions.wake(host.session_id, host.room.reactions)

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
            async with asyncio.timeout(self._timeout_ms / 1000):
                found = await self.store.session(session_id)
        except (TimeoutError, StoreError):
            return False
        return isinstance(found, SessionRecord) and found.schema_version == schema.version

    async def request(
        self,
        host: Host,
        *,
        edit: Edit | None = None,
        resolve: Op | None = None,
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
        record = await self.client(host, name)

        def know(room: Room) -> None:
            if name not in room.session.clients:
                mine = record or ClientRecord(client_id=name, user_id="", device_id="")
                room.session.know(mine, known=record is not None, source="server")

        await host.at_rest(know)
        proposal = Proposal(
            client_id=name,
            edit=edit,
            resolve=resolve,
            upgrades=upgrades,
            user_id=user_id,
            role=role,
            access_version=access_version,
        )
        return Request(proposal=proposal)

    # Other nodes

    def _hear(self, message: Message | Missed | Watched) -> None:
        if isinstance(message, Missed):
            # Whatever was said meanwhile: read it, and ask the others who is there.
            self._compare_soon()
            for host in self.hosts.values():
                host.announce(asks=True)
        elif isinstance(message, Beat):
            self._live(message.node, leaves=message.leaves)
        else:
            self._hear_of(message)

    def _hear_of(self, message: Note | Whisper | Roster | Watched) -> None:
        if isinstance(message, Roster):
            self._live(message.node)
        host = self.hosts.get(message.session_id)
        if host is None or (isinstance(message, Roster | Whisper) and message.node == self.node):
            return
        if isinstance(message, Roster):
            host.hear_roster(message)
        elif isinstance(message, Whisper):
            host.hear_whisper(message)
        elif isinstance(message, Watched):
            host.announce(asks=True)
        else:
            host.hear(message)

    def _live(self, node: str, *, leaves: bool = False) -> None:
        """A node gave a sign of life, or its last."""
        if node == self.node:
            return
        if not leaves:
            self._nodes[node] = self.clock.monotonic()
        elif self._nodes.pop(node, None) is not None:
            self._lose(node)

    def _lose(self, node: str) -> None:
        for host in list(self.hosts.values()):
            host.lose_node(node)

    def _look_after_nodes(self) -> None:
        """Give signs of life, and find out who gives none any more."""
        if self._bus is None:
            return
        now = self.clock.monotonic()
        if not self._bus.live:
            # Nobody can be heard: nobody is known to be gone.
            self._nodes = dict.fromkeys(self._nodes, now)
            return
        if now - self._beat_at >= _BEAT_MS:
            self._beat_at = now
            self._bus.publish(Beat(node=self.node))
        for node, heard_at in list(self._nodes.items()):
            if now - heard_at >= _LEASE_MS:
                del self._nodes[node]
                log.warning("a node has given no sign of life, and counts as gone", node=node)
                self._lose(node)

    def _compare_soon(self) -> None:
        if self.hosts and not self._comparing:
            self._comparing = True
            self._spawn(self._compare())

    async def _compare(self) -> None:
        """Compare where the open sessions stand with the database: news may have been lost."""
        seen = {name: (host, host.stands) for name, host in self.hosts.items()}
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                found = await self.store.versions(list(seen))
        except (TimeoutError, StoreError, OSError) as error:
            log.debug("sessions could not be compared with the database", error=str(error))
            return
        finally:
            self._comparing = False
        for name, (host, stood) in seen.items():
            host.compare(stood, found.get(name))

    def forget(self, host: Host) -> None:
        """A session is no longer in memory."""
        if self.hosts.get(host.room.session_id) is host:
            del self.hosts[host.room.session_id]
            if self._bus is not None:
                self._bus.unwatch(host.room.session_id)

    # Who may do what

    async def admit(
        self, session_id: str, user: User, action: Action = Action.READ
    ) -> tuple[Host, str]:
        """Return a session and the user's role in it.

        To a stranger it does not exist (`SessionNotFound`); to a member of an erased one it is
        gone (`SessionErased`). Raises `Forbidden` for what a member may not do.

        A stranger has the session's row read, as for one that does not exist, and nothing more.
        """
        if user.session_id not in {None, session_id}:
            # Whether it is there makes no difference: it is not looked at.
            raise SessionNotFound("there is no such session")
        access, version = await self._access(session_id, user)
        role = at_most(await effective_role(self._authorize, user, access), user.role)
        if role is None or not access.user_id:
            raise SessionNotFound("there is no such session")
        allowed = await allows(self._authorize, user, access, action)
        if not allowed or (user.role is not None and not may(user.role, action)):
            raise Forbidden(f"a session's {role} may not {action} it: ask one of its owners")
        host = await self.open(session_id)
        if self._authorize is None and host.stands[2] >= version:
            # It may have been opened, or heard of more, after its row was read.
            role = at_most(host.room.role_of(user.id), user.role)
            if role is None:
                raise SessionNotFound("there is no such session")
        return host, role

    async def _access(self, session_id: str, user: User) -> tuple[SessionAccess, int]:
        """Return what a user is to a session by the members' list, and the list's version."""
        host = self.hosts.get(session_id)
        role = None if host is None else host.room.role_of(user.id)
        if host is not None and role is not None:
            record = host.room.recorded
        else:
            found = await self._standing(session_id, user)
            if isinstance(found, Tombstone) and member_hash(found.salt, user.id) in found.members:
                raise SessionErased("the session was erased")
            if not isinstance(found, Standing):
                nobodys = SessionAccess(session_id=session_id, user_id="", role=None, schema=None)
                return nobodys, 0
            record = found.session
            role = Role.OWNER if record.user_id == user.id else found.role
        return access_to(record, at_most(role, user.role)), record.access_version

    async def _standing(self, session_id: str, user: User) -> Standing | Tombstone | None:
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await self.store.standing(session_id, user.id)
        except (TimeoutError, StoreError) as error:
            raise _not_loaded(session_id, error) from error

    def readmit(self, host: Host) -> None:
        """Who may do what has changed: have it so on every connection."""
        room = host.room
        for connection in room.everybody():
            if self._authorize is None:
                role = at_most(room.role_of(connection.user_id), connection.user.role)
                room.set_role(connection, role, self.clock.now())
            else:
                self._spawn(self._ask_again(host, connection, self._authorize))

    async def _ask_again(self, host: Host, connection: Connection, authorize: Authorize) -> None:
        room, user = host.room, connection.user
        access = access_to(room.recorded, at_most(room.role_of(user.id), user.role))
        try:
            role = at_most(await effective_role(authorize, user, access), user.role)
            await host.at_rest(lambda room: room.set_role(connection, role, self.clock.now()))
        except ReattachError as error:
            self._hang_up(connection, Close.RESTART, f"come back to be let in anew: {error}")
        except Exception:
            log.exception("authorize failed", session=room.session_id)
            self._hang_up(connection, Close.RESTART, "come back to be let in anew")

    async def change_access(self, session_id: str, change: Callable[[Room], Append | None]) -> None:
        """Change who may do what with a session, durably, and have it so on its connections here.

        ``change`` makes the part at rest, with the row's access version raised (`access_part`);
        None: there is nothing to change. It is asked anew where somebody else was quicker.
        """
        outcome = None
        while outcome is not Outcome.OK:
            host = await self.open(session_id)
            part = await host.at_rest(partial(_held, host, change))
            if part is None:
                return
            try:
                outcome = await self._write(part)
            finally:
                host.go_on()
            if self._bus is not None and part.session is not None and outcome is Outcome.OK:
                # They need not wait for the second to pass.
                self._bus.publish(Note(session=part.session, commits=[]))
            with contextlib.suppress(Unavailable):
                # From then on it is in force here. Where the session has another owner of record,
                # it is closed instead, and everybody is let in anew.
                await host.at_rest(lambda room: room.session_id)

    def access_part(self, room: Room, activity: Activity | None = None, **fields: Any) -> Append:
        """Make the part that changes who may do what; ``fields`` are those of `Append`."""
        record = room.recorded
        session = msgspec.structs.replace(
            fields.pop("session", record), access_version=record.access_version + 1
        )
        return Append(
            session_id=record.session_id,
            expected=_where(record),
            session=session,
            activity=[] if activity is None else [activity],
            **fields,
        )

    async def set_member(self, session_id: str, user_id: str, role: str, *, by: str) -> None:
        """Give a user a role in a session; raises `LastOwner` where none would be left."""

        def change(room: Room) -> Append | None:
            before = room.role_of(user_id)
            if before == role:
                return None
            if before is None and len(room.members) >= _MOST_MEMBERS:
                raise TooManyMembers(
                    f"expected at most {_MOST_MEMBERS} members of a session: remove one first"
                )
            member = MemberRecord(user_id=user_id, role=role)
            data = {"user_id": user_id, "role": role}
            return self._members_part(room, user_id, [member], "member_set", data, by)

        await self.change_access(session_id, change)

    async def remove_member(self, session_id: str, user_id: str, *, by: str) -> None:
        """Take a user's role in a session away; raises `LastOwner` where none would be left."""

        def change(room: Room) -> Append | None:
            if room.role_of(user_id) is None:
                return None
            return self._members_part(room, user_id, [], "member_removed", {"user_id": user_id}, by)

        await self.change_access(session_id, change)

    def _members_part(
        self,
        room: Room,
        user_id: str,
        put: list[MemberRecord],
        what: str,
        data: dict[str, Any],
        by: str,
    ) -> Append:
        """Make the part that has a user be just the member ``put``, or none."""
        record, removed = room.recorded, [user_id]
        activity = Activity(activity_type=what, at=self.clock.now(), user_id=by, data=encode(data))
        if user_id == record.user_id:
            # Another owner becomes the one of record.
            heir = min(
                (one for one, role in room.members.items() if role == Role.OWNER), default=None
            )
            if heir is None:
                raise LastOwner(
                    "expected a session to keep an owner: make somebody else one first, or erase it"
                )
            record = msgspec.structs.replace(record, user_id=heir)
            removed = [heir]
        return self.access_part(
            room, activity, session=record, members=put, members_removed=removed
        )

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
            state=SavedState(version=0, state=encoded, index=empty_index()),
            devices=[] if device is None else [device],
            credentials=[*credentials],
            activity=[Activity(activity_type="created", at=now, user_id=user.id)],
            idempotency=None if idempotency is None else idempotency(record),
        )
        if await self._write(part) is not Outcome.OK:
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
                outcome = await self._write(part)
            finally:
                # Nobody is told before it is durable. Where it is not, or nobody knows, or
                # somebody else wrote meanwhile, the session is to be loaded again.
                if outcome is Outcome.OK:
                    host.close(Close.ENDED, "the session was erased")
                else:
                    host.close(Close.RESTART, "the session is being opened anew: come back")

    async def was_erased(self, session_id: str, member: str) -> bool:
        """Say whether a session was erased that somebody was a member of."""
        found = await self.store.session(session_id)
        return isinstance(found, Tombstone) and member_hash(found.salt, member) in found.members

    def _erasure(self, host: Host, kept: Sequence[CredentialRecord], room: Room) -> Append:
        host.hold()
        record = room.recorded
        salt = self.clock.new_id().encode()
        tokens = [token_member(one.secret_hash) for one in kept if one.kind == "token"]
        everybody = (record.user_id, *room.members, *tokens)
        members = [member_hash(salt, member) for member in everybody]
        tombstone = Tombstone(erased_at=self.clock.now(), salt=salt, members=members)
        return Append(session_id=record.session_id, expected=_where(record), erase=tombstone)

    async def _write(self, part: Append) -> Outcome:
        if self.stopping:
            raise Unavailable("the server restarts: come back")
        single = _Single(part)
        self._committer.want(single)
        return await single.done

    # Connections

    def connect(self, line: Line) -> Connection:
        """Take in a new line; its first frame has to be a hello."""
        connection = Connection(line, self.clock.now())
        self.connections[connection] = None
        connection.jitter_ms = _HANDSHAKE_MS * len(self.connections)
        if self.stopping:
            line.close(Close.RESTART, "the server restarts: come back")
        return connection

    def disconnected(self, connection: Connection, why: str) -> None:
        """A line is gone."""
        host = self.connections.pop(connection, None)
        if host is not None:
            host.leave(connection, why)
        else:
            connection.phase = Phase.CLOSED

    def heard(self, connection: Connection) -> None:
        """A sign of life came that is no frame: a pong."""
        connection.heard_at = self.clock.now()

    def feed(
        self, connection: Connection, session_id: str, identify: Identify, data: bytes
    ) -> None:
        """Take a frame, as it came, for the session that the line was opened for."""
        size = len(data)
        phase = connection.phase
        if phase is Phase.CLOSED:
            return
        connection.heard_at = self.clock.now()
        if size > self.limits.max_frame_bytes:
            most = self.limits.max_frame_bytes
            self._hang_up(connection, Close.TOO_LARGE, f"expected frames of at most {most} bytes")
            return
        host = self.connections.get(connection)
        try:
            frame = decode(data)
        except Unreadable as error:
            if error.code == "unknown_type" and phase is not Phase.GREETING:
                connection.line.send((encode(Error(error.code, error.message)),))
            elif error.head is not None and host is not None:
                host.unreadable(connection, error)
            else:
                self._hang_up(connection, Close.BAD_FRAME, error.message)
            return
        if phase is Phase.GREETING:
            if type(frame) is not Hello:
                self._hang_up(connection, Close.BAD_FRAME, "expected hello as the first frame")
                return
            connection.phase = Phase.JOINING
            connection.line.pause(True)
            self._spawn(self._join(connection, session_id, identify, frame))
        elif host is not None:
            host.receive(connection, frame, size)
        else:
            # Between its hello and its session: few, since the line is not read from now.
            connection.held.append((frame, size))

    def _hang_up(self, connection: Connection, code: int, reason: str) -> None:
        connection.line.close(code, reason)
        self.disconnected(connection, reason)

    async def _join(
        self, connection: Connection, session_id: str, identify: Identify, hello: Hello
    ) -> None:
        try:
            await self.join(connection, session_id, await identify(hello.token), hello)
        except NotAuthenticated as error:
            self._hang_up(connection, Close.NOT_AUTHENTICATED, error.message)
        except Forbidden as error:
            self._hang_up(connection, Close.FORBIDDEN, error.message)
        except SessionNotFound as error:
            self._hang_up(connection, Close.NO_SESSION, error.message)
        except SessionErased as error:
            self._hang_up(connection, Close.ENDED, error.message)
        except (Unavailable, StoreError) as error:
            retry = error.retry_after_ms if isinstance(error, Unavailable) else _TICK_MS
            frame = Error("unavailable", error.message, retry_after_ms=retry)
            connection.line.send((encode(frame),))
            self._hang_up(connection, Close.RESTART, error.message)
        except ReattachError as error:
            connection.line.send((encode(Error(error.code, error.message)),))
            self._hang_up(connection, Close.BAD_FRAME, error.message)
        except Exception:
            log.exception("a connection could not be let in", session=session_id)
            self._hang_up(connection, Close.RESTART, "the server failed: come back")
        finally:
            if connection.phase is not Phase.CLOSED:
                connection.line.pause(connection.paused)

    async def join(
        self,
        connection: Connection,
        session_id: str,
        user: User,
        hello: Hello,
        *,
        backlog: int | None = None,
    ) -> None:
        """Let a connection into a session.

        With ``backlog`` it gets exactly the commits after ``hello.version`` instead of a welcome,
        where that is of the present epoch and they weigh at most so many bytes.
        """
        if hello.user_id is not None and hello.user_id != user.id:
            # Before anything is written: its client and its `create` are another user's, too.
            raise NotAuthenticated("this outbox is another user's: sign in as who it belongs to")
        self._expire(connection, user.expires_at)
        created = await self._create_missing(session_id, user, hello)
        host = await self._let_in(connection, session_id, user)
        if host.stands[0] == hello.epoch and host.stands[1] < (hello.version or 0):
            await self._level(host)  # it may come from a node that is ahead
        while await self._begins_epoch(host, connection, hello):
            host = await self._let_in(connection, session_id, user)
        access_version = host.stands[2]
        schema = host.room.session.schema
        if schema is not None and (hello.schema_version or 0) > schema.version:
            raise Unavailable(
                f"this node has schema {schema.name} {schema.version}, an older one than the"
                " client's: come back"
            )
        host.pins += 1
        try:
            await self._make_ready(host, hello)
            record = await self.client(host, hello.client_id, told=hello.seq)
            decided = 0 if record is None else record.seq
            found = await self.store.refusals(session_id, hello.client_id, hello.seq)
            # Another node may have refused more since the record was read: that is told when the
            # change comes again.
            refusals = [one for one in found if one.seq <= decided]

            def enter(room: Room, frames: Sequence[bytes] | None) -> None:
                if connection.phase is Phase.CLOSED:
                    return  # it is gone meanwhile
                known = room.session.clients.get(hello.client_id)
                foreign = 0 if known is None else known.elsewhere
                if host.stands[2] != access_version:
                    room.hang(connection, Close.RESTART, _MOVED)
                    return
                if foreign > decided:
                    # What it refused of these has not been read.
                    why = "another node decided changes of yours meanwhile: come back"
                    room.hang(connection, Close.RESTART, why)
                    return
                self.connections[connection] = host
                whole = backlog is not None and frames is None
                room.join(
                    connection,
                    msgspec.structs.replace(hello, epoch=None) if whole else hello,
                    record=record,
                    refusals=refusals,
                    created=created,
                    now=self.clock.now(),
                    frames=frames,
                )

            version = None if backlog is None else hello.version
            await self._enter_after(host, hello.epoch, version, backlog or 0, enter)
        finally:
            host.pins -= 1

    async def observe(
        self,
        connection: Connection,
        session_id: str,
        user: User,
        *,
        epoch: str | None,
        version: int | None,
        backlog: int,
    ) -> None:
        """Let a line in that only reads: with exactly the commits after ``version``, where that
        is of the present epoch and they weigh at most ``backlog`` bytes, else with the state.
        """
        self._expire(connection, user.expires_at)
        host = await self._let_in(connection, session_id, user)
        access_version = host.stands[2]
        host.pins += 1

        def enter(room: Room, frames: Sequence[bytes] | None) -> None:
            if connection.phase is Phase.CLOSED:
                return
            if host.stands[2] != access_version:
                room.hang(connection, Close.RESTART, _MOVED)
                return
            self.connections[connection] = host
            room.observe(connection, frames, self.clock.now())

        try:
            await self._enter_after(host, epoch, version, backlog, enter)
        finally:
            host.pins -= 1

    async def _let_in(self, connection: Connection, session_id: str, user: User) -> Host:
        host, connection.role = await self.admit(session_id, user)
        connection.user, connection.user_id = user, user.id
        return host

    async def client(self, host: Host, client_id: str, *, told: int = 0) -> ClientRecord | None:
        """Read a client's record, and have the session stand where its numbers were decided.

        Another node may have decided some of them, and this one not have heard of the commits.
        ``told`` is the highest number of whose decision the client knows, and of its commit.
        """
        record = await self.store.client(host.session_id, client_id)
        known = host.room.session.clients.get(client_id)
        if record is not None and record.seq > max(told, 0 if known is None else known.seq):
            await self._level(host)
        return record

    async def _level(self, host: Host) -> None:
        """Have a session stand where the database has it, at least as it is now."""
        for _ in range(_ATTEMPTS):
            seen = host.stands
            found = (await self.store.versions([host.session_id])).get(host.session_id)
            await host.at_rest(partial(_compared, host, seen, found))
            stands = await host.at_rest(lambda _: host.stands)
            if found is None or found[0] != stands[0] or found[1] <= stands[1]:
                return

    async def _enter_after(
        self,
        host: Host,
        epoch: str | None,
        version: int | None,
        most: int,
        enter: Callable[[Room, Sequence[bytes] | None], None],
    ) -> None:
        """Call ``enter`` at rest with every commit after a version, or with None where that is of
        another epoch or never was, is no longer in the log, or they weigh more than ``most``.
        """
        frames: list[bytes] = []
        for _ in range(_ATTEMPTS):
            if version is None:
                break
            found = await self.store.log(
                host.room.session_id, first=version + len(frames) + 1, max_bytes=most
            )
            if found and found[0].version != version + len(frames) + 1:
                break
            frames += [commit.body for commit in found]
            if sum(map(len, frames)) > most:
                break
            if await host.at_rest(partial(_entered, enter, epoch, version, frames)):
                host.flush()
                return
        await host.at_rest(lambda room: enter(room, None))
        host.flush()

    async def _create_missing(self, session_id: str, user: User, hello: Hello) -> bool:
        """Create the session that a hello asks for, unless it is there; say whether it was."""
        if hello.create is None or hello.epoch is not None or session_id in self.hosts:
            return False
        if user.session_id is not None:
            return False  # a token of one session makes no other
        if await self.store.session(session_id) is not None:
            return False
        try:
            await self.create(
                user,
                session_id=session_id,
                state=hello.create.state,
                schema=hello.create.schema,
                role=Role.OWNER,
            )
        except AlreadyExists:
            return False
        return True

    async def _begins_epoch(self, host: Host, connection: Connection, hello: Hello) -> bool:
        """Begin another epoch where an editor has seen versions that the log has not.

        True: it is durable, or somebody else wrote meanwhile; the session is to be opened again,
        and whoever was connected comes back to it. Nobody is welcomed in between.
        """
        part = await host.at_rest(partial(self._new_epoch, host, connection, hello))
        if part is None:
            return False
        log.warning(
            "a client has seen versions that the database has not: a new epoch begins",
            session=part.session_id,
            client_version=hello.version,
            version=host.room.recorded.version,
        )
        try:
            await self._write(part)
        finally:
            host.close(Close.RESTART, "the session's history was set back: come back")
        return True

    def _new_epoch(
        self, host: Host, connection: Connection, hello: Hello, room: Room
    ) -> Append | None:
        record = room.recorded
        if connection.role == Role.VIEWER or hello.epoch != record.epoch:
            return None
        if hello.version is None or hello.version <= record.version:
            return None
        host.hold()
        return Append(
            session_id=record.session_id,
            expected=_where(record),
            session=msgspec.structs.replace(
                record, epoch=self.clock.new_id(), epoch_version=record.version
            ),
        )

    async def _make_ready(self, host: Host, hello: Hello) -> None:
        """See to it that commits are at hand that are worth less than a whole state."""

        def lacking(room: Room) -> int | None:
            if hello.epoch != room.recorded.epoch or hello.version is None:
                return None
            return hello.version if room.session.lacks(hello.version) else None

        after = await host.at_rest(lacking)
        if after is not None:
            commits = await self.store.log(
                host.room.session_id,
                first=after + 1,
                max_bytes=host.room.session.document.weight,
            )
            await host.at_rest(lambda room: room.session.backfill(commits))

    # Upkeep

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(_TICK_MS)
            now = self.clock.now()
            for connection in list(self.connections):
                self._check(connection, now)
            self._compare_soon()
            self._look_after_nodes()
            for host in list(self.hosts.values()):
                host.tick()
                since = self.clock.monotonic() - host.announced_at
                shared = host.room.elsewhere.shared
                if self._nodes and since >= (_ANNOUNCE_MS if shared else _ANNOUNCE_ALONE_MS):
                    host.announce(asks=not shared)
                if host.idle and self.clock.monotonic() - host.used_at >= self._idle_ms:
                    self._hold(host)
                    self.forget(host)

    async def _hurry(self) -> None:
        while True:
            await self.clock.sleep(_HURRY_MS)
            if self._bus is None or not self._bus.live:
                self._compare_soon()

    def _check(self, connection: Connection, now: int) -> None:
        wants = connection.silence(now, self.limits)
        if wants == "ping":
            connection.line.ping()
        elif wants == "close":
            self._hang_up(connection, Close.NO_HEARTBEAT, "expected a sign of life")

    def _expire(self, connection: Connection, expires_at: int | None) -> None:
        """Close a line when its user's token expires.

        The clock is looked at again and again: it may be set, or the machine may have slept.
        """
        if expires_at is None or connection not in self.connections:
            return
        left = expires_at - self.clock.now()
        if left <= 0:
            why = "the token has expired: come back with a fresh one"
            self._hang_up(connection, Close.NOT_AUTHENTICATED, why)
            return
        loop = asyncio.get_running_loop()
        loop.call_later(min(left, _LOOK_MS) / 1000, self._expire, connection, expires_at)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _compared(
    host: Host, seen: tuple[str, int, int], found: tuple[str, int, int] | None, _: Room
) -> None:
    host.compare(seen, found)


def _entered(
    enter: Callable[[Room, Sequence[bytes] | None], None],
    epoch: str | None,
    version: int,
    frames: Sequence[bytes],
    room: Room,
) -> bool:
    """Add what was committed since the log was read, and enter; False where it is not at hand."""
    session = room.session
    known = version + len(frames)
    missing = session.version - known
    if epoch != room.recorded.epoch or missing < 0:
        enter(room, None)
    elif missing > len(session.tail):
        return False
    else:
        enter(room, [*frames, *(body for number, body in session.tail if number > known)])
    return True


def _not_loaded(session_id: str, error: Exception) -> Unavailable:
    log.error("a session could not be loaded", session=session_id, error=str(error))
    return Unavailable("the session cannot be loaded now: nothing was lost")


def _held(host: Host, change: Callable[[Room], Append | None], room: Room) -> Append | None:
    part = change(room)
    if part is not None:
        host.hold()
    return part


def _where(record: SessionRecord) -> Expected:
    return Expected(
        version=record.version, epoch=record.epoch, access_version=record.access_version
    )


def access_to(record: SessionRecord, role: str | None) -> SessionAccess:
    """Return what an ``authorize`` is told of a session."""
    return SessionAccess(
        session_id=record.session_id, user_id=record.user_id, role=role, schema=record.schema_name
    )


def token_member(secret_hash: bytes) -> str:
    """Return the name of a token among those who are told of an erasure; no user's."""
    return f"token:{secret_hash.hex()}:"


def member_hash(salt: bytes, user_id: str) -> bytes:
    """Return what an erased session keeps of a member."""
    return hashlib.sha256(salt + user_id.encode()).digest()
