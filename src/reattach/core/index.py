"""The last-writer index: who wrote which path last, so that a merge never scans the log.

A trie over operation paths (list elements by ``#id``). Each node holds the newest write of its path
and, where that one only added to what stood (an ``inc``), the newest by somebody else. What a
replacing write covers is forgotten: it cannot be an opponent any more.

A write is concurrent with a change when another client made it above the change's ``base``
(`docs/protocol.md`, section 4). Writes keep the version that their author's clients saw them at
(``version``), and an ``order``, which is newer where a merge put the write back over another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec

from reattach.core.paths import Path, join, parse

__all__ = ["ANONYMOUS", "COMMUTING", "Index", "Kind", "Node", "Undo", "Write"]

Undo: TypeAlias = list[tuple[Callable[..., Any], tuple[Any, ...]]]
"""Calls that take back what was done, to be made in reverse order."""


class Kind:
    """What a write did to its path, as one letter in the log."""

    SET = "s"
    UNSET = "u"
    INSERT = "n"
    INC = "i"
    SPLICE = "t"
    LOOSE = "l"
    """Changed which elements without an id a list has; its path ends with `ANONYMOUS`."""
    SAME = "="
    """Wrote what stood already, without having seen it."""
    MERGED = "m"
    """Was merged with what stood, by a policy that lets both go into the result."""
    RENAME = "r"
    """No write: what lay at one path lies at another since the schema has a new name for it."""
    TEXT = "x"
    """No write: what a commit did to a text, for `reattach.core.texts`."""


COMMUTING = frozenset({Kind.INC, Kind.SPLICE, Kind.LOOSE, Kind.SAME, Kind.MERGED})
"""Kinds that add to what stands and replace nothing."""

_ADDING = COMMUTING - {Kind.SAME}

ANONYMOUS = "-"
"""The token under a list that stands for its elements without an id."""


class Write(msgspec.Struct, frozen=True, gc=False):
    """One write of one path. ``client`` None is the server or plain HTTP: nobody's own."""

    version: int
    client: str | None
    at: int
    kind: str
    order: int


class Node:
    """A path: its newest write, the newest by another client under it, and what lies below."""

    __slots__ = ("children", "last", "newest", "other")

    def __init__(self) -> None:
        self.last: Write | None = None
        self.other: Write | None = None
        self.newest = 0
        """The highest ``order`` of any write at or below this path."""
        self.children: dict[str, Node] | None = None

    def restore(self, last: Write | None, other: Write | None, newest: int) -> None:
        """Take back a `record`."""
        self.last, self.other, self.newest = last, other, newest

    def written_beside(self, client: str | None) -> Write | None:
        """Return the write that somebody else had their part in this path's value by, if any."""
        write = self.last
        if write is not None and write.client == client and client is not None:
            write = self.other if write.kind in _ADDING else None
        return write

    def opponent(self, client: str | None, base: int) -> Write | None:
        """Return the standing write that a replacing write by ``client`` competes with, if any.

        The author's own standing write is none, unless it only added to somebody else's.
        """
        write = self.last
        if write is not None and write.client == client and client is not None:
            adds, write = write.kind in _ADDING, self.other
            if adds and write is not None and write.kind != Kind.MERGED:
                # What stands is not theirs alone: the author has added to it.
                write = msgspec.structs.replace(write, kind=Kind.MERGED)
        return write if write is not None and write.version > base else None


def _newer(one: Node, other: Node) -> bool:
    """Whether the newest write of one path is newer than that of another, if that has any."""
    assert one.last is not None
    return other.last is None or one.last.order > other.last.order


class Index:
    """The writes of one session. Changes append to ``undo`` what takes them back."""

    def __init__(self) -> None:
        self.root = Node()
        self.floor = 0
        """Writes up to this order may have been forgotten, and so count as concurrent."""
        self.floor_at = 0
        """The latest ``at`` of a forgotten write, ms."""
        self._removals = 0
        """How many removals were entered since they were last counted, and those counted then."""

    def record(self, path: Path, write: Write, undo: Undo, *, under: Write | None = None) -> None:
        """Enter a write; one that replaces forgets what lies below it.

        One that only adds keeps the later ``at`` of itself and what it adds to, and the write by
        somebody else that it adds to: ``under``, or else the newest one at or above this path.
        """
        node = self.root
        above: Node | None = None
        order = write.order
        for token in path:
            # Of one order the deeper one was put back over what lies above it.
            if node.last is not None and (above is None or not _newer(above, node)):
                above = node
            if node.newest < order:
                undo.append((node.restore, (node.last, node.other, node.newest)))
                node.newest = order
            children = node.children
            if children is None:
                node.children = children = {}
                undo.append((setattr, (node, "children", None)))
            child = children.get(token)
            if child is None:
                children[token] = child = Node()
                undo.append((children.pop, (token,)))
            node = child
        last = node.last
        undo.append((node.restore, (last, node.other, node.newest)))
        if write.kind in COMMUTING:
            # One that a merge put back did not add to what it was put back over.
            fresh = write.version == order
            if under is None and fresh and above is not None and _newer(above, node):
                under = above.written_beside(write.client)
            if under is None and last is not None:
                if last.client != write.client or write.client is None:
                    under = last
                elif last.at > write.at:
                    write = msgspec.structs.replace(write, at=last.at)
            if under is not None:
                node.other = under
                if under.at > write.at:
                    write = msgspec.structs.replace(write, at=under.at)
        else:
            self._removals += write.kind == Kind.UNSET
            node.other = None
            if node.children:
                undo.append((setattr, (node, "children", node.children)))
                node.children = None
        node.last = write
        node.newest = max(node.newest, order)

    def meets(self, path: Path, client: str | None, base: int) -> tuple[Write, int] | None:
        """Return the opponent of a replacing write at ``path``: the newest at or above it, if
        that one is concurrent and not the author's own; and how many tokens its path has.
        """
        node = self.root
        newest = node if node.last is not None else None
        depth = 0
        for at, token in enumerate(path, 1):
            child = node.children.get(token) if node.children is not None else None
            if child is None:
                break
            node = child
            last = node.last
            if last is not None and (
                newest is None or newest.last is None or last.order >= newest.last.order
            ):
                newest, depth = node, at
        write = self._forgotten(base) if newest is None else newest.opponent(client, base)
        return None if write is None else (write, depth if newest is not None else len(path))

    def covered(self, path: Path, client: str | None, base: int) -> Write | None:
        """Return the newest concurrent write by another client at or above ``path``, whoever's
        stands: what took away the ground that an operation stood on.
        """
        found = self._forgotten(base)
        node = self.root
        for token in (None, *path):
            if token is not None:
                child = node.children.get(token) if node.children is not None else None
                if child is None:
                    break
                node = child
            for write in (node.last, node.other):
                if (
                    write is not None
                    and write.version > base
                    and (write.client != client or client is None)
                    and (found is None or write.order >= found.order)
                ):
                    found = write
        return found

    def rename(self, old: Path, new: Path, undo: Undo) -> None:
        """Have the writes at and below ``old`` at ``new``, which differs in its last token.

        ``*`` in the paths stands for any token.
        """
        nodes = [self.root]
        for token in old[:-1]:
            nodes = [
                child
                for node in nodes
                for name, child in (node.children or {}).items()
                if token in ("*", name)
            ]
        for node in nodes:
            children = node.children
            if children is not None and old[-1] in children:
                undo.append((setattr, (node, "children", children)))
                node.children = {
                    new[-1] if name == old[-1] else name: child
                    for name, child in children.items()
                    if name != new[-1]
                }

    def since(self, path: Path) -> int:
        """Return the version since which nobody wrote at or above a path, as far as is known."""
        node = self.root
        newest = self.floor if node.last is None else node.last.order
        for token in path:
            child = node.children.get(token) if node.children is not None else None
            if child is None:
                break
            node = child
            if node.last is not None:
                newest = max(newest, node.last.order)
        return newest

    def replaced(self, path: Path, client: str | None, order: int) -> bool:
        """Return whether a client's own whole write at or above a path made ``order``."""
        node = self.root
        for token in (None, *path):
            if token is not None:
                child = node.children.get(token) if node.children is not None else None
                if child is None:
                    return False
                node = child
            last = node.last
            if last is not None and last.order == order:
                return client is not None and last.client == client and last.kind not in COMMUTING
        return False

    def find(self, path: Path) -> Node | None:
        """Return the node of a path, None where neither it nor anything below was written."""
        node = self.root
        for token in path:
            child = node.children.get(token) if node.children is not None else None
            if child is None:
                return None
            node = child
        return node

    def _forgotten(self, base: int) -> Write | None:
        if base >= self.floor:
            return None
        return Write(self.floor, None, self.floor_at, Kind.SET, self.floor)

    def prune(self, floor: int) -> None:
        """Forget every write up to ``floor`` (an order). Not undone."""
        self.floor = max(self.floor, floor)
        self._prune(self.root, floor)

    def expire(self, most: int) -> None:
        """Forget the oldest where there may be more than ``most`` removals, down to half of that.
        Not undone.

        All other writes are of what is there, and few where that is little.
        """
        if self._removals <= most:
            return
        orders = sorted(
            node.last.order
            for _, node in self
            if node.last is not None and node.last.kind == Kind.UNSET
        )
        kept = most // 2
        if len(orders) > kept:
            self.prune(orders[-kept - 1])
        self._removals = min(len(orders), kept)

    def _prune(self, node: Node, floor: int) -> None:
        if node.last is not None and node.last.order <= floor:
            self.floor_at = max(self.floor_at, node.last.at)
            node.last = node.other = None
        if node.children is not None:
            for token, child in list(node.children.items()):
                self._prune(child, floor)
                if child.last is None and not child.children:
                    del node.children[token]

    def __iter__(self) -> Iterator[tuple[Path, Node]]:
        """Go through every path with a write, a parent before its children."""
        stack: list[tuple[Path, Node]] = [((), self.root)]
        while stack:
            path, node = stack.pop()
            if node.last is not None:
                yield path, node
            if node.children is not None:
                stack.extend(((*path, token), child) for token, child in node.children.items())

    def clients(self) -> set[str]:
        """Return everybody whose write is remembered."""
        writes = (write for _, node in self for write in (node.last, node.other))
        return {write.client for write in writes if write is not None and write.client is not None}

    def dump(self) -> bytes:
        """Return the index as JSON bytes, for `load`; client ids are written once."""
        clients: dict[str | None, int] = {}
        rows = [
            [join(path), *_pack(node.last, clients), *(_pack(node.other, clients))]
            for path, node in self
        ]
        return msgspec.json.encode([self.floor, self.floor_at, list(clients), rows])

    @classmethod
    def load(cls, data: bytes) -> Index:
        """Build the index that `dump` wrote."""
        index = cls()
        index.floor, index.floor_at, clients, rows = msgspec.json.decode(data)
        for pointer, *packed in rows:
            last = _unpack(packed[:5], clients)
            node = index.root
            node.newest = max(node.newest, last.order)
            for token in parse(pointer):
                if node.children is None:
                    node.children = {}
                child = node.children.get(token)
                if child is None:
                    child = node.children[token] = Node()
                node = child
                node.newest = max(node.newest, last.order)
            node.last = last
            node.other = _unpack(packed[5:], clients) if len(packed) > 5 else None
            index._removals += last.kind == Kind.UNSET
        return index


def _pack(write: Write | None, clients: dict[str | None, int]) -> list[Any]:
    if write is None:
        return []
    client = clients.setdefault(write.client, len(clients))
    return [write.version, client, write.at, write.kind, write.order]


def _unpack(packed: list[Any], clients: list[str | None]) -> Write:
    version, client, at, kind, order = packed
    return Write(version, clients[client], at, kind, order)
