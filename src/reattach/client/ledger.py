"""One client's books: its name and numbers, what is pending, refused and in conflict, and how all
of that goes into the outbox and comes back from it (`docs/protocol.md`, "The outbox").

A number is given out with the change: one process holds the outbox, and has applied all of it. The
number is used only when its row is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import dropwhile, takewhile
from typing import Any, Final, Literal

import msgspec

from reattach.client import outbox
from reattach.client.carrying import covers
from reattach.client.effects import Decided, Effect, Event, Kept, Row
from reattach.client.ops import Operation
from reattach.client.outbox import Meta
from reattach.client.replica import Misfit, Patch, Pending, Replica
from reattach.wire import encode

__all__ = ["Ledger"]

_NOTHING: Final = "nothing-"
"""The ``ref`` of an empty change that takes the number of a bad one begins with this."""

SNAPSHOT_FLOOR: Final = 16_384
"""A snapshot is written anew when the commits after it weigh more, and at least this much."""


class _Dirty:
    """What the outbox does not hold yet."""

    def __init__(self, *, everything: bool = False) -> None:
        self.everything = everything
        self.meta = False
        self.snapshot = False
        self.conflicts = False
        self.terms = False
        self.weight = 0
        """Bytes of JSON in ``commits``."""
        self.commits: list[tuple[int, Patch]] = []
        self.drops: list[int] = []
        self.puts: dict[int, Pending] = {}
        """By number."""
        self.rejected: set[str] = set()

    def __bool__(self) -> bool:
        lists = self.commits or self.drops or self.puts or self.rejected
        rows = self.everything or self.meta or self.snapshot or self.conflicts or self.terms
        return bool(rows or lists)


class Ledger:
    """``emit`` takes the effects `Kept`, `Decided` and `Event`."""

    def __init__(self, new_id: Callable[[], str], emit: Callable[[Effect], None]) -> None:
        self.replica = Replica()
        self.rejected: dict[str, dict[str, Any]] = {}
        """The refused changes as their rows have them, by ``ref``."""
        self.conflicts: dict[str, dict[str, Any]] = {}
        self.terms: dict[str, Any] = {"schema": None, "policies": {}}
        """What the server last said of the session's schema."""
        self.client_id = ""
        self.decided = 0
        """The highest number whose decision is known."""
        self.disk: Literal["works", "fails", "none"] = "none"
        self.disk_error = ""
        self.writing = False
        self._decided_at: int | None = None
        self._next = 1
        self._last_at = 0
        self._named = False
        self._weight = self._tail = 0
        self._keys: set[str] = set()
        """Every key that the outbox may hold."""
        self._dirty = _Dirty()
        self._written: tuple[Meta, list[tuple[Pending, dict[str, Any]]], list[str]] | None = None
        self._new_id = new_id
        self._emit = emit

    @property
    def named(self) -> bool:
        """The name is in the outbox, so that it may be used; or no outbox would take it."""
        return self._named or self.disk != "works"

    @property
    def kept(self) -> bool:
        """Every change is in the outbox. Changes get there in their order."""
        pending = self.replica.pending
        return self.disk == "works" and (not pending or pending[-1].stored)

    @property
    def dirty(self) -> bool:
        """Whether there is something to write."""
        return bool(self._dirty or self.replica.moved)

    # The outbox

    def load(self, rows: dict[str, Any] | None, *, durable: bool) -> None:
        """Begin with what the outbox holds."""
        self.disk = "works" if durable else "none"
        if not rows or outbox.META not in rows:
            self.client_id = self._new_id()
            self._dirty.everything = True
            return
        meta = msgspec.convert(rows[outbox.META], Meta)
        self._named = True
        self.client_id, self._next, self._last_at = meta.client_id, meta.next, meta.at
        self.decided, self._decided_at = meta.decided, meta.decided_at
        self._weight, self._tail = meta.weight, meta.tail
        self._keys = set(rows)
        if (snapshot := rows.get(outbox.SNAPSHOT)) is not None:
            self.replica.reset(snapshot["epoch"], snapshot["version"], snapshot["state"])
            for commit in outbox.starting(rows, outbox.COMMIT):
                try:
                    self.replica.commit(commit["version"], commit["patch"], None)
                except Misfit:
                    break  # the server is asked for what comes after
        self.replica.restore(
            Pending(
                row["ref"],
                row["change"],
                row.get("view", row["change"]["ops"]),
                stored=True,
                unsure=row.get("unsure", ""),
            )
            for row in outbox.starting(rows, outbox.CHANGE)
        )
        for refused in outbox.starting(rows, outbox.REJECTED):
            self.rejected[refused["ref"]] = refused
        for conflict in rows.get(outbox.CONFLICTS) or ():
            self.conflicts[conflict["id"]] = conflict
        self.terms = rows.get(outbox.TERMS) or self.terms

    def take(self) -> list[Row]:
        """Return what is to be written in one transaction; `wrote` or `failed` follows."""
        self.writing = True
        for pending in self.replica.moved.values():
            self._dirty.puts[pending.change["seq"]] = pending
        self.replica.moved.clear()
        dirty, self._dirty = self._dirty, _Dirty()
        rows: dict[str, Any] = {}
        if dirty.everything:
            self._add_everything(rows)
        self._add_commits(dirty, rows)
        puts = self.replica.pending if dirty.everything else dirty.puts.values()
        written = [(pending, pending.change) for pending in puts]
        for seq in dirty.drops:
            rows[outbox.change_key(seq)] = None
        rows.update(outbox.change_row(pending) for pending in puts)
        for ref in dirty.rejected:
            rows[f"{outbox.REJECTED}{ref}"] = self.rejected.get(ref)
        if dirty.conflicts or dirty.everything:
            rows[outbox.CONFLICTS] = list(self.conflicts.values())
        if dirty.terms or dirty.everything:
            rows[outbox.TERMS] = self.terms
        meta = Meta(
            client_id=self.client_id,
            next=self._next,
            at=self._last_at,
            decided=self.decided,
            decided_at=self._decided_at,
            weight=self._weight,
            tail=self._tail,
        )
        rows[outbox.META] = msgspec.to_builtins(meta)
        self._keys.update(rows)
        self._written = meta, written, [key for key, value in rows.items() if value is None]
        return list(rows.items())

    def _add_everything(self, rows: dict[str, Any]) -> None:
        rows.update(dict.fromkeys(self._keys))
        for ref, refused in self.rejected.items():
            rows[f"{outbox.REJECTED}{ref}"] = refused

    def _add_commits(self, dirty: _Dirty, rows: dict[str, Any]) -> None:
        replica = self.replica
        self._tail += dirty.weight
        anew = dirty.everything or dirty.snapshot
        if replica.known and (anew or self._tail > max(self._weight, SNAPSHOT_FLOOR)):
            rows.update(dict.fromkeys(key for key in self._keys if key.startswith(outbox.COMMIT)))
            state = encode(replica.confirmed.state)
            rows[outbox.SNAPSHOT] = {
                "epoch": replica.epoch,
                "version": replica.version,
                "state": msgspec.json.decode(state),
            }
            self._weight, self._tail = len(state), 0
        else:
            rows.update(outbox.commit_row(version, patch) for version, patch in dirty.commits)

    def skip(self) -> None:
        """Write nothing: there is no outbox."""
        self._dirty = _Dirty()
        self.replica.moved.clear()

    def wrote(self) -> None:
        """The transaction is durable: only now is a change called saved."""
        self.writing = False
        if self._written is None:
            return
        meta, written, gone = self._written
        self._written = None
        self._keys.difference_update(gone)
        if meta.client_id == self.client_id:
            self._named = True
        if self.disk == "fails":
            self.disk, self.disk_error = "works", ""
        for pending, change in written:
            if pending.change is change and not pending.stored:
                pending.stored = True
                self._emit(Kept(pending.ref))

    def failed(self, message: str) -> None:
        """The transaction had no effect: go on without the disk, and call nothing saved. The next
        one writes everything anew.
        """
        self.writing = False
        self._written = None
        self._dirty.everything = True
        self.disk, self.disk_error = "fails", message
        for pending in self.replica.pending:
            if not pending.stored:
                self._emit(Kept(pending.ref, durable=False))

    # Names and numbers

    def add(self, ref: str, ops: Sequence[Operation], now: int, schema_version: int | None) -> None:
        """Put a change into the outbox; raises `ChangeRefused` where it makes no sense."""
        replica = self.replica
        change: dict[str, Any] = {
            "seq": self._next,
            "epoch": replica.epoch,
            "base": replica.version,
            "at": max(self._last_at, now),
            "ops": ops,
        }
        if schema_version is not None:
            change["schema_version"] = schema_version
        pending = Pending(ref, change, ops)
        replica.add(pending)
        self._next += 1
        self._last_at = change["at"]
        self._dirty.puts[change["seq"]] = pending
        if self.disk != "works":
            self._emit(Kept(ref, durable=False))

    def renumber(self, gone: Collection[Pending] = ()) -> None:
        """Take a new name, and number from 1 what is to be sent under it: all but ``gone``."""
        replica = self.replica
        for pending in gone:
            replica.remove(pending)
        self._renew(replica.pending)
        self._doubt(replica.pending)
        for seq, pending in enumerate(replica.pending, 1):
            pending.change = {**pending.change, "seq": seq}
            pending.stored = False
        self.client_id = self._new_id()
        self._named = False
        self._next = len(replica.pending) + 1
        self.decided, self._decided_at = 0, None
        self._dirty.everything = True

    def surely(self) -> None:
        """Make changes that were made behind a guess what they read as, once that can be told: when
        nothing that was pending then is undecided any more (TX5).
        """
        replica = self.replica
        if not replica.doubts or any(one.unsure == "view" for one in replica.pending):
            return
        late = list(dropwhile(lambda one: not one.unsure, replica.pending))
        self._renew(late)
        self._doubt(late)
        for pending in late:
            pending.stored = False
            self._dirty.puts[pending.change["seq"]] = pending

    def _renew(self, changes: Sequence[Pending]) -> None:
        """Make unsent changes what they read as over what is known now, where that is possible.

        Splices mean the same over any version. Other operations tell by ``base`` what their author
        had seen; what they stand for stays as it was, and so do splices that a change edits on
        which stays, for its author had seen no more than them. A splice that is covered by a later
        write of the whole text goes: the later one has it in it, or did away with it.
        """
        now = {"epoch": self.replica.epoch, "base": self.replica.version}
        edited = {path for pending in changes for path in pending.texts}
        held: set[str] = set()
        whole: list[Operation] = []
        for pending in reversed(changes):
            change, view = pending.change, list(pending.view)
            paths = pending.texts
            covered = {path for path in paths if any(covers(one, path) for one in whole)}
            same = all(change[name] == value for name, value in now.items())
            if same or (len(paths) > 0 and held.isdisjoint(paths) and _only_splices(view)):
                ops = view if same else [op for op in view if op["path"] not in covered]
                pending.view, pending.change = ops, {**change, **now, "ops": ops}
                continue
            held |= paths
            if any(op["op"] == "test" for op in view):
                # It may be refused: then what came before it is all that there is.
                held |= {path for path in edited if any(covers(op, path) for op in view)}
            else:
                whole += view

    def _doubt(self, changes: Sequence[Pending]) -> None:
        """Mark what could not be renewed, and what is behind that: how it reads is a guess."""
        now = self.replica.epoch, self.replica.version
        doubts = False
        for pending in changes:
            edits = bool(pending.texts)
            renewed = (pending.change["epoch"], pending.change["base"]) == now
            pending.unsure = "" if not edits else "change" if doubts else "" if renewed else "view"
            doubts = doubts or pending.unsure == "view"
        self.replica.doubts = doubts

    def agrees(self, seq: int, at: int | None) -> bool:
        """Whether the server's last decided number is one that this client knows."""
        if seq < self.decided:
            return False
        if seq == self.decided:
            return at is None or self._decided_at is None or at == self._decided_at
        pending = self.by_seq(seq)
        return pending is not None and (at is None or at == pending.change["at"])

    def by_seq(self, seq: int) -> Pending | None:
        """Return the pending change of a number."""
        pending = self.replica.pending
        at = seq - pending[0].change["seq"] if pending else -1
        if 0 <= at < len(pending) and pending[at].change["seq"] == seq:
            return pending[at]
        return next((one for one in pending if one.change["seq"] == seq), None)

    def adopt(self, epoch: str) -> None:
        """Give changes that were made before the session had an epoch the one that it has."""
        for pending in self.replica.pending:
            if pending.change["epoch"] is not None:
                return
            pending.change = {**pending.change, "epoch": epoch}
            pending.stored = False
            self._dirty.puts[pending.change["seq"]] = pending

    # What the server said

    def reset(self, epoch: str | None, version: int, state: Any, *, decided: int = 0) -> None:
        """Take a whole state, in which this client's numbers up to ``decided`` are decided."""
        gone = self.up_to(decided)
        self.replica.reset(epoch, version, state, decided=len(gone))
        self._dirty.snapshot = True
        self._dirty.commits.clear()
        for pending in gone:
            self._settle(pending)

    def commit(self, version: int, patch: Patch, mine: Pending | None) -> None:
        """Take a commit; raises `Misfit`, and alters nothing, where its patch does not fit."""
        self.replica.commit(version, patch, mine)
        self._dirty.commits.append((version, patch))
        self._dirty.weight += len(encode(patch))
        if mine is not None:
            self._settle(mine)

    def up_to(self, seq: int) -> list[Pending]:
        """Return the pending changes with numbers up to ``seq``."""
        return list(takewhile(lambda one: one.change["seq"] <= seq, self.replica.pending))

    def decide(self, seq: int, at: int | None) -> None:
        """A number is decided; ``at`` is its change's, where it is known."""
        if seq < self.decided or (seq == self.decided and at is None):
            return
        self.decided, self._decided_at = seq, at
        self._dirty.meta = True

    def accept(self, gone: Sequence[Pending]) -> None:
        """The changes are in the confirmed state."""
        for pending in gone:
            self.replica.remove(pending)
            self._settle(pending)

    def _settle(self, pending: Pending) -> None:
        change = pending.change
        self._drop(pending)
        self.decide(change["seq"], change["at"])
        self._emit(Decided(pending.ref))

    def _drop(self, pending: Pending) -> None:
        seq = pending.change["seq"]
        self.replica.moved.pop(pending.ref, None)
        self._dirty.puts.pop(seq, None)
        self._dirty.drops.append(seq)

    def refuse(self, pending: Pending, refusal: Mapping[str, Any]) -> None:
        """The change was refused: it is kept for the application to deal with."""
        self.replica.remove(pending)
        self._drop(pending)
        error = {key: refusal[key] for key in ("code", "message", "path") if refusal.get(key)}
        # What took the number of a bad one is nobody's change.
        if not pending.ref.startswith(_NOTHING):
            self.keep_rejected(pending.ref, {"ref": pending.ref, "change": pending.change, **error})
        self._emit(Decided(pending.ref, error))
        self._emit(Event("changeRejected", {"ref": pending.ref, **error}))

    def replace_by_nothing(self, first: Pending, code: str, message: str) -> None:
        """Refuse the first change without the server's word, and send nothing under its number."""
        self.refuse(first, {"code": code, "message": message})
        nothing = Pending(f"{_NOTHING}{self._new_id()}", {**first.change, "ops": []}, ())
        self.replica.put_first(nothing)
        self._dirty.puts[first.change["seq"]] = nothing

    def keep_rejected(self, ref: str, refused: dict[str, Any] | None) -> None:
        """Keep a refused change, or forget it."""
        if refused is None:
            self.rejected.pop(ref, None)
        else:
            self.rejected[ref] = refused
        self._dirty.rejected.add(ref)

    def merge_conflicts(self, conflicts: Sequence[dict[str, Any]]) -> None:
        """Take in conflicts that a commit made or settled."""
        for conflict in conflicts:
            self._dirty.conflicts = True
            if conflict["status"] == "resolved":
                self.conflicts.pop(conflict["id"], None)
            else:
                self.conflicts[conflict["id"]] = conflict
                self._emit(Event("conflictDetected", conflict))

    def set_conflicts(self, open_ones: Sequence[dict[str, Any]], *, whole: bool) -> None:
        """A welcome names all that are open; ``whole``: of others nothing is known any more."""
        now = {conflict["id"]: conflict for conflict in open_ones}
        kept = {
            name: conflict
            for name, conflict in self.conflicts.items()
            if not whole and conflict["status"] != "open"
        }
        self.conflicts = kept | now
        self._dirty.conflicts = True

    def set_terms(self, schema: dict[str, Any] | None, policies: dict[str, str]) -> None:
        """Take what a welcome says of the schema."""
        terms = {"schema": schema, "policies": policies}
        if terms != self.terms:
            self.terms = terms
            self._dirty.terms = True


def _only_splices(ops: Sequence[Operation]) -> bool:
    return all(op["op"] == "splice" for op in ops)
