"""The changes of one session that wait for their decision, and how they are decided.

A change comes over a connection or as a `Request`. `decide` takes what waits through the rules of
*exactly once* (`docs/protocol.md`, X1 to X5) and says whom to tell of what, once it is durable. If
the batch does not land, `retake` puts everything back in line as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from reattach.core.checkpoints import Kind, Mark
from reattach.core.connection import Connection, Role
from reattach.core.effects import (
    Confirm,
    Effect,
    Fault,
    LookUp,
    Pause,
    Recall,
    Request,
    Result,
    SequenceGap,
    Settle,
)
from reattach.core.limits import Limits
from reattach.core.past import Past
from reattach.core.schema import Schema, renamed
from reattach.core.session import Client, Proposal, Session, apply_ops
from reattach.errors import ChangeRefused, ReattachError, Unavailable
from reattach.store.base import CommitRecord, RefusalRecord
from reattach.wire import Change, Error, Op, encode

__all__ = ["Backlog", "Decided", "Inbox", "Told", "again", "propose"]

Told = list[tuple[Connection | None, bytes]]
"""Frames in order, and whom they are for; None means everybody."""


class _Queued(msgspec.Struct, frozen=True):
    """A change in line. ``connection`` is where it came from, or ``request``; ``size`` in bytes."""

    connection: Connection | None
    request: Request | None
    proposal: Proposal
    size: int = 0


class Backlog(msgspec.Struct):
    """What the changes weigh that wait on one node, in bytes of their frames, over all sessions."""

    most: int
    bytes: int = 0


class Decided(msgspec.Struct):
    """What a batch decided: what it took from the line, and whom to tell when it is durable."""

    taken: list[_Queued] = msgspec.field(default_factory=list)
    told: Told = msgspec.field(default_factory=list)
    settled: list[tuple[Request, Result | ReattachError]] = msgspec.field(default_factory=list)
    lookups: list[LookUp] = msgspec.field(default_factory=list)
    marked: list[Confirm] = msgspec.field(default_factory=list)


class Inbox:
    """A session's line of changes. ``emit`` takes effects, ``down_link`` finds a client's line."""

    def __init__(
        self,
        session: Session,
        limits: Limits,
        *,
        emit: Callable[[Effect], None],
        down_link: Callable[[str], Connection | None],
        backlog: Backlog,
    ) -> None:
        self._session = session
        self._limits = limits
        self._emit = emit
        self._down_link = down_link
        self._backlog = backlog
        self._is_over = False
        self._queue: deque[_Queued] = deque()
        self._recalling: Proposal | None = None
        """The restore whose state is being looked up; the line stands still behind it."""

    def __len__(self) -> int:
        """Return how many changes wait."""
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """Whether there is something to decide now."""
        return bool(self._queue) and self._queue[0].proposal is not self._recalling

    # Into the line

    def put(
        self, connection: Connection, change: Change, size: int, refused: ChangeRefused | None
    ) -> None:
        """Take a change from a connection; one with too many in line, or too heavy ones, is read no
        further. So is whoever sends something while the node as a whole has too much in line.
        """
        proposal = propose(
            connection.client_id,
            connection.role,
            change,
            connection.offset,
            self._limits,
            self._session.schema,
            refused=refused,
        )
        self._put(connection, proposal, size)

    def put_mark(self, connection: Connection, mark: Mark, size: int) -> None:
        """Take what a connection wants marked, behind the changes that it sent before."""
        proposal = Proposal(client_id=connection.client_id, mark=mark, role=connection.role)
        self._put(connection, proposal, size)

    def _put(self, connection: Connection, proposal: Proposal, size: int) -> None:
        self._queue.append(_Queued(connection, None, proposal, size))
        connection.waiting += 1
        connection.weight += size
        self._backlog.bytes += size
        limits = self._limits
        if not connection.paused and (
            connection.waiting >= limits.max_in_flight_changes
            or connection.weight >= limits.max_in_flight_bytes
            or self._backlog.bytes >= self._backlog.most
        ):
            connection.paused = True
            self._emit(Pause(connection, True))

    def submit(self, request: Request) -> None:
        """Take a change from HTTP or the server's own code; `Settle` answers it."""
        self._queue.append(_Queued(None, request, request.proposal))

    def renew(self, client_id: str) -> None:
        """A client comes on a new connection: drop what its older ones left in line.

        It sends again all that is not decided. Both copies in line would have it told of a later
        number before the refusal of an earlier one, which went to the connection that is gone.
        """
        kept: deque[_Queued] = deque()
        for queued in self._queue:
            if queued.connection is None or queued.proposal.client_id != client_id:
                kept.append(queued)
            else:
                self._backlog.bytes -= queued.size
        self._queue = kept

    def retake(self, decided: Decided) -> None:
        """Put what a batch took back, before what came since."""
        self._queue.extendleft(reversed(decided.taken))
        if self._is_over:
            self._clear()

    # Out of the line

    def decide(self, now: int, *, most: int | None) -> Decided:
        """Decide what waits (the first ``most``), in the batch that the session has begun."""
        decided, queue, session = Decided(), self._queue, self._session
        for _ in range(len(queue) if most is None else min(most, len(queue))):
            queued = queue[0]
            request, proposal = queued.request, queued.proposal
            if request is not None and request.record and session.idempotency is not None:
                break  # a batch has one idempotency key for each session
            if proposal.restore is not None and self._needs_past(queued):
                if not decided.taken and self._recalling is not proposal:
                    # All before it is durable: so the newest mark is the one that is meant.
                    self._recalling = proposal
                    self._emit(Recall(proposal))
                break
            queue.popleft()
            decided.taken.append(queued)
            self._decide(queued, decided, now)
        return decided

    def _needs_past(self, queued: _Queued) -> bool:
        proposal, connection = queued.proposal, queued.connection
        if proposal.past is not None or proposal.refused is not None:
            return False
        role = proposal.role if connection is None else connection.role
        if role == Role.VIEWER or not self._session.record.is_active:
            return False  # it is refused, whatever was then
        return proposal.seq in {0, self._session.clients[proposal.client_id].seq + 1}

    def recalled(self, proposal: Proposal, past: Past | ChangeRefused) -> None:
        """What a restore is about was looked up, or cannot be had."""
        if self._recalling is proposal:
            self._recalling = None
        if not self._queue or self._queue[0].proposal is not proposal:
            return  # its client has left, and sends it again
        queued = self._queue.popleft()
        if isinstance(past, Past):
            found = msgspec.structs.replace(proposal, past=past)
        else:
            found = msgspec.structs.replace(proposal, refused=past)
        self._queue.appendleft(_Queued(queued.connection, queued.request, found, queued.size))

    def landed(self, decided: Decided) -> None:
        """What a batch decided is durable: answer requests, and read on from who waited."""
        for queued in decided.taken:
            if queued.connection is not None:
                self._answered(queued.connection, queued.size)
        for request, result in decided.settled:
            self._emit(Settle(request, result))
        for lookup in decided.lookups:
            self._emit(lookup)
        for marked in decided.marked:
            self._emit(marked)
        if not self._queue:
            self._session.replayed.clear()

    def condemn(self) -> None:
        """The database will not have the first change in line: refuse it when it is decided."""
        queued = self._queue.popleft()
        refused = ChangeRefused(
            "the database refused to store this change: see the server's log",
            code="store_refused",
        )
        proposal = msgspec.structs.replace(queued.proposal, refused=refused)
        self._queue.appendleft(_Queued(queued.connection, queued.request, proposal, queued.size))

    def withdraw(self, request: Request, why: ReattachError) -> None:
        """Take a request out of the line, and answer it."""
        self._queue = deque(queued for queued in self._queue if queued.request is not request)
        self._emit(Settle(request, why))

    def fail(self, error: ReattachError) -> None:
        """Nothing will be decided here any more: answer who waits for an answer."""
        for queued in self._queue:
            if queued.request is not None:
                self._emit(Settle(queued.request, error))
        self._is_over = True
        self._clear()

    def _clear(self) -> None:
        self._backlog.bytes -= sum(queued.size for queued in self._queue)
        self._queue.clear()

    def found(
        self,
        commits: Sequence[CommitRecord],
        refusals: Sequence[RefusalRecord],
    ) -> Told:
        """Say whom to tell of what the database turned out to hold; ``refusals`` by client and seq.

        In the order of each client's numbers: one that is told of a number asks for no lower one.
        """
        refused: dict[str, deque[RefusalRecord]] = {}
        for refusal in refusals:
            refused.setdefault(refusal.client_id, deque()).append(refusal)
        told: Told = []
        for commit in commits:
            earlier = refused.get(commit.client_id or "")
            while earlier and commit.seq is not None and earlier[0].seq < commit.seq:
                self._was_refused(earlier.popleft(), told)
            told.append((None, commit.body))
        for rest in refused.values():
            for refusal in rest:
                self._was_refused(refusal, told)
        return told

    # What waits

    def lowest(self) -> dict[str, int]:
        """Return the clients with changes in line, and the lowest number of each."""
        lowest: dict[str, int] = {}
        for queued in self._queue:
            if queued.proposal.mark is not None:
                continue
            name, seq = queued.proposal.client_id, queued.proposal.seq
            lowest[name] = min(seq, lowest.get(name, seq))
        return lowest

    def keyed(self) -> list[Request]:
        """Return the requests in line that record an idempotency key."""
        requests = (queued.request for queued in self._queue)
        return [one for one in requests if one is not None and one.key is not None]

    # Inside

    def _decide(self, queued: _Queued, decided: Decided, now: int) -> None:
        session, connection, request = self._session, queued.connection, queued.request
        proposal = queued.proposal
        if proposal.mark is not None:
            self._mark(queued, proposal.mark, decided)
            return
        client = session.clients[proposal.client_id]
        if request is not None and proposal.seq == 0:
            proposal = self._numbered(proposal, request, client, now)
        if proposal.seq <= client.seq:
            self._decided_before(proposal, client, connection, request, decided)
            return
        if proposal.seq > client.seq + 1:
            self._gap(client.seq + 1, connection, request, decided)
            return
        if connection is not None:
            connection.gap_told = False
            if proposal.role != connection.role:
                # Its role is another one since it was sent.
                proposal = msgspec.structs.replace(proposal, role=connection.role)
        expected = proposal.access_version
        if expected is not None and expected != session.record.access_version:
            assert request is not None
            decided.settled.append((request, _moved()))
            return
        if request is not None and request.unless is not None:
            objection = request.unless(session)
            if objection is not None:
                decided.settled.append((request, objection))
                return
        if proposal.corrected > now:
            proposal = msgspec.structs.replace(proposal, corrected=now)
        try:
            keep = request is None or request.proposal.seq != 0
            decision = session.decide(proposal, keep_refusal=keep)
        except ChangeRefused as refused:
            assert request is not None
            decided.settled.append((request, refused))
        except Exception as error:  # noqa: BLE001 - one change must not stop the others; it is told
            self._emit(Fault(error))
            failed = ChangeRefused("the server failed on this change: see its log", code="internal")
            proposal = msgspec.structs.replace(proposal, refused=failed)
            self._decide(_Queued(connection, request, proposal), decided, now)
        else:
            self._record(decision, connection, request, decided)

    def _mark(self, queued: _Queued, mark: Mark, decided: Decided) -> None:
        session, connection, request = self._session, queued.connection, queued.request
        proposal = queued.proposal
        refused = proposal.refused
        if (connection.role if connection is not None else proposal.role) == Role.VIEWER:
            refused = ChangeRefused("a viewer may not save checkpoints", code="forbidden")
        elif not session.record.is_active:
            refused = ChangeRefused("the session has ended", code="session_ended")
        if proposal.access_version not in {None, session.record.access_version}:
            assert request is not None
            decided.settled.append((request, _moved()))
        elif refused is None:
            record = session.mark(mark.checkpoint_id, Kind.NAMED, mark.name, mark.data)
            user_id, device_id = proposal.user_id, None
            if connection is not None:
                user_id, device_id = connection.user_id, connection.device_id
            session.markers[mark.checkpoint_id] = (user_id, device_id)
            decided.marked.append(Confirm(record, connection, mark.ref))
            if request is not None:
                if request.record is not None:
                    session.idempotency = request.record(session)
                decided.settled.append((request, Result(session.version, record)))
        elif request is not None:
            decided.settled.append((request, refused))
        else:
            error = Error(refused.code, refused.message, mark.ref or msgspec.UNSET)
            decided.told.append((connection, encode(error)))

    def _numbered(self, proposal: Proposal, request: Request, client: Client, now: int) -> Proposal:
        """Give a change by the server its number; the one it had, if that turned out to be taken
        by it in a batch whose answer was lost.
        """
        commit = self._session.replayed.get((proposal.client_id, request.number))
        if commit is None or commit.client_at != request.at:
            request.number, request.at = client.seq + 1, now
        at = request.at
        return msgspec.structs.replace(proposal, seq=request.number, at=at, corrected=at)

    def _record(
        self,
        decision: CommitRecord | RefusalRecord,
        connection: Connection | None,
        request: Request | None,
        decided: Decided,
    ) -> None:
        if isinstance(decision, CommitRecord):
            decided.told.append((None, decision.body))
            if request is not None and request.record is not None:
                self._session.idempotency = request.record(self._session)
        else:
            # A change that came by HTTP may have its client's down-link here.
            told = connection or self._down_link(decision.client_id)
            if told is not None:
                decided.told.append((told, decision.body))
        if request is not None:
            decided.settled.append((request, Result(self._session.version, decision)))

    def _decided_before(
        self,
        proposal: Proposal,
        client: Client,
        connection: Connection | None,
        request: Request | None,
        decided: Decided,
    ) -> None:
        commit = self._session.replayed.get((proposal.client_id, proposal.seq))
        if request is not None:
            version = self._session.version if commit is None else commit.version
            decided.settled.append((request, Result(version, commit)))
        if connection is None:
            return
        refusal = client.refusals.get(proposal.seq)
        if refusal is not None:
            told = again(proposal.at, refusal.client_at, refusal.body)
        elif commit is not None:
            told = again(proposal.at, commit.client_at, None)
        else:
            decided.lookups.append(
                LookUp(connection, proposal.client_id, proposal.seq, proposal.at)
            )
            return
        if told is not None:
            decided.told.append((connection, told))

    def _gap(
        self,
        expected: int,
        connection: Connection | None,
        request: Request | None,
        decided: Decided,
    ) -> None:
        message = f"expected change {expected} first: a client's numbers have no gaps"
        if request is not None:
            decided.settled.append((request, SequenceGap(message, expected)))
        elif connection is not None and not connection.gap_told:
            connection.gap_told = True
            self._session.document.undo.append((setattr, (connection, "gap_told", False)))
            error = Error("sequence_gap", message, expected=expected)
            decided.told.append((connection, encode(error)))

    def _was_refused(self, refusal: RefusalRecord, told: Told) -> None:
        """Answer a change in line that was refused, it turns out, and take it out."""
        number = (refusal.client_id, refusal.seq, refusal.client_at)
        for queued in self._queue:
            one, connection = queued.proposal, queued.connection
            if connection is not None and (one.client_id, one.seq, one.at) == number:
                self._queue.remove(queued)
                self._answered(connection, queued.size)
                told.append((connection, refusal.body))
                return

    def _answered(self, connection: Connection, size: int) -> None:
        connection.waiting -= 1
        connection.weight -= size
        self._backlog.bytes -= size
        if not connection.paused:
            return
        limits = self._limits
        few = (
            connection.waiting <= limits.max_in_flight_changes // 2
            and connection.weight <= limits.max_in_flight_bytes // 2
            and self._backlog.bytes < self._backlog.most
        )
        # Whoever has nothing left to wait for would never be asked again.
        if few or connection.waiting == 0:
            connection.paused = False
            self._emit(Pause(connection, False))


_ALONE: Final = frozenset({"end", "resolve", "restore"})
"""Operations that have a change to themselves."""


def _moved() -> Unavailable:
    return Unavailable("who may do what here changed meanwhile: try again")


def propose(
    client_id: str,
    role: str,
    change: Change,
    offset: int,
    limits: Limits,
    schema: Schema | None = None,
    *,
    refused: ChangeRefused | None = None,
) -> Proposal:
    """Make a client's change to what is decided; ``offset`` corrects its clock, ms."""
    ops: Sequence[Op] = change.ops
    resolve: Op | None = None
    restore: Op | None = None
    outdated = False
    ends = False
    if refused is None and len(ops) == 1 and ops[0].op not in _ALONE:
        pass  # most changes: one operation on the state
    elif refused is None and len(ops) > limits.max_change_operations:
        refused = ChangeRefused(
            f"expected at most {limits.max_change_operations} operations, got {len(ops)}",
            code="too_many_operations",
        )
    elif refused is None and any(op.op == "end" for op in ops):
        ends = len(ops) == 1
        if not ends:
            refused = ChangeRefused("expected end to be alone in its change", code="bad_op")
    elif refused is None and any(op.op == "resolve" for op in ops):
        if len(ops) == 1:
            resolve = ops[0]
        else:
            refused = ChangeRefused("expected resolve to be alone in its change", code="bad_op")
    elif refused is None and any(op.op == "restore" for op in ops):
        restore = ops[0]
        refused = _wrong_restore(ops)
    if schema is not None and change.schema_version is not None:
        outdated = change.schema_version < schema.version
        if change.schema_version > schema.version and refused is None:
            refused = ChangeRefused(
                f"expected a change of schema version {schema.version} at most, got one of"
                f" {change.schema_version}",
                code="schema_changed",
            )
        if outdated:
            ops = renamed(schema, change.schema_version, ops)
    return Proposal(
        client_id=client_id,
        seq=change.seq,
        at=change.at,
        corrected=change.at + offset,
        base=change.base,
        epoch=change.epoch,
        edit=None if ends or restore is not None else apply_ops(ops),
        resolve=resolve,
        restore=restore,
        refused=refused,
        ends=ends,
        outdated=outdated,
        role=role,
    )


def _wrong_restore(ops: Sequence[Op]) -> ChangeRefused | None:
    op = ops[0]
    if len(ops) > 1:
        return ChangeRefused("expected restore to be alone in its change", code="bad_op")
    version, name = op.version, op.checkpoint_id
    if name is msgspec.UNSET and type(version) is int and version >= 0:
        return None
    if version is msgspec.UNSET and type(name) is str:
        return None
    return ChangeRefused("expected restore to have a version or a checkpoint_id", code="bad_op")


def again(at: int, decided_at: int | None, refusal: bytes | None) -> bytes | None:
    """Return what a number gets that was decided before; None where that is nothing."""
    if at != decided_at:
        message = (
            "this number was decided for another change: take a new client id, ask history which"
            " changes were committed, and send the others"
        )
        return encode(Error("seq_reused", message))
    return refusal
