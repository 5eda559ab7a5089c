"""A store in memory, by the same law as the durable ones: for unit tests and the simulator.

Nothing is awaited between reading and writing, and every record is immutable, so each method is
one moment. What is in it lives as long as the object: `close` and `open` lose nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from reattach.errors import StoreRefused, StoreUnavailable
from reattach.store.base import (
    Activity,
    Append,
    CheckpointRecord,
    Claim,
    ClientRecord,
    CommitRecord,
    CommitSlot,
    Compaction,
    ConflictRecord,
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
    SavedState,
    Search,
    SessionRecord,
    Standing,
    Tombstone,
)
from reattach.store.seating import LEFT, Neighbour, Seated
from reattach.store.shared import (
    IDEMPOTENCY_LIFETIME_MS,
    aged,
    check_batch,
    entry_after,
    entry_mark,
    place_after,
    place_mark,
    refusal_after,
    refusal_mark,
    wall_clock,
    weight_of,
)

__all__ = ["MemorySeating", "MemoryStore"]

_Key = tuple[str, str, str]


class _Cursor(msgspec.Struct, frozen=True):
    """How far a reaction is, how far it is to come, and who is at it until when."""

    version: int
    wanted: int
    owner: str | None = None
    leased_until: int = 0


class _Session:
    """Everything of one session."""

    def __init__(self, row: SessionRecord) -> None:
        self.row = row
        self.commits: dict[int, CommitRecord] = {}
        self.states: dict[int, SavedState] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.refusals: dict[tuple[str, int], RefusalRecord] = {}
        self.conflicts: dict[str, ConflictRecord] = {}
        self.checkpoints: dict[str, CheckpointRecord] = {}
        self.devices: dict[str, DeviceRecord] = {}
        self.members: dict[str, MemberRecord] = {}
        self.credentials: dict[bytes, CredentialRecord] = {}
        self.activity: list[Activity] = []
        self.reactions: dict[str, _Cursor] = {}

    def copy(self) -> _Session:
        """Return the same, to be written on its own; the records are immutable."""
        copy = _Session(self.row)
        for name in (
            "commits",
            "states",
            "clients",
            "refusals",
            "conflicts",
            "checkpoints",
            "devices",
            "members",
            "credentials",
        ):
            setattr(copy, name, dict(getattr(self, name)))
        copy.activity = list(self.activity)
        copy.reactions = dict(self.reactions)
        return copy


class MemoryStore:
    """Sessions in dictionaries. ``now`` gives the time, ms since 1970; ``identity`` is `open`'s."""

    def __init__(self, *, identity: str | None = None, now: Callable[[], int] = wall_clock) -> None:
        self._identity = identity if identity is not None else secrets.token_hex(16)
        self._now = now
        self._is_open = False
        self._sessions: dict[str, _Session] = {}
        self._erased: dict[str, Tombstone] = {}
        self._keys: dict[_Key, tuple[str, IdempotencyRecord]] = {}
        self._leases: dict[str, tuple[str, int]] = {}
        self.seating = MemorySeating(self, now)
        """Who is connected where."""

    def copy(self) -> MemoryStore:
        """Return another store with the same content, as a backup that was put back would have."""
        copy = MemoryStore(identity=self._identity, now=self._now)
        copy._is_open = self._is_open
        copy._sessions = {name: session.copy() for name, session in self._sessions.items()}
        copy._erased, copy._keys = dict(self._erased), dict(self._keys)
        return copy

    async def open(self) -> str:
        """Return the store's identity."""
        self._is_open = True
        return self._identity

    async def close(self) -> None:
        """Refuse everything until the next `open`."""
        self._is_open = False

    async def check(self) -> None:
        """Raise `StoreUnavailable` when the store is not open."""
        if not self._is_open:
            raise StoreUnavailable("Expected an open store, got a closed one: call open() first")

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Carry out a batch as `Store.append` says."""
        await self.check()
        check_batch(batch)
        # First all that can fail, then all that is done: so there is nothing to take back.
        keys: set[_Key] = set()
        outcomes = [self._outcome(part, keys) for part in batch]
        accepted = [
            part for part, outcome in zip(batch, outcomes, strict=True) if outcome is Outcome.OK
        ]
        for part in accepted:
            self._refuse_duplicates(part)
        for part in accepted:
            self._carry_out(part)
        return outcomes

    def _outcome(self, part: Append, keys: set[_Key]) -> Outcome:
        """Say what becomes of a part; ``keys`` are those that earlier parts of the batch use."""
        session = self._sessions.get(part.session_id)
        if part.expected is None:
            if session is not None or part.session_id in self._erased:
                return Outcome.EXISTS
        else:
            wanted = part.expected
            if session is None or (
                session.row.version != wanted.version
                or session.row.epoch != wanted.epoch
                or session.row.access_version != wanted.access_version
            ):
                return Outcome.STALE
        if part.erase is None and not self._clients_stand(part, session):
            return Outcome.STALE
        if part.idempotency is not None:
            key = _key(part.idempotency)
            if key in keys or not self._key_is_free(part.idempotency):
                return Outcome.STALE
            keys.add(key)
        return Outcome.OK

    @staticmethod
    def _clients_stand(part: Append, session: _Session | None) -> bool:
        known = dict(session.clients) if session is not None else {}
        for advance in part.clients:
            wanted = advance.client
            client = known.get(wanted.client_id)
            if client is None:
                if advance.before != 0:
                    return False
            elif client.user_id != wanted.user_id:
                return False
            elif advance.before == wanted.seq == 0:
                continue
            elif client.seq != advance.before:
                return False
            known[wanted.client_id] = wanted
        return True

    def _key_is_free(self, record: IdempotencyRecord) -> bool:
        _, earlier = self._keys.get(_key(record), ("", None))
        return earlier is None or earlier.created_at <= record.created_at - IDEMPOTENCY_LIFETIME_MS

    def _refuse_duplicates(self, part: Append) -> None:
        """Raise as a database does whose primary key is violated."""
        session = self._sessions.get(part.session_id)
        versions = set(session.commits) if session is not None else set()
        numbers = set(session.refusals) if session is not None else set()
        for commit in part.commits:
            if commit.version in versions:
                raise StoreRefused(
                    f"Expected a new version of {part.session_id!r}, got {commit.version} again: "
                    "load the session and decide again"
                )
            versions.add(commit.version)
        for refusal in part.refusals:
            number = (refusal.client_id, refusal.seq)
            if number in numbers:
                raise StoreRefused(
                    f"Expected a new number of {part.session_id!r}, got {number} again: "
                    "load the session and decide again"
                )
            numbers.add(number)

    def _carry_out(self, part: Append) -> None:
        if part.erase is not None:
            del self._sessions[part.session_id]
            self._erased[part.session_id] = part.erase
            self._keys = {
                key: kept for key, kept in self._keys.items() if kept[0] != part.session_id
            }
            self.seating.erase(part.session_id)
        else:
            self._write(part)
        if part.idempotency is not None:
            self._keys[_key(part.idempotency)] = (part.session_id, part.idempotency)

    def _write(self, part: Append) -> None:
        if part.expected is None and part.session is not None:
            self._sessions[part.session_id] = _Session(part.session)
        session = self._sessions[part.session_id]
        if part.session is not None:
            session.row = part.session
        for advance in part.clients:
            client = advance.client
            if advance.before == client.seq == 0:
                session.clients.setdefault(client.client_id, client)
            else:
                session.clients[client.client_id] = client
        session.commits |= {commit.version: commit for commit in part.commits}
        session.refusals |= {(one.client_id, one.seq): one for one in part.refusals}
        session.conflicts |= {conflict.conflict_id: conflict for conflict in part.conflicts}
        for mark in part.checkpoints:
            session.checkpoints.setdefault(mark.checkpoint_id, mark)
        for device in part.devices:
            earlier = session.devices.get(device.device_id, device)
            session.devices[device.device_id] = msgspec.structs.replace(
                device, created_at=earlier.created_at
            )
        session.activity += part.activity
        for name in part.reactions:
            known = session.reactions.get(name, _Cursor(session.row.version - len(part.commits), 0))
            session.reactions[name] = msgspec.structs.replace(known, wanted=session.row.version)
        self._write_access(session, part)
        if part.state is not None:
            session.states[part.state.version] = part.state
        for kept in part.kept_states:
            session.states[kept.version] = kept

    @staticmethod
    def _write_access(session: _Session, part: Append) -> None:
        for user_id in part.members_removed:
            session.members.pop(user_id, None)
        session.members |= {member.user_id: member for member in part.members}
        for secret_hash in part.credentials_removed:
            session.credentials.pop(secret_hash, None)
        session.credentials |= {one.secret_hash: one for one in part.credentials}
        claim = part.claim
        if claim is not None:
            session.members.pop(claim.after, None)
            _move(session.clients, claim)
            _move(session.devices, claim)

    async def load(self, session_id: str) -> Loaded | None:
        """Read what is needed to open a session."""
        await self.check()
        session = self._sessions.get(session_id)
        return None if session is None else self._loaded(session, session.row.version)

    async def load_many(
        self, session_ids: Sequence[str], max_bytes: int
    ) -> Mapping[str, Loaded | None]:
        """Read what is needed to open sessions, up to the one that makes it weigh too much."""
        found: dict[str, Loaded | None] = {}
        weight = 0
        for session_id in session_ids:
            if weight > max_bytes:
                break
            loaded = found[session_id] = await self.load(session_id)
            weight += 0 if loaded is None else weight_of(loaded)
        await self.check()
        return found

    async def load_at(self, session_id: str, version: int) -> Loaded | None:
        """Read the newest saved state at or below ``version`` and the log from there to it."""
        await self.check()
        session = self._sessions.get(session_id)
        return None if session is None else self._loaded(session, version)

    @staticmethod
    def _loaded(session: _Session, version: int) -> Loaded | None:
        saved_at = max((at for at in session.states if at <= version), default=None)
        if saved_at is None:
            return None
        return Loaded(
            session=session.row,
            saved=session.states[saved_at],
            tail=[
                session.commits[at] for at in sorted(session.commits) if saved_at < at <= version
            ],
            conflicts=sorted(
                (one for one in session.conflicts.values() if one.status in {"auto", "open"}),
                key=_conflict_place,
            ),
            devices=_oldest_first(session.devices.values()),
            members=_by_user(session),
        )

    async def session(self, session_id: str) -> SessionRecord | Tombstone | None:
        """Read a session's row, or what an erased one left."""
        await self.check()
        session = self._sessions.get(session_id)
        return session.row if session is not None else self._erased.get(session_id)

    async def standings(
        self, asked: Sequence[tuple[str, str]]
    ) -> Sequence[Standing | Tombstone | None]:
        """Read what users are to sessions, or what erased ones left."""
        await self.check()
        return [self._standing(session_id, user_id) for session_id, user_id in asked]

    def _standing(self, session_id: str, user_id: str) -> Standing | Tombstone | None:
        session = self._sessions.get(session_id)
        if session is None:
            return self._erased.get(session_id)
        member = session.members.get(user_id)
        return Standing(session=session.row, role=None if member is None else member.role)

    async def versions(self, session_ids: Sequence[str]) -> Mapping[str, tuple[str, int, int]]:
        """Read where sessions stand."""
        await self.check()
        rows = (self._sessions[name].row for name in session_ids if name in self._sessions)
        return {row.session_id: (row.epoch, row.version, row.access_version) for row in rows}

    async def sessions(self, user_id: str, after: str | None, limit: int) -> Page:
        """List the sessions of a user, newest activity first."""
        await self.check()
        return self._page(
            lambda one: one.row.user_id == user_id or user_id in one.members, after, limit
        )

    async def search(self, search: Search, after: str | None, limit: int) -> Page:
        """List the sessions of all users that are looked for."""
        await self.check()
        return self._page(lambda one: _is_meant(one, search), after, limit)

    def _page(self, meant: Callable[[_Session], bool], after: str | None, limit: int) -> Page:
        place = place_after(after)
        rows = sorted(
            (
                session.row
                for session in self._sessions.values()
                if _session_place(session.row) < place and meant(session)
            ),
            key=_session_place,
            reverse=True,
        )
        more = len(rows) > limit
        return Page(
            items=rows[:limit],
            next=place_mark(*_session_place(rows[limit - 1])) if more else None,
        )

    async def renew_epochs(self, epoch: str) -> int:
        """Begin another epoch in every session."""
        await self.check()
        for session in self._sessions.values():
            version = session.row.version
            session.row = msgspec.structs.replace(session.row, epoch=epoch, epoch_version=version)
        return len(self._sessions)

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
        await self.check()
        session = self._sessions.get(session_id)
        found: list[CommitRecord] = []
        weight = 0
        for version, commit in sorted(session.commits.items()) if session is not None else ():
            if version < first or (last is not None and version > last):
                continue
            if client_id is not None and commit.client_id != client_id:
                continue
            if len(found) == limit or (max_bytes is not None and weight > max_bytes):
                break
            found.append(commit)
            weight += len(commit.body)
        return found

    async def commit_slots(
        self, session_id: str, first: int, last: int, width: int
    ) -> Sequence[CommitSlot]:
        """Count commits in slots, by slot and client."""
        slots: dict[tuple[int, str], list[CommitRecord]] = {}
        for commit in await self.log(session_id, first=first, last=last):
            place = (commit.version - first) // width, commit.client_id or ""
            slots.setdefault(place, []).append(commit)
        return [
            CommitSlot(
                slot=slot,
                client_id=client_id or None,
                commits=len(found),
                bytes=sum(len(one.body) for one in found),
                first_version=found[0].version,
                last_version=found[-1].version,
                first_at=min(one.at for one in found),
                last_at=max(one.at for one in found),
            )
            for (slot, client_id), found in sorted(slots.items())
        ]

    async def session_clients(self, session_id: str) -> Sequence[ClientRecord]:
        """Read all clients of a session, by id."""
        await self.check()
        session = self._sessions.get(session_id)
        return [] if session is None else [one for _, one in sorted(session.clients.items())]

    async def session_refusals(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the refusals of all clients of a session, newest change first."""
        await self.check()
        place, session = refusal_after(after), self._sessions.get(session_id)
        found = sorted(
            (
                one
                for one in ({} if session is None else session.refusals).values()
                if _refusal_place(one) < place
            ),
            key=_refusal_place,
            reverse=True,
        )
        following = refusal_mark(found[limit - 1]) if len(found) > limit else None
        return Page(items=found[:limit], next=following)

    async def client(self, session_id: str, client_id: str) -> ClientRecord | None:
        """Read a client's record."""
        await self.check()
        session = self._sessions.get(session_id)
        return None if session is None else session.clients.get(client_id)

    async def clients(
        self, asked: Sequence[tuple[str, str, int]]
    ) -> Sequence[tuple[ClientRecord | None, Sequence[RefusalRecord]]]:
        """Read clients' records, and their refusals above a number."""
        await self.check()
        return [
            (await self.client(session_id, client_id), self._refusals(session_id, client_id, after))
            for session_id, client_id, after in asked
        ]

    async def since(
        self, asked: Sequence[tuple[str, int]]
    ) -> Sequence[tuple[SessionRecord, Sequence[CommitRecord]] | None]:
        """Read sessions' rows, and the commits above a version of each."""
        await self.check()
        return [self._since(session_id, after) for session_id, after in asked]

    def _since(
        self, session_id: str, after: int
    ) -> tuple[SessionRecord, Sequence[CommitRecord]] | None:
        session = self._sessions.get(session_id)
        if session is None:
            return None
        return session.row, [one for n, one in sorted(session.commits.items()) if n > after]

    async def refusals(
        self, session_id: str, client_id: str, after: int
    ) -> Sequence[RefusalRecord]:
        """Read a client's refusals with ``seq > after``, in order."""
        await self.check()
        return self._refusals(session_id, client_id, after)

    def _refusals(self, session_id: str, client_id: str, after: int) -> Sequence[RefusalRecord]:
        session = self._sessions.get(session_id)
        found = session.refusals if session is not None else {}
        return [
            found[whose, seq] for whose, seq in sorted(found) if whose == client_id and seq > after
        ]

    async def decision(self, session_id: str, client_id: str, seq: int) -> Decision | None:
        """Read what became of one number; None when it is not decided."""
        await self.check()
        session = self._sessions.get(session_id)
        if session is None:
            return None
        refusal = session.refusals.get((client_id, seq))
        if refusal is not None:
            return Decision(seq=seq, client_at=refusal.client_at, refusal=refusal.body)
        for commit in session.commits.values():
            if (commit.client_id, commit.seq) == (client_id, seq) and commit.client_at is not None:
                return Decision(seq=seq, client_at=commit.client_at, refusal=None)
        return None

    async def conflicts(
        self, session_id: str, status: str | None, after: str | None, limit: int
    ) -> Page:
        """List conflicts, newest first."""
        await self.check()
        place = place_after(after)
        session = self._sessions.get(session_id)
        found = sorted(
            (
                one
                for one in (session.conflicts.values() if session is not None else ())
                if status in {None, one.status} and _conflict_place(one) < place
            ),
            key=_conflict_place,
            reverse=True,
        )
        more = len(found) > limit
        return Page(
            items=found[:limit],
            next=place_mark(*_conflict_place(found[limit - 1])) if more else None,
        )

    async def checkpoints(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the marks, newest version first."""
        await self.check()
        place = place_after(after)
        session = self._sessions.get(session_id)
        found = sorted(
            (
                one
                for one in (session.checkpoints.values() if session is not None else ())
                if _checkpoint_place(one) < place
            ),
            key=_checkpoint_place,
            reverse=True,
        )
        more = len(found) > limit
        return Page(
            items=found[:limit],
            next=place_mark(*_checkpoint_place(found[limit - 1])) if more else None,
        )

    async def checkpoint(
        self, session_id: str, checkpoint_id: str | None
    ) -> CheckpointRecord | None:
        """Read a mark; with None the newest that is not a ``before_restore``."""
        await self.check()
        session = self._sessions.get(session_id)
        marks = session.checkpoints if session is not None else {}
        if checkpoint_id is not None:
            return marks.get(checkpoint_id)
        meant = (one for one in marks.values() if one.kind != "before_restore")
        return max(meant, key=_checkpoint_place, default=None)

    async def activity(self, session_id: str, after: str | None, limit: int) -> Page:
        """List the activity log, newest first."""
        await self.check()
        session = self._sessions.get(session_id)
        lines = session.activity if session is not None else []
        end = min(entry_after(after) - 1, len(lines))
        start = max(end - limit, 0)
        return Page(items=lines[start:end][::-1], next=entry_mark(start + 1) if start > 0 else None)

    async def devices(self, session_id: str) -> Sequence[DeviceRecord]:
        """Read the devices of a session, oldest first."""
        await self.check()
        session = self._sessions.get(session_id)
        return _oldest_first(session.devices.values() if session is not None else ())

    async def members(self, session_id: str) -> Sequence[MemberRecord]:
        """Read the members of a session by user id."""
        await self.check()
        session = self._sessions.get(session_id)
        return _by_user(session) if session is not None else []

    async def credential(self, session_id: str, secret_hash: bytes) -> CredentialRecord | None:
        """Read the credential whose secret has this hash."""
        await self.check()
        session = self._sessions.get(session_id)
        return None if session is None else session.credentials.get(secret_hash)

    async def credentials(self, session_id: str) -> Sequence[CredentialRecord]:
        """Read a session's credentials, oldest first."""
        await self.check()
        session = self._sessions.get(session_id)
        found = session.credentials.values() if session is not None else ()
        return sorted(found, key=lambda one: (one.created_at, one.secret_hash))

    async def due_reactions(self, names: Sequence[str], limit: int) -> Sequence[tuple[str, str]]:
        """Read which reactions are due and held by nobody."""
        await self.check()
        now = self._now()
        due = sorted(
            (cursor.leased_until, session_id, name)
            for session_id, session in self._sessions.items()
            for name, cursor in session.reactions.items()
            if name in names and cursor.wanted > cursor.version and cursor.leased_until <= now
        )
        return [(session_id, name) for _, session_id, name in due[:limit]]

    async def lease_reaction(
        self, session_id: str, name: str, owner: str, lease_ms: int
    ) -> int | None:
        """Hold a reaction for so long, and return its cursor."""
        await self.check()
        session = self._sessions.get(session_id)
        cursor = None if session is None else session.reactions.get(name)
        now = self._now()
        if session is None or cursor is None:
            return None
        if cursor.owner != owner and cursor.leased_until > now:
            return None
        session.reactions[name] = msgspec.structs.replace(
            cursor, owner=owner, leased_until=now + lease_ms
        )
        return cursor.version

    async def advance_reaction(
        self, session_id: str, name: str, owner: str, version: int, lease_ms: int
    ) -> bool:
        """Move the cursor of a reaction that is held, and hold it on or let go of it."""
        await self.check()
        session = self._sessions.get(session_id)
        cursor = None if session is None else session.reactions.get(name)
        if session is None or cursor is None or cursor.owner != owner:
            return False
        session.reactions[name] = msgspec.structs.replace(
            cursor,
            version=version,
            owner=owner if lease_ms else None,
            leased_until=self._now() + lease_ms if lease_ms else 0,
        )
        return True

    async def compact(self, compaction: Compaction) -> bool:
        """Carry out a compaction."""
        await self.check()
        session = self._sessions.get(compaction.session_id)
        if session is None or session.row.epoch != compaction.epoch:
            return False
        floor = compaction.floor
        for state in compaction.states:
            session.states.setdefault(state.version, state)
        session.commits = {at: one for at, one in session.commits.items() if at > floor}
        session.states = {
            at: one for at, one in session.states.items() if at >= floor or at in compaction.kept
        }
        for name in compaction.checkpoints_removed:
            session.checkpoints.pop(name, None)
        return True

    async def saved_versions(self, session_id: str) -> Sequence[int]:
        """Read the versions whose states are saved, in order."""
        await self.check()
        session = self._sessions.get(session_id)
        return sorted(session.states) if session is not None else []

    async def log_times(self, session_id: str, limit: int) -> Sequence[tuple[int, int]]:
        """Read which versions the log's oldest commits are, and from when."""
        return [(one.version, one.at) for one in await self.log(session_id, first=0, limit=limit)]

    async def aged_sessions(
        self, before: int, marks_before: int, after: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Look at sessions for what may be compacted."""
        await self.check()
        looked_at = sorted(name for name in self._sessions if name > after)[:limit]
        return aged(
            [(name, self._is_aged(name, before, marks_before)) for name in looked_at], limit
        )

    def _is_aged(self, name: str, before: int, marks_before: int) -> bool:
        session = self._sessions[name]
        oldest = session.commits[min(session.commits)].at if session.commits else before
        return oldest < before or any(
            one.kind == "automatic" and one.created_at < marks_before
            for one in session.checkpoints.values()
        )

    async def lease(self, name: str, owner: str, lease_ms: int) -> bool:
        """Hold something that one owner at a time may, for so long."""
        await self.check()
        holder, until = self._leases.get(name, (owner, 0))
        now = self._now()
        if holder != owner and until > now:
            return False
        self._leases[name] = owner, now + lease_ms
        return True

    async def everything(self, session_id: str) -> Everything | None:
        """Read all of a session, of one moment; None when there is none."""
        await self.check()
        session = self._sessions.get(session_id)
        if session is None:
            return None
        floor = min(session.commits, default=max(session.states) + 1) - 1
        return Everything(
            session=session.row,
            saved=session.states[first := min(at for at in session.states if at >= floor)],
            kept=[session.states[at] for at in sorted(session.states) if at < first],
            commits=[session.commits[version] for version in sorted(session.commits)],
            clients=sorted(session.clients.values(), key=lambda one: one.client_id),
            refusals=[session.refusals[number] for number in sorted(session.refusals)],
            conflicts=sorted(session.conflicts.values(), key=_conflict_place),
            checkpoints=sorted(session.checkpoints.values(), key=_checkpoint_place),
            devices=_oldest_first(session.devices.values()),
            members=_by_user(session),
            activity=list(session.activity),
        )

    async def trim_activity(self, before: int, limit: int) -> int:
        """Remove the oldest lines of all activity logs from before a time; return how many."""
        await self.check()
        old = sorted(
            (line.at, name, number)
            for name, session in self._sessions.items()
            for number, line in enumerate(session.activity)
            if line.at < before
        )[:limit]
        for _, name, number in sorted(old, key=lambda one: one[2], reverse=True):
            del self._sessions[name].activity[number]
        return len(old)

    async def idempotent(self, user_id: str, route: str, key: str) -> IdempotencyRecord | None:
        """Read what a key was answered, if it was within a day."""
        await self.check()
        _, record = self._keys.get((user_id, route, key), ("", None))
        if record is None or record.created_at <= self._now() - IDEMPOTENCY_LIFETIME_MS:
            return None
        return record


class MemorySeating:
    """Who is connected where, of the nodes that share a `MemoryStore`."""

    def __init__(self, store: MemoryStore, now: Callable[[], int]) -> None:
        self._store = store
        self._now = now
        self._nodes: dict[str, tuple[int, int]] = {}
        """Until when each lives, and what it has told."""
        self._seats: dict[tuple[str, str], Seated] = {}

    async def renew(self, node: str, lease_ms: int) -> tuple[int, Sequence[Neighbour]]:
        """Live for so long from now on."""
        await self._store.check()
        told = max(0, self._nodes.get(node, (0, 0))[1])
        self._nodes[node] = self._now() + lease_ms, told
        return told, self._others(node)

    async def seat(self, node: str, told: int, seats: Sequence[Seated]) -> None:
        """Write who is connected to this node."""
        await self._store.check()
        for one in seats:
            if one.body is None:
                self._seats.pop((one.session_id, node), None)
            else:
                self._seats[one.session_id, node] = one
        if node in self._nodes:
            self._nodes[node] = self._nodes[node][0], told

    async def look(
        self, node: str, session_ids: Sequence[str]
    ) -> tuple[Sequence[Neighbour], Sequence[Seated]]:
        """Read who is connected to other nodes that live, and these nodes."""
        await self._store.check()
        others = self._others(node)
        living = [one.node for one in others if one.told != LEFT]
        found = (self._seats.get((name, other)) for name in session_ids for other in living)
        return others, [one for one in found if one is not None]

    async def leave(self, node: str) -> None:
        """Live no more."""
        await self._store.check()
        if node in self._nodes:
            self._nodes[node] = self._now(), LEFT

    async def sweep(self, dead_ms: int) -> None:
        """Remove all of nodes whose lease ended so long ago, or that are not known at all."""
        await self._store.check()
        ended = self._now() - dead_ms
        self._nodes = {name: one for name, one in self._nodes.items() if one[0] > ended}
        self._seats = {key: one for key, one in self._seats.items() if key[1] in self._nodes}

    def erase(self, session_id: str) -> None:
        """Forget a session."""
        self._seats = {key: one for key, one in self._seats.items() if key[0] != session_id}

    def _others(self, node: str) -> list[Neighbour]:
        now = self._now()
        return [
            Neighbour(node=name, lives_ms=0 if told == LEFT else until - now, told=told)
            for name, (until, told) in self._nodes.items()
            if name != node and (until > now or told == LEFT)
        ]


def _key(record: IdempotencyRecord) -> _Key:
    return record.user_id, record.route, record.key


def _session_place(row: SessionRecord) -> tuple[int, str]:
    return row.last_activity, row.session_id


def _refusal_place(refusal: RefusalRecord) -> tuple[int, str, int]:
    return refusal.client_at, refusal.client_id, refusal.seq


def _is_meant(session: _Session, search: Search) -> bool:
    row = session.row
    text = search.text or ""
    return (
        (row.session_id.startswith(text) or row.user_id.startswith(text) or text in session.members)
        and row.session_id.startswith(search.begins)
        and search.user_id in {None, row.user_id, *session.members}
        and search.schema_name in {None, row.schema_name}
        and row.last_activity >= (search.active_since or 0)
        and (search.active_until is None or row.last_activity <= search.active_until)
        and (search.within is None or row.session_id in search.within)
        and (search.without is None or row.session_id not in search.without)
    )


def _conflict_place(conflict: ConflictRecord) -> tuple[int, str]:
    return conflict.version, conflict.conflict_id


def _checkpoint_place(mark: CheckpointRecord) -> tuple[int, str]:
    return mark.version, mark.checkpoint_id


def _oldest_first(devices: Iterable[DeviceRecord]) -> list[DeviceRecord]:
    return sorted(devices, key=lambda device: (device.created_at, device.device_id))


_Owned = TypeVar("_Owned", ClientRecord, DeviceRecord)


def _move(records: dict[str, _Owned], claim: Claim) -> None:
    for name, record in records.items():
        if record.user_id == claim.before:
            records[name] = msgspec.structs.replace(record, user_id=claim.after)


def _by_user(session: _Session) -> list[MemberRecord]:
    return [session.members[user_id] for user_id in sorted(session.members)]
