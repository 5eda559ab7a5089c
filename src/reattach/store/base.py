"""What a store must do. The database is the only truth, and the log is the session.

The law that every store keeps, and that `reattach.testing` checks:

1. `append` is one transaction over many sessions. When it returns, everything that it answered
   ``Outcome.OK`` for is on disk (fsynced), and nothing of it was visible to any reader before.
2. A session's part takes effect whole or not at all, and only if the session still stands at
   ``expected`` (version, epoch and access version) and each client's recorded number is exactly
   ``before``. Otherwise its outcome is ``STALE``, and the other sessions' parts stand. It may be
   ``STALE``, too, where somebody else is writing to the session at the moment.
3. `StoreRefused` means that nothing of the batch was done, `StoreUnavailable` that nobody knows.
   A batch without meaning (two parts for one session, a creation without row or state) is refused.
4. A read answers only what is durable, from one moment.
5. Bytes come back as they went in. Times are integers, milliseconds since 1970.
6. Whatever changes who may do what (members, credentials, a claim) raises ``access_version`` in
   the same part, so that every node finds out and nothing is written by what is no longer true.
7. A reaction has a cursor in a session from the first part on that names it. It is due while the
   newest of these parts came to a version above the cursor, and one owner at a time holds it.
8. A compaction takes effect whole or not at all, and on the epoch that it names alone. It takes
   nothing from what `load` reads, nor from what `load_at` reads of its floor, of all versions
   above that and of those it keeps.

Every row is keyed by the session's id first, so that a database can be split by session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Protocol, Self

import msgspec

from reattach.store.seating import Seating

__all__ = [
    "Activity",
    "Append",
    "CheckpointRecord",
    "Claim",
    "ClientAdvance",
    "ClientRecord",
    "CommitRecord",
    "CommitSlot",
    "Compaction",
    "ConflictRecord",
    "CredentialRecord",
    "Decision",
    "DeviceRecord",
    "Everything",
    "Expected",
    "IdempotencyRecord",
    "Loaded",
    "MemberRecord",
    "Outcome",
    "Page",
    "RefusalRecord",
    "SavedState",
    "Search",
    "SessionRecord",
    "Standing",
    "Store",
    "Tombstone",
]


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One session, without its state."""

    session_id: str
    user_id: str
    epoch: str
    epoch_version: int
    version: int
    access_version: int = 0
    schema_name: str | None = None
    schema_version: int | None = None
    created_at: int
    last_activity: int
    is_active: bool = True
    disconnected_at: int | None = None
    reconnected_at: int | None = None


class CommitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One commit: ``body`` is the frame that every client was or will be sent, as JSON bytes.

    ``writes`` is what the last-writer index learns from it; ``client_at`` the change's ``at`` as
    its client sent it, ``at`` as the server corrected it. A commit by the server has no client.
    """

    version: int
    body: bytes
    writes: bytes
    at: int
    client_id: str | None = None
    seq: int | None = None
    client_at: int | None = None


class RefusalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One durable refusal: ``body`` is the `rejected` frame, as JSON bytes."""

    client_id: str
    seq: int
    client_at: int
    body: bytes


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A client and the highest of its numbers that is decided, with that change's ``at``."""

    client_id: str
    user_id: str
    device_id: str
    seq: int = 0
    at: int | None = None


class ClientAdvance(msgspec.Struct, frozen=True, kw_only=True):
    """Moves a client's number from ``before`` to ``client.seq``; inserts the client at 0.

    Where ``before == client.seq == 0`` the client is only made known (to whom it belongs), and an
    existing row of the same user is left as it is; one of another user makes the part ``STALE``.
    """

    client: ClientRecord
    before: int


class ConflictRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A value that a merge did not keep; ``body`` is the conflict as JSON bytes. Upserted by id."""

    conflict_id: str
    path: str
    status: str
    version: int
    body: bytes


class CheckpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A mark on a version. ``kind`` is ``automatic``, ``named`` or ``before_restore``; ``step`` and
    ``data`` are JSON values as bytes.
    """

    checkpoint_id: str
    name: str | None = None
    kind: str
    version: int
    step: bytes | None = None
    data: bytes | None = None
    created_at: int


class DeviceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a session. Upserted by id; ``created_at`` of an existing row stays.

    ``name`` is what it calls itself, ``given_name`` what people call it. ``version`` is the newest
    that it said it had. One with ``revoked_at`` is let in no more.
    """

    device_id: str
    user_id: str
    name: str | None = None
    info: bytes = b"{}"
    is_primary: bool = False
    created_at: int
    last_activity: int
    given_name: str | None = None
    revoked_at: int | None = None
    version: int | None = None


class MemberRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may use a session beside its owner of record (``SessionRecord.user_id``).

    ``role`` is ``owner``, ``editor`` or ``viewer``. Upserted by the user's id.
    """

    user_id: str
    role: str


class CredentialRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that opens one session, known by its SHA-256 alone. Upserted by that hash.

    ``kind`` is ``claim``, ``token``, ``handoff`` or ``revoked``; whoever has the secret stands for
    ``user_id`` with ``role``, on ``device_id`` where it is bound to one, until ``expires_at``.
    """

    secret_hash: bytes
    kind: str
    user_id: str
    role: str
    device_id: str | None = None
    created_at: int
    expires_at: int | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Moves a session's clients and devices from the user ``before`` to the user ``after``.

    The session's own row moves as ``Append.session`` says; a member's row of ``after`` goes.
    """

    before: str
    after: str


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a session's activity log; ``data`` is a JSON object as bytes."""

    activity_type: str
    at: int
    user_id: str | None = None
    device_id: str | None = None
    data: bytes = b"{}"


class SavedState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state at a version, with the last-writer index, both as bytes."""

    version: int
    state: bytes
    index: bytes


class IdempotencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an ``Idempotency-Key`` was answered, kept for a day. ``request`` is its body's hash."""

    user_id: str
    route: str
    key: str
    request: bytes
    status: int
    headers: bytes
    body: bytes
    created_at: int


class Tombstone(msgspec.Struct, frozen=True, kw_only=True):
    """What stays of an erased session: salted hashes of its members, to tell them 410."""

    erased_at: int
    salt: bytes
    members: Sequence[bytes]


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Where a session must stand for its part of a batch to take effect."""

    version: int
    epoch: str
    access_version: int

    @classmethod
    def of(cls, record: SessionRecord) -> Self:
        """Return where a session stands by its row."""
        return cls(version=record.version, epoch=record.epoch, access_version=record.access_version)


class Append(msgspec.Struct, kw_only=True):
    """One session's part of a batch. What is empty or None is left as it is.

    ``session`` holds the row as it shall stand afterwards. With ``expected`` None the session is
    created (``EXISTS`` when the id is taken, also by a tombstone). With ``erase`` everything of the
    session is removed, ``session`` is ignored, and the tombstone stays. An ``idempotency`` key that
    has its answer already, less than a day old, makes the part ``STALE``: read that answer.

    Members and credentials are removed before others are put. Any of these, and a ``claim``, needs
    a ``session`` with a greater access version than was expected (than 0 in a creation). The owner
    of record has no member's row. A part with a ``claim`` has no ``clients`` and no ``devices``.
    """

    session_id: str
    expected: Expected | None
    session: SessionRecord | None = None
    commits: list[CommitRecord] = msgspec.field(default_factory=list)
    refusals: list[RefusalRecord] = msgspec.field(default_factory=list)
    clients: list[ClientAdvance] = msgspec.field(default_factory=list)
    conflicts: list[ConflictRecord] = msgspec.field(default_factory=list)
    checkpoints: list[CheckpointRecord] = msgspec.field(default_factory=list)
    """One whose id is there already stays as it was."""
    devices: list[DeviceRecord] = msgspec.field(default_factory=list)
    activity: list[Activity] = msgspec.field(default_factory=list)
    members: list[MemberRecord] = msgspec.field(default_factory=list)
    members_removed: list[str] = msgspec.field(default_factory=list)
    """User ids; one that is no member's is nothing."""
    credentials: list[CredentialRecord] = msgspec.field(default_factory=list)
    credentials_removed: list[bytes] = msgspec.field(default_factory=list)
    """Hashes; one that is not there is nothing."""
    reactions: Sequence[str] = ()
    """Names of reactions for which the commits of this part, which has some, are due. A cursor that
    is not there yet begins before them."""
    claim: Claim | None = None
    state: SavedState | None = None
    kept_states: list[SavedState] = msgspec.field(default_factory=list)
    """States of marks from before the log begins, which come with a creation."""
    idempotency: IdempotencyRecord | None = None
    erase: Tombstone | None = None


class Compaction(msgspec.Struct, frozen=True, kw_only=True):
    """What is to go of a session's history: its log up to ``floor``, the saved states below that
    but those of ``kept`` versions, and marks. What is still to be read is saved with it.
    """

    session_id: str
    epoch: str
    floor: int = 0
    """A version whose state is saved, with this or before. 0: the log stays."""
    states: Sequence[SavedState] = ()
    kept: Sequence[int] = ()
    checkpoints_removed: Sequence[str] = ()


class Outcome(Enum):
    """What became of a session's part of a batch."""

    OK = "ok"
    STALE = "stale"
    EXISTS = "exists"


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it is opened: its newest saved state and the log after that, to ``version``."""

    session: SessionRecord
    saved: SavedState
    tail: Sequence[CommitRecord]
    conflicts: Sequence[ConflictRecord]
    """The unresolved ones: status ``auto`` or ``open``."""
    devices: Sequence[DeviceRecord]
    members: Sequence[MemberRecord] = ()
    """By user id, without the owner of record."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A session's row, and what one user is in it: ``role`` is the member's, None of all others.

    The owner of record, who has no member's row, is in the row itself.
    """

    session: SessionRecord
    role: str | None


class Everything(msgspec.Struct, frozen=True, kw_only=True):
    """All that a database has of a session, but secrets and what was answered to keys."""

    session: SessionRecord
    saved: SavedState
    """The oldest state from which on the log has no gap: all later ones follow by it."""
    kept: Sequence[SavedState]
    """The states before that one, which stand alone, in order: marks are on them."""
    commits: Sequence[CommitRecord]
    """In order."""
    clients: Sequence[ClientRecord]
    """By id."""
    refusals: Sequence[RefusalRecord]
    """By client and number."""
    conflicts: Sequence[ConflictRecord]
    """By version and id."""
    checkpoints: Sequence[CheckpointRecord]
    """By version and id."""
    devices: Sequence[DeviceRecord]
    """Oldest first."""
    members: Sequence[MemberRecord]
    """By user id, without the owner of record."""
    activity: Sequence[Activity]
    """In order."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one number of a client. ``refusal`` is the `rejected` frame, if it was one."""

    seq: int
    client_at: int
    refusal: bytes | None


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """Which sessions an operator looks for; what is None or empty leaves none out."""

    begins: str = ""
    """How the session's id begins."""
    user_id: str | None = None
    """Its owner of record, or a member."""
    schema_name: str | None = None
    active_since: int | None = None
    """Its last activity was then or later, ms since 1970."""
    active_until: int | None = None
    """It was then or before."""
    text: str | None = None
    """How its id or its owner's begins, or the whole id of a member."""
    within: Sequence[str] | None = None
    """It is one of these ids."""
    without: Sequence[str] | None = None
    """It is none of these."""


class CommitSlot(msgspec.Struct, frozen=True, kw_only=True):
    """What one client committed in one part of a session's log: how often, and how many bytes.

    ``slot`` counts the parts, each of the same number of versions; versions and times are the
    least and the greatest. ``client_id`` None is the server.
    """

    slot: int
    client_id: str | None
    commits: int
    bytes: int
    first_version: int
    last_version: int
    first_at: int
    last_at: int


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; ``next`` goes back to get the one after it, None on the last."""

    items: Sequence[Any]
    next: str | None


class Store(Protocol):
    """A durable home of sessions. All methods raise `StoreUnavailable` when it cannot be reached.

    Pages raise `BadRequest` for an ``after`` that no page gave as its ``next``.
    """

    @property
    def seating(self) -> Seating | None:
        """What several nodes know of each other by this database; None where it has one alone."""

    async def open(self) -> str:
        """Prepare the database, take hold of it, and return its identity (a random string)."""

    async def close(self) -> None:
        """Let go. What was appended is durable already."""

    async def check(self) -> None:
        """Return if the database can commit now, by committing something; raise otherwise."""

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Carry out a batch as the law above says; the outcomes are in the batch's order."""

    async def load(self, session_id: str) -> Loaded | None:
        """Read what is needed to open a session; None when there is none."""

    async def load_many(
        self, session_ids: Sequence[str], max_bytes: int
    ) -> Mapping[str, Loaded | None]:
        """Read the same of many sessions, None where there is none, of one moment.

        Stops after the one with which states and logs weigh more than ``max_bytes``: the rest is
        left out, and to be asked for again.
        """

    async def load_at(self, session_id: str, version: int) -> Loaded | None:
        """Read the newest saved state at or below ``version`` and the log from there to it.

        None when there is no such session, or no state as old as that; ``tail`` ends early where
        the version does not exist.
        """

    async def session(self, session_id: str) -> SessionRecord | Tombstone | None:
        """Read a session's row, or what an erased one left."""

    async def standings(
        self, asked: Sequence[tuple[str, str]]
    ) -> Sequence[Standing | Tombstone | None]:
        """Read what users are to sessions, each a session's id and a user's, in this order.

        Of an erased session it is what that left. It takes the same time whether a session is
        there or not, and whoever asks: strangers learn nothing from how long they wait.
        """

    async def versions(self, session_ids: Sequence[str]) -> Mapping[str, tuple[str, int, int]]:
        """Read where sessions stand, in one statement: each one's epoch, version, access version.

        What does not exist (any more) is left out.
        """

    async def sessions(self, user_id: str, after: str | None, limit: int) -> Page:
        """List the sessions of a user, owner of record or member, as `SessionRecord`.

        Newest activity first; a page costs what is on it, however many there are.
        """

    async def search(self, search: Search, after: str | None, limit: int) -> Page:
        """List the sessions of all users that are looked for, as `SessionRecord`.

        Newest activity first. It is for operators: a page may cost a look at every session's row.
        """

    async def renew_epochs(self, epoch: str) -> int:
        """Begin another epoch in every session, in one transaction; return how many there are."""

    async def members(self, session_id: str) -> Sequence[MemberRecord]:
        """Read the members of a session by user id, without the owner of record."""

    async def credential(self, session_id: str, secret_hash: bytes) -> CredentialRecord | None:
        """Read the credential whose secret has this hash, whether it has expired or not."""

    async def credentials(self, session_id: str) -> Sequence[CredentialRecord]:
        """Read a session's credentials, oldest first, to revoke some."""

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
        """Read commits with ``first <= version <= last`` in order, at most ``limit`` of them.

        Stops after the row with which the bodies weigh more than ``max_bytes``.
        """

    async def commit_slots(
        self, session_id: str, first: int, last: int, width: int
    ) -> Sequence[CommitSlot]:
        """Count the commits with ``first <= version <= last``, in slots of ``width`` versions.

        By slot and client.
        """

    async def session_clients(self, session_id: str) -> Sequence[ClientRecord]:
        """Read all clients of a session, by id."""

    async def session_refusals(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the refusals of all clients of a session as `RefusalRecord`, newest change first."""

    async def client(self, session_id: str, client_id: str) -> ClientRecord | None:
        """Read a client's record."""

    async def clients(
        self, asked: Sequence[tuple[str, str, int]]
    ) -> Sequence[tuple[ClientRecord | None, Sequence[RefusalRecord]]]:
        """Read clients' records, and their refusals above a number, of one moment.

        Each is a session's id, a client's and the number; the answers are in their order.
        """

    async def since(
        self, asked: Sequence[tuple[str, int]]
    ) -> Sequence[tuple[SessionRecord, Sequence[CommitRecord]] | None]:
        """Read sessions' rows, and what the log has above a version of each, of one moment.

        Each is a session's id and the version; the answers are in their order, None where there is
        no such session (any more).
        """

    async def refusals(
        self, session_id: str, client_id: str, after: int
    ) -> Sequence[RefusalRecord]:
        """Read a client's refusals with ``seq > after``, in order."""

    async def decision(self, session_id: str, client_id: str, seq: int) -> Decision | None:
        """Read what became of one number; None when it is not decided."""

    async def conflicts(
        self, session_id: str, status: str | None, after: str | None, limit: int
    ) -> Page:
        """List conflicts as `ConflictRecord`, newest first; ``status`` None means all."""

    async def checkpoints(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the marks as `CheckpointRecord`, newest version first."""

    async def checkpoint(
        self, session_id: str, checkpoint_id: str | None
    ) -> CheckpointRecord | None:
        """Read a mark; with None the newest that is not a ``before_restore``."""

    async def activity(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the activity log as `Activity`, newest first."""

    async def devices(self, session_id: str) -> Sequence[DeviceRecord]:
        """Read the devices of a session, oldest first."""

    async def due_reactions(self, names: Sequence[str], limit: int) -> Sequence[tuple[str, str]]:
        """Read which of these reactions are due and held by nobody: session ids and names.

        Those whose lease ended first, or that had none, come first.
        """

    async def lease_reaction(
        self, session_id: str, name: str, owner: str, lease_ms: int
    ) -> int | None:
        """Hold a reaction for so long, and return its cursor: the version that it has dealt with.

        None where it is held by another owner, or there is no such cursor.
        """

    async def advance_reaction(
        self, session_id: str, name: str, owner: str, version: int, lease_ms: int
    ) -> bool:
        """Move the cursor of a reaction that ``owner`` holds, and hold it for so long from now on.

        0 lets go of it. False where it is not, or no longer, held by this owner: nothing is done.
        """

    async def compact(self, compaction: Compaction) -> bool:
        """Carry out a compaction; False where there is no such session of that epoch."""

    async def saved_versions(self, session_id: str) -> Sequence[int]:
        """Read the versions whose states are saved, in order."""

    async def log_times(self, session_id: str, limit: int) -> Sequence[tuple[int, int]]:
        """Read of the log's oldest commits, in order, which version each is and from when."""

    async def aged_sessions(
        self, before: int, marks_before: int, after: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Look at ``limit`` sessions with ids above ``after``, in order, for what may be compacted.

        Gives the ids of those whose oldest commit is from before a time, or that have an automatic
        mark from before ``marks_before``; and where to go on, None where there are no more.
        """

    async def lease(self, name: str, owner: str, lease_ms: int) -> bool:
        """Hold something that one owner at a time may, for so long; False where another does."""

    async def everything(self, session_id: str) -> Everything | None:
        """Read all of a session, of one moment; None when there is none."""

    async def trim_activity(self, before: int, limit: int) -> int:
        """Remove the oldest lines of all activity logs from before a time; return how many.

        At most ``limit``. Several nodes that do so at once remove different ones, or some nothing.
        """

    async def idempotent(self, user_id: str, route: str, key: str) -> IdempotencyRecord | None:
        """Read what a key was answered, if it was within a day."""
