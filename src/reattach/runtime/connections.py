"""The way in: lines, their frames, and whom a session lets in on them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
import structlog

from reattach.core.connection import Close, Connection, Phase, Role
from reattach.core.room import Room
from reattach.errors import (
    AlreadyExists,
    Forbidden,
    NotAuthenticated,
    ReattachError,
    SessionErased,
    SessionNotFound,
    StoreError,
    Unavailable,
)
from reattach.runtime.access import User
from reattach.runtime.host import Host, Line
from reattach.store.base import Append, Expected
from reattach.wire import Error, Hello, Unreadable, decode, encode

if TYPE_CHECKING:
    from reattach.runtime.registry import Registry

__all__ = ["Connections", "Identify"]

log = structlog.get_logger("reattach.connections")

_HANDSHAKE_MS: Final = 2
"""What the return of one connection may cost a node that is to take many: two cores' worth is the
spread, because another node's clients come as well."""
_RETRY_MS: Final = 1_000
_LOOK_MS: Final = 30_000
"""How long, at most, a clock is trusted to run on evenly until a token expires."""
_MOVED: Final = "who may do what here changed meanwhile: come back"
_ATTEMPTS: Final = 10
"""How often the log is read on, while others write faster, before a state is sent instead."""

_CLOSED: Final = Phase.CLOSED
"""By a name of its own: to find a member in its enum costs a call on Python 3.11."""

Identify: TypeAlias = Callable[[str | None], Awaitable[User]]
"""Says who is on a line, given the token of its hello; raises `NotAuthenticated`."""


class Connections:
    """Every line to this node, and the session that it was let into."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._limits = registry.limits
        self._clock = registry.clock
        self._hosts: dict[Connection, Host | None] = {}
        """None: it has not been let in, or not yet."""

    def __len__(self) -> int:
        """Return how many lines there are."""
        return len(self._hosts)

    def __iter__(self) -> Iterator[Connection]:
        """Go through all lines as they are now."""
        return iter(list(self._hosts))

    def __contains__(self, connection: object) -> bool:
        """Say whether a line is still there."""
        return connection in self._hosts

    def connect(self, line: Line, came_from: Mapping[str, str] | None = None) -> Connection:
        """Take in a new line; its first frame has to be a hello.

        ``came_from`` is what the activity log is to tell of where it comes from.
        """
        connection = Connection(line, self._clock.now())
        connection.came_from = came_from or {}
        self._hosts[connection] = None
        connection.jitter_ms = _HANDSHAKE_MS * len(self._hosts)
        if self._registry.stopping:
            line.close(Close.RESTART, "the server restarts: come back")
        return connection

    def disconnected(self, connection: Connection, why: str) -> None:
        """A line is gone."""
        host = self._hosts.pop(connection, None)
        if host is not None:
            host.leave(connection, why)
        else:
            connection.phase = Phase.CLOSED

    def heard(self, connection: Connection) -> None:
        """A sign of life came that is no frame: a pong."""
        connection.heard_at = self._clock.now()

    def feed(
        self, connection: Connection, session_id: str, identify: Identify, data: bytes
    ) -> None:
        """Take a frame, as it came, for the session that the line was opened for."""
        size = len(data)
        phase = connection.phase
        if phase is _CLOSED:
            return
        now = connection.heard_at = self._clock.now()
        if size > self._limits.max_frame_bytes:
            most = self._limits.max_frame_bytes
            self.hang_up(connection, Close.TOO_LARGE, f"expected frames of at most {most} bytes")
            return
        host = self._hosts.get(connection)
        try:
            frame = decode(data)
        except Unreadable as error:
            if error.code == "unknown_type" and phase is not Phase.GREETING:
                connection.line.send((encode(Error(error.code, error.message)),))
            elif error.head is not None and host is not None:
                host.unreadable(connection, error)
            else:
                self.hang_up(connection, Close.BAD_FRAME, error.message)
            return
        if host is not None:
            host.receive(connection, frame, size, now)
        elif phase is Phase.GREETING:
            if type(frame) is not Hello:
                self.hang_up(connection, Close.BAD_FRAME, "expected hello as the first frame")
                return
            connection.phase = Phase.JOINING
            connection.line.pause(True)
            self._registry.tasks.spawn(self._join(connection, session_id, identify, frame))
        else:
            # Between its hello and its session: few, since the line is not read from now.
            connection.held.append((frame, size))

    def hang_up(self, connection: Connection, code: int, reason: str) -> None:
        """Close a line, with a code of `Close`."""
        connection.line.close(code, reason)
        self.disconnected(connection, reason)

    async def _join(
        self, connection: Connection, session_id: str, identify: Identify, hello: Hello
    ) -> None:
        try:
            await self.join(connection, session_id, await identify(hello.token), hello)
        except NotAuthenticated as error:
            self.hang_up(connection, Close.NOT_AUTHENTICATED, error.message)
        except Forbidden as error:
            self.hang_up(connection, Close.FORBIDDEN, error.message)
        except SessionNotFound as error:
            self.hang_up(connection, Close.NO_SESSION, error.message)
        except SessionErased as error:
            self.hang_up(connection, Close.ENDED, error.message)
        except (Unavailable, StoreError) as error:
            retry = error.retry_after_ms if isinstance(error, Unavailable) else _RETRY_MS
            frame = Error("unavailable", error.message, retry_after_ms=retry)
            connection.line.send((encode(frame),))
            self.hang_up(connection, Close.RESTART, error.message)
        except ReattachError as error:
            connection.line.send((encode(Error(error.code, error.message)),))
            self.hang_up(connection, Close.BAD_FRAME, error.message)
        except Exception:
            log.exception("a connection could not be let in", session=session_id)
            self.hang_up(connection, Close.RESTART, "the server failed: come back")
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
        await self._reach(host, hello.epoch, hello.version)
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
            record, refusals = await self._registry.client(host, hello.client_id, told=hello.seq)
            decided = 0 if record is None else record.seq

            def enter(room: Room, frames: Sequence[bytes] | None) -> None:
                if connection.phase is Phase.CLOSED:
                    return  # it is gone meanwhile
                if host.stands[2] != access_version:
                    room.hang(connection, Close.RESTART, _MOVED)
                    return
                if room.session.heard.get(hello.client_id, 0) > decided:
                    # What it refused of these has not been read.
                    why = "another node decided changes of yours meanwhile: come back"
                    room.hang(connection, Close.RESTART, why)
                    return
                self._hosts[connection] = host
                whole = backlog is not None and frames is None
                room.join(
                    connection,
                    msgspec.structs.replace(hello, epoch=None) if whole else hello,
                    record=record,
                    refusals=refusals,
                    created=created,
                    now=self._clock.now(),
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
        await self._reach(host, epoch, version)
        access_version = host.stands[2]
        host.pins += 1

        def enter(room: Room, frames: Sequence[bytes] | None) -> None:
            if connection.phase is Phase.CLOSED:
                return
            if host.stands[2] != access_version:
                room.hang(connection, Close.RESTART, _MOVED)
                return
            self._hosts[connection] = host
            room.observe(connection, frames, self._clock.now())

        try:
            await self._enter_after(host, epoch, version, backlog, enter)
        finally:
            host.pins -= 1

    async def _reach(self, host: Host, epoch: str | None, version: int | None) -> None:
        """See to it that a session stands where somebody saw it, who may come from another node."""
        if host.stands[0] == epoch and host.stands[1] < (version or 0):
            await self._registry.nodes.level(host)

    async def _let_in(self, connection: Connection, session_id: str, user: User) -> Host:
        host, connection.role = await self._registry.members.admit(session_id, user)
        connection.user, connection.user_id = user, user.id
        return host

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
            found = await self._store.log(
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
        if hello.create is None or hello.epoch is not None or session_id in self._registry.hosts:
            return False
        if user.session_id is not None:
            return False  # a token of one session makes no other
        if await self._store.session(session_id) is not None:
            return False
        try:
            await self._registry.create(
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
            await self._registry.write(part)
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
            expected=Expected.of(record),
            session=msgspec.structs.replace(
                record, epoch=self._clock.new_id(), epoch_version=record.version
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
            commits = await self._store.log(
                host.room.session_id,
                first=after + 1,
                max_bytes=host.room.session.document.weight,
            )
            await host.at_rest(lambda room: room.session.backfill(commits))

    def _check(self, connection: Connection, now: int) -> None:
        wants = connection.silence(now, self._limits)
        if wants == "ping":
            connection.line.ping()
        elif wants == "close":
            self.hang_up(connection, Close.NO_HEARTBEAT, "expected a sign of life")

    def _expire(self, connection: Connection, expires_at: int | None) -> None:
        """Close a line when its user's token expires.

        The clock is looked at again and again: it may be set, or the machine may have slept.
        """
        if expires_at is None or connection not in self._hosts:
            return
        left = expires_at - self._clock.now()
        if left <= 0:
            why = "the token has expired: come back with a fresh one"
            self.hang_up(connection, Close.NOT_AUTHENTICATED, why)
            return
        loop = asyncio.get_running_loop()
        loop.call_later(min(left, _LOOK_MS) / 1000, self._expire, connection, expires_at)

    def check(self) -> None:
        """Ask those that are silent for a sign of life, and close those that give none."""
        now = self._clock.now()
        for connection in self:
            self._check(connection, now)

    def send_away(self, code: int, reason: str) -> None:
        """Close all lines that are not in a session: those that are belong to its host."""
        for connection, host in list(self._hosts.items()):
            if host is None:
                connection.line.close(code, reason)


def _entered(
    enter: Callable[[Room, Sequence[bytes] | None], None],
    epoch: str | None,
    version: int,
    frames: Sequence[bytes],
    room: Room,
) -> bool:
    """Add what was committed since the log was read, and enter; False where it is not at hand."""
    session = room.session
    here = session.version - version
    # What another node committed, and this one has not heard of, follows when it has.
    frames = frames[: max(0, here)]
    known = version + len(frames)
    missing = session.version - known
    if epoch != room.recorded.epoch or here < 0:
        enter(room, None)
    elif missing > len(session.tail):
        return False
    else:
        enter(room, [*frames, *(body for number, body in session.tail if number > known)])
    return True
