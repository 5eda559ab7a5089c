"""The witness: it sees what was sent, became durable and was told, and knows the promises.

It keeps books of its own from what passes by (frames, rows), and shares no code with what it
judges. Every value that a user writes carries a mark that nobody writes again, so that a write can
be found wherever it ended: in the state, or in a conflict record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from reattach.store.base import Append, CommitRecord
from reattach.testing.simulator.broken import Broken
from reattach.testing.simulator.database import Handle
from reattach.testing.simulator.json import (
    MISSING,
    apply,
    at,
    covers,
    encoded,
    marks,
    token_of,
    tokens,
    within,
)
from reattach.testing.simulator.network import Link

__all__ = ["Sent", "Truth", "Witness"]


class Sent(msgspec.Struct, frozen=True):
    """A change as it was first sent."""

    ref: str
    device: str
    data: bytes
    at: int
    base: int
    epoch: str
    ops: Sequence[dict[str, Any]]


class _Mark(msgspec.Struct, frozen=True):
    """Whose a mark is: where it was written, and since which version."""

    device: str
    version: int
    path: tuple[str, ...]


class _Entry(msgspec.Struct, frozen=True):
    """A commit of the log: the change, and up to which version its author had seen others'."""

    sent: Sent
    seen: int


class _Record(msgspec.Struct, frozen=True):
    body: bytes
    marks: set[str]


class _Logged(msgspec.Struct):
    type: str
    version: int
    patch: list[dict[str, Any]]
    at: int
    conflicts: list[dict[str, Any]] = msgspec.field(default_factory=list)
    from_version: int = -1
    to_version: int = -1


class _Told(msgspec.Struct):
    type: str
    version: int = -1
    epoch: str | None = None
    seq: int = 0
    code: str = ""
    state: msgspec.Raw = msgspec.Raw(b"")
    commits: list[msgspec.Raw] = msgspec.field(default_factory=list)
    rejected: list[msgspec.Raw] = msgspec.field(default_factory=list)
    devices: list[dict[str, Any]] = msgspec.field(default_factory=list)


class _Seq(msgspec.Struct):
    seq: int
    code: str = ""


class _Version(msgspec.Struct):
    version: int


_logged = msgspec.json.Decoder(_Logged)
_told = msgspec.json.Decoder(_Told)
_seq = msgspec.json.Decoder(_Seq)
_version = msgspec.json.Decoder(_Version)


class Truth:
    """What is durable of the session: from the rows, as they were written."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.epoch = ""
        self.epoch_version = 0
        self.version = 0
        self.active = True
        self.state: Any = {}
        self.encoded = b"{}"
        self.marks: set[str] = set()
        """Those in the state."""
        self.bodies: dict[int, bytes] = {}
        self.numbers: dict[str, int] = {}
        """Each client's last decided number."""
        self.refusals: dict[tuple[str, int], bytes] = {}
        self.records: dict[str, _Record] = {}
        """The conflict records, as they stand."""
        self.history: dict[int, bytes] = {}
        """The state at each version, whatever epoch that was of."""
        self.marked: dict[int, str] = {}
        """Which versions have a mark, and of which kind."""
        self.entries: dict[int, _Entry] = {}
        self.owners: dict[str, _Mark] = {}
        self.committed: set[tuple[str, int, int]] = set()
        """Client, number and `at` of every commit."""

    def copy(self) -> Truth:
        """Return the same, to go on from."""
        copy = Truth()
        for name, value in vars(self).items():
            setattr(copy, name, value.copy() if isinstance(value, dict | set) else value)
        copy.state = msgspec.json.decode(self.encoded)
        return copy

    def kept(self, mark: str) -> bool:
        """Say whether a mark is in the state or in a conflict record."""
        return mark in self.marks or any(mark in record.marks for record in self.records.values())


class Witness:
    """Sees everything, and raises `Broken`."""

    def __init__(self, node_clock: Callable[[], int]) -> None:
        """``node_clock`` returns the latest time that any node's clock has shown."""
        self.truth = Truth()
        self.backup = Truth()
        self.states: dict[tuple[str, int], bytes] = {}
        """The state at each version of each epoch, as bytes."""
        self.sent: dict[tuple[str, int, int], Sent] = {}
        """Changes as they were first sent, by client, number and `at`."""
        self.names: dict[str, list[tuple[str, int, int]]] = {}
        """Under which of these a change was sent, by its ref."""
        self.numbered: dict[tuple[str, int], Sent] = {}
        self.made: dict[str, list[dict[str, Any]]] = {}
        """What users meant, by the change's ref."""
        self.over: dict[str, list[str]] = {}
        """What was pending when a change was made: what its user saw has these in it."""
        self.blurred: set[str] = set()
        """The changes over pending ones that were carried to a state without seeing its commits."""
        self.refused: set[str] = set()
        """The changes that were refused."""
        self.meant_to_delete: dict[str, set[str]] = {}
        """The marks in a text that a change's user deleted, by its ref."""
        self.ever_committed: set[tuple[str, int, int]] = set()
        self.ever_refused: set[tuple[str, int, int]] = set()
        self.merges = False
        """Whether there is a schema, so that some fields merge."""
        self.counts: dict[str, int] = {}
        self.failure: Broken | None = None
        self._node_clock = node_clock
        self._latest_frame: tuple[bytes, _Told] = (b"", _Told(""))

    def count(self, what: str, by: int = 1) -> None:
        """Count something for the totals."""
        self.counts[what] = self.counts.get(what, 0) + by

    def guard(self, act: Callable[..., None], *args: Any) -> None:
        """Look, and remember the first broken promise: who is looked at must not notice."""
        if self.failure is not None:
            return
        try:
            act(*args)
        except Broken as broken:
            self.failure = broken

    # What devices send

    def sends(self, device: str, ref: str, client_id: str, frame: Mapping[str, Any]) -> bool:
        """A device sends a change; say whether it did so before, with another `at`."""
        seq, when = frame["seq"], frame["at"]
        data = encoded(frame)
        key = (client_id, seq, when)
        known = self.sent.get(key)
        if known is not None:
            if known.data != data:
                raise Broken(
                    "X6 sent changes stay", f"{device} sent {known.data!r} and now {data!r}"
                )
            return True
        sent = Sent(ref, device, data, when, frame["base"], frame["epoch"], frame["ops"])
        self.sent[key] = sent
        self.names.setdefault(ref, []).append(key)
        twin = self.numbered.setdefault((client_id, seq), sent)
        return twin is sent

    # What becomes durable

    def back_up(self) -> None:
        """The backup is made."""
        self.backup = self.truth.copy()

    def set_back(self) -> None:
        """The database is that of the backup."""
        self.truth = self.backup.copy()

    def appended(self, part: Append, handle: Handle) -> None:
        """A part of a batch is durable."""
        self.guard(self._appended, part, handle)

    def _appended(self, part: Append, handle: Handle) -> None:
        truth = self.truth
        if part.expected is None:
            assert part.state is not None
            truth.state = msgspec.json.decode(part.state.state)
            truth.encoded = encoded(truth.state)
            truth.marks = marks(truth.encoded.decode())
            truth.version = part.state.version
        elif part.commits and part.session_id not in handle.loaded:
            raise Broken("R2 loaded before written", f"{part.session_id} was written unseen")
        session = part.session
        if session is not None and session.epoch != truth.epoch:
            if truth.epoch:
                self.count("epochs")
            truth.epoch, truth.epoch_version = session.epoch, session.epoch_version
            self.states[truth.epoch, truth.version] = truth.encoded
        truth.history[truth.version] = truth.encoded
        truth.marked |= {mark.version: mark.kind for mark in part.checkpoints}
        self._advance(part)
        for refusal in part.refusals:
            truth.refusals[refusal.client_id, refusal.seq] = refusal.body
            key = (refusal.client_id, refusal.seq, refusal.client_at)
            self.ever_refused.add(key)
            if key in self.sent:
                self.refused.add(self.sent[key].ref)
            self.count("refusals")
        written: dict[str, bytes] = {}
        for commit in part.commits:
            self._commit(commit, written)
        for record in part.conflicts:
            if written.pop(record.conflict_id, None) != record.body:
                raise Broken("M14 conflicts are kept", f"{record.conflict_id} differs in the log")
        if written:
            raise Broken("M14 conflicts are kept", f"{list(written)} are in the log alone")
        if session is not None:
            truth.active = session.is_active

    def _advance(self, part: Append) -> None:
        """Each client's numbers go on one by one, in the transaction of their effects."""
        numbers = self.truth.numbers
        decided: dict[str, list[int]] = {}
        for commit in part.commits:
            assert commit.client_id is not None
            assert commit.seq is not None
            mine = decided.setdefault(commit.client_id, [])
            if mine and mine[-1] >= commit.seq:
                raise Broken("X1 in order", f"{commit.client_id}: {commit.seq} after {mine[-1]}")
            mine.append(commit.seq)
        for refusal in part.refusals:
            decided.setdefault(refusal.client_id, []).append(refusal.seq)
        moved = {one.client.client_id: one for one in part.clients if one.client.seq > one.before}
        for client_id, seqs in decided.items():
            first = numbers.get(client_id, 0)
            if sorted(seqs) != list(range(first + 1, first + 1 + len(seqs))):
                raise Broken(
                    "X1 exactly once", f"{client_id} stood at {first}, and {seqs} are decided"
                )
            numbers[client_id] = first + len(seqs)
        for client_id in {**decided, **moved}:
            step = moved.get(client_id)
            if step is None or step.client.seq != numbers.get(client_id, 0):
                raise Broken(
                    "X1 numbers go with their effects",
                    f"{client_id} is at {numbers.get(client_id, 0)}, the row says {step}",
                )

    def _commit(self, commit: CommitRecord, written: dict[str, bytes]) -> None:
        truth = self.truth
        if commit.version != truth.version + 1:
            raise Broken("versions go on", f"{commit.version} came after {truth.version}")
        assert commit.client_id is not None
        assert commit.seq is not None
        assert commit.client_at is not None
        key = (commit.client_id, commit.seq, commit.client_at)
        sent = self.sent.get(key)
        if sent is None:
            raise Broken("only what was sent", f"{key} was committed, and nobody sent it")
        logged = _logged.decode(commit.body)
        if commit.at > self._node_clock():
            raise Broken("C2 never in the future", f"{key} is said to be made at {commit.at}")
        befores = [at(truth.state, tokens(op.get("path", ""))) for op in sent.ops]
        try:
            truth.state = apply(truth.state, logged.patch)
        except (LookupError, TypeError, ValueError) as error:
            raise Broken("patches fit", f"{logged.patch} at {commit.version}: {error!r}") from None
        truth.version = commit.version
        truth.encoded = encoded(truth.state)
        truth.bodies[commit.version] = commit.body
        self.states[truth.epoch, truth.version] = truth.encoded
        seen = sent.base if sent.epoch == truth.epoch else min(sent.base, truth.epoch_version)
        truth.history[truth.version] = truth.encoded
        if any(op["op"] == "restore" for op in sent.ops):
            self._restored(sent, logged)
            seen = commit.version - 1
        truth.entries[commit.version] = entry = _Entry(sent, seen)
        before, truth.marks = truth.marks, marks(truth.encoded.decode())
        dropped = before - truth.marks
        for conflict in logged.conflicts:
            body = msgspec.json.encode(conflict)
            name = conflict["id"]
            written[name] = body
            old = truth.records.get(name)
            truth.records[name] = record = _Record(body, marks(body.decode()))
            if old is not None:
                dropped |= old.marks - record.marks
            self._disagreed(conflict)
            self.count("conflicts")
        self._twice(sent, key)
        self._effects(entry, commit.version, befores, logged)
        for mark in dropped:
            if not truth.kept(mark) and not self._replaced(mark, commit.version):
                raise Broken(
                    "M14 nothing is lost",
                    f"{mark!r} of {truth.owners.get(mark)} is gone at {commit.version},"
                    f" by {sent.ops} over {seen}",
                )
        truth.committed.add(key)
        self.ever_committed.add(key)
        self.count("changes")

    def _restored(self, sent: Sent, logged: _Logged) -> None:
        """A restore makes the state that of then, and what it sets back is marked."""
        truth = self.truth
        if logged.type != "session_restored" or logged.from_version != logged.version - 1:
            raise Broken("RE1 restores say so", f"{logged} is what {sent.ops} became")
        if truth.encoded != truth.history.get(logged.to_version):
            raise Broken(
                "RE1 the state of then",
                f"{truth.encoded!r} at {logged.version} is not that of {logged.to_version}:"
                f" {truth.history.get(logged.to_version)!r}",
            )
        (op,) = sent.ops
        if op.get("version", logged.to_version) != logged.to_version:
            raise Broken("RE1 the state of then", f"{op} went to {logged.to_version}")
        if "checkpoint_id" in op and logged.to_version not in truth.marked:
            raise Broken("RE1 the state of then", f"no mark is on {logged.to_version}")
        if truth.marked.get(logged.from_version) is None:
            raise Broken("RE2 what is set back is marked", f"{logged.from_version} is not")
        self.count("restored")

    def _twice(self, sent: Sent, key: tuple[str, int, int]) -> None:
        """A change takes effect once, under whatever name it is sent."""
        for other in self.names[sent.ref]:
            if other != key and other in self.truth.committed:
                raise Broken("exactly once", f"{sent.ref} is committed as {other} and as {key}")

    def _disagreed(self, conflict: dict[str, Any]) -> None:
        """There is no conflict where nobody disagreed."""
        kept, lost = conflict["kept"], conflict["lost"]
        mine, theirs = kept["by"].get("client_id"), lost["by"].get("client_id")
        if conflict["status"] == "resolved" or mine is None or theirs is None:
            return
        if conflict["policy"] == "text":
            # An edit that cannot be placed stands against the whole text, whoever wrote that last.
            return
        if mine == theirs:
            raise Broken("M2 no conflict with oneself", f"{conflict}")
        if kept.get("value", MISSING) == lost.get("value", MISSING) and type(
            kept.get("value")
        ) is type(lost.get("value")):
            raise Broken("M10 equal values", f"{conflict}")
        early, late = sorted((kept.get("version", 0), lost.get("version", 0)))
        entry = self.truth.entries.get(late)
        if entry is not None and entry.seen >= early:
            raise Broken(
                "M1 no conflict where nobody disagreed",
                f"{conflict}: the author of {late} had seen {entry.seen}",
            )

    def _effects(
        self, entry: _Entry, version: int, befores: Sequence[Any], logged: _Logged
    ) -> None:
        """What a change meant is there: in the state, or in a record of a conflict."""
        truth, sent = self.truth, entry.sent
        written = _marks_of(sent.ops)
        for mark, path in written.items():
            if mark not in truth.owners and mark not in self.meant_to_delete.get(sent.ref, ()):
                truth.owners[mark] = _Mark(sent.device, version, path)
                if not truth.kept(mark):
                    raise Broken(
                        "M14 what is acknowledged is there",
                        f"{mark!r} of {sent.ref} is nowhere at {version}: {sent.ops}",
                    )
        alone = len(sent.ops) == 1
        records = [tokens(one["path"]) for one in logged.conflicts]
        for op, before in zip(sent.ops, befores, strict=True):
            path = tokens(op.get("path", ""))
            if not alone or any(covers(path, one) or covers(one, path) for one in records):
                continue
            after = at(truth.state, path)
            if op["op"] == "inc":
                self._added(op, before, after, version)
            elif op["op"] == "set" and op["path"] in {"/most", "/least"} and self.merges:
                greater = op["path"] == "/most"
                if after != op["value"] and (after > op["value"]) is not greater:
                    raise Broken("M3 the greater, the smaller", f"{op} left {after!r}")
            elif op["op"] == "unset" and after is not MISSING:
                raise Broken(
                    "M14 what is acknowledged is there", f"{op} left {after!r} at {version}"
                )
        self._deleted(sent, version)

    def _added(self, op: dict[str, Any], before: Any, after: Any, version: int) -> None:
        was = 0 if before is MISSING else before
        if after != was + op["by"]:
            raise Broken("M4 sums", f"{op} made {before!r} to {after!r} at {version}")

    def _deleted(self, sent: Sent, version: int) -> None:
        """A splice deletes what its user deleted, wherever that has gone meanwhile."""
        if any(op["op"] != "splice" for op in sent.ops) or self._unsure(sent):
            return
        gone = self._gone_chars(version) - self.meant_to_delete.get(sent.ref, set())
        if gone:
            raise Broken(
                "T3 splices delete what they meant",
                f"{gone} at {version}: {sent.ops} of epoch {sent.epoch} in {self.truth.epoch}",
            )

    def _unsure(self, sent: Sent) -> bool:
        """Say whether nobody can know what a change's positions mean.

        It was made over another one that the server refused, so over a text that never was; or over
        one that its device could not carry over what others did, because it was told a state only.
        """
        return sent.ref in self.blurred or any(
            ref in self.refused for ref in self.over.get(sent.ref, ())
        )

    def _gone_chars(self, version: int) -> set[str]:
        before = self.states.get((self.truth.epoch, version - 1))
        if before is None:
            return set()
        return {one for one in marks(before.decode()) - self.truth.marks if len(one) == 1}

    def _replaced(self, mark: str, version: int) -> bool:
        """Say whether somebody who had seen a mark wrote over it, up to this version."""
        owner = self.truth.owners.get(mark)
        if owner is None:  # of the state that the session began with
            owner = _Mark("", 0, ())
        for number in range(version, owner.version, -1):
            entry = self.truth.entries.get(number)
            if entry is None:
                continue
            sent = entry.sent
            if entry.seen < owner.version and sent.device != owner.device:
                continue
            if any(self._writes_over(op, mark, owner, sent) for op in sent.ops):
                return True
        return False

    def _writes_over(self, op: dict[str, Any], mark: str, owner: _Mark, sent: Sent) -> bool:
        kind = op["op"]
        if kind in {"resolve", "restore"}:
            return True
        path = tokens(op.get("path", ""))
        if kind == "splice":
            mine = self.meant_to_delete.get(sent.ref, ())
            return mark in mine or (self._unsure(sent) and path == owner.path)
        if kind == "insert":
            path = (*path, token_of(op["value"]))
        elif kind not in {"set", "unset"}:
            return False
        return not owner.path or covers(path, owner.path)

    # What nodes tell

    def told(self, link: Link, frame: bytes) -> None:
        """A node sends a frame."""
        self.guard(self._tell, link, frame)

    def _tell(self, link: Link, frame: bytes) -> None:
        if self._latest_frame[0] is not frame:
            self._latest_frame = (frame, _told.decode(frame))
        told = self._latest_frame[1]
        kind = told.type
        if kind in {"state_update", "session_restored"}:
            self._tell_commit(link, told, frame)
        elif kind in {"initial_state", "resumed"}:
            self._welcome(link, told)
        elif kind == "rejected":
            self._tell_refusal(link, frame)
        elif kind == "devices":
            link.devices = told.devices
        elif kind == "error":
            self.count(f"error {told.code}")

    def _tell_commit(self, link: Link, told: _Told, frame: bytes) -> None:
        if link.last is None:
            raise Broken("W2 a welcome first", f"version {told.version} came without one")
        if told.version != link.last + 1:
            raise Broken("no version is skipped", f"{told.version} came after {link.last}")
        if self.truth.bodies.get(told.version) != frame:
            raise Broken("W5 durable first", f"version {told.version} is not what is durable")
        link.last = told.version

    def _tell_refusal(self, link: Link, frame: bytes) -> None:
        seq = _seq.decode(frame).seq
        if self.truth.refusals.get((link.client_id, seq)) != frame:
            raise Broken("W5 durable first", f"{frame!r} is not what is durable")

    def _welcome(self, link: Link, told: _Told) -> None:
        truth = self.truth
        assert told.epoch is not None
        stood = self.states.get((told.epoch, told.version))
        if stood is None:
            raise Broken("W5 durable first", f"welcomed at {told.epoch}.{told.version}")
        if told.seq > truth.numbers.get(link.client_id, 0):
            raise Broken(
                "W5 durable first", f"{link.client_id} is welcomed with its number {told.seq}"
            )
        if told.type == "initial_state":
            if encoded(msgspec.json.decode(told.state)) != stood:
                raise Broken("W5 durable first", f"another state at {told.epoch}.{told.version}")
            self.count("welcomes with a state")
        else:
            self._resumed(link, told)
            self.count("resumes")
        for raw in told.rejected:
            self._tell_refusal(link, bytes(raw))
        link.last, link.epoch = told.version, told.epoch
        link.devices = told.devices

    def _resumed(self, link: Link, told: _Told) -> None:
        version = int(link.hello.get("version") or 0)
        if link.last is None and link.hello.get("epoch") != told.epoch:
            raise Broken(
                "E1 another epoch", f"resumed at {link.hello}, and the epoch is {told.epoch}"
            )
        if link.last is not None:
            version = _version.decode(told.commits[0]).version - 1 if told.commits else told.version
        for raw in told.commits:
            version += 1
            if self.truth.bodies.get(version) != bytes(raw):
                raise Broken("R1 every commit after", f"version {version} is not what is durable")
        if version != told.version:
            raise Broken("R1 every commit after", f"resumed to {version}, not to {told.version}")


def _marks_of(ops: Sequence[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """List the marks that a change leaves, with their places: what it wrote over itself is gone."""
    found: dict[str, tuple[str, ...]] = {}
    for op in ops:
        path = tokens(op.get("path", ""))
        if op["op"] == "splice":
            found |= dict.fromkeys(marks(op["insert"]), path)
            continue
        if op["op"] == "resolve" and isinstance(op["keep"], dict):
            # Where that is, the conflict knows.
            found |= dict.fromkeys(marks(encoded(op["keep"]).decode()), ())
            continue
        if op["op"] == "insert":
            path = (*path, token_of(op["value"]))
        if op["op"] in {"set", "unset", "insert"}:
            found = {mark: where for mark, where in found.items() if not covers(path, where)}
        if op["op"] in {"set", "insert"}:
            for where, text in within(op["value"], path):
                found |= dict.fromkeys(marks(text), where)
    return found
