"""One session's live side: who is connected, what waits for its decision, who is told what.

The room takes inputs (a join, a frame, a proposal, the outcome of a batch) with the time given to
it, and gathers `effects` for its host to carry out. Between `cut` and `land` a batch is in flight:
changes queue up meanwhile, and nothing that depends on the state may be read (`at_rest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from reattach.core.activity import happened
from reattach.core.checkpoints import id_by_ref, mark_of, shown
from reattach.core.connection import (
    TRANSITIONS,
    Act,
    Close,
    Connection,
    Phase,
    Role,
)
from reattach.core.devices import DeviceList
from reattach.core.effects import Announce, Confirm, Effect, Hang, LookUp, PassOn, Send
from reattach.core.elsewhere import Elsewhere, Seat
from reattach.core.inbox import Backlog, Decided, Inbox, Told, again
from reattach.core.limits import Limits
from reattach.core.schema import Schema
from reattach.core.session import Client, Session, printable
from reattach.core.values import check
from reattach.errors import BadRequest, ChangeRefused, Forbidden, ReattachError
from reattach.store.base import (
    Activity,
    Append,
    CheckpointRecord,
    ClientAdvance,
    ClientRecord,
    CommitRecord,
    Decision,
    DeviceRecord,
    Expected,
    Loaded,
    MemberRecord,
    RefusalRecord,
    SessionRecord,
)
from reattach.wire import (
    Change,
    CheckpointSaved,
    Devices,
    DeviceStatus,
    Error,
    Frame,
    Heartbeat,
    HeartbeatEcho,
    HeartbeatTimes,
    Hello,
    HelloDevice,
    InitialState,
    Presence,
    PresenceOf,
    RequestSync,
    Resumed,
    SaveCheckpoint,
    encode,
)
from reattach.wire import Schema as SchemaName

__all__ = ["Room", "Welcomes"]

_CLOSED: Final = Phase.CLOSED
_CHANGE: Final = Act.CHANGE
"""By names of their own: to find a member in its enum costs a call on Python 3.11, for each frame.
"""
_MARK = b'{"type":"checkpoint_saved"'
"""How the frames begin that tell of a mark."""


class _Flight(msgspec.Struct):
    """The batch in flight: what it decided, and what else is being written."""

    decided: Decided
    devices: dict[str, DeviceRecord]
    activity: list[Activity]
    clients: list[str]
    leaves_mark: bool


class Welcomes(msgspec.Struct):
    """How many there were: with the commits that were missed, and with the whole state."""

    delta: int = 0
    snapshot: int = 0


class Room:
    """A session that is open on this node."""

    def __init__(
        self,
        loaded: Loaded,
        limits: Limits,
        schema: Schema | None = None,
        *,
        backlog: Backlog | None = None,
        welcomes: Welcomes | None = None,
    ) -> None:
        """Make the live side of a session; what rooms of one node share is ``backlog``, what waits
        to be decided, and ``welcomes``, which it counts.
        """
        self.limits = limits
        self.session = Session(loaded, limits, schema)
        self.connections: dict[str, Connection] = {}
        """The live ones, by client id."""
        self._effects: list[Effect] = []
        self.inbox = Inbox(
            self.session,
            limits,
            emit=self._effects.append,  # not a method of its own: no ring that counts do not free
            down_link=self.connections.get,
            backlog=Backlog(limits.max_backlog_bytes) if backlog is None else backlog,
        )
        self._welcomes = Welcomes() if welcomes is None else welcomes
        self.flight: _Flight | None = None
        self.observers: set[Connection] = set()
        """Lines that only read and are no client: they get commits."""
        self.devices = DeviceList(loaded.devices, limits)
        self.reactions: Sequence[str] = ()
        """For whom commits are due: see `Append.reactions`."""
        self.elsewhere = Elsewhere()
        self._callers: dict[str, Connection] = {}
        """Users whose presence came by HTTP since the last tick, without a line here."""
        """Who is connected on other nodes."""
        self.recorded = loaded.session
        """The session's row as it is in the database."""
        self.members = {member.user_id: member.role for member in loaded.members}
        """The roles of its users, without that of the owner of record."""
        self._activity: list[Activity] = []
        self._new_clients: list[str] = []
        self._leaves_mark = False
        """Whether the last device has left, and the version that it left is to be marked."""
        self.ended = not loaded.session.is_active
        self._encoded: tuple[int, bytes] = (-1, b"")

    @property
    def at_rest(self) -> bool:
        """Whether the state at hand is the durable one."""
        return self.flight is None

    @property
    def has_work(self) -> bool:
        """Whether there is something to write now."""
        return bool(
            self.inbox.ready
            or self.devices.changed
            or self._activity
            or self._new_clients
            or self.session.record != self.recorded
        )

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.recorded.session_id

    def role_of(self, user_id: str) -> str | None:
        """Return a user's role; None: to them the session does not exist."""
        return Role.OWNER if user_id == self.recorded.user_id else self.members.get(user_id)

    def take_effects(self) -> list[Effect]:
        """Return what is to be carried out, in order, and begin anew."""
        effects = self._effects.copy()
        self._effects.clear()
        return effects

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    # Connections

    def join(
        self,
        connection: Connection,
        hello: Hello,
        *,
        record: ClientRecord | None,
        refusals: Sequence[RefusalRecord],
        created: bool,
        now: int,
        frames: Sequence[bytes] | None = None,
    ) -> None:
        """Let a connection in, at rest: fence its older one, register its device, welcome it.

        ``record`` and ``refusals`` (those above ``hello.seq``) are the database's. The user and
        role have been put into ``connection`` by whoever let it in. ``frames`` go out instead of
        the welcome, where the client is known to need just them.
        """
        if self.ended:
            self.hang(connection, Close.ENDED, "the session has ended")
            return
        try:
            self._check_owner(connection.user_id, hello.client_id, hello.device, record)
        except Forbidden as error:
            self.hang(connection, Close.FORBIDDEN, error.message)
            return
        except (BadRequest, ChangeRefused) as error:
            self.hang(connection, Close.BAD_FRAME, error.message)
            return
        older = self.connections.get(hello.client_id)
        if older is None and self._is_crowded(connection, hello.client_id):
            return
        client = self._know_client(connection.user_id, hello.client_id, hello.device.id, record)
        for refusal in refusals:
            client.refusals.setdefault(refusal.seq, refusal)
        connection.client_id = hello.client_id
        connection.device_id = hello.device.id
        connection.offset = now - hello.t
        connection.gap_told = False
        self.inbox.renew(hello.client_id)
        if older is not None:
            # Out of the room at once: however late it closes, it is not this client any more.
            del self.connections[hello.client_id]
            self.hang(older, Close.SUPERSEDED, "a newer connection of this client took over")
        latest = max(self.elsewhere.since(hello.client_id), older.since if older else 0)
        connection.since = max(now, latest + 1)
        if hello.version is not None and hello.epoch == self.recorded.epoch:
            self.devices.applied(hello.device.id, hello.version)
        self._arrive(connection, hello, now)
        self.connections[hello.client_id] = connection
        self._emit(Announce())
        connection.phase = Phase.LIVE
        if frames is None:
            self._welcome(
                connection, hello.epoch, hello.version, hello.seq, created=created, now=now
            )
        else:
            refused = [one.body for seq, one in sorted(client.refusals.items()) if seq > hello.seq]
            self._emit(Send(connection, [*frames, *refused]))
        self._tell_devices(now)
        schema = self.session.schema
        if schema is not None and hello.schema_version is not None:
            connection.outdated = hello.schema_version < schema.oldest
            if connection.outdated:
                self._tell_outdated(connection, schema)
        held, connection.held = connection.held, []
        for frame, size in held:
            self.receive(connection, frame, size, now)

    def _tell_outdated(self, connection: Connection, schema: Schema) -> None:
        self.complain(
            connection,
            "upgrade_required",
            f"expected schema {schema.name} {schema.oldest} or newer: load the newest version of"
            " the application; what is not sent yet is kept",
        )

    def _is_crowded(self, connection: Connection, client_id: str | None = None) -> bool:
        """Send a connection away whose user has enough of them, here or on other nodes.

        One of the same client elsewhere does not count: this one takes its place.
        """
        allowed = self.limits.max_user_connections
        if allowed is None:
            return False
        owners = [one.user_id for one in self.everybody()]
        for other, device_id in self.elsewhere.clients().items():
            device = self.devices.get(device_id)
            if device is not None and other != client_id and other not in self.connections:
                owners.append(device.user_id)
        if owners.count(connection.user_id) < allowed:
            return False
        reason = f"expected at most {allowed} connections of a user: close another"
        self.hang(connection, Close.TOO_FAST, reason)
        return True

    def introduce(
        self,
        user_id: str,
        client_id: str,
        device: HelloDevice,
        *,
        record: ClientRecord | None,
        now: int,
    ) -> None:
        """Make a client known, at rest, that sends its changes without a connection.

        ``record`` is the database's. Raises `Forbidden` where client or device are another user's.
        """
        self._check_owner(user_id, client_id, device, record)
        self._know_client(user_id, client_id, device.id, record)
        self.devices.sight(user_id, device, now)

    def _check_owner(
        self, user_id: str, client_id: str, device: HelloDevice, record: ClientRecord | None
    ) -> None:
        self.devices.check(user_id, device)
        client = self.session.clients.get(client_id)
        owner = client.user_id if client else record.user_id if record else None
        if owner is not None and owner != user_id:
            raise Forbidden("this client id is another user's")

    def _know_client(
        self, user_id: str, client_id: str, device_id: str, record: ClientRecord | None
    ) -> Client:
        session = self.session
        known = record is not None
        if record is None:
            record = ClientRecord(client_id=client_id, user_id=user_id, device_id=device_id)
            client = session.clients.get(client_id)
            if client is None:
                self._new_clients.append(client_id)
            else:
                known = client.known
        client = session.know(record, known=known)
        client.device_id = device_id
        return client

    def leave(self, connection: Connection, why: str, now: int) -> None:
        """A connection's line is gone. One that was superseded changes nothing."""
        was = connection.phase
        connection.phase = Phase.CLOSED
        self.observers.discard(connection)
        if was is not Phase.LIVE or self.connections.get(connection.client_id) is not connection:
            return
        del self.connections[connection.client_id]
        self.devices.touch(connection.device_id, now)
        self._note(
            "disconnected",
            now,
            connection.user_id,
            connection.device_id,
            {"client_id": connection.client_id, "why": why},
        )
        self._emit(Announce())
        if not self.connections and not self.elsewhere:
            self._leaves_mark = True
            self._update_record(disconnected_at=now)
        self._tell_devices(now)

    def hang(self, connection: Connection, code: int, reason: str) -> None:
        """Close a connection; its `leave` follows when the line is gone."""
        self._emit(Hang(connection, code, reason))

    def receive(self, connection: Connection, frame: Frame, size: int, now: int) -> None:
        """Take a frame from a connection; ``size`` is what it weighed, in bytes."""
        connection.heard_at = now
        if connection.phase is _CLOSED:
            return
        try:
            self._carry_out(connection, frame, size, now)
        except ChangeRefused as error:
            self.complain(connection, error.code, error.message)

    def _carry_out(self, connection: Connection, frame: Frame, size: int, now: int) -> None:
        act = TRANSITIONS.get((connection.phase, type(frame)))
        if act is _CHANGE:
            assert isinstance(frame, Change)
            self._take(connection, frame, size)
        elif act is Act.ECHO:
            assert isinstance(frame, Heartbeat)
            check(frame.t, depth=self.limits.max_nesting, path="/t")
            self._send(connection, encode(HeartbeatEcho(frame.t, now)))
        elif act is Act.PRESENCE:
            assert isinstance(frame, Presence)
            self._presence(connection, frame)
        elif act is Act.SYNC:
            assert isinstance(frame, RequestSync)
            self._sync(connection, frame, now)
        elif act is Act.CHECKPOINT:
            assert isinstance(frame, SaveCheckpoint)
            self._save(connection, frame, size)
        elif act is Act.HOLD:
            connection.held.append((frame, size))
        else:
            expected = "hello first" if connection.phase is Phase.GREETING else "one hello"
            self.hang(connection, Close.BAD_FRAME, f"expected {expected}")

    def _save(self, connection: Connection, frame: SaveCheckpoint, size: int) -> None:
        ref = printable(frame.ref)
        try:
            checkpoint_id = id_by_ref(connection.client_id, frame.ref)
            mark = mark_of(checkpoint_id, frame.name, frame.data, self.limits, ref)
        except ChangeRefused as refused:
            self.complain(connection, refused.code, refused.message, ref=ref)
            return
        self.inbox.put_mark(connection, mark, size)

    def confirmed(self, marked: Confirm, record: CheckpointRecord | None) -> None:
        """Tell of a mark as the database has it: everybody of a new one, of another who asked."""
        if record is None:
            return  # the session is gone, or somebody removed it
        saved = CheckpointSaved(shown(record))
        if marked.connection is not None and marked.ref is not None:
            mine = msgspec.structs.replace(saved, ref=marked.ref)
            self._send(marked.connection, encode(mine))
        if record == marked.written:
            self._tell_mark(encode(saved), marked.connection)

    def _tell_mark(self, frame: bytes, besides: Connection | None = None) -> None:
        for connection in self.everybody():
            if connection is not besides:
                self._send(connection, frame)
        self._emit(PassOn(frame))

    def refuse(self, connection: Connection, head: Change, refused: ChangeRefused) -> None:
        """Take a change whose operations cannot be read: its number is used up for a refusal."""
        if connection.phase is Phase.LIVE:
            self.inbox.put(connection, head, 0, refused)
        else:
            self.hang(connection, Close.BAD_FRAME, refused.message)

    def complain(
        self,
        connection: Connection,
        code: str,
        message: str,
        *,
        ref: str | msgspec.UnsetType = msgspec.UNSET,
        expected: int | msgspec.UnsetType = msgspec.UNSET,
        retry_after_ms: int | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        """Send an `error`."""
        self._send(
            connection,
            encode(Error(code, message, ref, retry_after_ms, expected)),
        )

    def tick(self, now: int) -> None:
        """Do what is due; called about once a second."""
        self._tell_devices(now)
        for connection in [*self.connections.values(), *self._callers.values()]:
            connection.presences = 0
            data, connection.presence = connection.presence, None
            if data is not None:
                self._show(connection, data)
        self._callers.clear()

    def observe(self, connection: Connection, frames: Sequence[bytes] | None, now: int) -> None:
        """Let a reader in, at rest; ``frames`` None means that it starts with the state."""
        if self.ended:
            self.hang(connection, Close.ENDED, "the session has ended")
            return
        if self._is_crowded(connection):
            return
        self.observers.add(connection)
        connection.phase = Phase.LIVE
        if frames is None:
            self._welcome(connection, None, None, 0, created=False, now=now)
        else:
            self._emit(Send(connection, frames))

    def _take(self, connection: Connection, change: Change, size: int) -> None:
        if connection.outdated:
            return  # it was told so, and keeps what it has
        if change.epoch == self.recorded.epoch:
            self.devices.applied(connection.device_id, min(change.base, self.recorded.version))
        refused = None
        if size > self.limits.max_change_bytes:
            refused = ChangeRefused(
                f"expected a change of at most {self.limits.max_change_bytes} bytes, got {size}",
                code="change_too_large",
            )
        self.inbox.put(connection, change, size, refused)

    # The batch

    def cut(self, now: int, *, most: int | None = None) -> Append | None:
        """Decide what waits (the first ``most``), and return what is to be written.

        None: there was nothing to write, and everybody has been answered.
        """
        assert self.flight is None, "one batch at a time"
        session = self.session
        session.cut(now)
        flight = self.flight = _Flight(
            self.inbox.decide(now, most=most),
            self.devices.take_changed(),
            self._activity,
            self._new_clients,
            self._leaves_mark,
        )
        self._activity, self._new_clients, self._leaves_mark = [], [], False
        if flight.leaves_mark and session.version > 0:
            session.mark_automatically()
        session.save_by_cost()
        advances = session.advances()
        if flight.clients:
            advancing = {advance.client.client_id for advance in advances}
            advances += [
                ClientAdvance(client=session.client_record(name), before=0)
                for name in flight.clients
                # Known since a batch whose answer was lost: what it decided may be all there is.
                if name not in advancing and not session.clients[name].known
            ]
        recorded, record = self.recorded, session.record
        activity = [*flight.activity, *happened(session, now, ended=self._ends)]
        append = Append(
            session_id=recorded.session_id,
            expected=Expected.of(recorded),
            session=record,
            commits=session.commits,
            refusals=session.refusals,
            clients=advances,
            conflicts=list(session.conflicts.values()),
            checkpoints=list(session.checkpoints.values()),
            devices=list(flight.devices.values()),
            activity=activity,
            reactions=self.reactions if session.commits else (),
            state=session.saved,
            idempotency=session.idempotency,
        )
        if (
            not advances
            and record == recorded
            and not append.checkpoints
            and not append.devices
            and not append.activity
        ):
            self.land(now)
            return None
        return append

    @property
    def _ends(self) -> bool:
        """Whether the batch at hand ends the session."""
        return self.recorded.is_active and not self.session.record.is_active

    def written_devices(self) -> list[DeviceRecord]:
        """Return the devices that the batch in flight writes."""
        return [] if self.flight is None else list(self.flight.devices.values())

    def land(self, now: int) -> None:
        """The batch is durable (or there was nothing to write): tell everybody."""
        decided = self._end_flight().decided
        self.session.land()
        self.recorded = self.session.record
        self._tell(decided.told)
        if self.session.checkpoints:
            asked = {one.written.checkpoint_id for one in decided.marked}
            for record in self.session.checkpoints.values():
                if record.checkpoint_id not in asked:
                    self._tell_mark(encode(CheckpointSaved(shown(record))))
        self.inbox.landed(decided)
        self._end()
        self._tell_devices(now)

    def _end(self) -> None:
        """Close every connection where the session has just ended, here or elsewhere."""
        if not self.recorded.is_active and not self.ended:
            self.ended = True
            for connection in self.everybody():
                self.hang(connection, Close.ENDED, "the session has ended")

    def abort(self) -> int:
        """Whether the batch is durable is not known, or it is not: take it back, queue it anew.

        Returns how many changes it had.
        """
        flight = self._end_flight()
        self.session.abort()
        self.inbox.retake(flight.decided)
        self.devices.retake(flight.devices)
        self._activity = flight.activity + self._activity
        self._leaves_mark = self._leaves_mark or flight.leaves_mark
        self._new_clients = flight.clients + self._new_clients
        return len(flight.decided.taken)

    def _end_flight(self) -> _Flight:
        flight = self.flight
        assert flight is not None, "no batch is in flight"
        self.flight = None
        return flight

    def forget_housekeeping(self) -> None:
        """Give up what waits to be written beside changes: the database will not have it."""
        self.devices.take_changed()
        self._activity, self._new_clients, self._leaves_mark = [], [], False
        self.session.record = self.recorded

    def catch_up(
        self,
        recorded: Any,
        commits: Sequence[CommitRecord],
        clients: Sequence[tuple[ClientRecord, Sequence[RefusalRecord]]],
        members: Sequence[MemberRecord] | None = None,
        devices: Sequence[DeviceRecord] = (),
    ) -> None:
        """Take in what the database holds beyond what is here, and tell everybody.

        ``clients`` are those with changes in line, with their refusals from the first of these on;
        ``members`` are given where they are not those that are known here, and then ``devices``.
        """
        session = self.session
        # Who came and went is not in the log: it is still to be written.
        pending = {
            name: getattr(session.record, name)
            for name in ("disconnected_at", "reconnected_at")
            if getattr(session.record, name) != getattr(self.recorded, name)
        }
        session.replay(commits)
        session.record = msgspec.structs.replace(recorded, **pending)
        self.recorded = recorded
        if members is not None:
            self.members = {member.user_id: member.role for member in members}
            self.devices.meet(devices)
        for record, refusals in clients:
            client = session.know(record, known=True)
            heard = session.heard.get(record.client_id, 0)
            session.heard[record.client_id] = max(heard, record.seq)
            client.refusals.update((one.seq, one) for one in refusals)
        refused = [one for _, refusals in clients for one in refusals]
        self._tell(self.inbox.found(commits, refused))
        self._end()

    def set_role(self, connection: Connection, role: str | None, now: int) -> None:
        """At rest: have a user's role be another one on their connection, and tell its client.

        What it sent and is not decided yet is decided by the new role.
        """
        if connection.phase is not Phase.LIVE or role == connection.role:
            return
        if role is None:
            self.turn_away(connection, Close.NO_SESSION, "there is no such session")
            return
        connection.role = role
        client = self.session.clients.get(connection.client_id)
        seq = 0 if client is None else client.seq
        # It has been sent every commit there is.
        epoch, version = self.recorded.epoch, self.session.version
        self._welcome(connection, epoch, version, seq, created=False, now=now)

    def turn_away(self, connection: Connection, code: int, reason: str) -> None:
        """Close a connection of somebody who may do nothing here any more.

        What it had sent and is not decided is refused.
        """
        connection.role = Role.VIEWER
        self.hang(connection, code, reason)

    def looked_up(self, lookup: LookUp, decision: Decision | None) -> None:
        """A number that came again was decided as ``decision`` says."""
        if decision is not None:
            told = again(lookup.at, decision.client_at, decision.refusal)
            if told is not None:
                self._send(lookup.connection, told)

    def fail(self, error: ReattachError) -> list[Connection]:
        """The room cannot go on: answer what waits, and return who is connected."""
        self.inbox.fail(error)
        return self.everybody()

    def everybody(self) -> list[Connection]:
        """Return every line that is connected here."""
        return [*self.connections.values(), *self.observers]

    # Other nodes

    def seats(self) -> list[Seat]:
        """Return who is connected here."""
        return [Seat(one.client_id, one.device_id, one.since) for one in self.connections.values()]

    def hear_seats(
        self, node: str, number: int, seats: Sequence[Seat], now: int, *, goes_first: bool
    ) -> None:
        """Take in who is connected on another node, and send away whom that replaces.

        Of two connections that joined at one moment the other node's is the newer one where it
        ``goes_first``.
        """
        before = self.elsewhere.devices()
        if not self.elsewhere.hear(node, number, seats):
            return
        met = False
        for seat in seats:
            mine = self.connections.get(seat.client_id)
            if mine is None:
                continue
            met = True
            if seat.since > mine.since or (seat.since == mine.since and goes_first):
                # As in `join`: out of the room at once, however late it closes.
                del self.connections[seat.client_id]
                self.hang(mine, Close.SUPERSEDED, "a newer connection of this client took over")
        if met:
            # Also where ours is the newer one: the other node seems not to have heard of it.
            self._emit(Announce())
        if self.elsewhere.devices() != before:
            self.devices.retell()
            self._tell_devices(now)

    def lose_node(self, node: str, now: int) -> None:
        """Another node is gone, and with it whoever was connected there."""
        if not self.elsewhere.drop(node):
            return
        self.devices.retell()
        if not self.connections and not self.elsewhere:
            self._leaves_mark = True
            self._update_record(disconnected_at=now)
        self._tell_devices(now)

    def pass_on(self, frame: bytes, *, besides: str | None = None) -> None:
        """Send a frame that came from another node: presence to clients, marks to everybody.

        But not to the client ``besides``, whose it is.
        """
        whom = self.everybody() if frame.startswith(_MARK) else self.connections.values()
        for connection in whom:
            if besides is None or connection.client_id != besides:
                self._send(connection, frame)

    def adopt(self, record: SessionRecord, devices: Sequence[DeviceRecord], now: int) -> None:
        """Take in, at rest, what another node wrote of who came and went."""
        self.devices.hear(devices)
        known = self.recorded
        if _place(record) == _place(known):
            self.recorded = _latest(known, record)
            self.session.record = _latest(self.session.record, record)
        self._tell_devices(now)

    # Telling

    def _tell(self, told: Told) -> None:
        if not told:
            return
        common = [data for target, data in told if target is None]
        special: set[Connection] = set()
        if len(common) < len(told):
            special.update(target for target, _ in told if target is not None)
        for connection in self.everybody():
            if connection in special:
                mine = [data for target, data in told if target is None or target is connection]
                self._emit(Send(connection, mine))
            elif common:
                self._emit(Send(connection, common))

    def _send(self, connection: Connection, data: bytes) -> None:
        self._emit(Send(connection, (data,)))

    def _presence(self, connection: Connection, frame: Presence) -> None:
        check(frame.data, depth=self.limits.max_nesting, path="/data")
        data = encode(PresenceOf(connection.device_id, frame.data))
        if len(data) > self.limits.max_presence_bytes + 200:
            most = self.limits.max_presence_bytes
            raise ChangeRefused(f"expected presence of at most {most} bytes", code="too_large")
        connection.presences += 1
        if connection.presences > self.limits.max_presence_rate:
            # What floods would have the others too slow to read it all, and closed for that.
            connection.presence = data
        else:
            self._show(connection, data)

    def present(self, user_id: str, client_id: str, device_id: str, data: Any, now: int) -> None:
        """Pass on the presence of a client whose line only goes down, here or on another node."""
        connection = self.connections.get(client_id)
        if connection is None or connection.user_id != user_id:
            connection = self._callers.setdefault(user_id, Connection(None, now))
            connection.client_id, connection.device_id = client_id, device_id
        self._presence(connection, Presence(data))

    def _show(self, connection: Connection, data: bytes) -> None:
        for other in self.connections.values():
            if other is not connection:
                self._send(other, data)
        self._emit(PassOn(data, connection.client_id))

    def _sync(self, connection: Connection, frame: RequestSync, now: int) -> None:
        seq = self.session.clients[connection.client_id].seq
        self._welcome(connection, frame.epoch, frame.version, seq, created=False, now=now)

    def _welcome(
        self,
        connection: Connection,
        epoch: str | None,
        version: int | None,
        seq: int,
        *,
        created: bool,
        now: int,
    ) -> None:
        session, record, limits = self.session, self.recorded, self.limits
        client = session.clients.get(connection.client_id)
        rejected = [] if client is None else sorted(client.refusals.items())
        common: dict[str, Any] = {
            "session_id": record.session_id,
            "epoch": record.epoch,
            "epoch_version": record.epoch_version,
            "version": session.version,
            "seq": 0 if client is None else client.seq,
            "seq_at": None if client is None else client.at,
            "rejected": [msgspec.Raw(one.body) for number, one in rejected if number > seq],
            "created": created,
            "user_id": record.user_id,
            "role": connection.role,
            "devices": self.statuses(),
            "conflicts": [one for one in session.unsettled.values() if one.status == "open"],
            "policies": session.fields.named(),
            "schema": self._schema_name(),
            "server_time": now,
            "heartbeat": HeartbeatTimes(limits.heartbeat_interval_ms, limits.heartbeat_timeout_ms),
            "reconnect_jitter_ms": max(limits.reconnect_jitter_ms, connection.jitter_ms),
            "limits": limits.announced(),
        }
        frames = None
        if epoch == record.epoch and version is not None:
            frames = session.since(version)
        detail: dict[str, Any] = {"client_id": connection.client_id, "kind": "snapshot"}
        if frames is None:
            self._welcomes.snapshot += 1
            welcome = encode(InitialState(**common, state=msgspec.Raw(self.state())))
        else:
            self._welcomes.delta += 1
            commits = msgspec.Raw(b"[" + b",".join(frames) + b"]")
            welcome = encode(Resumed(**common, commits=commits))
            detail.update(kind="delta", commits=len(frames))
        if connection.client_id:
            self._note("resumed", now, connection.user_id, connection.device_id, detail)
        self._send(connection, welcome)

    def _schema_name(self) -> SchemaName | msgspec.UnsetType:
        schema = self.session.schema
        return msgspec.UNSET if schema is None else SchemaName(schema.name, schema.version)

    def state(self) -> bytes:
        """Return the state as JSON bytes, at rest; encoded once for each version."""
        version = self.session.version
        if self._encoded[0] != version:
            self._encoded = (version, encode(self.session.document.state))
        return self._encoded[1]

    # Devices and the session's row

    def statuses(self) -> list[DeviceStatus]:
        """Return the session's devices, and whether each is connected."""
        return self.devices.statuses(self.online())

    def online(self) -> set[str]:
        """Return the ids of the devices that are connected, here or elsewhere."""
        here = {one.device_id for one in self.connections.values()}
        return here | self.elsewhere.devices()

    def _arrive(self, connection: Connection, hello: Hello, now: int) -> None:
        self.devices.sight(connection.user_id, hello.device, now)
        record = self.session.record
        left, back = record.disconnected_at, record.reconnected_at
        if left is not None and (back is None or back < left):
            self._update_record(reconnected_at=now)
        self._update_record(last_activity=max(now, self.session.record.last_activity))
        detail = {"client_id": hello.client_id, **connection.came_from}
        self._note("connected", now, connection.user_id, hello.device.id, detail)

    def _tell_devices(self, now: int) -> None:
        if self.connections and self.devices.due(now):
            data = encode(Devices(self.statuses()))
            for connection in self.connections.values():
                self._send(connection, data)

    def tell(self, line: Activity) -> None:
        """Have a line written into the activity log."""
        self._activity.append(line)

    def _note(
        self,
        activity_type: str,
        now: int,
        user_id: str | None,
        device_id: str | None,
        data: dict[str, Any],
    ) -> None:
        self._activity.append(
            Activity(
                activity_type=activity_type,
                at=now,
                user_id=user_id,
                device_id=device_id,
                data=encode(data),
            )
        )

    def _update_record(self, **values: Any) -> None:
        self.session.record = msgspec.structs.replace(self.session.record, **values)


def _place(record: SessionRecord) -> tuple[str, int, int]:
    return record.epoch, record.version, record.access_version


def _latest(record: SessionRecord, other: SessionRecord) -> SessionRecord:
    """Return the record with the latest of who came and went, of two that differ in nothing else.

    Two nodes that hear of each other's in any order come to the same.
    """
    return msgspec.structs.replace(
        record,
        last_activity=max(record.last_activity, other.last_activity),
        disconnected_at=_later(record.disconnected_at, other.disconnected_at),
        reconnected_at=_later(record.reconnected_at, other.reconnected_at),
    )


def _later(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
