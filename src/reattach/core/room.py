"""One session's live side: who is connected, what waits for its decision, who is told what.

The room takes inputs (a join, a frame, a proposal, the outcome of a batch) with the time given to
it, and gathers `effects` for its host to carry out. Between `cut` and `land` a batch is in flight:
changes queue up meanwhile, and nothing that depends on the state may be read (`at_rest`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from reattach.core.connection import (
    TRANSITIONS,
    Act,
    Close,
    Connection,
    Phase,
    Role,
)
from reattach.core.limits import Limits
from reattach.core.session import Client, Edit, Proposal, Session, apply_ops, printable
from reattach.core.values import check
from reattach.errors import BadRequest, ChangeRefused, Forbidden, ReattachError
from reattach.store.base import (
    Activity,
    Append,
    ClientAdvance,
    ClientRecord,
    CommitRecord,
    Decision,
    DeviceRecord,
    Expected,
    IdempotencyRecord,
    Loaded,
    RefusalRecord,
)
from reattach.wire import (
    Change,
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

__all__ = [
    "Effect",
    "Fault",
    "Hang",
    "LookUp",
    "Pause",
    "Request",
    "Result",
    "Room",
    "Send",
    "Settle",
]


# Effects


class Send(msgspec.Struct, frozen=True):
    """Send frames, in order."""

    connection: Connection
    frames: Sequence[bytes]


class Hang(msgspec.Struct, frozen=True):
    """Close a connection with a code."""

    connection: Connection
    code: int
    reason: str


class Pause(msgspec.Struct, frozen=True):
    """Stop reading from a connection, or go on."""

    connection: Connection
    paused: bool


class LookUp(msgspec.Struct, frozen=True):
    """Read what became of a number from the database, then call `Room.looked_up`."""

    connection: Connection
    client_id: str
    seq: int
    at: int


class Fault(msgspec.Struct, frozen=True):
    """Tell whoever looks after the server of an error that is ours."""

    error: BaseException


class Settle(msgspec.Struct, frozen=True):
    """Answer a request: its effect is durable, or it had none."""

    request: Request
    result: Result | ReattachError


Effect: TypeAlias = Send | Hang | Pause | LookUp | Settle | Fault


# What waits to be decided


class Result(msgspec.Struct, frozen=True):
    """What a request came to: the version after it, and its decision."""

    version: int
    decision: CommitRecord | RefusalRecord | None


class Request(msgspec.Struct, kw_only=True, eq=False):
    """A change that did not come over a connection: from HTTP or from the server's own code.

    With ``seq`` 0 it takes its client's next number when it is first decided, and keeps it.
    ``unless`` may refuse it on the state at hand. ``record`` makes the row for its idempotency key,
    and ``key`` (user, route and key) is where that row goes.
    """

    client_id: str
    user_id: str | None = None
    source: str = "server"
    edit: Edit | None = None
    seq: int = 0
    at: int = 0
    corrected: int = 0
    base: int | None = None
    epoch: str | None = None
    refused: ChangeRefused | None = None
    ends: bool = False
    unless: Callable[[Session], ReattachError | None] | None = None
    record: Callable[[Session, CommitRecord], IdempotencyRecord] | None = None
    key: tuple[str, str, str] | None = None


class _Queued(msgspec.Struct, frozen=True):
    """A change in line. ``connection`` is where it came from, or ``request``."""

    connection: Connection | None
    request: Request | None
    proposal: Proposal


class _Flight(msgspec.Struct):
    """The batch in flight: what it decided, and whom to tell when it is durable."""

    taken: list[_Queued]
    told: list[tuple[Connection | None, bytes]]
    settled: list[tuple[Request, Result | ReattachError]]
    lookups: list[LookUp]
    append: Append | None
    devices: dict[str, DeviceRecord]
    activity: list[Activity]
    clients: list[str]


class Room:
    """A session that is open on this node."""

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self.limits = limits
        self.session = Session(loaded, limits)
        self.connections: dict[str, Connection] = {}
        """The live ones, by client id."""
        self.effects: list[Effect] = []
        self.queue: deque[_Queued] = deque()
        self.flight: _Flight | None = None
        self.observers: set[Connection] = set()
        """Lines that only read and are no client: they get commits."""
        self.devices = {device.device_id: device for device in loaded.devices}
        self.recorded = loaded.session
        """The session's row as it is in the database."""
        self._changed_devices: dict[str, DeviceRecord] = {}
        self._activity: list[Activity] = []
        self._new_clients: list[str] = []
        self._devices_told_at = 0
        self._devices_untold = False
        self.ended = not loaded.session.is_active
        self._encoded: tuple[int, bytes] = (-1, b"")

    @property
    def at_rest(self) -> bool:
        """Whether the state at hand is the durable one."""
        return self.flight is None

    @property
    def has_work(self) -> bool:
        """Whether there is something to write."""
        return bool(
            self.queue
            or self._changed_devices
            or self._activity
            or self._new_clients
            or self.session.record != self.recorded
        )

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.recorded.session_id

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
        if older is None and self._is_crowded(connection):
            return
        client = self._know_client(connection.user_id, hello.client_id, hello.device.id, record)
        for refusal in refusals:
            client.refusals.setdefault(refusal.seq, refusal)
        connection.client_id = hello.client_id
        connection.device_id = hello.device.id
        connection.offset = now - hello.t
        connection.gap_told = False
        if older is not None:
            # Out of the room at once: however late it closes, it is not this client any more.
            del self.connections[hello.client_id]
            self.hang(older, Close.SUPERSEDED, "a newer connection of this client took over")
        self._arrive(connection, hello, now)
        self.connections[hello.client_id] = connection
        connection.phase = Phase.LIVE
        if frames is None:
            self._welcome(
                connection, hello.epoch, hello.version, hello.seq, created=created, now=now
            )
        else:
            refused = [one.body for seq, one in sorted(client.refusals.items()) if seq > hello.seq]
            self.effects.append(Send(connection, [*frames, *refused]))
        self._tell_devices(now)
        held, connection.held = connection.held, []
        for frame, size in held:
            self.receive(connection, frame, size, now)

    def _is_crowded(self, connection: Connection) -> bool:
        """Send a connection away whose user has enough of them."""
        allowed = self.limits.max_user_connections
        if allowed is None:
            return False
        others = (*self.connections.values(), *self.observers)
        if sum(one.user_id == connection.user_id for one in others) < allowed:
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
        self.sight(user_id, device, now)

    def _check_owner(
        self, user_id: str, client_id: str, device: HelloDevice, record: ClientRecord | None
    ) -> None:
        self._check_device(user_id, device)
        client = self.session.clients.get(client_id)
        owner = client.user_id if client else record.user_id if record else None
        if owner is not None and owner != user_id:
            raise Forbidden("this client id is another user's")

    def _check_device(self, user_id: str, device: HelloDevice) -> None:
        known = self.devices.get(device.id)
        if known is not None and known.user_id != user_id:
            raise Forbidden("this device is another user's")
        check([device.name, device.info], depth=self.limits.max_nesting + 1, path="/device")
        most = self.limits.max_device_info_bytes
        if len(encode(device.info)) > most:
            raise BadRequest(f"expected device.info of at most {most} bytes")

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
        self.touch(connection.device_id, now)
        self._note(
            "disconnected",
            now,
            connection.user_id,
            connection.device_id,
            {"client_id": connection.client_id, "why": why},
        )
        if not self.connections:
            self._update_record(disconnected_at=now)
        self._devices_untold = True
        self._tell_devices(now)

    def hang(self, connection: Connection, code: int, reason: str) -> None:
        """Close a connection; its `leave` follows when the line is gone."""
        self.effects.append(Hang(connection, code, reason))

    def receive(self, connection: Connection, frame: Frame, size: int, now: int) -> None:
        """Take a frame from a connection; ``size`` is what it weighed, in bytes."""
        connection.heard_at = now
        if connection.phase is Phase.CLOSED:
            return
        try:
            self._carry_out(connection, frame, size, now)
        except ChangeRefused as error:
            self.complain(connection, error.code, error.message)

    def _carry_out(self, connection: Connection, frame: Frame, size: int, now: int) -> None:
        act = TRANSITIONS.get((connection.phase, type(frame)))
        if act is Act.CHANGE:
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
            self.complain(
                connection,
                "not_supported",
                "checkpoints come with a later version",
                ref=printable(frame.ref),
            )
        elif act is Act.HOLD:
            connection.held.append((frame, size))
        else:
            expected = "hello first" if connection.phase is Phase.GREETING else "one hello"
            self.hang(connection, Close.BAD_FRAME, f"expected {expected}")

    def refuse(self, connection: Connection, head: Change, refused: ChangeRefused) -> None:
        """Take a change whose operations cannot be read: its number is used up for a refusal."""
        if connection.phase is Phase.LIVE:
            self._queue(connection, head, refused=refused)
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
            self.effects.append(Send(connection, frames))

    # Proposals

    def submit(self, request: Request) -> None:
        """Queue a change from HTTP or the server's own code; `Settle` answers it."""
        proposal = Proposal(
            client_id=request.client_id,
            seq=request.seq,
            at=request.at,
            corrected=request.corrected,
            base=request.base,
            epoch=request.epoch,
            edit=request.edit,
            refused=request.refused,
            ends=request.ends,
            user_id=request.user_id,
        )
        self.queue.append(_Queued(None, request, proposal))

    def _take(self, connection: Connection, change: Change, size: int) -> None:
        refused = None
        if size > self.limits.max_change_bytes:
            refused = ChangeRefused(
                f"expected a change of at most {self.limits.max_change_bytes} bytes, got {size}",
                code="change_too_large",
            )
        self._queue(connection, change, refused=refused)

    def _queue(self, connection: Connection, change: Change, refused: ChangeRefused | None) -> None:
        self.queue.append(
            _Queued(
                connection,
                None,
                propose(
                    connection.client_id,
                    connection.role,
                    change,
                    connection.offset,
                    self.limits,
                    refused=refused,
                ),
            )
        )
        connection.waiting += 1
        if connection.waiting >= self.limits.max_in_flight_changes and not connection.paused:
            connection.paused = True
            self.effects.append(Pause(connection, True))

    # The batch

    def cut(self, now: int, *, most: int | None = None) -> Append | None:
        """Decide what waits (the first ``most``), and return what is to be written.

        None: there was nothing to write, and everybody has been answered.
        """
        assert self.flight is None, "one batch at a time"
        session = self.session
        session.cut()
        flight = _Flight(
            taken=[],
            told=[],
            settled=[],
            lookups=[],
            append=None,
            devices=self._changed_devices,
            activity=self._activity,
            clients=self._new_clients,
        )
        self._changed_devices, self._activity, self._new_clients = {}, [], []
        self.flight = flight
        queue = self.queue
        for _ in range(len(queue) if most is None else min(most, len(queue))):
            request = queue[0].request
            if request is not None and request.record and session.idempotency is not None:
                break  # a batch has one idempotency key for each session
            queued = queue.popleft()
            flight.taken.append(queued)
            self._decide(queued, flight, now)
        session.save_by_cost()
        advances = session.advances()
        advancing = {advance.client.client_id for advance in advances}
        advances += [
            ClientAdvance(client=session.client_record(name), before=0)
            for name in flight.clients
            if name not in advancing
        ]
        append = Append(
            session_id=self.session_id,
            expected=Expected(
                version=self.recorded.version,
                epoch=self.recorded.epoch,
                access_version=self.recorded.access_version,
            ),
            session=session.record,
            commits=session.commits,
            refusals=session.refusals,
            clients=advances,
            conflicts=list(session.conflicts.values()),
            devices=list(flight.devices.values()),
            activity=flight.activity,
            state=session.saved,
            idempotency=session.idempotency,
        )
        if (
            session.record == self.recorded
            and not advances
            and not append.devices
            and not append.activity
        ):
            self.land(now)
            return None
        flight.append = append
        return append

    def land(self, now: int) -> None:
        """The batch is durable (or there was nothing to write): tell everybody."""
        flight = self.flight
        assert flight is not None, "no batch is in flight"
        self.flight = None
        self.session.land()
        if not self.queue:
            self.session.replayed.clear()
        self.recorded = self.session.record
        self._tell(flight.told)
        for queued in flight.taken:
            if queued.connection is not None:
                self._answered(queued.connection)
        self.effects += [Settle(request, result) for request, result in flight.settled]
        self.effects += flight.lookups
        if not self.recorded.is_active and not self.ended:
            self.ended = True
            for connection in (*self.connections.values(), *self.observers):
                self.hang(connection, Close.ENDED, "the session has ended")
        self._tell_devices(now)

    def abort(self) -> None:
        """Whether the batch is durable is not known, or it is not: take it back, queue it anew."""
        flight = self.flight
        assert flight is not None, "no batch is in flight"
        self.flight = None
        self.session.abort()
        self.queue.extendleft(reversed(flight.taken))
        self._changed_devices = flight.devices | self._changed_devices
        self._activity = flight.activity + self._activity
        self._new_clients = flight.clients + self._new_clients

    def condemn(self) -> None:
        """The database will not have the first change in line: refuse it when it is decided."""
        queued = self.queue.popleft()
        refused = ChangeRefused(
            "the database refused to store this change: see the server's log",
            code="store_refused",
        )
        proposal = msgspec.structs.replace(queued.proposal, refused=refused)
        self.queue.appendleft(_Queued(queued.connection, queued.request, proposal))

    def forget_housekeeping(self) -> None:
        """Give up what waits to be written beside changes."""
        self._changed_devices, self._activity = {}, []

    def catch_up(
        self,
        recorded: Any,
        commits: Sequence[CommitRecord],
        clients: Sequence[tuple[ClientRecord, Sequence[RefusalRecord]]],
    ) -> None:
        """Take in what the database holds beyond what is here, and tell everybody.

        ``clients`` are those with changes in line, with their refusals from the first of these on.
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
        refused: dict[str, deque[RefusalRecord]] = {}
        for record, refusals in clients:
            client = session.know(record, known=True)
            client.refusals.update((one.seq, one) for one in refusals)
            refused[record.client_id] = deque(refusals)
        told: list[tuple[Connection | None, bytes]] = []
        # In the order of each client's numbers: one that is told of a number asks for no lower one.
        for commit in commits:
            earlier = refused.get(commit.client_id or "")
            while earlier and commit.seq is not None and earlier[0].seq < commit.seq:
                self._tell_refusal(earlier.popleft(), told)
            told.append((None, commit.body))
        for rest in refused.values():
            for refusal in rest:
                self._tell_refusal(refusal, told)
        self._tell(told)

    def _tell_refusal(
        self, refusal: RefusalRecord, told: list[tuple[Connection | None, bytes]]
    ) -> None:
        """Answer a change in line that was refused, it turns out, and take it out."""
        for queued in self.queue:
            one, connection = queued.proposal, queued.connection
            if (one.client_id, one.seq, one.at) == (
                refusal.client_id,
                refusal.seq,
                refusal.client_at,
            ) and connection is not None:
                self.queue.remove(queued)
                self._answered(connection)
                told.append((connection, refusal.body))
                return

    def waiting_clients(self) -> dict[str, int]:
        """Return the clients with changes in line, and the lowest number of each."""
        lowest: dict[str, int] = {}
        for queued in self.queue:
            name, seq = queued.proposal.client_id, queued.proposal.seq
            lowest[name] = min(seq, lowest.get(name, seq))
        return lowest

    def keyed(self) -> list[Request]:
        """Return the requests in line that record an idempotency key."""
        requests = (queued.request for queued in self.queue)
        return [one for one in requests if one is not None and one.key is not None]

    def withdraw(self, request: Request, why: ReattachError) -> None:
        """Take a request out of the line, and answer it."""
        self.queue = deque(queued for queued in self.queue if queued.request is not request)
        self.effects.append(Settle(request, why))

    def looked_up(self, lookup: LookUp, decision: Decision | None) -> None:
        """A number that came again was decided as ``decision`` says."""
        if decision is None:
            return
        self._again(lookup.connection, lookup.at, decision.client_at, decision.refusal)

    def fail(self, error: ReattachError) -> list[Connection]:
        """The room cannot go on: answer what waits, and return who is connected."""
        for queued in self.queue:
            if queued.request is not None:
                self.effects.append(Settle(queued.request, error))
        self.queue.clear()
        return [*self.connections.values(), *self.observers]

    def _decide(self, queued: _Queued, flight: _Flight, now: int) -> None:
        session, connection, request = self.session, queued.connection, queued.request
        proposal = queued.proposal
        client = session.clients[proposal.client_id]
        if request is not None and proposal.seq == 0:
            if request.seq == 0:
                request.seq = client.seq + 1
            proposal = msgspec.structs.replace(proposal, seq=request.seq, at=now, corrected=now)
        if proposal.seq <= client.seq:
            self._decided_before(proposal, client, connection, request, flight)
            return
        if proposal.seq > client.seq + 1:
            self._gap(client.seq + 1, connection, request, flight)
            return
        if connection is not None:
            connection.gap_told = False
        if request is not None and request.unless is not None:
            objection = request.unless(session)
            if objection is not None:
                request.seq = 0
                flight.settled.append((request, objection))
                return
        if proposal.corrected > now:
            proposal = msgspec.structs.replace(proposal, corrected=now)
        keep = request is None or request.source == "device"
        try:
            decision = session.decide(proposal, keep_refusal=keep)
        except ChangeRefused as refused:
            assert request is not None
            request.seq = 0
            flight.settled.append((request, refused))
            return
        except Exception as error:  # noqa: BLE001
            self.effects.append(Fault(error))
            proposal = msgspec.structs.replace(
                proposal,
                refused=ChangeRefused(
                    "the server failed on this change: see its log", code="internal"
                ),
            )
            self._decide(_Queued(connection, request, proposal), flight, now)
            return
        if isinstance(decision, CommitRecord):
            flight.told.append((None, decision.body))
            if request is not None and request.record is not None:
                session.idempotency = request.record(session, decision)
        else:
            # A change that came by HTTP may have its client's down-link here.
            told = connection or self.connections.get(proposal.client_id)
            if told is not None:
                flight.told.append((told, decision.body))
        if request is not None:
            flight.settled.append((request, Result(session.version, decision)))

    def _decided_before(
        self,
        proposal: Proposal,
        client: Client,
        connection: Connection | None,
        request: Request | None,
        flight: _Flight,
    ) -> None:
        if request is not None:
            commit = self.session.replayed.get((proposal.client_id, proposal.seq))
            version = self.session.version if commit is None else commit.version
            flight.settled.append((request, Result(version, commit)))
        if connection is None:
            return
        refusal = client.refusals.get(proposal.seq)
        commit = self.session.replayed.get((proposal.client_id, proposal.seq))
        if refusal is not None:
            told = _again(proposal.at, refusal.client_at, refusal.body)
            flight.told.append((connection, told))
        elif commit is None:
            flight.lookups.append(LookUp(connection, proposal.client_id, proposal.seq, proposal.at))
        elif commit.client_at != proposal.at:
            flight.told.append((connection, _again(proposal.at, commit.client_at, None)))

    def _again(
        self, connection: Connection, at: int, decided_at: int, refusal: bytes | None
    ) -> None:
        if at != decided_at or refusal is not None:
            self._send(connection, _again(at, decided_at, refusal))

    def _gap(
        self,
        expected: int,
        connection: Connection | None,
        request: Request | None,
        flight: _Flight,
    ) -> None:
        message = f"expected change {expected} first: a client's numbers have no gaps"
        if request is not None:
            flight.settled.append((request, SequenceGap(message, expected)))
        elif connection is not None and not connection.gap_told:
            connection.gap_told = True
            self.session.document.undo.append((setattr, (connection, "gap_told", False)))
            flight.told.append(
                (connection, encode(Error("sequence_gap", message, expected=expected)))
            )

    def _answered(self, connection: Connection) -> None:
        connection.waiting -= 1
        if connection.paused and connection.waiting <= self.limits.max_in_flight_changes // 2:
            connection.paused = False
            self.effects.append(Pause(connection, False))

    # Telling

    def _tell(self, told: Sequence[tuple[Connection | None, bytes]]) -> None:
        if not told:
            return
        common = [data for target, data in told if target is None]
        special = {target for target, _ in told if target is not None}
        for connection in (*self.connections.values(), *self.observers):
            if connection in special:
                mine = [data for target, data in told if target is None or target is connection]
                self.effects.append(Send(connection, mine))
            elif common:
                self.effects.append(Send(connection, common))

    def _send(self, connection: Connection, data: bytes) -> None:
        self.effects.append(Send(connection, (data,)))

    def _presence(self, connection: Connection, frame: Presence) -> None:
        check(frame.data, depth=self.limits.max_nesting, path="/data")
        data = encode(PresenceOf(connection.device_id, frame.data))
        if len(data) > self.limits.max_presence_bytes + 200:
            most = self.limits.max_presence_bytes
            self.complain(connection, "too_large", f"expected presence of at most {most} bytes")
            return
        for other in self.connections.values():
            if other is not connection:
                self._send(other, data)

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
            "conflicts": [msgspec.Raw(body) for body in session.open_conflicts.values()],
            "policies": {},
            "server_time": now,
            "heartbeat": HeartbeatTimes(limits.heartbeat_interval_ms, limits.heartbeat_timeout_ms),
            "reconnect_jitter_ms": limits.reconnect_jitter_ms,
            "limits": limits.announced(),
        }
        frames = None
        if epoch == record.epoch and version is not None:
            frames = session.since(version)
        detail: dict[str, Any] = {"client_id": connection.client_id, "kind": "snapshot"}
        if frames is None:
            welcome = encode(InitialState(**common, state=msgspec.Raw(self.state())))
        else:
            commits = msgspec.Raw(b"[" + b",".join(frames) + b"]")
            welcome = encode(Resumed(**common, commits=commits))
            detail.update(kind="delta", commits=len(frames))
        if connection.client_id:
            self._note("resumed", now, connection.user_id, connection.device_id, detail)
        self._send(connection, welcome)

    def state(self) -> bytes:
        """Return the state as JSON bytes, at rest; encoded once for each version."""
        version = self.session.version
        if self._encoded[0] != version:
            self._encoded = (version, encode(self.session.document.state))
        return self._encoded[1]

    # Devices and the session's row

    def statuses(self) -> list[DeviceStatus]:
        """Return the session's devices, and whether each is connected."""
        online = {connection.device_id for connection in self.connections.values()}
        return [
            DeviceStatus(
                device.device_id,
                device.name,
                device.device_id in online,
                device.is_primary,
                device.last_activity,
            )
            for device in self.devices.values()
        ]

    def _arrive(self, connection: Connection, hello: Hello, now: int) -> None:
        self.sight(connection.user_id, hello.device, now)
        record = self.session.record
        left, back = record.disconnected_at, record.reconnected_at
        if left is not None and (back is None or back < left) and not self.connections:
            self._update_record(reconnected_at=now)
        self._update_record(last_activity=max(now, self.session.record.last_activity))
        self._note(
            "connected", now, connection.user_id, hello.device.id, {"client_id": hello.client_id}
        )
        self._devices_untold = True

    def greet(self, user_id: str, device: HelloDevice, now: int) -> None:
        """Take a sign of life of a device without a connection; written now and then only.

        Raises `Forbidden` where the device is another user's.
        """
        self._check_device(user_id, device)
        known = self.devices.get(device.id)
        interval = self.limits.heartbeat_interval_ms
        if known is None or now - known.last_activity >= interval:
            self.sight(user_id, device, now)

    def sight(self, user_id: str, device: HelloDevice, now: int) -> None:
        """Note that a user's device was there, and what it tells of itself."""
        known = self.devices.get(device.id)
        self.devices[device.id] = self._changed_devices[device.id] = DeviceRecord(
            device_id=device.id,
            user_id=user_id,
            name=device.name or (known.name if known else None),
            info=encode(device.info or {}) if device.info or not known else known.info,
            is_primary=known.is_primary if known else not self.devices,
            created_at=known.created_at if known else now,
            last_activity=now,
        )
        self._devices_untold = True

    def touch(self, device_id: str, now: int) -> None:
        """Note a sign of life of a device."""
        known = self.devices.get(device_id)
        if known is not None:
            device = msgspec.structs.replace(known, last_activity=now)
            self.devices[device_id] = self._changed_devices[device_id] = device

    def _tell_devices(self, now: int) -> None:
        if not self._devices_untold or not self.connections:
            return
        if now - self._devices_told_at >= self.limits.devices_interval_ms:
            self._devices_untold = False
            self._devices_told_at = now
            data = encode(Devices(self.statuses()))
            for connection in self.connections.values():
                self._send(connection, data)

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


class SequenceGap(ReattachError):
    """A client's number came before the one that goes before it: send ``expected`` first."""

    code = "sequence_gap"
    status = 409

    def __init__(self, message: str, expected: int) -> None:
        super().__init__(message)
        self.expected = expected


def propose(
    client_id: str,
    role: str,
    change: Change,
    offset: int,
    limits: Limits,
    *,
    refused: ChangeRefused | None = None,
) -> Proposal:
    """Make a client's change to what is decided; ``offset`` corrects its clock, ms."""
    ops = change.ops
    ends = False
    if role == Role.VIEWER:
        refused = ChangeRefused("a viewer may not write", code="forbidden")
    elif refused is None and len(ops) > limits.max_change_operations:
        refused = ChangeRefused(
            f"expected at most {limits.max_change_operations} operations, got {len(ops)}",
            code="too_many_operations",
        )
    elif refused is None and any(op.op == "end" for op in ops):
        ends = len(ops) == 1
        if not ends:
            refused = ChangeRefused("expected end to be alone in its change", code="bad_op")
    return Proposal(
        client_id=client_id,
        seq=change.seq,
        at=change.at,
        corrected=change.at + offset,
        base=change.base,
        epoch=change.epoch,
        edit=None if ends else apply_ops(ops),
        refused=refused,
        ends=ends,
    )


def _again(at: int, decided_at: int | None, refusal: bytes | None) -> bytes:
    """Answer a number that was decided before."""
    if at != decided_at:
        message = (
            "this number was decided for another change: take a new client id, ask history which"
            " changes were committed, and send the others"
        )
        return encode(Error("seq_reused", message))
    assert refusal is not None, "a number that was committed is not answered again"
    return refusal
