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

from reattach.core.document import ABSENT, Absent, Document, Place, element_id
from reattach.core.index import ANONYMOUS, Index, Kind, Node, Write
from reattach.core.paths import Path, join, parse
from reattach.core.values import JSON, check, equal
from reattach.errors import ChangeRefused
from reattach.wire import Op

__all__ = ["Author", "Lost", "Merge", "Side", "replay"]

_EXACT = 2**53


class Author(msgspec.Struct, frozen=True):
    """Who makes a change, what they had seen, and when they acted (ms, corrected)."""

    client: str | None
    base: int
    at: int


class Side(msgspec.Struct, frozen=True):
    """One side of a conflict: a value (encoded, since it may live on) or `ABSENT`, and whose."""

    value: msgspec.Raw | Absent
    client: str | None
    at: int
    version: int


class Lost(msgspec.Struct, frozen=True):
    """A disagreement that a merge settled: what stands at ``path`` and what does not."""

    path: Path
    policy: str
    kept: Side
    lost: Side


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
    ) -> None:
        self.document = document
        self.index = index
        self.author = author
        self.version = version
        self.nesting = nesting
        self.lost: list[Lost] = []
        self.writes: list[list[Any]] = []
        self.failed = False
        """Whether an operation of the author's lost: a change with a ``test`` is then refused."""

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
        opponent = index.meets(path, author.client, author.base)
        if opponent is not None:
            if current is not ABSENT and equal(current, value):
                self.record(path, Kind.SAME, under=opponent)
                return
            if not self._compete(path, opponent, current, value):
                return
        below = self._below(path)
        if current is ABSENT and type(place.container) is list:
            items = place.container
            document.insert(items, len(items), value, place.pointer)
        elif current is ABSENT or below or not _same(current, value):
            document.put(place, value)
        self.record(path, Kind.SET)
        self._settle_below(below)

    def _unset(self, path: Path, op: Op) -> None:
        del op
        if not path:
            raise _refused("bad_path", path, "the whole state cannot be removed: set it to {}")
        place = self._locate(path)
        if place is None:
            return
        self._keep_id(path, ABSENT)
        opponent = self.index.meets(path, self.author.client, self.author.base)
        if place.value is ABSENT:
            if opponent is not None:
                self.record(path, Kind.SAME, under=opponent)
            return
        if opponent is not None and not self._compete(path, opponent, place.value, ABSENT):
            return
        below = self._below(path)
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
        if place is None or type(items) is not list:
            self._ground_gone(target, path, items, value, "a list")
            return
        if found is not None and document.find(items, found) != -1:
            self.set(target, value)
            return
        # Elements without ids commute among themselves: only their list can be an opponent.
        opponent = index.meets(path if found is None else target, author.client, author.base)
        if opponent is not None and not self._arrives(target, opponent, value):
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
            self._parent_gone(path, by)
            return
        current = 0 if place.value is ABSENT else place.value
        if place.value is ABSENT and type(place.container) is list:
            self._ground_gone(path, path, ABSENT, by, "an element")
            return
        if type(current) is not int and type(current) is not float:
            self._ground_gone(path, path, current, by, "a number")
            return
        total = _add(current, by)
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
        place = self._locate(path)
        if self.index.covered(path, self.author.client, self.author.base) is not None:
            raise _refused(
                "concurrent_splice",
                path,
                "another client wrote this text meanwhile: read it and send the edit anew",
            )
        if place is None:
            raise _refused("bad_path", path, "expected a path whose parent exists")
        text = "" if place.value is ABSENT else place.value
        if type(text) is not str or type(place.container) is list:
            raise _refused("not_a_string", path, "expected the path of a string")
        if index + delete > len(text):
            raise _refused(
                "bad_range",
                path,
                f"expected positions within the {len(text)} code points of the text,"
                f" got {index} to {index + delete}",
            )
        result = f"{text[:index]}{insert}{text[index + delete :]}"
        self._keep_id(path, result)
        self.document.splice(place, index, delete, insert)
        self.record(path, Kind.SPLICE)

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

    def _compete(self, path: Path, opponent: Write, current: Any, value: Any) -> bool:
        """Settle two concurrent values of one path; return whether the incoming one stands."""
        author = self.author
        mine, theirs = self._mine(value), _theirs(current, opponent)
        if author.at >= opponent.at:
            self.lost.append(Lost(path, "latest", mine, theirs))
            return True
        self.failed = True
        self.lost.append(Lost(path, "latest", theirs, mine))
        return False

    def _arrives(self, path: Path, opponent: Write, value: JSON) -> bool:
        """Settle whether a new element stands against a concurrent write of its list, or of
        itself; a list that was set without having seen the element did not say that it be gone.
        """
        author = self.author
        mine, theirs = self._mine(value), _theirs(ABSENT, opponent)
        if author.at >= opponent.at:
            node = self.index.find(path)
            if node is not None and node.last is opponent:
                self.lost.append(Lost(path, "latest", mine, theirs))
            return True
        self.failed = True
        self.lost.append(Lost(path, "latest", theirs, mine))
        return False

    def _parent_gone(self, path: Path, value: JSON) -> None:
        """A write whose parent does not exist: a conflict if it was taken away concurrently."""
        self._ground_gone(path, path[:-1], ABSENT, value, "a parent that exists")

    def _ground_gone(
        self, path: Path, ground: Path, current: Any, value: JSON, expected: str
    ) -> None:
        author = self.author
        taker = self.index.covered(ground, author.client, author.base)
        if taker is None:
            code = {"a list": "not_a_list", "a number": "not_a_number"}.get(expected, "bad_path")
            raise _refused(code, path, f"expected {expected} at {join(ground)!r}")
        self.failed = True
        kept = _theirs(current if path == ground else ABSENT, taker)
        self.lost.append(Lost(path, "latest", kept, self._mine(value)))

    def _below(self, path: Path) -> Sequence[_Below]:
        """Find the concurrent writes below a path, parents first, with what stands there."""
        node = self.index.find(path)
        base = self.author.base
        if node is None or not node.children or node.newest <= base:
            return ()
        return [
            _Below(at, found, write, *self._standing(at))
            for at, found, write in self._concurrent(path, node)
        ]

    def _concurrent(self, path: Path, node: Node) -> Iterator[tuple[Path, Node, Write]]:
        author = self.author
        for token, child in (node.children or {}).items():
            if child.newest <= author.base:
                continue
            at = (*path, token)
            write = child.opponent(author.client, author.base)
            if write is not None:
                yield at, child, write
            yield from self._concurrent(at, child)

    def _standing(self, path: Path) -> tuple[Any, bool]:
        if path[-1] == ANONYMOUS:
            place = self._reach(path[:-1])
            if place is not None and type(place.value) is list:
                return list(place.value), True
        place = self._reach(path)
        return (ABSENT if place is None else place.value), False

    def _locate(self, path: Path) -> Place | None:
        """Find an operation's place; None also where a concurrent write made its path senseless."""
        try:
            return self.document.locate(path)
        except ChangeRefused:
            if self.index.covered(path[:-1], self.author.client, self.author.base) is None:
                raise
            return None

    def _reach(self, path: Path) -> Place | None:
        try:
            return self.document.locate(path)
        except ChangeRefused:
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
            spot = None if one.anonymous else self._reach(one.path)
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
                packed = [write.version, write.client, write.at]
                self.writes.append([write.kind, join(one.path), packed])
                again = msgspec.structs.replace(write, order=self.version)
                self.index.record(one.path, again, self.document.undo)

    # Helpers

    def _mine(self, value: Any) -> Side:
        return Side(_frozen(value), self.author.client, self.author.at, self.version)

    def record(self, path: Path, kind: str, under: Write | None = None) -> None:
        """Enter the author's write of a path, in the index and for the log."""
        author = self.author
        row: list[Any] = [kind, join(path)]
        if under is not None:
            row += [None, [under.version, under.client, under.at, under.kind, under.order]]
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


def replay(index: Index, writes: Sequence[Sequence[Any]], write: Write) -> None:
    """Enter a logged commit's ``writes`` as `Merge` did; ``write`` is its author's, of any kind."""
    undo: list[Any] = []
    for kind, pointer, *more in writes:
        own = more[0] if more else None
        under = more[1] if len(more) > 1 else None
        if own is None:
            entry = Write(write.version, write.client, write.at, kind, write.version)
        else:
            entry = Write(own[0], own[1], own[2], kind, write.version)
        index.record(parse(pointer), entry, undo, under=Write(*under) if under else None)
        undo.clear()


def _theirs(value: Any, write: Write) -> Side:
    return Side(_frozen(value), write.client, write.at, write.version)


def _frozen(value: Any) -> msgspec.Raw | Absent:
    return ABSENT if value is ABSENT else msgspec.Raw(msgspec.json.encode(value))


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


def _add(left: float, right: float) -> int | float:
    """Add as IEEE doubles do, so that every client comes to the same sum."""
    if type(left) is int and type(right) is int and abs(left + right) <= _EXACT:
        return left + right
    total = float(left) + float(right)
    return int(total) if math.isfinite(total) and total.is_integer() else total


def _refused(code: str, path: Path, message: str) -> ChangeRefused:
    return ChangeRefused(message, code=code, path=join(path))
