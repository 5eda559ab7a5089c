"""One database under several nodes: it takes time, fails in every way it can, and is set back.

The rows live in a `MemoryStore`. A transaction goes its way whoever gave up on it, as in a real
database: whether it took effect and whether anybody was told are two questions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, Protocol, TypeVar

import msgspec

from reattach.errors import StoreRefused, StoreUnavailable
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
    Expected,
    IdempotencyRecord,
    Loaded,
    MemberRecord,
    Outcome,
    Page,
    RefusalRecord,
    Search,
    SessionRecord,
    Standing,
    Tombstone,
)
from reattach.store.memory import MemoryStore

__all__ = ["FAULTS", "Database", "Handle", "Journal"]

T = TypeVar("T")

FAULTS = {
    "before": "transaction fails before",
    "after": "transaction fails after",
    "lost": "answer lost",
    "silent": "transaction never answered",
    "slow": "transaction slow",
    "refused": "transaction refused",
}
"""What a transaction can meet: it fails before or after it took effect, takes effect and nobody
hears, is never carried out nor answered, takes long, or is refused."""

_SLOW_S = 3.0


class Journal(Protocol):
    """Who is told of everything that became durable, at that moment."""

    def appended(self, part: Append, handle: Handle) -> None:
        """A part of a batch is durable."""

    def set_back(self) -> None:
        """The database is that of the last backup."""


class Database:
    """The rows, a backup of them, and what the next transactions and reads will meet."""

    def __init__(self, chance: Random, now: Callable[[], int], journal: Journal) -> None:
        """Begin empty."""
        self.chance = chance
        self.rows = MemoryStore(identity="simulated", now=now)
        self.journal = journal
        self.faults: deque[str] = deque()
        self.read_faults = 0
        """How many of the next reads fail."""
        self.down = False
        self.life = 0
        """+1 when it is set back: what was under way then is gone."""
        self.met: dict[str, int] = {}
        """The faults that transactions and reads met."""
        self._backup: MemoryStore | None = None
        at_once(self.rows.open())

    @property
    def has_backup(self) -> bool:
        """Whether a backup was made."""
        return self._backup is not None

    def back_up(self) -> None:
        """Make the backup."""
        self._backup = self.rows.copy()

    def set_back(self, new_epoch: Callable[[], str] | None) -> None:
        """Put the backup back.

        With ``new_epoch`` whoever does it begins a new epoch for each session, as they should.
        Without, it is left to the first client that has seen more (protocol, E3).
        """
        assert self._backup is not None, "expected a backup to be made before"
        self.rows = self._backup.copy()
        self.life += 1
        self.faults.clear()
        self.journal.set_back()
        if new_epoch is not None:
            for row in at_once(self.rows.sessions("u", None, 100)).items:
                self._begin_epoch(row, new_epoch())

    def _begin_epoch(self, row: SessionRecord, epoch: str) -> None:
        expected = Expected(version=row.version, epoch=row.epoch, access_version=row.access_version)
        fresh = msgspec.structs.replace(row, epoch=epoch, epoch_version=row.version)
        part = Append(session_id=row.session_id, expected=expected, session=fresh)
        at_once(self.rows.append([part]))
        self.journal.appended(part, Handle(self))

    def meet(self, fault: str) -> None:
        """Count a fault that was met."""
        self.met[fault] = self.met.get(fault, 0) + 1


class Handle:
    """One node's way to the database, until the node dies: a `Store`."""

    seating = None
    """Who is where is not played."""

    def __init__(self, database: Database) -> None:
        """Make a way; it stands at once."""
        self.loaded: set[str] = set()
        """The sessions that were loaded, or created, over it."""
        self.dead = False
        self._database = database
        self._chance = database.chance
        self._life = database.life

    async def open(self) -> str:
        """Take hold of the database."""
        return await self._read(lambda rows: rows.open())

    async def close(self) -> None:
        """Let go; the rows stay."""

    async def check(self) -> None:
        """Say whether it can commit."""
        await self._read(lambda rows: rows.check())

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Carry out a batch, in time, or do to it what is to be done."""
        database = self._database
        fault = database.faults.popleft() if database.faults else ""
        if database.down:
            fault = "before"
        delay = self._chance.uniform(0.001, 0.008)
        if fault:
            database.meet(FAULTS[fault])
        if fault == "slow":
            delay += self._chance.uniform(0.2, _SLOW_S)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Sequence[Outcome]] = loop.create_future()
        loop.call_later(delay, self._carry_out, batch, fault, done)
        return await done

    def _carry_out(
        self,
        batch: Sequence[Append],
        fault: str,
        done: asyncio.Future[Sequence[Outcome]],
    ) -> None:
        database = self._database
        loop = asyncio.get_running_loop()
        if self._life != database.life or fault == "silent":
            return
        if fault == "before":
            _fail(done, StoreUnavailable("the transaction was rolled back"))
            return
        if fault == "refused":
            _fail(done, StoreRefused("the database does not like it"))
            return
        if self.dead and self._chance.random() < 0.5:
            return  # it had not come this far when its node died
        try:
            outcomes = at_once(database.rows.append(batch))
        except StoreRefused as error:
            _fail(done, error)
            return
        for part, outcome in zip(batch, outcomes, strict=True):
            if outcome is Outcome.OK:
                if part.expected is None:
                    self.loaded.add(part.session_id)
                database.journal.appended(part, self)
        if fault == "lost":
            return
        back = self._chance.uniform(0.0005, 0.004)
        if fault == "after":
            loop.call_later(back, _fail, done, StoreUnavailable("connection reset"))
        else:
            loop.call_later(back, _answer, done, outcomes)

    async def load(self, session_id: str) -> Loaded | None:
        """Read what is needed to open a session."""
        loaded = await self._read(lambda rows: rows.load(session_id))
        if loaded is not None:
            self.loaded.add(session_id)
        return loaded

    async def load_many(
        self, session_ids: Sequence[str], max_bytes: int
    ) -> Mapping[str, Loaded | None]:
        """Read what is needed to open sessions."""
        found = await self._read(lambda rows: rows.load_many(session_ids, max_bytes))
        self.loaded.update(name for name, loaded in found.items() if loaded is not None)
        return found

    async def load_at(self, session_id: str, version: int) -> Loaded | None:
        """Read the newest saved state at or below ``version``, and the log from there."""
        return await self._read(lambda rows: rows.load_at(session_id, version))

    async def session(self, session_id: str) -> SessionRecord | Tombstone | None:
        """Read a session's row."""
        return await self._read(lambda rows: rows.session(session_id))

    async def standings(
        self, asked: Sequence[tuple[str, str]]
    ) -> Sequence[Standing | Tombstone | None]:
        """Read what users are to sessions."""
        return await self._read(lambda rows: rows.standings(asked))

    async def versions(self, session_ids: Sequence[str]) -> Mapping[str, tuple[str, int, int]]:
        """Read where sessions stand."""
        return await self._read(lambda rows: rows.versions(session_ids))

    async def sessions(self, user_id: str, after: str | None, limit: int) -> Page:
        """List a user's sessions."""
        return await self._read(lambda rows: rows.sessions(user_id, after, limit))

    async def search(self, search: Search, after: str | None, limit: int) -> Page:
        """List sessions of all users."""
        return await self._read(lambda rows: rows.search(search, after, limit))

    async def renew_epochs(self, epoch: str) -> int:
        """Begin another epoch in every session."""
        return await self._read(lambda rows: rows.renew_epochs(epoch))

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
        """Read commits in order."""
        return await self._read(
            lambda rows: rows.log(
                session_id,
                first=first,
                last=last,
                client_id=client_id,
                limit=limit,
                max_bytes=max_bytes,
            )
        )

    async def client(self, session_id: str, client_id: str) -> ClientRecord | None:
        """Read a client's record."""
        return await self._read(lambda rows: rows.client(session_id, client_id))

    async def clients(
        self, asked: Sequence[tuple[str, str, int]]
    ) -> Sequence[tuple[ClientRecord | None, Sequence[RefusalRecord]]]:
        """Read clients' records, and their refusals above a number."""
        return await self._read(lambda rows: rows.clients(asked))

    async def since(
        self, asked: Sequence[tuple[str, int]]
    ) -> Sequence[tuple[SessionRecord, Sequence[CommitRecord]] | None]:
        """Read sessions' rows, and the commits above a version of each."""
        return await self._read(lambda rows: rows.since(asked))

    async def refusals(
        self, session_id: str, client_id: str, after: int
    ) -> Sequence[RefusalRecord]:
        """Read a client's refusals."""
        return await self._read(lambda rows: rows.refusals(session_id, client_id, after))

    async def decision(self, session_id: str, client_id: str, seq: int) -> Decision | None:
        """Read what became of one number."""
        return await self._read(lambda rows: rows.decision(session_id, client_id, seq))

    async def conflicts(
        self, session_id: str, status: str | None, after: str | None, limit: int
    ) -> Page:
        """List conflicts."""
        return await self._read(lambda rows: rows.conflicts(session_id, status, after, limit))

    async def checkpoints(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the marks."""
        return await self._read(lambda rows: rows.checkpoints(session_id, after, limit))

    async def checkpoint(
        self, session_id: str, checkpoint_id: str | None
    ) -> CheckpointRecord | None:
        """Read a mark."""
        return await self._read(lambda rows: rows.checkpoint(session_id, checkpoint_id))

    async def activity(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the activity log."""
        return await self._read(lambda rows: rows.activity(session_id, after, limit))

    async def devices(self, session_id: str) -> Sequence[DeviceRecord]:
        """Read the devices of a session."""
        return await self._read(lambda rows: rows.devices(session_id))

    async def members(self, session_id: str) -> Sequence[MemberRecord]:
        """Read the members of a session."""
        return await self._read(lambda rows: rows.members(session_id))

    async def credential(self, session_id: str, secret_hash: bytes) -> CredentialRecord | None:
        """Read the credential whose secret has this hash."""
        return await self._read(lambda rows: rows.credential(session_id, secret_hash))

    async def credentials(self, session_id: str) -> Sequence[CredentialRecord]:
        """Read a session's credentials."""
        return await self._read(lambda rows: rows.credentials(session_id))

    async def due_reactions(self, names: Sequence[str], limit: int) -> Sequence[tuple[str, str]]:
        """Read which reactions are due."""
        return await self._read(lambda rows: rows.due_reactions(names, limit))

    async def lease_reaction(
        self, session_id: str, name: str, owner: str, lease_ms: int
    ) -> int | None:
        """Hold a reaction."""
        return await self._read(lambda rows: rows.lease_reaction(session_id, name, owner, lease_ms))

    async def advance_reaction(
        self, session_id: str, name: str, owner: str, version: int, lease_ms: int
    ) -> bool:
        """Move the cursor of a reaction."""
        return await self._read(
            lambda rows: rows.advance_reaction(session_id, name, owner, version, lease_ms)
        )

    async def compact(self, compaction: Compaction) -> bool:
        """Carry out a compaction."""
        return await self._read(lambda rows: rows.compact(compaction))

    async def saved_versions(self, session_id: str) -> Sequence[int]:
        """Read the versions whose states are saved."""
        return await self._read(lambda rows: rows.saved_versions(session_id))

    async def commit_slots(
        self, session_id: str, first: int, last: int, width: int
    ) -> Sequence[CommitSlot]:
        """Count commits in slots."""
        return await self._read(lambda rows: rows.commit_slots(session_id, first, last, width))

    async def session_clients(self, session_id: str) -> Sequence[ClientRecord]:
        """Read all clients of a session."""
        return await self._read(lambda rows: rows.session_clients(session_id))

    async def session_refusals(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the refusals of all clients of a session."""
        return await self._read(lambda rows: rows.session_refusals(session_id, after, limit))

    async def log_times(self, session_id: str, limit: int) -> Sequence[tuple[int, int]]:
        """Read which versions the log's oldest commits are, and from when."""
        return await self._read(lambda rows: rows.log_times(session_id, limit))

    async def aged_sessions(
        self, before: int, marks_before: int, after: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Look at sessions for what may be compacted."""
        return await self._read(lambda rows: rows.aged_sessions(before, marks_before, after, limit))

    async def lease(self, name: str, owner: str, lease_ms: int) -> bool:
        """Hold something that one owner at a time may."""
        return await self._read(lambda rows: rows.lease(name, owner, lease_ms))

    async def everything(self, session_id: str) -> Everything | None:
        """Read all of a session."""
        return await self._read(lambda rows: rows.everything(session_id))

    async def trim_activity(self, before: int, limit: int) -> int:
        """Remove the oldest lines of all activity logs from before a time; return how many."""
        return await self._read(lambda rows: rows.trim_activity(before, limit))

    async def idempotent(self, user_id: str, route: str, key: str) -> IdempotencyRecord | None:
        """Read what a key was answered."""
        return await self._read(lambda rows: rows.idempotent(user_id, route, key))

    async def _read(self, read: Callable[[MemoryStore], Coroutine[Any, Any, T]]) -> T:
        database, chance = self._database, self._chance
        await asyncio.sleep(chance.uniform(0.0003, 0.002))
        if self.dead or self._life != database.life or database.down:
            raise StoreUnavailable("the database does not answer")
        if database.read_faults > 0:
            database.read_faults -= 1
            database.meet("read fails")
            raise StoreUnavailable("the database does not answer")
        answer = at_once(read(database.rows))
        # It is as old as its way back is long.
        await asyncio.sleep(chance.uniform(0.0003, 0.002))
        return answer


def at_once(work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Return what a coroutine returns that waits for nothing."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        answer: T = end.value
        return answer
    raise AssertionError("expected a coroutine that waits for nothing")


def _answer(done: asyncio.Future[Sequence[Outcome]], outcomes: Sequence[Outcome]) -> None:
    if not done.done():
        done.set_result(outcomes)


def _fail(done: asyncio.Future[Sequence[Outcome]], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
