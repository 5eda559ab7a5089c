"""The host of one open session: feeds its room, carries out what the room wants, recovers it.

Everything here runs on one event loop. What must see only durable state runs `at_rest`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from reattach.bus.base import Bus, Note, Roster, Whisper
from reattach.bus.snapshots import WORTH_BYTES, Snapshot, proof
from reattach.core.connection import Close, Connection
from reattach.core.effects import (
    Announce,
    Confirm,
    Effect,
    Fault,
    Hang,
    LookUp,
    PassOn,
    Pause,
    Recall,
    Request,
    Result,
    Send,
    Settle,
)
from reattach.core.elsewhere import Seat
from reattach.core.past import Past
from reattach.core.room import Room
from reattach.core.session import Proposal
from reattach.errors import (
    ChangeRefused,
    KeyAnswered,
    ReattachError,
    StoreError,
    StoreRefused,
    Unavailable,
)
from reattach.runtime.clock import Clock
from reattach.runtime.committer import Committer
from reattach.runtime.loader import Loader
from reattach.runtime.outage import LAST_RETRY_MS
from reattach.runtime.recall import look_up
from reattach.store.base import (
    Append,
    ClientRecord,
    CommitRecord,
    DeviceRecord,
    MemberRecord,
    Outcome,
    RefusalRecord,
    Tombstone,
)
from reattach.wire import Frame, RequestSync, Unreadable

__all__ = ["Host", "Line"]

log = structlog.get_logger("reattach.host")

T = TypeVar("T")

_FIRST_STALE_MS = 5
"""Doubled up to five times, where a session is found moved again and again."""
_FIRST_RETRY_MS = 50
_OK = Outcome.OK
_PATIENCE = 2
"""Ticks without anything written before who waits for it is told."""
_MORE_PATIENCE = 10
"""How many where the database wrote for others in the last second: it is there, and this node, or
whoever else writes to this session, has much to do."""
_LATELY_MS = 1_000


class Line(Protocol):
    """A connection's way out, by whichever transport. None of these waits."""

    def send(self, frames: Any) -> None:
        """Send frames (a sequence of UTF-8 bytes), in order."""

    def close(self, code: int, reason: str) -> None:
        """Close with a code of `reattach.core.connection.Close`."""

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on."""

    def ping(self) -> None:
        """Ask for a sign of life."""


class Keeper(Protocol):
    """Whose a host is."""

    def forget(self, host: Host) -> None:
        """The session is closed: whoever wants it opens it anew."""

    def committed(self, host: Host) -> None:
        """Something was committed here."""

    def readmit(self, host: Host) -> None:
        """At rest: it was changed who may do what. Have it so on every connection."""

    def seated(self, host: Host) -> None:
        """Somebody came to the session here, or left."""


class Host:
    """One open session. It is a member of the committer."""

    def __init__(
        self,
        room: Room,
        loader: Loader,
        committer: Committer,
        clock: Clock,
        *,
        timeout_ms: int,
        keeper: Keeper,
        bus: Bus | None = None,
        node: str = "",
    ) -> None:
        """Make the host of a room; ``node`` is what this one is called on the bus."""
        self.room = room
        self.session_id = room.session_id
        self.closed = False
        self.used_at = clock.monotonic()
        self.pins = 0
        """Who else keeps the session open: iterators over its changes, and joins under way."""
        self.watchers: set[asyncio.Event] = set()
        """Set whenever something became durable, or the session was closed."""
        self._store = loader.store
        self._loader = loader
        self._committer = committer
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._keeper = keeper
        self._bus = bus
        self._node = node
        self.log_bytes_held = 0
        """What the log weighed, after the newest state in the database, at the last snapshot."""
        self.announced_at = clock.monotonic()
        """When the other nodes were last told who is connected here."""
        self.announced = 0
        """The number of that list."""
        self._recovering = False
        self._meeting = False
        """Whether devices are being read that are connected elsewhere and not known here."""
        self._singly = 0
        """How many changes are to be decided one at a time, to find a poisoned one."""
        self._stale = 0
        """How often in a row its part was stale."""
        self._busy = 0
        """How many ticks ago something was written last, where something is to be written."""
        self._told: set[Connection] = set()
        """Who was told that the database is away."""
        self._condemned = False
        self._at_rest: list[Callable[[], None]] = []
        self._waiting: dict[Request, asyncio.Future[Result]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # What others ask of it

    @property
    def idle(self) -> bool:
        """Whether nobody needs it in memory."""
        room = self.room
        return not (
            room.connections
            or room.observers
            or len(room.inbox)
            or room.has_work
            or self.pins
            or not room.at_rest
            or self._recovering
            or self._waiting
            or self._at_rest
        )

    async def at_rest(self, read: Callable[[Room], T]) -> T:
        """Call ``read`` as soon as the state at hand is the durable one, and return its answer.

        Raises `Unavailable` when that takes too long: the database does not answer.
        """
        self.used_at = self._clock.monotonic()
        if self.closed:
            raise Unavailable("the session is being opened anew: try again", retry_after_ms=100)
        if self.room.at_rest and not self._recovering:
            result = read(self.room)
            self.flush()
            return result
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run() -> None:
            if done.done():
                return
            if self.closed:
                done.set_exception(Unavailable("the session was closed", retry_after_ms=100))
                return
            try:
                done.set_result(read(self.room))
            except Exception as error:
                done.set_exception(error)
                if not isinstance(error, ReattachError):
                    raise

        self._at_rest.append(run)
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await done
        except TimeoutError:
            raise Unavailable("the database does not answer: nothing was lost") from None

    async def submit(self, request: Request) -> Result:
        """Have a change decided; returns when its effect is durable.

        Raises what refused it. Raises `Unavailable` when the database does not answer; the change
        may then still take effect, once.
        """
        decided = self._ask(request)
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await asyncio.shield(decided)
        except TimeoutError:
            raise Unavailable("the database does not answer: try again") from None

    async def insist(self, request: Request) -> Result:
        """Do the same, however long the database does not answer.

        Raises `Unavailable` only when the session was closed: what became of the change can then
        be read from the database.
        """
        decided = self._ask(request)
        while not decided.done():
            await asyncio.wait({decided}, timeout=self._timeout_ms / 1000)
            if self.closed and not decided.done():
                raise Unavailable("the session was closed", retry_after_ms=100)
        return decided.result()

    def _ask(self, request: Request) -> asyncio.Future[Result]:
        self.used_at = self._clock.monotonic()
        if self.closed:
            raise Unavailable("the session is being opened anew: try again", retry_after_ms=100)
        decided: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[request] = decided
        self.room.inbox.submit(request)
        self.flush()
        return decided

    def receive(self, connection: Connection, frame: Frame, size: int, now: int) -> None:
        """Feed a frame that came just ``now``; one that needs durable state waits for it."""
        room = self.room
        if type(frame) is not RequestSync or room.flight is None:
            room.receive(connection, frame, size, now)
        else:
            self._at_rest.append(lambda: room.receive(connection, frame, size, self._clock.now()))
        self.flush()

    def unreadable(self, connection: Connection, error: Unreadable) -> None:
        """Feed a frame that could not be understood."""
        if error.head is not None:
            refused = ChangeRefused(error.message, code="bad_op")
            self.room.refuse(connection, error.head, refused)
        else:
            self.room.complain(connection, error.code, error.message)
        self.flush()

    def leave(self, connection: Connection, why: str) -> None:
        """A connection's line is gone."""
        self.used_at = self._clock.monotonic()
        self.room.leave(connection, why, self._clock.now())
        self.flush()

    def tick(self) -> None:
        """Do what is due; called about once a second."""
        self.room.tick(self._clock.now())
        self._busy = self._busy + 1 if self.room.has_work or self._recovering else 0
        outage = self._committer.outage
        works = self._clock.monotonic() - outage.worked_at <= _LATELY_MS
        if outage.away or self._busy > (_MORE_PATIENCE if works else _PATIENCE):
            self._tell_who_waits()
        self.flush()

    def _tell_who_waits(self) -> None:
        """Tell each connection with something in line, once, that the database is away."""
        for connection in self.room.connections.values():
            if connection.waiting and connection not in self._told:
                self._told.add(connection)
                self.room.complain(
                    connection,
                    "unavailable",
                    "the database does not answer: what was sent waits here and is not lost",
                    retry_after_ms=LAST_RETRY_MS,
                )

    def hold(self) -> None:
        """At rest: write nothing and show nothing until `close` or `go_on`, one of which is to
        follow.
        """
        self._recovering = True

    def go_on(self) -> None:
        """Take in what was written meanwhile, and go on."""
        if not self.closed:
            self._spawn(self._catch_up())

    def close(self, code: int, reason: str) -> None:
        """Forget the session in memory and send its connections away; they come back."""
        if self.closed:
            return
        self.closed = True
        self._keeper.forget(self)
        room = self.room
        for connection in room.fail(Unavailable("the session is being opened anew: try again")):
            room.hang(connection, code, reason)
        self.flush()
        self._run_at_rest()
        self._wake_watchers()

    def snapshot(self) -> Snapshot | None:
        """Return the state for whoever opens the session next, where its log is heavy by now.

        It costs what the state weighs: so it is done when the session was opened and when it is
        let go, and not while people work on it.
        """
        room, session = self.room, self.room.session
        if not room.at_rest or self._recovering or not session.tail:
            return None
        if session.log_bytes < self.log_bytes_held:
            self.log_bytes_held = 0  # a state was saved in the database
        if session.log_bytes - self.log_bytes_held < WORTH_BYTES:
            return None
        self.log_bytes_held = session.log_bytes
        return Snapshot(
            session_id=self.session_id,
            epoch=room.recorded.epoch,
            proof=proof(session.tail[-1][1]),
            saved=session.save(),
            conflicts=session.unresolved_records(),
            log_bytes=session.log_bytes,
        )

    # What other nodes tell it

    def hear(self, note: Note) -> None:
        """Take in what another node made durable, as far as it follows on what is here.

        Where it does not, or changes wait here that it may have decided, the database is asked.
        """
        room = self.room
        if self.closed:
            return
        if self._recovering or not room.at_rest:
            self._at_rest.append(lambda: self.hear(note))
            return
        known = room.recorded
        if (note.session.epoch, note.session.access_version) != (known.epoch, known.access_version):
            self.check()
            return
        version = room.session.version
        commits = [commit for commit in note.commits if commit.version > version]
        if not commits:
            room.adopt(note.session, note.devices, self._clock.now())
            self._rest()
            return
        if commits[0].version != version + 1 or len(room.inbox):
            self.check()
            return
        room.catch_up(note.session, commits, _advances(room, commits))
        room.adopt(note.session, note.devices, self._clock.now())
        self._rest()

    def hear_roster(self, roster: Roster) -> None:
        """Take in who is connected on another node, and where the session stands there."""
        if self.closed:
            return
        self._hear_seats(roster.node, roster.number, roster.seats)
        stands = self.room.recorded
        if roster.epoch != stands.epoch or roster.version > stands.version:
            # What was said of it was lost, or is being written here as well.
            if self.room.at_rest:
                self.check()
        elif self._lacks_devices(roster.seats):
            self._spawn(self._read_devices())
        self.flush()

    def hear_seats(self, node: str, number: int, seats: Sequence[Seat]) -> None:
        """Take in who is connected on another node, by its list of that number.

        Where devices among them are not known here, they are read first, and told at once with it.
        The list is expected to come again, until it was taken in.
        """
        if self._meeting:
            return
        if not self.closed and self._lacks_devices(seats):
            self._meeting = True
            self._spawn(self._meet(node, number, seats))
        elif not self.closed:
            self._hear_seats(node, number, seats)
            self.flush()

    async def _meet(self, node: str, number: int, seats: Sequence[Seat]) -> None:
        await self._read_devices()
        self._meeting = False
        if not self.closed:
            self._hear_seats(node, number, seats)
            self.flush()

    def _hear_seats(self, node: str, number: int, seats: Sequence[Seat]) -> None:
        now = self._clock.now()
        self.room.hear_seats(node, number, seats, now, goes_first=node > self._node)

    def hear_whisper(self, whisper: Whisper) -> None:
        """Send on what somebody on another node wants to be seen."""
        self.room.pass_on(whisper.frame, besides=whisper.client_id)
        self.flush()

    def lose_node(self, node: str) -> None:
        """Another node is gone."""
        self.room.lose_node(node, self._clock.now())
        self.flush()

    def _lacks_devices(self, seats: Sequence[Seat]) -> bool:
        return self.room.devices.lacks(seat.device_id for seat in seats)

    async def _read_devices(self) -> None:
        devices = await self._insist(lambda: self._store.devices(self.room.session_id))
        if devices is not None and not self.closed:
            self.room.devices.hear(devices)
            self.flush()

    def compare(self, seen: tuple[str, int, int], found: tuple[str, int, int] | None) -> None:
        """Take in where the session stands in the database, asked for when it stood at ``seen``.

        Both are epoch, version and access version. What was written here meanwhile makes the answer
        an old one.
        """
        if found != seen and self.stands == seen and self.room.at_rest:
            self.check()

    @property
    def stands(self) -> tuple[str, int, int]:
        """Where the session stands here, by all that this node knows to be durable."""
        recorded = self.room.recorded
        return recorded.epoch, recorded.version, recorded.access_version

    def check(self) -> None:
        """At rest: read from the database what other nodes did, and show nothing until then."""
        if not self._recovering and not self.closed:
            self._recovering = True
            self._spawn(self._catch_up())

    # What the committer tells it

    def cut(self) -> Append | None:
        """Return the part of the next batch."""
        if self.closed or self._recovering or self.room.flight is not None:
            return None
        most = 1 if self._singly else None
        part = self.room.cut(self._clock.now(), most=most)
        if part is None:
            self._rest()
        return part

    def landed(self, outcome: Outcome) -> None:
        """The part is durable, or the session stood elsewhere."""
        if outcome is _OK:
            self._told.clear()
            self._busy = 0
            self._singly = max(0, self._singly - 1)
            self._condemned = False
            self._stale = 0
            self._land()
            self._rest()
        else:
            self._stale += 1
            if self._stale == 1:
                log.info("session moved elsewhere, loading it again", session=self.room.session_id)
            self._recover()

    def lost(self, error: BaseException) -> None:
        """Nobody was told: find out what the log holds, and decide again."""
        self._tell_who_waits()
        self._recover()
        del error

    def refused(self, error: StoreRefused) -> None:
        """Find the change that the database will not have, and refuse that one."""
        room = self.room
        taken = room.abort()
        log.warning(
            "the database refused a batch",
            session=room.session_id,
            changes=taken,
            error=error.message,
        )
        if taken > 1:
            self._singly = taken
        elif taken == 1 and not self._condemned:
            self._condemned = True
            self._singly = max(1, self._singly)
            room.inbox.condemn()
        elif taken == 1:
            # Not even its refusal can be stored. The client keeps the change.
            self.close(Close.RESTART, "the database refuses to store this session")
            return
        else:
            room.forget_housekeeping()
        self._rest()

    def broken(self, error: Exception) -> None:
        """What is in memory cannot be trusted any more: the database has what is durable."""
        del error
        self.close(Close.RESTART, "the server failed on this session: come back")

    def flush(self) -> None:
        """Carry out what the room wants, and ask to write what it has."""
        room = self.room
        while effects := room.take_effects():
            self._carry_out(effects)
        if room.flight is None and not self._recovering and not self.closed and room.has_work:
            self._committer.want(self)

    # Inside

    def _land(self) -> None:
        """What was written is durable: tell everybody, the other nodes, too."""
        room = self.room
        before, devices = room.recorded, room.written_devices()
        room.land(self._clock.now())
        commits = room.session.commits
        if self._bus is not None and (commits or devices or room.recorded != before):
            self._bus.publish(Note(session=room.recorded, commits=list(commits), devices=devices))
        if commits and room.reactions:
            self._keeper.committed(self)

    def _carry_out(self, effects: list[Effect]) -> None:
        announced = False
        for effect in effects:
            if type(effect) is Send:
                effect.connection.line.send(effect.frames)
            elif type(effect) is Settle:
                future = self._waiting.pop(effect.request, None)
                if future is not None and not future.done():
                    if isinstance(effect.result, Result):
                        future.set_result(effect.result)
                    else:
                        future.set_exception(effect.result)
                        future.exception()  # the caller may have given up waiting
            elif type(effect) is Hang:
                effect.connection.line.close(effect.code, effect.reason)
                self.room.leave(effect.connection, effect.reason, self._clock.now())
            elif type(effect) is Pause:
                effect.connection.line.pause(effect.paused)
            elif type(effect) is LookUp:
                self._spawn(self._look_up(effect))
            elif type(effect) is Recall:
                self._spawn(self._recall(effect.proposal))
            elif type(effect) is Confirm:
                self._spawn(self._confirm(effect))
            elif type(effect) is PassOn:
                if self._bus is not None:
                    whisper = Whisper(
                        session_id=self.session_id,
                        node=self._node,
                        frame=effect.frame,
                        client_id=effect.client_id,
                    )
                    self._bus.publish(whisper)
            elif type(effect) is Announce:
                announced = True
            elif type(effect) is Fault:
                log.error(
                    "a change failed inside the server and was refused",
                    session=self.room.session_id,
                    exc_info=effect.error,
                )
        if announced:
            self._keeper.seated(self)

    def _rest(self) -> None:
        """The state at hand is durable: let those look who waited, then go on."""
        if self._at_rest:
            self._run_at_rest()
        if self.watchers:
            self._wake_watchers()
        self.flush()

    def _run_at_rest(self) -> None:
        waiting, self._at_rest = self._at_rest, []
        for run in waiting:
            run()

    def _wake_watchers(self) -> None:
        for watcher in self.watchers:
            watcher.set()

    async def _look_up(self, lookup: LookUp) -> None:
        decision = await self._insist(
            lambda: self._store.decision(self.room.session_id, lookup.client_id, lookup.seq)
        )
        if not self.closed:
            self.room.looked_up(lookup, decision)
            self.flush()

    async def _recall(self, proposal: Proposal) -> None:
        restore = proposal.restore
        assert restore is not None
        past: Past | ChangeRefused | None
        try:
            past = await self._insist(
                lambda: look_up(self._store, self.room.recorded, restore, proposal.epoch)
            )
        except ChangeRefused as refused:
            past = refused
        except Exception as error:
            log.exception("a restore failed inside the server", session=self.room.session_id)
            del error
            past = ChangeRefused("the server failed on this change: see its log", code="internal")
        if past is not None and not self.closed:
            self.room.inbox.recalled(proposal, past)
            self.flush()

    async def _confirm(self, marked: Confirm) -> None:
        record = await self._insist(
            lambda: self._store.checkpoint(self.room.session_id, marked.written.checkpoint_id)
        )
        if not self.closed:
            self.room.confirmed(marked, record)
            self.flush()

    def _recover(self) -> None:
        self.room.abort()
        self._recovering = True
        self.flush()
        self._spawn(self._catch_up())

    async def _catch_up(self) -> None:
        if self._stale > 1:
            # Somebody has its row locked, or is quicker each time: not without a breath.
            times = min(self._stale - 2, 5)
            await self._clock.sleep(_FIRST_STALE_MS << times)
        try:
            self._take_in(await self._insist(self._read_ahead))
        except Exception as error:
            log.exception("a session could not be recovered", session=self.room.session_id)
            self.broken(error)

    async def _insist(self, read: Callable[[], Awaitable[T]]) -> T | None:
        """Read until the database answers; None when the session was closed meanwhile."""
        delay = 0
        while not self.closed:
            try:
                async with asyncio.timeout(self._timeout_ms / 1000):
                    return await read()
            except (StoreError, OSError) as error:  # a timeout is one
                outage = self._committer.outage
                outage.suspect(error)
                # Where it answers others, there is no hurry with what it does not answer.
                await asyncio.gather(outage.over(), self._clock.sleep(delay))
                delay = min(2 * delay or _FIRST_RETRY_MS, LAST_RETRY_MS)
        return None

    def _take_in(self, found: Any) -> None:
        if self.closed:
            return
        if found is None:
            self.close(Close.RESTART, "the session changed elsewhere: come back")
            return
        if isinstance(found, Tombstone):
            self.close(Close.ENDED, "the session was erased")
            return
        self._recovering = False
        record, commits, clients, members, devices, answered = found
        room = self.room
        room.catch_up(record, commits, clients, members, devices)
        if members is not None:
            self._keeper.readmit(self)
        for request in answered:
            room.inbox.withdraw(request, KeyAnswered("the request was answered before: ask again"))
        self._rest()

    async def _read_ahead(self) -> Any:
        # Many sessions may have been moved at once: each of these is read for all that wait.
        room, store, loader = self.room, self._store, self._loader
        # First: what is read later holds the commits of all their numbers. Refusals of the lost
        # batch leave no trace in the log.
        clients = await asyncio.gather(
            *(
                loader.client(room.session_id, client_id, lowest - 1)
                for client_id, lowest in sorted(room.inbox.lowest().items())
            )
        )
        found = await loader.since(room.session_id, room.session.version)
        if found is None:
            gone = await store.session(room.session_id)
            return gone if isinstance(gone, Tombstone) else None
        if found[0].epoch != room.recorded.epoch:
            return None
        record, commits = found
        if record.schema_version != room.recorded.schema_version:
            return None  # another node has another version of its schema
        if record.user_id != room.recorded.user_id:
            return None  # its clients and devices may be another user's, too
        if record.version != room.session.version + len(commits):
            return None
        # One of these would find the session moved for ever: its row can be written only once.
        answered = [
            request
            for request in room.inbox.keyed()
            if request.key is not None and await store.idempotent(*request.key) is not None
        ]
        members: Sequence[MemberRecord] | None = None
        devices: Sequence[DeviceRecord] = ()
        if record.access_version != room.recorded.access_version:
            members = await store.members(room.session_id)
            devices = await store.devices(room.session_id)
        known = [(client, refusals) for client, refusals in clients if client is not None]
        return record, commits, known, members, devices, answered

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _advances(
    room: Room, commits: Sequence[CommitRecord]
) -> list[tuple[ClientRecord, Sequence[RefusalRecord]]]:
    """Say how far commits take the numbers of the clients that are known here."""
    newest = {commit.client_id: commit for commit in commits if commit.client_id is not None}
    advances: list[tuple[ClientRecord, Sequence[RefusalRecord]]] = []
    for client_id, commit in newest.items():
        if client_id in room.session.clients and commit.seq is not None:
            record = room.session.client_record(client_id)
            record = msgspec.structs.replace(record, seq=commit.seq, at=commit.client_at)
            advances.append((record, ()))
    return advances
