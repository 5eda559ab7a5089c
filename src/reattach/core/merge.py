"""What a change does to a session: each operation applied, or merged with concurrent writes.

`Merge` carries out one change on a `Document` and its `Index` (`docs/protocol.md`, sections 3 and
4). It either raises `ChangeRefused`, and its caller takes every step back, or leaves the new state
with the patch, the writes for the log, and the values that were not kept.

The policy of a field decides between concurrent writes; without a schema it is ``latest``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import msgspec

from reattach.core.difference import become
from reattach.core.document import ABSENT, Absent, Document, Place, element_id
from reattach.core.drafts import Draft, Drafts, text_of
from reattach.core.index import ANONYMOUS, COMMUTING, Index, Kind, Node, Write
from reattach.core.paths import Path, join, parse
from reattach.core.policy import MERGING, Field, Policy, greater
from reattach.core.schema import Rename
from reattach.core.text import Edit, apply, fill, fine, splice
from reattach.core.texts import Texts
from reattach.core.values import JSON, check, equal
from reattach.errors import ChangeRefused
from reattach.wire import Op

__all__ = ["Author", "Lost", "Merge", "Side", "add", "replay"]

_EXACT = 2**53


class Author(msgspec.Struct, frozen=True):
    """Who makes a change, what they had seen, and when they acted (ms, corrected)."""

    client: str | None
    base: int
    at: int
    astray: bool = False
    """Whether they saw versions of an earlier epoch that this one does not have."""


class Side(msgspec.Struct, frozen=True):
    """One side of a conflict: a value or `ABSENT`, and whose. Containers are encoded, since they
    live on.
    """

    value: Any
    client: str | None
    at: int
    version: int
    merged: bool = False
    """Whether others had their part in it: a sum, or a text that several wrote."""
    base: int | None = None
    """The version over which it was typed, where it is a text that was edited: what was typed over
    another does not have it in it."""


class Lost(msgspec.Struct, frozen=True):
    """A disagreement that a merge settled: what stands at ``path`` and what does not."""

    path: Path
    policy: str
    kept: Side
    lost: Side
    adds: bool = False
    """Whether what is lost adds to what the same author lost there before: typed text whose place
    is not known, or an ``inc`` that found no number."""


class _Below(msgspec.Struct, frozen=True):
    """A concurrent write below a path that is being replaced, and what stood there."""

    path: Path
    node: Node
    write: Write
    value: Any
    anonymous: bool
    """Whether it is about a list's elements without ids; ``value`` is then the list."""


class Merge:
    """One change being carried out at the version that it will make."""

    def __init__(
        self,
        document: Document,
        index: Index,
        author: Author,
        version: int,
        *,
        nesting: int,
        texts: Texts,
        fields: Field,
    ) -> None:
        self.document = document
        self.index = index
        self.author = author
        self.version = version
        self.nesting = nesting
        self.fields = fields
        self.texts = texts
        self._drafts: Drafts | None = None
        self._overwritten: list[tuple[Path, Any]] = []
        """What the change wrote as a whole, and what stood there before."""
        self.lost: list[Lost] = []
        self.writes: list[list[Any]] = []
        self.failed = False
        """Whether an operation of the author's lost: a change with a ``test`` is then refused."""

    @property
    def drafts(self) -> Drafts:
        """What the change does to texts; most changes do nothing to any."""
        if self._drafts is None:
            document, index, author = self.document, self.index, self.author
            self._drafts = drafts = Drafts(
                self.texts,
                author.client,
                author.base,
                self.version,
                document.undo,
                document.read,
                index.since,
                index.replaced,
            )
            drafts.whole = self._overwritten
        return self._drafts

    def _wrote(self, path: Path, value: Any, before: Any) -> None:
        """Note that the change writes all that is at a path, and that it stands."""
        if (
            self._drafts is None
            and type(value) is not str
            and type(before) is not str
            and not self.texts.knows(path)
        ):
            self._overwritten.append((path, before))
        else:
            self.drafts.wrote(path, value, before)

    def apply(self, op: Op) -> None:
        """Carry out one operation; raises `ChangeRefused` where it is invalid."""
        carry_out = self._OPS.get(op.op)
        if carry_out is None:
            raise ChangeRefused(
                f"expected one of {', '.join(self._OPS)}, got operation {op.op[:40]!r}",
                code="bad_op",
                path=op.path if type(op.path) is str else None,
            )
        if type(op.path) is not str:
            raise ChangeRefused(f"expected {op.op} to have a path (a string)", code="bad_path")
        if not op.path.isascii():
            check(op.path, depth=0, path=op.path)
        path = parse(op.path)
        if len(path) > self.nesting:
            raise ChangeRefused(
                f"expected a path of at most {self.nesting} tokens, got {len(path)}",
                code="too_deep",
                path=op.path,
            )
        carry_out(self, path, op)

    # Operations

    def _set(self, path: Path, op: Op) -> None:
        self.set(path, self._value(op, path))

    def set(self, path: Path, value: JSON) -> None:
        """Create or replace what is at a path."""
        document, index, author = self.document, self.index, self.author
        if not path and type(value) is not dict:
            raise _refused("bad_value", path, "expected an object as the whole state")
        place = self._locate(path)
        if place is None:
            self.drafts.wrote(path, value, ABSENT, stands=False)
            self._parent_gone(path, value)
            return
        if type(place.container) is list:
            if element_id(value) != path[-1][1:]:
                raise _refused(
                    "bad_id", path, "expected the element's own id in its new value: ids stay"
                )
        else:
            self._keep_id(path, value)
        current = place.value
        kind = Kind.SET
        met = index.meets(path, author.client, author.base)
        if met is not None:
            opponent, depth = met
            if current is not ABSENT and equal(current, value):
                self.drafts.wrote(path, value, current)
                self.record(path, Kind.SAME, under=opponent)
                return
            policy = self._policy(path, depth)
            if policy in MERGING:
                if self._merge(path, place, policy, opponent, value):
                    return
                kind = Kind.MERGED
            elif not self._compete(path, policy, opponent, current, value):
                self.drafts.wrote(path, value, current, stands=False)
                return
        elif self.fields.at(path) in MERGING and self._merge_alone(path, place, value):
            return
        self._wrote(path, value, current)
        below = self._below(path, met)
        if current is ABSENT and type(place.container) is list:
            items = place.container
            document.insert(items, len(items), value, place.pointer)
        elif current is ABSENT or below or not _same(current, value):
            document.put(place, value)
        self.record(path, kind, under=met[0] if met is not None and kind == Kind.MERGED else None)
        self._settle_below(below)

    def _unset(self, path: Path, op: Op) -> None:
        del op
        if not path:
            raise _refused("bad_path", path, "the whole state cannot be removed: set it to {}")
        self.unset(path)

    def unset(self, path: Path) -> None:
        """Remove what is at a path."""
        place = self._locate(path)
        if place is None:
            self.drafts.wrote(path, ABSENT, ABSENT)
            return
        self._keep_id(path, ABSENT)
        current = place.value
        self._wrote(path, ABSENT, current)
        met = self.index.meets(path, self.author.client, self.author.base)
        if current is ABSENT:
            if met is not None:
                self.record(path, Kind.SAME, under=met[0])
            return
        if met is not None:
            opponent, depth = met
            policy = self._policy(path, depth)
            if policy in MERGING:
                # What is absent adds nothing to what stands.
                self.record(path, Kind.MERGED, under=opponent)
                if policy in {Policy.UNION, Policy.TEXT}:
                    self._yield(path, policy, opponent, current, ABSENT)
                return
            if not self._compete(path, policy, opponent, current, ABSENT):
                return
        below = self._below(path, met)
        self.document.remove(place)
        self.record(path, Kind.UNSET)
        for one in below:
            self._keep_as_conflict(one, ABSENT)

    def _insert(self, path: Path, op: Op) -> None:
        document, index, author = self.document, self.index, self.author
        value = self._value(op, (*path, ""))
        after = op.after
        if after is not msgspec.UNSET and after is not None and type(after) is not str:
            raise _refused("bad_op", path, "expected after to be an id, null or left out")
        found = element_id(value)
        target = (*path, ANONYMOUS if found is None else f"#{found}")
        place = self._locate(path)
        items = ABSENT if place is None else place.value
        if found is not None and type(items) is list and document.find(items, found) != -1:
            self.set(target, value)
            return
        if found is not None:
            self._wrote(target, value, ABSENT)
        if place is None or type(items) is not list:
            self._ground_gone(target, path, items, value, "a list")
            return
        # Elements without ids commute among themselves: only their list can be an opponent.
        written = path if found is None else target
        met = index.meets(written, author.client, author.base)
        if met is not None:
            opponent, depth = met
            of_list = depth == len(path)
            policy = self.fields.at(path) if of_list else self._policy(written, depth)
            if not self._arrives(target, policy, opponent, value):
                return
        if after is None:
            at = 0
        else:
            before = -1 if after is msgspec.UNSET else document.find(items, after)
            at = len(items) if before == -1 else before + 1
        document.insert(items, at, value, _inside(place))
        self.record(target, Kind.LOOSE if found is None else Kind.INSERT)

    def _move(self, path: Path, op: Op) -> None:
        after = op.after
        if after is not msgspec.UNSET and after is not None and type(after) is not str:
            raise _refused("bad_op", path, "expected after to be an id, null or left out")
        place = self._locate(path)
        if place is None or place.value is ABSENT:
            return
        items = place.container
        if type(items) is not list:
            raise _refused("not_a_list", path, "expected the path of a list's element")
        source = place.key
        if after is None:
            target = 0
        else:
            before = -1 if after is msgspec.UNSET else self.document.find(items, after)
            if before == -1:
                before = len(items) - 1
            # Counted without the element itself; after itself is where it is.
            target = before if before >= source else before + 1
        if target != source:
            self.document.move(items, source, target, place.pointer)

    def _inc(self, path: Path, op: Op) -> None:
        by = op.by
        if type(by) is not int and type(by) is not float:
            raise _refused("bad_op", path, "expected inc to have a number in by")
        check(by, depth=0, path=join(path))
        place = self._locate(path)
        if place is None:
            self._parent_gone(path, by, adds=True)
            return
        current = 0 if place.value is ABSENT else place.value
        if place.value is ABSENT and type(place.container) is list:
            self._ground_gone(path, path, ABSENT, by, "an element", adds=True)
            return
        if type(current) is not int and type(current) is not float:
            self._ground_gone(path, path, current, by, "a number", adds=True)
            return
        total = add(current, by)
        check(total, depth=0, path=join(path))
        self._keep_id(path, total)
        self.document.put(place, total)
        self.record(path, Kind.INC)

    def _splice(self, path: Path, op: Op) -> None:
        index, delete, insert = op.index, op.delete, op.insert
        delete = 0 if delete is msgspec.UNSET else delete
        insert = "" if insert is msgspec.UNSET else insert
        if type(index) is not int or type(delete) is not int or index < 0 or delete < 0:
            raise _refused("bad_op", path, "expected index and delete to be counts of code points")
        if type(insert) is not str:
            raise _refused("bad_op", path, "expected insert to be a string")
        check(insert, depth=0, path=join(path))
        if self.author.astray:
            raise _refused(
                "base_gone",
                path,
                "the text that this edit was made of was lost with the server's history: read the"
                " text and edit it anew",
            )
        place = self._locate(path)
        current = ABSENT if place is None else place.value
        taker = self.index.covered(path, self.author.client, self.author.base)
        if place is None or type(place.container) is list or type(current) not in {str, Absent}:
            place = None
            if taker is None:
                code = "bad_path" if current is ABSENT else "not_a_string"
                raise _refused(code, path, "expected the path of a string, in a parent that exists")
        stands = text_of(current)
        draft = self.drafts.open(path, stands, concurrent=taker is not None)
        if draft is None:
            if insert:
                self._misplaced(path, taker, current, insert, adds=True)
            return
        if index + delete > draft.length(stands):
            raise _refused(
                "bad_range",
                path,
                f"expected positions within the {draft.length(stands)} code points of the text,"
                f" got {index} to {index + delete}",
            )
        self._edit(path, place, draft, taker, current, splice(index, delete, insert))

    def _edit(
        self,
        path: Path,
        place: Place | None,
        draft: Draft,
        taker: Write | None,
        current: Any,
        mine: Sequence[Edit],
    ) -> None:
        """Carry an author's edits to the text that stands; ``place`` None: no text can stand."""
        stands = text_of(current)
        seen = draft.between(stands).seen if draft.replaced else stands
        if place is None:
            draft.lose(mine, self.version)
            placed = not mine
        else:
            done, result, placed = draft.splice(stands, mine, self.version)
            self._keep_id(path, result)
            # Taking characters out of a text that is gone does not bring it back.
            if placed and (result or current is not ABSENT or taker is None):
                self.document.edit(place, done, result)
                self.record(path, Kind.SPLICE)
        if not placed:
            self._misplaced(path, taker, current, apply(seen, mine))

    def _misplaced(
        self, path: Path, taker: Write | None, current: Any, text: str, *, adds: bool = False
    ) -> None:
        """What an author typed has no place in the text that stands: keep it."""
        if taker is None:
            node = self.index.find(path)
            taker = None if node is None else node.last
        if taker is None:
            taker = Write(self.version, None, self.author.at, Kind.SET, self.version)
        self.failed = True
        self._lose(path, Policy.TEXT, taker, current, text, adds=adds, typed=True)

    def _test(self, path: Path, op: Op) -> None:
        value = self._value(op, path)
        place = self._locate(path)
        if place is None or place.value is ABSENT or not equal(place.value, value):
            raise _refused("test_failed", path, "the value is not (or no longer) the expected one")

    _OPS: ClassVar[dict[str, Callable[[Merge, Path, Op], None]]] = {
        "set": _set,
        "unset": _unset,
        "insert": _insert,
        "move": _move,
        "inc": _inc,
        "splice": _splice,
        "test": _test,
    }

    # Concurrency

    def _policy(self, path: Path, depth: int) -> str:
        """Return what decides about a write of ``path`` that meets one of its first ``depth``
        tokens: where that is a whole that would be merged, a part of it is not.
        """
        if depth == len(path):
            return self.fields.at(path)
        policy = self.fields.at(path[:depth])
        return Policy.LATEST if policy in MERGING else policy

    def _compete(self, path: Path, policy: str, opponent: Write, current: Any, value: Any) -> bool:
        """Settle two concurrent values of one path; return whether the incoming one stands."""
        author = self.author
        if policy == Policy.LATEST and author.at >= opponent.at:
            theirs = _theirs(current, opponent)
            self.lost.append(Lost(path, policy, self._mine(value), theirs))
            return True
        self._yield(path, policy, opponent, current, value)
        return False

    def _yield(self, path: Path, policy: str, opponent: Write, current: Any, value: Any) -> None:
        """Keep the author's value as what lost."""
        self.failed = True
        self._lose(path, policy, opponent, current, value)

    def _lose(
        self,
        path: Path,
        policy: str,
        opponent: Write,
        current: Any,
        value: Any,
        *,
        adds: bool = False,
        typed: bool = False,
    ) -> None:
        mine = self._mine(value)
        if typed:
            mine = msgspec.structs.replace(mine, base=self.author.base)
        kept = _theirs(current, opponent)
        if not adds and path[-1:] != (ANONYMOUS,):
            # What the same change lost there before is replaced by this: it has seen that.
            self.lost = [
                one
                for one in self.lost
                if one.adds
                or one.path != path
                or (one.lost.version, one.lost.base) != (mine.version, mine.base)
                or one.kept.client != kept.client
            ]
        self.lost.append(Lost(path, policy, kept, mine, adds))

    def _arrives(self, path: Path, policy: str, opponent: Write, value: JSON) -> bool:
        """Settle whether a new element stands against a concurrent write of its list, or of
        itself; a list that was set without having seen the element did not say that it be gone.
        """
        if policy == Policy.UNION:
            return True
        if policy in {Policy.FIRST, Policy.ASK} or self.author.at < opponent.at:
            self._yield(path, policy, opponent, ABSENT, value)
            return False
        node = self.index.find(path)
        if node is not None and node.last is opponent:
            theirs = _theirs(ABSENT, opponent)
            self.lost.append(Lost(path, Policy.LATEST, self._mine(value), theirs))
        return True

    # Policies that let both writes go into what stands

    def _merge(self, path: Path, place: Place, policy: str, opponent: Write, value: JSON) -> bool:
        """Merge a value with what stands; False: it is to be written as it is."""
        current = place.value
        if current is ABSENT:
            # The opponent removed it: what is absent adds nothing to a value.
            if policy in {Policy.UNION, Policy.TEXT}:
                theirs = _theirs(ABSENT, opponent)
                self.lost.append(Lost(path, policy, self._mine(value), theirs))
            return False
        if policy == Policy.UNION and self._unite(path, place, value, opponent):
            return True
        if policy == Policy.TEXT and type(current) is str and type(value) is str:
            draft = self.drafts.open(path, current, concurrent=True)
            if draft is not None:
                self._merge_text(path, place, draft, opponent, value)
                return True
        if policy in {Policy.MAX, Policy.MIN}:
            more = greater(value, current)
            if more is not None:
                if more != (policy == Policy.MAX):
                    self.drafts.wrote(path, value, current)
                    self.record(path, Kind.MERGED, under=opponent)
                    return True
                return False
        # No merging of these two: the later one stands.
        if self._compete(path, Policy.LATEST, opponent, current, value):
            return False
        self.drafts.wrote(path, value, current, stands=False)
        return True

    def _merge_alone(self, path: Path, place: Place, value: JSON) -> bool:
        """Write a value that nobody competes with; False: it is to be written as it is."""
        current = place.value
        if type(current) is str and type(value) is str and self.fields.at(path) == Policy.TEXT:
            # As edits, so that who types there meanwhile finds their place.
            edits = fine(current, value)
            if edits:
                self.document.edit(place, edits, value)
            self.drafts.wrote(path, value, current, edits)
            self.record(path, Kind.SET)
            return True
        if self.fields.at(path) == Policy.UNION and self._below(path):
            return self._unite(path, place, value, None)
        return False

    def _merge_text(
        self, path: Path, spot: Place, draft: Draft, opponent: Write, value: str
    ) -> None:
        current: str = spot.value
        between = draft.between(current)
        moved, whole = between.merge(current, fine(between.seen, value))
        edits, result = fill(current, moved)
        if edits:
            self.document.edit(spot, edits, result)
        self.drafts.wrote(path, value, current, edits, between)
        self.record(path, Kind.MERGED, under=opponent)
        if not whole:
            self.failed = True
            self._lose(path, Policy.TEXT, opponent, result, value, typed=True)

    def _unite(self, path: Path, place: Place, value: JSON, opponent: Write | None) -> bool:
        """Put into a list or an object what it lacks of another one; False: they are neither."""
        current = place.value
        if type(current) is not type(value) or type(value) not in {list, dict}:
            return False
        self.drafts.wrote(path, value, current, stands=False)
        newest: dict[str, Write] = {}
        for one in self._below(path):
            token = one.path[len(path)]
            if token not in newest or one.write.order > newest[token].order:
                newest[token] = one.write
        inside = _inside(place)
        for key, item in value.items() if type(value) is dict else ((None, one) for one in value):
            if key is not None:
                token, spot = key, Place(current, key, inside, current.get(key, ABSENT))
            else:
                found = element_id(item)
                token = f"#{found}"
                at = -1 if found is None else self.document.find(current, found)
                if found is None and any(equal(item, other) for other in current):
                    continue
                spot = Place(current, at, inside, current[at] if at != -1 else ABSENT)
            self._unite_one((*path, token), spot, item, newest.get(token, opponent))
        self.record(path, Kind.MERGED, under=opponent)
        return True

    def _unite_one(self, path: Path, spot: Place, value: JSON, write: Write | None) -> None:
        if spot.value is ABSENT and type(spot.container) is list:
            self.document.insert(spot.container, len(spot.container), value, spot.pointer)
            loose = element_id(value) is None
            target = (*path[:-1], ANONYMOUS) if loose else path
            self.record(target, Kind.LOOSE if loose else Kind.INSERT)
            return
        if spot.value is not ABSENT and equal(spot.value, value):
            return
        if spot.value is not ABSENT and write is not None:
            if self.author.at < write.at:
                self._yield(path, Policy.UNION, write, spot.value, value)
                return
            theirs = _theirs(spot.value, write)
            self.lost.append(Lost(path, Policy.UNION, self._mine(value), theirs))
        self.document.put(spot, value)
        self.record(path, Kind.SET)

    # What lies above and below

    def _parent_gone(self, path: Path, value: JSON, *, adds: bool = False) -> None:
        """A write whose parent does not exist: a conflict if it was taken away concurrently."""
        self._ground_gone(path, path[:-1], ABSENT, value, "a parent that exists", adds=adds)

    def _ground_gone(
        self,
        path: Path,
        ground: Path,
        current: Any,
        value: JSON,
        expected: str,
        *,
        adds: bool = False,
    ) -> None:
        author = self.author
        taker = self.index.covered(ground, author.client, author.base)
        if taker is None:
            code = {"a list": "not_a_list", "a number": "not_a_number"}.get(expected, "bad_path")
            raise _refused(code, path, f"expected {expected} at {join(ground)!r}")
        self.failed = True
        stands = current if path == ground else ABSENT
        self._lose(path, Policy.LATEST, taker, stands, value, adds=adds)

    def _below(self, path: Path, met: tuple[Write, int] | None = None) -> Sequence[_Below]:
        """Find the concurrent writes below a path, parents first, with what stands there; without
        what came with ``met``, the opponent at or above the path.
        """
        node = self.index.find(path)
        base = self.author.base
        if node is None or not node.children or node.newest <= base:
            return ()
        return [
            _Below(at, found, write, *self._standing(at))
            for at, found, write in self._concurrent(path, node, None if met is None else met[0])
        ]

    def _concurrent(
        self, path: Path, node: Node, above: Write | None
    ) -> Iterator[tuple[Path, Node, Write]]:
        """``above`` is the write that ``node`` is looked at for already: what the author added to
        a part of that competes with it there.
        """
        author = self.author
        for token, child in (node.children or {}).items():
            if child.newest <= author.base:
                continue
            at = (*path, token)
            write = child.opponent(author.client, author.base)
            if write is not None and (child.last is write or not _same_change(write, above)):
                yield at, child, write
            yield from self._concurrent(at, child, write or above)

    def _standing(self, path: Path) -> tuple[Any, bool]:
        if path[-1] == ANONYMOUS:
            place = self.document.reach(path[:-1])
            if place is not None and type(place.value) is list:
                return list(place.value), True
        place = self.document.reach(path)
        return (ABSENT if place is None else place.value), False

    def _locate(self, path: Path) -> Place | None:
        """Find an operation's place; None also where a concurrent write made its path senseless."""
        try:
            return self.document.locate(path)
        except ChangeRefused:
            if self.index.covered(path[:-1], self.author.client, self.author.base) is None:
                raise
            return None

    def _settle_below(self, below: Sequence[_Below]) -> None:
        """Put back each concurrent deeper write with a later ``at`` whose parent still exists;
        every other becomes a conflict.
        """
        stood: list[Path] = []
        for one in below:
            if any(one.path[: len(parent)] == parent for parent in stood):
                # It stands inside what was put back whole.
                self._rerecord(one)
                continue
            spot = None if one.anonymous else self.document.reach(one.path)
            value = ABSENT if spot is None else spot.value
            if spot is not None and _agree(value, one.value):
                self._rerecord(one)
                continue
            if spot is None or one.write.at <= self.author.at:
                self._keep_as_conflict(one, value)
                continue
            if value is not ABSENT or one.write.kind != Kind.INSERT:
                self.failed = True
                theirs = _theirs(one.value, one.write)
                self.lost.append(Lost(one.path, "latest", theirs, self._mine(value)))
            if one.value is ABSENT:
                self.document.remove(spot)
            elif value is ABSENT and type(spot.container) is list:
                items = spot.container
                self.document.insert(items, len(items), one.value, spot.pointer)
            else:
                self.document.put(spot, one.value)
            self._rerecord(one)
            stood.append(one.path)

    def _keep_as_conflict(self, one: _Below, value: Any) -> None:
        if _agree(value, one.value):
            return
        theirs = _theirs(one.value, one.write)
        self.lost.append(Lost(one.path, "latest", self._mine(value), theirs))

    def _rerecord(self, one: _Below) -> None:
        """Enter a write that a merge put back as the newest one, as seen when it was made."""
        for write in (one.node.other, one.node.last):
            if write is not None:
                self._enter_again(one.path, write)
        self._own_below(one.path, one.node)

    def _own_below(self, path: Path, node: Node) -> None:
        """Enter again what the author had written over a write that a merge put back."""
        for token, child in (node.children or {}).items():
            at = (*path, token)
            write = child.last
            if write is not None and write.client == self.author.client is not None:
                self._enter_again(at, write, child.other)
            self._own_below(at, child)

    def _enter_again(self, path: Path, write: Write, under: Write | None = None) -> None:
        row: list[Any] = [write.kind, join(path), [write.version, write.client, write.at]]
        if under is not None:
            row.append(_row(under))
        self.writes.append(row)
        again = msgspec.structs.replace(write, order=self.version)
        self.index.record(path, again, self.document.undo, under=under)

    # Restoring

    def restore(self, state: dict[str, Any]) -> None:
        """Make the state that of an earlier version.

        What it alters counts as written by the author, who has seen all that there is. No client
        shows it before it is committed.
        """
        self.drafts.unseen()
        become(self.document, state, self._set_back)

    def _set_back(self, path: Path, value: Any, before: Any, kind: str) -> None:
        self.drafts.wrote(path, value, before)
        self.record(path, kind)

    # Schemas

    def become(self, state: dict[str, Any], renames: Sequence[Rename]) -> None:
        """Make the state one of its schema's present version.

        That is nobody's act: what was renamed keeps its writers, and nothing competes with it.
        """
        for old, new in renames:
            self.writes.append([Kind.RENAME, join(old), join(new)])
            self.index.rename(old, new, self.document.undo)
            self.drafts.rename(old, new)
        self._become((), state)

    def _become(self, path: Path, target: JSON) -> None:
        document = self.document
        place = document.locate(path)
        assert place is not None, "its object was just looked at"
        current = place.value
        if type(current) is not dict or type(target) is not dict:
            if current is ABSENT or not equal(current, target):
                self.drafts.touched(path)
                document.put(place, target)
            return
        for key in [key for key in current if key not in target]:
            self.drafts.touched((*path, key))
            document.remove(Place(current, key, _inside(place), current[key]))
        for key, value in target.items():
            self._become((*path, key), value)

    # Helpers

    def finish(self) -> None:
        """Enter what the change did to texts; call it once, when all operations are carried out."""
        if self._drafts is None:
            return
        for path, row in self._drafts.finish():
            self.writes.append([Kind.TEXT, join(path), row])

    def _mine(self, value: Any) -> Side:
        return Side(_frozen(value), self.author.client, self.author.at, self.version)

    def record(self, path: Path, kind: str, under: Write | None = None) -> None:
        """Enter the author's write of a path, in the index and for the log."""
        author = self.author
        row: list[Any] = [kind, join(path)]
        if under is not None:
            row += [None, _row(under)]
        self.writes.append(row)
        write = Write(self.version, author.client, author.at, kind, self.version)
        self.index.record(path, write, self.document.undo, under=under)

    def _value(self, op: Op, path: Path) -> JSON:
        if op.value is msgspec.UNSET:
            raise _refused("bad_op", path, f"expected {op.op} to have a value")
        check(op.value, depth=self.nesting - len(path), path=join(path))
        return op.value

    def _keep_id(self, path: Path, value: Any) -> None:
        """Refuse to change or remove the id of a list's element."""
        if len(path) < 2 or path[-1] != "id" or path[-2][:1] != "#":
            return
        place = self.document.locate(path[:-1])
        if place is not None and type(place.container) is list and value != path[-2][1:]:
            raise _refused("bad_id", path, "an element's id cannot be changed: insert another")


def replay(
    index: Index,
    texts: Texts,
    document: Document,
    writes: Sequence[Sequence[Any]],
    write: Write,
) -> None:
    """Enter a logged commit's ``writes`` as `Merge` did, when its patch has been carried out;
    ``write`` is its author's, of any kind.
    """
    undo: list[Any] = []
    for kind, pointer, *more in writes:
        if kind == Kind.RENAME:
            old, new = parse(pointer), parse(more[0])
            index.rename(old, new, undo)
            texts.rename(old, new, undo)
            undo.clear()
            continue
        if kind == Kind.TEXT:
            path = parse(pointer)
            text = text_of(document.read(path))
            texts.replay(path, write.version, write.client, more[0], text)
            continue
        own = more[0] if more else None
        under = more[1] if len(more) > 1 else None
        if own is None:
            entry = Write(write.version, write.client, write.at, kind, write.version)
        else:
            entry = Write(own[0], own[1], own[2], kind, write.version)
        index.record(parse(pointer), entry, undo, under=Write(*under) if under else None)
        undo.clear()


def _same_change(write: Write, other: Write | None) -> bool:
    """Whether two writes are of one change, wherever a merge has put one of them back since."""
    return other is not None and (write.version, write.client) == (other.version, other.client)


def _row(write: Write) -> list[Any]:
    return [write.version, write.client, write.at, write.kind, write.order]


def _theirs(value: Any, write: Write) -> Side:
    merged = write.kind in COMMUTING
    return Side(_frozen(value), write.client, write.at, write.version, merged)


def _frozen(value: Any) -> Any:
    kind = type(value)
    return msgspec.Raw(msgspec.json.encode(value)) if kind is dict or kind is list else value


def _agree(left: Any, right: Any) -> bool:
    if left is ABSENT or right is ABSENT:
        return left is right
    return equal(left, right)


def _same(current: Any, value: Any) -> bool:
    """Equal, and written the same: 1 and 1.0 are equal, and still the value as sent is kept."""
    kind = type(value)
    return kind is type(current) and kind is not dict and kind is not list and current == value


def _inside(place: Place) -> str:
    if place.container is None:
        return ""
    return f"{place.pointer}{join((str(place.key),))}"


def add(left: float, right: float) -> int | float:
    """Add as IEEE doubles do, so that every client comes to the same sum."""
    if type(left) is int and type(right) is int and abs(left + right) <= _EXACT:
        return left + right
    total = float(left) + float(right)
    return int(total) if math.isfinite(total) and total.is_integer() else total


def _refused(code: str, path: Path, message: str) -> ChangeRefused:
    return ChangeRefused(message, code=code, path=join(path))
