"""One session's decisions: a change becomes a commit or a refusal, exactly once.

The state in memory runs ahead of the database by the batch in flight, and no further: `cut` begins
a batch, `decide` fills it, and either `land` makes it final or `abort` takes it all back. Nobody
is shown anything in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from reattach.core.checkpoints import Kind as MarkKind
from reattach.core.checkpoints import Mark
from reattach.core.connection import Role
from reattach.core.document import ABSENT, Document
from reattach.core.guard import Guard
from reattach.core.index import ANONYMOUS, Index, Write
from reattach.core.limits import Limits
from reattach.core.merge import Author, Lost, Merge, Side, add, replay
from reattach.core.past import Past
from reattach.core.patch import step
from reattach.core.paths import join, parse
from reattach.core.policy import Field, Policy
from reattach.core.schema import Schema, renamed
from reattach.core.texts import Texts
from reattach.core.values import check
from reattach.errors import ChangeRefused
from reattach.store.base import (
    CheckpointRecord,
    ClientAdvance,
    ClientRecord,
    CommitRecord,
    ConflictRecord,
    IdempotencyRecord,
    Loaded,
    RefusalRecord,
    SavedState,
    SessionRecord,
)
from reattach.wire import (
    By,
    Conflict,
    ConflictSide,
    Op,
    Rejected,
    SessionRestored,
    StateUpdate,
    encode,
)

__all__ = ["Client", "Edit", "Proposal", "Session", "schema_version_of"]

Edit: TypeAlias = Callable[[Merge], None]
"""What a proposal does, by calling a `Merge`; it may raise `ChangeRefused`."""


_Author: TypeAlias = tuple[str | None, str | None, str]
"""A client's device and user, and ``device`` or ``server``: what a conflict tells of it."""


_Pair: TypeAlias = tuple[str, str, str]
"""A path, the client that lost there and the one that won."""


class _Logged(msgspec.Struct):
    """What a commit's frame tells when the log is replayed."""

    patch: list[dict[str, Any]]
    by: By
    conflicts: list[Conflict] | None = None


_logged = msgspec.json.Decoder(_Logged)


class _SavedIndex(msgspec.Struct, array_like=True):
    """What merging needs beside a saved state."""

    index: msgspec.Raw
    authors: dict[str, _Author]
    texts: msgspec.Raw = msgspec.Raw(b"[]")
    schema_version: int | None = None
    """That of the state; None in what was saved before it was written down."""


_saved = msgspec.json.Decoder(_SavedIndex)


class Client:
    """A client as the session knows it: its user, and its decided numbers."""

    __slots__ = (
        "at",
        "corrected",
        "device_id",
        "known",
        "refusals",
        "seq",
        "source",
        "user_id",
    )

    def __init__(self, record: ClientRecord, *, known: bool, source: str = "device") -> None:
        self.user_id = record.user_id
        self.device_id = record.device_id
        self.seq = record.seq
        """The highest decided number; 0 before the first."""
        self.at = record.at
        """That change's ``at`` as its client sent it, ms."""
        self.corrected = 0
        """The same in the server's clock: no later change of the client lies before it."""
        self.refusals: dict[int, RefusalRecord] = {}
        """The refusals known here: those after some number."""
        self.known = known
        """Whether the database has a row for it."""
        self.source = source


class Proposal(msgspec.Struct, kw_only=True):
    """A change to be decided, from whichever way it came.

    ``edit`` carries it out; ``refused`` is why it cannot be, where that was clear on arrival.
    ``epoch`` None means the current one, ``base`` None the version at hand.
    """

    client_id: str
    seq: int = 0
    at: int = 0
    corrected: int = 0
    base: int | None = None
    epoch: str | None = None
    edit: Edit | None = None
    resolve: Op | None = None
    """The `resolve` operation, where it is one."""
    restore: Op | None = None
    """The `restore` operation, where it is one."""
    past: Past | None = None
    """What that is about, as soon as it was looked up."""
    mark: Mark | None = None
    """A mark on the version that there is then: no change, and without a number."""
    refused: ChangeRefused | None = None
    ends: bool = False
    outdated: bool = False
    """Whether it was made under an earlier version of the session's schema."""
    upgrades: bool = False
    """Whether it makes the state one of the schema's present version."""
    user_id: str | None = None
    """On whose behalf the server writes; a device's user is its client's."""
    role: str | None = None
    """The role of who writes; None is the server itself, which may write everything."""
    access_version: int | None = None
    """The access version at which its author was let in, where nobody follows what became of it."""


class Session:
    """A session opened from the database: its state, its clients, and the batch in flight."""

    def __init__(self, loaded: Loaded, limits: Limits, schema: Schema | None = None) -> None:
        self.limits = limits
        self.schema = schema
        self.fields = Field() if schema is None else schema.fields
        self.guard = Guard(self.fields)
        self._moved_at: int | None = None
        self.record = loaded.session
        self.document = Document(msgspec.json.decode(loaded.saved.state))
        saved = _saved.decode(loaded.saved.index)
        self.index, self.authors = Index.load(bytes(saved.index)), saved.authors
        self.texts = Texts()
        self.texts.load(saved.texts, self.document)
        self.clients: dict[str, Client] = {}
        self.version = loaded.saved.version
        self.tail: deque[tuple[int, bytes]] = deque()
        """The newest commits, as frames, as long as they weigh less than the state."""
        self.tail_bytes = 0
        self.log_bytes = 0
        """What the log weighs after the newest saved state."""
        self.unresolved: dict[_Pair, tuple[str, int, int | None]] = {}
        """The record of a path, its loser and its winner: its id, the version that lost, and the
        one over which that was typed, if it was."""
        self.unsettled: dict[str, Conflict] = {}
        """The conflicts that nobody has settled."""
        for record in loaded.conflicts:
            self._know_conflict(msgspec.json.decode(record.body, type=Conflict))
        self.replayed: dict[tuple[str, int], CommitRecord] = {}
        """Commits of the log that came back after a batch whose outcome was unknown, until those
        who wait for them are answered."""
        self.heard: dict[str, int] = {}
        """The highest number of each client that somebody else is known to have decided: of the
        refusals up to it only the database knows."""
        self.step: bytes | None = None
        """What the schema's step field holds, as JSON."""
        self.replay(loaded.tail)
        self.record = loaded.session
        self.replayed.clear()
        self.commits: list[CommitRecord] = []
        self.refusals: list[RefusalRecord] = []
        self.conflicts: dict[str, ConflictRecord] = {}
        self.checkpoints: dict[str, CheckpointRecord] = {}
        self.markers: dict[str, tuple[str | None, str | None]] = {}
        """Of the marks that somebody asked for, the user and the device."""
        self.now = 0
        self.idempotency: IdempotencyRecord | None = None
        self.saved: SavedState | None = None
        self._save_due = False
        self._advanced: dict[str, int] = {}
        self._before: tuple[Any, ...] = ()

    @property
    def record(self) -> SessionRecord:
        """The session's row as it stands here."""
        if self._moved_at is not None:
            # Once for each batch, and not for each of its commits.
            self.record = msgspec.structs.replace(
                self._record,
                version=self.version,
                last_activity=max(self._moved_at, self._record.last_activity),
            )
        return self._record

    @record.setter
    def record(self, record: SessionRecord) -> None:
        self._record, self._moved_at = record, None

    # The batch in flight

    def cut(self, now: int = 0) -> None:
        """Begin a batch; marks in it are made at ``now``, ms since 1970."""
        self.now = now
        self._before = (self.record, self.version, self.log_bytes)
        self.commits, self.refusals, self.conflicts = [], [], {}
        self.checkpoints, self.markers = {}, {}
        self.saved, self.idempotency, self._save_due = None, None, False
        self._advanced = {}

    def advances(self) -> list[ClientAdvance]:
        """Return how the batch moves its clients' numbers."""
        return [
            ClientAdvance(client=self.client_record(name), before=before)
            for name, before in self._advanced.items()
        ]

    def land(self) -> None:
        """Make the batch final: it is durable."""
        self.document.settle()
        for name in self._advanced:
            self.clients[name].known = True
        tail = self.tail
        for commit in self.commits:
            tail.append((commit.version, commit.body))
            self.tail_bytes += len(commit.body)
        self._trim()
        self._forget()

    def abort(self) -> None:
        """Take the batch back: it is not known to be durable."""
        self.document.rollback(0)
        self.record, self.version, self.log_bytes = self._before
        self.cut()

    def decide(
        self, proposal: Proposal, *, keep_refusal: bool = True
    ) -> CommitRecord | RefusalRecord:
        """Decide the number that is next for its client, which the caller has made sure of.

        Without ``keep_refusal`` a refusal leaves nothing behind, and `ChangeRefused` is raised.
        """
        client = self.clients[proposal.client_id]
        undo = self.document.undo
        mark = len(undo)
        log_bytes = self.log_bytes
        advanced = proposal.client_id in self._advanced
        if not advanced:
            self._advanced[proposal.client_id] = client.seq
            undo.append((self._advanced.pop, (proposal.client_id, None)))
        undo.append((_set_client, (client, client.seq, client.at, client.corrected)))
        corrected = max(proposal.corrected, client.corrected)
        _set_client(client, proposal.seq, proposal.at, corrected)
        decided = len(undo)
        try:
            return self._commit(proposal, client, corrected)
        except ChangeRefused as refused:
            self.document.rollback(decided if keep_refusal else mark)
            self.document.take_patch()
            self.log_bytes = log_bytes
            if not keep_refusal:
                raise
            return self._refuse(proposal, client, refused)
        except BaseException:
            self.document.rollback(mark)
            self.document.take_patch()
            self.log_bytes = log_bytes
            raise

    def mark(
        self, checkpoint_id: str, kind: str, name: str | None = None, data: bytes | None = None
    ) -> CheckpointRecord:
        """Add a mark on the current version to the batch; one of that id in it stays as it is."""
        if checkpoint_id in self.checkpoints:
            return self.checkpoints[checkpoint_id]
        record = CheckpointRecord(
            checkpoint_id=checkpoint_id,
            name=name,
            kind=kind,
            version=self.version,
            step=self.step,
            data=data,
            created_at=self.now,
        )
        self._assign(self.checkpoints, checkpoint_id, record)
        return record

    def mark_automatically(self) -> CheckpointRecord:
        """Add an automatic mark; a version has one."""
        return self.mark(f"{MarkKind.AUTOMATIC}.{self.version}", MarkKind.AUTOMATIC)

    def _mark_step(self) -> None:
        """Mark the current version where the schema's step field has just moved."""
        step = self._read_step()
        if step != self.step:
            self.document.undo.append((setattr, (self, "step", self.step)))
            self.step = step
            self.mark_automatically()

    def _read_step(self) -> bytes | None:
        path = None if self.schema is None else self.schema.step
        value = ABSENT if path is None else self.document.read(path)
        return None if value is ABSENT else encode(value)

    def save_by_cost(self) -> None:
        """Add a saved state to the batch when the log after the last weighs more than the state."""
        floor = self.limits.saved_state_floor_bytes
        # What the books weigh counts in up to a floor's worth: whoever opens the session reads
        # the log, and leaves the books as they lie.
        weight = self.document.weight + min(self.texts.weight, floor)
        if self._save_due or self.log_bytes > max(weight, floor):
            self.saved = self.save()
            self.log_bytes = 0

    def save(self) -> SavedState:
        """Return the state at the current version, with what merging needs."""
        index, known = self.index.dump(), self.index.clients()
        authors = {name: author for name, author in self.authors.items() if name in known}
        return SavedState(
            version=self.version,
            state=encode(self.document.state),
            index=encode(
                _SavedIndex(
                    msgspec.Raw(index), authors, self.texts.dump(), self.record.schema_version
                )
            ),
        )

    def unresolved_records(self) -> list[ConflictRecord]:
        """Return the conflicts that nobody has settled, as the database tells them."""
        records = [
            ConflictRecord(
                conflict_id=conflict.id,
                path=conflict.path,
                status=conflict.status,
                version=conflict.version,
                body=encode(conflict),
            )
            for conflict in self.unsettled.values()
        ]
        return sorted(records, key=lambda record: (record.version, record.conflict_id))

    def _commit(self, proposal: Proposal, client: Client, at: int) -> CommitRecord:
        if proposal.role == Role.VIEWER:
            raise ChangeRefused(
                "a viewer may not write: ask an owner of the session to be made an editor",
                code="forbidden",
            )
        if proposal.refused is not None:
            raise proposal.refused
        if not self._record.is_active:
            raise ChangeRefused("the session has ended: start another one", code="session_ended")
        document = self.document
        version = self.version + 1
        merge, settled = self._guarded(proposal, client, at)
        self._check_schema(merge, proposal)
        merge.finish()
        if document.weight > self.limits.max_state_bytes:
            raise ChangeRefused(
                f"expected a state of at most {self.limits.max_state_bytes} bytes as JSON, got"
                f" {document.weight}: keep large data elsewhere and its address here",
                code="state_too_large",
            )
        past = proposal.past
        if past is not None:
            self.mark(f"{MarkKind.BEFORE_RESTORE}.{version}", MarkKind.BEFORE_RESTORE)
        author: _Author = (None, None, "server")
        if client.source == "device":
            author = (client.device_id, client.user_id, "device")
        device_id, user_id, source = author
        by = By(proposal.client_id, proposal.seq, device_id, user_id or proposal.user_id, source)
        if self.authors.get(proposal.client_id) != author:
            self.authors[proposal.client_id] = author
        conflicts: list[Conflict] = []
        if merge.lost or settled:
            records = [self._conflict(lost, version, n) for n, lost in enumerate(merge.lost)]
            # One that the change added to several times is told once, as it is in the end.
            conflicts = list({one.id: one for one in (*records, *settled)}.values())
        patch = document.take_patch()
        body = encode(
            StateUpdate(version, patch, by, at, conflicts or msgspec.UNSET)
            if past is None
            else SessionRestored(
                version=version,
                patch=patch,
                by=by,
                at=at,
                from_version=version - 1,
                to_version=past.version,
                checkpoint_id=past.checkpoint_id or msgspec.UNSET,
            )
        )
        record = CommitRecord(
            version=version,
            body=body,
            writes=encode(merge.writes),
            at=at,
            client_id=proposal.client_id,
            seq=proposal.seq,
            client_at=proposal.at,
        )
        # From here on nothing is refused any more: what `abort` sets back needs no undoing.
        self.version = version
        self.log_bytes += len(body)
        self.commits.append(record)
        self._moved_at = at if self._moved_at is None else max(at, self._moved_at)
        if proposal.ends:
            self.record = msgspec.structs.replace(self.record, is_active=False)
        if proposal.upgrades and self.schema is not None:
            self.record = msgspec.structs.replace(self.record, schema_version=self.schema.version)
            # States that are read from the log on from a saved one are all of its schema.
            self._save_due = True
        if self.schema is not None:
            self._mark_step()
        return record

    def _guarded(self, proposal: Proposal, client: Client, at: int) -> tuple[Merge, list[Conflict]]:
        """Carry a change out; raises `ChangeRefused` where it alters what is not its author's to
        write. Returns the conflicts that it settled, too.
        """
        document, guard, role = self.document, self.guard, proposal.role
        mark = len(document.undo)
        merge, settled = self._carry_out(proposal, at)
        if role is None or not guard.any:
            return merge, settled
        roots = guard.touched(role, merge, by_index=client.source == "server")
        if not roots:
            return merge, settled
        # Encoded, since what is read are the state's own lists and objects.
        after = [_copied(document.read(path)) for path, _ in roots]
        document.rollback(mark)
        document.take_patch()
        for root, value in zip(roots, after, strict=True):
            guard.compare(role, root, document.read(root[0]), value)
        return self._carry_out(proposal, at)

    def _carry_out(self, proposal: Proposal, at: int) -> tuple[Merge, list[Conflict]]:
        base, astray = proposal.base, False
        if base is None or base > self.version or proposal.epoch != self._record.epoch:
            base, astray = self._base(proposal), self._astray(proposal)
        merge = Merge(
            self.document,
            self.index,
            Author(
                proposal.client_id,
                base if proposal.restore is None else self.version,
                at,
                astray,
            ),
            self.version + 1,
            nesting=self.limits.max_nesting,
            texts=self.texts,
            fields=self.fields,
        )
        settled: list[Conflict] = []
        if proposal.upgrades:
            settled += self._upgrade(merge)
        elif proposal.past is not None:
            merge.restore(self._state_of(proposal.past))
        elif proposal.resolve is not None:
            settled.append(self._resolve(merge, proposal.resolve, proposal.role))
        elif proposal.edit is not None:
            proposal.edit(merge)
        return merge, settled

    def _state_of(self, past: Past) -> dict[str, Any]:
        """Return a past state, of today's schema; raises `ChangeRefused` where it cannot be one."""
        state: dict[str, Any] = msgspec.json.decode(past.state)
        schema, version = self.schema, past.schema_version
        if schema is None or version is None or version >= schema.version:
            return state
        try:
            return schema.upgrade(state, version)
        except ChangeRefused as refused:
            raise ChangeRefused(
                f"version {past.version} does not fit today's schema: {refused.message}",
                code="schema_changed",
                path=refused.path,
            ) from refused

    def _upgrade(self, merge: Merge) -> list[Conflict]:
        """Make the state one of the schema's present version; return the conflicts that are called
        otherwise by it.
        """
        schema, version = self.schema, self.record.schema_version or 1
        if schema is None or version >= schema.version:
            raise ChangeRefused("the state is of the newest version", code="upgraded")
        copy = msgspec.json.decode(encode(self.document.state))
        renames = [
            one
            for later in range(version + 1, schema.version + 1)
            for one in schema.renames.get(later, ())
        ]
        merge.become(schema.upgrade(copy, version), renames)
        moved: list[Conflict] = []
        for conflict in list(self.unsettled.values()):
            kept = _renamed_side(schema, version, conflict.path, conflict.kept)
            lost = _renamed_side(schema, version, conflict.path, conflict.lost)
            path = renamed(schema, version, [Op(op="unset", path=conflict.path)])[0].path
            again = msgspec.structs.replace(conflict, path=path, kept=kept, lost=lost)
            if again != conflict:
                moved.append(again)
                self._keep(again)
                self._enter(again)
        return moved

    def _check_schema(self, merge: Merge, proposal: Proposal) -> None:
        if self.schema is None or proposal.upgrades:
            return  # an upgrade looks at all that it made
        try:
            self.schema.check(self.document.state, [parse(row[1]) for row in merge.writes])
        except ChangeRefused as refused:
            if proposal.outdated:
                refused.code = "schema_changed"
            raise

    def _astray(self, proposal: Proposal) -> bool:
        earlier = proposal.epoch is not None and proposal.epoch != self.record.epoch
        return earlier and (proposal.base or 0) > self.record.epoch_version

    def _base(self, proposal: Proposal) -> int:
        base = self.version if proposal.base is None else proposal.base
        if proposal.epoch is not None and proposal.epoch != self.record.epoch:
            return min(base, self.record.epoch_version)
        if base > self.version:
            raise ChangeRefused(
                f"expected a base of at most {self.version}, got {base}: no such version exists",
                code="bad_base",
            )
        return base

    def _refuse(self, proposal: Proposal, client: Client, refused: ChangeRefused) -> RefusalRecord:
        path = msgspec.UNSET if refused.path is None else refused.path
        body = encode(
            Rejected(proposal.seq, refused.code, printable(refused.message), printable(path))
        )
        record = RefusalRecord(
            client_id=proposal.client_id, seq=proposal.seq, client_at=proposal.at, body=body
        )
        client.refusals[proposal.seq] = record
        self.document.undo.append((client.refusals.pop, (proposal.seq, None)))
        self.refusals.append(record)
        return record

    # Conflicts

    def _conflict(self, lost: Lost, version: int, ordinal: int) -> Conflict:
        """Make a record; a path and pair of clients have one unresolved one at a time.

        A record is used anew only where what it holds as lost has been replaced by its own author.
        """
        path = join(lost.path)
        kept, dropped = self._side(lost.kept), self._side(lost.lost)
        status = "open" if lost.policy == Policy.ASK else "auto"
        conflict = Conflict(
            f"{version}.{ordinal}", path, lost.policy, status, kept, dropped, version
        )
        pair = _pair(conflict)
        if pair is not None:
            flipped = (pair[0], pair[2], pair[1])
            known, turned = self.unresolved.get(pair), self.unresolved.get(flipped)
            base = lost.lost.base
            if (
                known is None
                and turned is not None
                and turned[1] < lost.kept.version
                and turned[2] is None
                and base is None
                and not lost.kept.merged
            ):
                # The one who lost before has written again, and now it is the other who loses.
                self._remove(self.unresolved, flipped)
                known = turned[0], 0, None
            if known is not None and not lost.adds and base is not None and known[2] != base:
                known = None
            if known is None or known[1] <= lost.lost.version:
                name = conflict.id if known is None else known[0]
                conflict = msgspec.structs.replace(conflict, id=name)
                before = self.unsettled.get(name)
                if lost.adds and before is not None:
                    value = _together(_value(before.lost), _value(dropped))
                    dropped = msgspec.structs.replace(dropped, value=value)
                    conflict = msgspec.structs.replace(conflict, lost=dropped)
                self._assign(self.unresolved, pair, (name, lost.lost.version, base))
        self._keep(conflict)
        return conflict

    def _keep(self, conflict: Conflict) -> None:
        """Have a conflict written, and remember it as long as nobody has settled it."""
        record = ConflictRecord(
            conflict_id=conflict.id,
            path=conflict.path,
            status=conflict.status,
            version=conflict.version,
            body=encode(conflict),
        )
        self._assign(self.conflicts, conflict.id, record)
        if conflict.status == "resolved":
            self._remove(self.unsettled, conflict.id)
        else:
            self._assign(self.unsettled, conflict.id, conflict)

    def _resolve(self, merge: Merge, op: Op, role: str | None) -> Conflict:
        """Settle a conflict as somebody chose; raises `ChangeRefused`."""
        name, keep = op.conflict_id, op.keep
        if type(name) is not str:
            raise ChangeRefused("expected resolve to have a conflict_id", code="bad_op")
        conflict = self.unsettled.get(name)
        if conflict is None:
            version, _, ordinal = name.partition(".")
            once = version.isdigit() and ordinal.isdigit() and int(version) <= self.version
            raise ChangeRefused(
                "the conflict is settled already" if once else "there is no such conflict",
                code="already_resolved" if once else "no_such_conflict",
            )
        # No client shows what a resolve comes to before it is committed, its author's neither.
        merge.drafts.unseen()
        path = parse(conflict.path)
        if role is not None:
            # Whatever is kept: what is dismissed by it is a value of that field, too.
            self.guard.refuse_inside(role, path)
        if conflict.version > merge.author.base:
            raise ChangeRefused(
                "another value was added to this conflict since it was looked at: look again",
                code="conflict_changed",
                path=conflict.path,
            )
        for pair in [pair for pair, known in self.unresolved.items() if known[0] == name]:
            self._remove(self.unresolved, pair)
        # The value of elements without ids is the list that had them.
        target = path[:-1] if path[-1:] == (ANONYMOUS,) else path
        if keep == "lost":
            if conflict.lost.absent is True:
                merge.unset(target)
            else:
                merge.set(target, msgspec.json.decode(encode(conflict.lost.value)))
        elif type(keep) is dict and "value" in keep:
            check(keep["value"], depth=merge.nesting - len(target), path=conflict.path)
            merge.set(target, keep["value"])
        elif keep != "kept":
            raise ChangeRefused(
                'expected keep to be "kept", "lost" or an object with a value', code="bad_op"
            )
        settled = msgspec.structs.replace(conflict, status="resolved")
        self._keep(settled)
        return settled

    def _remove(self, table: dict[Any, Any], key: Any) -> None:
        if key in table:
            self.document.undo.append((table.__setitem__, (key, table[key])))
            del table[key]

    def _assign(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        undo = self.document.undo
        if key in table:
            undo.append((table.__setitem__, (key, table[key])))
        else:
            undo.append((table.pop, (key, None)))
        table[key] = value

    def _know_conflict(self, conflict: Conflict) -> None:
        """Take in a record from the log, or from where records are kept."""
        pair = _pair(conflict)
        if pair is not None:
            for known in (pair, (pair[0], pair[2], pair[1])):
                if self.unresolved.get(known, ("", 0, None))[0] == conflict.id:
                    del self.unresolved[known]
        self.unsettled.pop(conflict.id, None)
        if conflict.status == "resolved":
            return
        self.unsettled[conflict.id] = conflict
        self._enter(conflict)

    def _enter(self, conflict: Conflict) -> None:
        """Have a record be the one of its path and pair of clients, unless a newer one is."""
        pair = _pair(conflict)
        if pair is not None:
            version = conflict.lost.version
            base = conflict.lost.base if isinstance(conflict.lost.base, int) else None
            entry = (conflict.id, version if isinstance(version, int) else 0, base)
            if self.unresolved.get(pair, entry)[1] <= entry[1]:
                self._assign(self.unresolved, pair, entry)

    def _side(self, side: Side) -> ConflictSide:
        return ConflictSide(
            value=msgspec.UNSET if side.value is ABSENT else side.value,
            absent=True if side.value is ABSENT else msgspec.UNSET,
            merged=True if side.merged else msgspec.UNSET,
            base=msgspec.UNSET if side.base is None else side.base,
            by=self._by(side.client, msgspec.UNSET),
            at=side.at,
            version=side.version,
        )

    # Clients

    def know(self, record: ClientRecord, *, known: bool, source: str = "device") -> Client:
        """Take in a client's record; what is known here already and newer stays."""
        client = self.clients.get(record.client_id)
        if client is None:
            client = self.clients[record.client_id] = Client(record, known=known, source=source)
        elif record.seq > client.seq:
            client.seq, client.at = record.seq, record.at
        client.known = client.known or known
        return client

    def client_record(self, client_id: str) -> ClientRecord:
        """Return a client's record as it stands here."""
        client = self.clients[client_id]
        return ClientRecord(
            client_id=client_id,
            user_id=client.user_id,
            device_id=client.device_id,
            seq=client.seq,
            at=client.at,
        )

    def _author(self, client_id: str) -> _Author:
        return self.authors.get(client_id, (None, None, "server"))

    def _by(self, client_id: str | None, seq: int | msgspec.UnsetType | None) -> By:
        if client_id is None:
            return By(None, seq, None, None, "server")
        device_id, user_id, source = self._author(client_id)
        return By(client_id, seq, device_id, user_id, source)

    # The log

    def replay(self, commits: Sequence[CommitRecord]) -> None:
        """Take in durable commits that follow the current version."""
        document = self.document
        document.recording = False
        for commit in commits:
            if commit.version != self.version + 1:
                raise AssertionError(
                    f"expected version {self.version + 1} in the log, got {commit.version}"
                )
            logged = _logged.decode(commit.body)
            step(document, logged.patch)
            by = logged.by
            if by.client_id is not None:
                user_id = by.user_id if by.source == "device" else None
                self.authors[by.client_id] = (by.device_id, user_id, by.source)
            write = Write(commit.version, commit.client_id, commit.at, "", commit.version)
            rows = msgspec.json.decode(commit.writes)
            replay(self.index, self.texts, document, rows, write)
            for conflict in logged.conflicts or ():
                self._know_conflict(conflict)
            self.version = commit.version
            if commit.client_id is not None and commit.seq is not None:
                self.replayed[commit.client_id, commit.seq] = commit
                self.heard[commit.client_id] = commit.seq
            self.log_bytes += len(commit.body)
            self._remember(commit.version, commit.body)
        document.settle()
        document.recording = True
        self.step = self._read_step()
        self.record = msgspec.structs.replace(self.record, version=self.version)
        self._trim()
        self._forget()

    def since(self, version: int) -> list[bytes] | None:
        """Return the commits after a version as frames, or None where a whole state costs less
        or they are not at hand (then they weigh more than the state did).
        """
        missing = self.version - version
        if missing < 0 or missing > len(self.tail):
            return None
        frames = [body for number, body in self.tail if number > version]
        if sum(map(len, frames)) >= self.document.weight and frames:
            return None
        return frames

    def lacks(self, version: int) -> bool:
        """Whether commits after a version could be worth reading from the log, to resume there."""
        first = self.version - len(self.tail)
        return 0 <= version < first and self.tail_bytes < self.document.weight

    def backfill(self, commits: Sequence[CommitRecord]) -> None:
        """Take in commits that go before those at hand, as far as they join up."""
        for commit in reversed(commits):
            if commit.version == self.version - len(self.tail):
                self.tail.appendleft((commit.version, commit.body))
                self.tail_bytes += len(commit.body)

    def _remember(self, version: int, body: bytes) -> None:
        self.tail.append((version, body))
        self.tail_bytes += len(body)

    def _forget(self) -> None:
        """Let go of what merging needs of long ago, so that a session does not weigh its history.

        Nothing is in flight then, and nothing of it is to be taken back.
        """
        self.index.expire(self.limits.max_removals_known)
        self.texts.settle(self.limits.max_text_history_bytes)

    def _trim(self) -> None:
        while self.tail and self.tail_bytes - len(self.tail[0][1]) >= self.document.weight:
            self.tail_bytes -= len(self.tail.popleft()[1])


def _renamed_side(schema: Schema, version: int, path: str, side: ConflictSide) -> ConflictSide:
    """Return a side whose value has today's names."""
    if side.value is msgspec.UNSET:
        return side
    before = _value(side)
    (op,) = renamed(schema, version, [Op(op="set", path=path, value=before)])
    return side if op.value == before else msgspec.structs.replace(side, value=op.value)


def _pair(conflict: Conflict) -> _Pair | None:
    """Name what has one record at most.

    Not so what several made together, which one of them cannot replace; nor the server's writes,
    which are many people's; nor elements without ids: each of those is a value of its own.
    """
    kept, lost = conflict.kept.by, conflict.lost.by
    if conflict.lost.merged is True:
        return None
    if kept.source != "device" or lost.source != "device" or conflict.path.endswith("/-"):
        return None
    return conflict.path, str(lost.client_id), str(kept.client_id)


def _copied(value: Any) -> Any:
    return ABSENT if value is ABSENT else msgspec.json.decode(encode(value))


def _value(side: ConflictSide) -> Any:
    return None if side.value is msgspec.UNSET else msgspec.json.decode(encode(side.value))


def _together(before: Any, more: Any) -> Any:
    """Put together what one author lost at one path, bit by bit."""
    if isinstance(before, str) and isinstance(more, str):
        return before + more
    if type(before) in {int, float} and type(more) in {int, float}:
        return add(before, more)
    return more


def apply_ops(ops: Sequence[Op]) -> Edit:
    """Make the edit that carries out a client's operations, as section 3 of the protocol says."""

    def edit(merge: Merge) -> None:
        tested = False
        for op in ops:
            tested = tested or op.op == "test"
            merge.apply(op)
        if tested and merge.failed:
            raise ChangeRefused(
                "a concurrent write won against one of the change's operations, and the change"
                " has a test: read the state and send it anew",
                code="conflict",
            )

    return edit


def printable(text: Any) -> Any:
    """Make text from a client fit for UTF-8: a lone surrogate becomes a replacement character."""
    if not isinstance(text, str) or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def _set_client(client: Client, seq: int, at: int | None, corrected: int) -> None:
    client.seq, client.at, client.corrected = seq, at, corrected


def empty_index(schema_version: int | None = None) -> bytes:
    """Return what a new session's first saved state has as its index."""
    return encode(_SavedIndex(msgspec.Raw(Index().dump()), {}, schema_version=schema_version))


def schema_version_of(index: bytes) -> int | None:
    """Return the schema version of the state that was saved with an index, if it is told there."""
    return _saved.decode(index).schema_version
