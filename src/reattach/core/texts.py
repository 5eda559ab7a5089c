"""What was done to each text, so that a splice finds its place whatever was committed meanwhile.

A text's `History` holds, for each commit that changed it, the edits that were done (as every client
reads them from the commit's patch), and for its author what had been sent. `Texts.ahead` answers
what lies between the text as an author saw it and the text that stands: it follows that author's
view commit by commit, the server's side of Jupiter (see `reattach.core.text`).

How a client reads commits is the protocol's (`docs/protocol.md`, section 4, rules TX1 to TX6).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from reattach.core.document import Document
from reattach.core.index import Undo
from reattach.core.paths import Path, join, parse
from reattach.core.text import Between, Edit, carry, pack, plain, unpack

__all__ = ["Ahead", "Entry", "History", "Step", "Texts"]

_ENTRY_BYTES = 48
"""What an entry weighs in a saved state beside its texts, about."""
_SEALED = 32
"""How many entries are encoded together, and decoded together when they are asked for."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What one commit did to one text.

    ``sent`` is what its author meant, made over ``base``, None where the author wrote the whole
    text; ``done`` what became of the text; ``fix`` what lies between the text as the author then
    showed it and the one that the commit made. ``whole``: ``done`` is a plain edit, because the
    text was replaced.
    """

    version: int
    client: str | None
    base: int
    sent: Sequence[Edit] | None
    done: Sequence[Edit]
    fix: Sequence[Edit]
    whole: bool

    @property
    def weight(self) -> int:
        """Return what it weighs in a saved state, in bytes, about."""
        texts = sum(len(edit.text or "") + 8 for edit in (*self.done, *self.fix))
        return _ENTRY_BYTES + texts + 8 * len(self.sent or ())


class Step(msgspec.Struct, gc=False):
    """Edits that an author had not seen, of the versions up to ``version``."""

    version: int
    edits: Sequence[Edit]
    """Never changed in place: what was handed out has it, too."""
    whole: bool
    first: int
    """The version of the first of them, where those of several were put together."""

    def copy(self) -> Step:
        """Return a step that goes its own way."""
        return Step(self.version, self.edits, self.whole, self.first)


Ahead = list[Step]
"""What lies between the text as an author saw it and the text that stands, in order."""


class _View:
    """How far a client's view has been followed."""

    __slots__ = ("ahead", "base", "done")

    def __init__(self, base: int, done: int, ahead: Ahead) -> None:
        self.ahead = ahead
        self.base = base
        self.done = done
        """How many entries have been taken into account, of all that there ever were."""

    def copy(self) -> _View:
        return _View(self.base, self.done, [step.copy() for step in self.ahead])


class _Chunk(msgspec.Struct, array_like=True, gc=False):
    """Entries that are encoded, and decoded only for who asks for them."""

    first: int
    """The version of the first of them, and of the last."""
    last: int
    count: int
    weight: int
    clients: list[tuple[str | None, int, int]]
    """Their authors, each with the version of the newest of theirs, and its base."""
    rows: msgspec.Raw

    def entries(self) -> list[Entry]:
        """Decode them."""
        rows = msgspec.json.decode(self.rows)
        clients = [client for client, _, _ in self.clients]
        return [_unpack(version, clients[client], row) for version, client, *row in rows]


class _Row(msgspec.Struct, array_like=True, gc=False):
    """A history in a saved state."""

    path: str
    floor: int
    weight: int
    last: int
    chunks: msgspec.Raw


_chunks = msgspec.json.Decoder(list[_Chunk])
_rows = msgspec.json.Decoder(list[_Row])
_flat = msgspec.json.Decoder(tuple[list[str | None], list[tuple[str, int, list[list[Any]]]]])


def _seal(entries: Sequence[Entry]) -> _Chunk:
    clients: dict[str | None, int] = {}
    newest: dict[str | None, Entry] = {}
    rows: list[list[Any]] = []
    for entry in entries:
        newest[entry.client] = entry
        client = clients.setdefault(entry.client, len(clients))
        rows.append([entry.version, client, *_pack(entry)])
    return _Chunk(
        entries[0].version,
        entries[-1].version,
        len(entries),
        sum(entry.weight for entry in entries),
        [(name, newest[name].version, newest[name].base) for name in clients],
        msgspec.Raw(msgspec.json.encode(rows)),
    )


class History:
    """The commits that changed one text, oldest first, from version ``floor`` on.

    The newest are at hand, those before them encoded in chunks, and all of them in one piece as
    long as nobody has asked for any. What a saved state has of them is read and written as it is.
    """

    __slots__ = (
        "_chunks",
        "_count",
        "_first",
        "_followed",
        "_lost",
        "_newest",
        "_open",
        "_packed",
        "_read",
        "_tail",
        "floor",
        "last",
        "met",
        "text",
        "views",
        "weight",
    )

    def __init__(self, floor: int, text: str) -> None:
        self.floor = floor
        self.text = text
        """The text after the last of them; empty where there is none."""
        self.last = 0
        """The version of the last of them, 0 where there is none."""
        self.weight = 0
        """What they weigh in a saved state, in bytes, about."""
        self._packed: msgspec.Raw | None = None
        self._chunks: list[_Chunk] = []
        self._open: list[Entry] = []
        self._tail: _Chunk | None = None
        """The open ones as they were encoded last, where none came since."""
        self._count = 0
        """How many there ever were. Which number one has does not change when others go."""
        self._first = 0
        """How many have been forgotten."""
        self._read: dict[int, list[Entry]] = {}
        """The chunks that were decoded, by the version of their last."""
        self.views: dict[str, _View] = {}
        self._followed: dict[str, _View | None] = {}
        """The views that the batch in flight has followed on, as they were before it."""
        self._newest: dict[str | None, tuple[int, int] | None] = {}
        """The newest of a client's, by its version and its base, where it was looked for."""
        self._lost: dict[str, int] = {}
        """Clients with a base from which nothing of their view is known."""
        self.met: tuple[str | None, int, Between | None] = (None, 0, None)
        """By what the last commit was merged, and its author and base: who types on over a text
        that was replaced has every key stroke merged.
        """

    def between(self, client: str | None, base: int) -> Between | None:
        """Return what a client's change is to be merged by, where that is at hand."""
        author, seen, between = self.met
        return between if client is not None and (author, seen) == (client, base) else None

    # Its entries

    @property
    def size(self) -> int:
        """Return how many commits are remembered."""
        self._unfold()
        return self._count - self._first

    def append(self, entry: Entry, text: str, undo: Undo) -> int:
        """Add a commit, which made the text ``text``; return what it weighs."""
        self._unfold()
        undo.append((self._drop, (self.text, self.last, self.weight)))
        weight = entry.weight
        self.weight += weight
        self._open.append(entry)
        self._tail = None
        self._count += 1
        self.last = entry.version
        self._newest[entry.client] = entry.version, entry.base
        if entry.sent is None and entry.client is not None:
            self._lost.pop(entry.client, None)
        self.text = text
        self.met = (None, 0, None)
        return weight

    def _drop(self, text: str, last: int, weight: int) -> None:
        self._open.pop()
        self._tail = None
        self._count -= 1
        self.text, self.last, self.weight = text, last, weight
        self.met = (None, 0, None)
        for client, view in self._followed.items():
            if view is None:
                self.views.pop(client, None)
            else:
                self.views[client] = view
        self._followed.clear()
        self._lost.clear()
        self._newest = {one.client: (one.version, one.base) for one in self._open}

    def settle(self) -> None:
        """Note that the commits so far are durable: none of them will be dropped."""
        self._followed.clear()
        while len(self._open) >= _SEALED:
            self._chunks.append(_seal(self._open[:_SEALED]))
            del self._open[:_SEALED]
            self._tail = None

    def _unfold(self) -> None:
        """Find the parts of what a saved state had of it."""
        if self._packed is None:
            return
        self._chunks = _chunks.decode(self._packed)
        self._packed = None
        self._count = sum(chunk.count for chunk in self._chunks)
        if self._chunks[-1].count < _SEALED:
            self._tail = self._chunks.pop()
            self._open = self._tail.entries()
            self._newest = {one.client: (one.version, one.base) for one in self._open}

    def after(self, version: int) -> int:
        """Return the number of the first entry that is newer than ``version``."""
        self._unfold()
        begun = self._count - len(self._open)
        if not self._chunks or version >= self._chunks[-1].last:
            return begun + bisect_right(self._open, version, key=_version)
        number = self._first
        for chunk in self._chunks:
            if chunk.last > version:
                break
            number += chunk.count
        if chunk.first > version:
            return number
        return number + bisect_right(self._entries(chunk), version, key=_version)

    def since(self, version: int) -> list[Entry]:
        """Return the entries that are newer than ``version``."""
        return self._slice(self.after(version), self._count)

    def _slice(self, start: int, end: int) -> list[Entry]:
        """Return the entries from one number up to another."""
        at = self._count - len(self._open)
        found = self._open[max(start - at, 0) : max(end - at, 0)]
        parts = [found]
        for chunk in reversed(self._chunks):
            if at <= start:
                break
            at -= chunk.count
            if at < end:
                parts.append(self._entries(chunk)[max(start - at, 0) : end - at])
        return found if len(parts) == 1 else [one for part in reversed(parts) for one in part]

    def _entries(self, chunk: _Chunk) -> list[Entry]:
        entries = self._read.get(chunk.last)
        if entries is None:
            entries = self._read[chunk.last] = chunk.entries()
        return entries

    def spread(self) -> Iterator[tuple[int, int, int]]:
        """Tell what the entries weigh, in parts: from which version to which, and how much."""
        self._unfold()
        for chunk in self._chunks:
            yield chunk.first, chunk.last, chunk.weight
        for entry in self._open:
            yield entry.version, entry.version, entry.weight

    def forget(self, floor: int) -> None:
        """Forget the entries up to version ``floor``. Views that were followed beyond them go on.
        Not undone.
        """
        first = self.after(floor)
        number = self._first
        kept: list[_Chunk] = []
        for chunk in self._chunks:
            if number >= first:
                kept.append(chunk)
            elif number + chunk.count > first:
                kept.append(_seal(self._entries(chunk)[first - number :]))
            number += chunk.count
        if first > number:
            del self._open[: first - number]
            self._tail = None
        self._chunks, self._first = kept, first
        if first == self._count:
            self.last = 0
        self.weight = sum(weight for _, _, weight in self.spread())
        self.floor = max(self.floor, floor)
        self._read.clear()
        self._newest = {one.client: (one.version, one.base) for one in self._open}
        self._lost.clear()
        self.views = {client: view for client, view in self.views.items() if view.done >= first}

    def dump(self) -> msgspec.Raw:
        """Return the entries as JSON, for `load`."""
        if self._packed is not None:
            return self._packed
        self._read.clear()
        if self._open and self._tail is None:
            self._tail = _seal(self._open)
        parts = self._chunks if self._tail is None else [*self._chunks, self._tail]
        return msgspec.Raw(msgspec.json.encode(parts))

    def load(self, packed: msgspec.Raw, last: int, weight: int) -> None:
        """Have the entries that `dump` wrote, the last of version ``last``."""
        self._packed, self.last, self.weight = packed, last, weight

    # Who sees what

    def ahead(self, client: str | None, base: int, *, own: bool = False) -> Ahead | None:
        """Return what a client had not seen; None where that is no longer known.

        ``own``: the client itself wrote the whole text at version ``floor``, so that nothing before
        that lies ahead of what it sent behind it (TX6).
        """
        if self.last <= base:
            return []
        self._unfold()
        if client is None:
            return None if base < self.floor else [_step(one) for one in self.since(base)]
        if self._had_seen_more(client, base):
            return None
        view = self.views.get(client)
        if view is None or not self._goes_on(view, base):
            view = self._begin(client, base, own=own)
            if view is None:
                return None
        if client not in self._followed:
            self._followed[client] = view.copy() if client in self.views else None
        self.views[client] = view
        self._follow(view, client, base)
        return [one.copy() for one in view.ahead]

    def see(self, client: str | None, base: int) -> None:
        """Have a client's view begin with the text that stands: nobody else has written in it since
        version ``base``.
        """
        if client is not None:
            self._unfold()
            self._followed.setdefault(client, self.views.get(client))
            self.views[client] = _View(base, self._count, [])

    def _follow(self, view: _View, client: str, base: int) -> None:
        new = self._slice(view.done, self._count)
        seen = sorted({base, *(entry.base for entry in new if entry.client == client)})
        for entry in new:
            if entry.client == client:
                _pass(view.ahead, entry)
            elif not _goes_on_typing(view.ahead, entry, seen):
                view.ahead.append(_step(entry))
        view.done = self._count
        view.base = base
        _forget(view.ahead, base)

    def _begin(self, client: str, base: int, *, own: bool) -> _View | None:
        """Return a client's view from where it can be followed; None where that is not known."""
        start = base if base < self.floor else self._start(client, base)
        if start < self.floor:
            if not own and not self._covered(client, base):
                return None
            start = self.floor
        return _View(start, self.after(start), [])

    def _had_seen_more(self, client: str, base: int) -> bool:
        """Whether a client had seen more than ``base`` when it made its newest edit above that.

        So it is where history was lost, and what can be made anew was made over what there is now.
        """
        newest = self._latest(client)
        return newest is not None and newest[0] > base and newest[1] > base

    def _latest(self, client: str) -> tuple[int, int] | None:
        """Return the version and the base of a client's newest entry."""
        if client not in self._newest:
            found = (
                (version, base)
                for chunk in reversed(self._chunks)
                for name, version, base in chunk.clients
                if name == client
            )
            self._newest[client] = next(found, None)
        return self._newest[client]

    def _covered(self, client: str, base: int) -> bool:
        """Whether the first that a client did to the text above ``base`` was to write it whole:
        then nothing that came before that lies ahead of what it sent behind it (TX6).
        """
        newest = self._latest(client)
        if newest is None or newest[0] <= base or self._lost.get(client) == base:
            return False
        mine = (one for one in self.since(base) if one.client == client)
        first = next(mine, None)
        covered = first is not None and first.sent is None
        if not covered:
            self._lost[client] = base
        return covered

    def _goes_on(self, view: _View, base: int) -> bool:
        """Whether a view can be followed on from where it is to a base."""
        if base < view.base:
            return False
        # Steps that were put together cannot be seen in part.
        return not any(one.first <= base < one.version for one in view.ahead)

    def _start(self, client: str, base: int) -> int:
        """Return the newest version at or below ``base`` at which nothing of a client's was under
        way: from there its view can be followed.
        """
        start = base
        lowest = self._count
        while (first := self.after(start)) < lowest:
            for entry in self._slice(first, lowest):
                # A whole text covers what came before it, whatever its author had seen (TX6).
                if entry.client == client and entry.sent is not None:
                    start = min(start, entry.base)
            lowest = first
        return start


def _version(entry: Entry) -> int:
    return entry.version


def _step(entry: Entry) -> Step:
    return Step(entry.version, entry.done, entry.whole, entry.version)


def _goes_on_typing(ahead: Ahead, entry: Entry, seen: Sequence[int]) -> bool:
    """Put text that was typed on to the insertion that it goes on from, unless one of the versions
    in ``seen`` lies between them; return whether that was done.
    """
    last = ahead[-1] if ahead else None
    if last is None or len(entry.done) != 1 or not last.edits or entry.whole or last.whole:
        return False
    edit, before = entry.done[0], last.edits[-1]
    if not edit.inserts or not before.inserts or edit.pos != before.pos + before.length:
        return False
    if bisect_left(seen, last.version) < bisect_left(seen, entry.version):
        return False
    text = f"{before.text}{edit.text}"
    last.edits = [*last.edits[:-1], Edit(before.pos, len(text), text, True)]
    last.version = entry.version
    return True


def _pass(ahead: Ahead, entry: Entry) -> None:
    """Take in a commit of the client's own: what it had not seen is seen through that."""
    _forget(ahead, entry.base)
    if entry.sent is None:
        ahead.clear()
    else:
        mine: Sequence[Edit] = entry.sent
        for step in ahead:
            step.edits, mine = carry(step.edits, mine)
    if entry.fix:
        ahead.append(Step(entry.version, entry.fix, True, entry.version))


def _forget(ahead: Ahead, base: int) -> None:
    seen = 0
    while seen < len(ahead) and ahead[seen].version <= base:
        seen += 1
    del ahead[:seen]


def _floor(parts: Sequence[tuple[int, int, int]], most: int) -> int:
    """Return the version behind which parts of a history weigh ``most`` bytes together, about.

    A part is (first version, last version, bytes), and taken for evenly spread.
    """
    low, high = 0, max(last for _, last, _ in parts)
    while low < high:
        middle = (low + high) // 2
        kept = sum(
            weight * (last - max(middle, first - 1)) // (last - first + 1)
            for first, last, weight in parts
            if last > middle
        )
        if kept > most:
            low = middle + 1
        else:
            high = middle
    return low


class _Node:
    __slots__ = ("children", "history")

    def __init__(self) -> None:
        self.history: History | None = None
        self.children: dict[str, _Node] = {}


class Texts:
    """The histories of a session's texts, by their operation paths."""

    def __init__(self) -> None:
        self._root = _Node()
        self._touched: list[History] = []
        """The histories that got longer since the last `settle`."""
        self.weight = 0
        """What they weigh in a saved state, in bytes, about."""

    def find(self, path: Path) -> History | None:
        """Return the history of the text at a path, None where nothing is remembered."""
        node = self._root
        for token in path:
            child = node.children.get(token)
            if child is None:
                return None
            node = child
        return node.history

    def begin(self, path: Path, floor: int, text: str, undo: Undo) -> History:
        """Return the history of a text, begun at version ``floor`` with ``text`` if need be."""
        node = self._root
        for token in path:
            child = node.children.get(token)
            if child is None:
                child = node.children[token] = _Node()
            node = child
        if node.history is None:
            node.history = History(floor, text)
            undo.append((setattr, (node, "history", None)))
        return node.history

    def append(self, history: History, entry: Entry, text: str, undo: Undo) -> None:
        """Add a commit to a history, which made its text ``text``."""
        undo.append((setattr, (self, "weight", self.weight)))
        self.weight += history.append(entry, text, undo)
        self._touched.append(history)

    def rename(self, old: Path, new: Path, undo: Undo) -> None:
        """Have the histories at and below ``old`` at ``new``, which differs in its last token.

        ``*`` in the paths stands for any token.
        """
        nodes = [self._root]
        for token in old[:-1]:
            nodes = [
                child
                for node in nodes
                for name, child in node.children.items()
                if token in ("*", name)
            ]
        for node in nodes:
            children = node.children
            if old[-1] in children:
                undo.append((setattr, (node, "children", children)))
                node.children = {
                    new[-1] if name == old[-1] else name: child
                    for name, child in children.items()
                    if name != new[-1]
                }

    def knows(self, path: Path) -> bool:
        """Say whether there may be histories at or below a path."""
        node = self._root
        for token in path:
            child = node.children.get(token)
            if child is None:
                return False
            node = child
        return node.history is not None or bool(node.children)

    def under(self, path: Path) -> Iterator[tuple[Path, History]]:
        """Go through the histories at and below a path."""
        node = self._root
        for token in path:
            child = node.children.get(token)
            if child is None:
                return
            node = child
        stack = [(path, node)]
        while stack:
            at, node = stack.pop()
            if node.history is not None:
                yield at, node.history
            stack.extend(((*at, token), child) for token, child in node.children.items())

    def settle(self, most: int) -> None:
        """Note that all commits so far are durable; forget the oldest where all together weigh more
        than ``most`` bytes, down to half of that. Not undone.
        """
        for history in self._touched:
            history.settle()
        self._touched.clear()
        if self.weight <= most:
            return
        histories = [history for _, history in self.under(())]
        floor = _floor([part for one in histories for part in one.spread()], most // 2)
        self.weight = 0
        for history in histories:
            history.forget(floor)
            self.weight += history.weight
        self._clear(self._root)

    def _clear(self, node: _Node) -> None:
        for token, child in list(node.children.items()):
            self._clear(child)
            if child.history is not None and not child.history.size:
                child.history = None
            if child.history is None and not child.children:
                del node.children[token]

    def dump(self) -> msgspec.Raw:
        """Return the histories as JSON, for `load`."""
        rows = [
            [join(path), history.floor, history.weight, history.last, history.dump()]
            for path, history in self.under(())
            if history.last
        ]
        return msgspec.Raw(msgspec.json.encode(rows))

    def load(self, dumped: msgspec.Raw, document: Document) -> None:
        """Take in what `dump` wrote beside the state in ``document``."""
        undo: Undo = []
        try:
            rows = _rows.decode(dumped)
        except msgspec.ValidationError:
            self._load_flat(dumped, document)
            return
        for row in rows:
            path = parse(row.path)
            text = document.read(path)
            history = self.begin(path, row.floor, text if type(text) is str else "", undo)
            history.load(row.chunks.copy(), row.last, row.weight)
            self.weight += row.weight
        undo.clear()

    def _load_flat(self, dumped: msgspec.Raw, document: Document) -> None:
        """Take in what was written before entries came in parts; the next `dump` is as now."""
        undo: Undo = []
        clients, rows = _flat.decode(dumped)
        for pointer, floor, entries in rows:
            path = parse(pointer)
            text = document.read(path)
            history = self.begin(path, floor, text if type(text) is str else "", undo)
            for version, client, *packed in entries:
                self.append(history, _unpack(version, clients[client], packed), history.text, undo)
        undo.clear()

    def log_row(self, history: History, entry: Entry, before: str) -> list[Any]:
        """Return what the log must tell of a commit for `replay`, beside its patch."""
        plainly = entry.whole and entry.sent is None and not entry.fix and entry.client is not None
        row: list[Any] = [entry.base] if plainly else _pack(entry)
        if entry.client is None:
            # Nobody's own, whoever's the commit is.
            row = [*row[:3], pack(entry.fix), entry.whole, None]
        if history.size == 1:
            # It begins here: the text before is not known otherwise.
            row = [row, history.floor, before]
        return row

    def replay(
        self, path: Path, version: int, client: str | None, row: list[Any], text: str
    ) -> None:
        """Take in a `log_row` of a commit that made the text at ``path`` what it is now."""
        undo: Undo = []
        floor, before = 0, ""
        if type(row[0]) is list:
            row, floor, before = row
        history = self.begin(path, floor, before, undo)
        if len(row) == 1:
            done = plain(history.text, text)
            entry = Entry(version, client, row[0], None, done, (), True)
        elif len(row) == _NOBODYS:
            entry = _unpack(version, None, row[:-1])
        else:
            entry = _unpack(version, client, row)
        self.append(history, entry, text, undo)
        undo.clear()


_NOBODYS: Final = 6
"""How long the log's row of an entry is that is nobody's own."""


def _pack(entry: Entry) -> list[Any]:
    same = entry.sent is not None and list(entry.sent) == list(entry.done)
    sent = 0 if same else None if entry.sent is None else pack(entry.sent)
    packed: list[Any] = [entry.base, sent, pack(entry.done)]
    if entry.fix or entry.whole:
        packed += [pack(entry.fix), entry.whole]
    return packed


def _unpack(version: int, client: str | None, packed: Sequence[Any]) -> Entry:
    base, sent, done, *more = packed
    edits = unpack(done)
    fix, whole = more or ((), False)
    return Entry(
        version,
        client,
        base,
        edits if sent == 0 else None if sent is None else unpack(sent),
        edits,
        unpack(fix),
        whole,
    )
