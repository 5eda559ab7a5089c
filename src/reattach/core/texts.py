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
    edits: list[Edit]
    whole: bool
    first: int
    """The version of the first of them, where those of several were put together."""


Ahead = list[Step]
"""What lies between the text as an author saw it and the text that stands, in order."""


class _View:
    """How far a client's view has been followed."""

    __slots__ = ("ahead", "base", "done")

    def __init__(self) -> None:
        self.ahead: Ahead = []
        self.base = 0
        self.done = 0
        """How many entries have been taken into account."""


class History:
    """The commits that changed one text, oldest first, from version ``floor`` on."""

    __slots__ = ("entries", "floor", "met", "text", "views")

    def __init__(self, floor: int, text: str) -> None:
        self.floor = floor
        self.text = text
        """The text after the last of them; empty where there is none."""
        self.entries: list[Entry] = []
        self.views: dict[str, _View] = {}
        self.met: tuple[str | None, int, Between | None] = (None, 0, None)
        """By what the last commit was merged, and its author and base: who types on over a text
        that was replaced has every key stroke merged.
        """

    def between(self, client: str | None, base: int) -> Between | None:
        """Return what a client's change is to be merged by, where that is at hand."""
        author, seen, between = self.met
        return between if client is not None and (author, seen) == (client, base) else None

    def append(self, entry: Entry, text: str, undo: Undo) -> None:
        """Add a commit, which made the text ``text``."""
        undo.append((self._drop, (self.text,)))
        self.entries.append(entry)
        self.text = text
        self.met = (None, 0, None)

    def _drop(self, text: str) -> None:
        self.entries.pop()
        self.text = text
        self.met = (None, 0, None)
        self.views.clear()

    def ahead(self, client: str | None, base: int, *, own: bool = False) -> Ahead | None:
        """Return what a client had not seen; None where that is no longer known.

        ``own``: the client itself wrote the whole text at version ``floor``, so that nothing before
        that lies ahead of what it sent behind it (TX6).
        """
        entries = self.entries
        if not entries or entries[-1].version <= base:
            return []
        if client is None:
            if base < self.floor:
                return None
            return [_step(one) for one in entries[self.after(base) :]]
        if self._had_seen_more(client, base):
            return None
        view = self.views.get(client)
        if view is None or not self._goes_on(view, base):
            start = self._start(client, base)
            if start < self.floor:
                if not own and not self._covered(client, base):
                    return None
                start = self.floor
            view = self.views[client] = _View()
            view.done = self.after(start)
        new = entries[view.done :]
        seen = sorted({base, *(entry.base for entry in new if entry.client == client)})
        for entry in new:
            if entry.client == client:
                _pass(view.ahead, entry)
            elif not _goes_on_typing(view.ahead, entry, seen):
                view.ahead.append(_step(entry))
        view.done = len(entries)
        view.base = base
        _forget(view.ahead, base)
        return [Step(one.version, list(one.edits), one.whole, one.first) for one in view.ahead]

    def _had_seen_more(self, client: str, base: int) -> bool:
        """Whether a client had seen more than ``base`` when it made its newest edit above that.

        So it is where history was lost, and what can be made anew was made over what there is now.
        """
        for entry in reversed(self.entries):
            if entry.version <= base:
                return False
            if entry.client == client:
                return entry.base > base
        return False

    def _covered(self, client: str, base: int) -> bool:
        """Whether the first that a client did to the text above ``base`` was to write it whole:
        then nothing that came before that lies ahead of what it sent behind it (TX6).
        """
        mine = (one for one in self.entries[self.after(base) :] if one.client == client)
        first = next(mine, None)
        return first is not None and first.sent is None

    def _goes_on(self, view: _View, base: int) -> bool:
        """Whether a view can be followed on from where it is to a base."""
        if base < view.base or view.done > len(self.entries):
            return False
        # Steps that were put together cannot be seen in part.
        return not any(one.first <= base < one.version for one in view.ahead)

    def after(self, version: int) -> int:
        """Return how many entries are of ``version`` or older."""
        return bisect_right(self.entries, version, key=lambda entry: entry.version)

    def _start(self, client: str, base: int) -> int:
        """Return the newest version at or below ``base`` at which nothing of a client's was under
        way: from there its view can be followed.
        """
        entries = self.entries
        start = base
        lowest = len(entries)
        while (first := self.after(start)) < lowest:
            for entry in entries[first:lowest]:
                # A whole text covers what came before it, whatever its author had seen (TX6).
                if entry.client == client and entry.sent is not None:
                    start = min(start, entry.base)
            lowest = first
        return start


def _step(entry: Entry) -> Step:
    return Step(entry.version, list(entry.done), entry.whole, entry.version)


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
    last.edits[-1] = Edit(before.pos, len(text), text, True)
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
        ahead.append(Step(entry.version, list(entry.fix), True, entry.version))


def _forget(ahead: Ahead, base: int) -> None:
    seen = 0
    while seen < len(ahead) and ahead[seen].version <= base:
        seen += 1
    del ahead[:seen]


class _Node:
    __slots__ = ("children", "history")

    def __init__(self) -> None:
        self.history: History | None = None
        self.children: dict[str, _Node] = {}


class Texts:
    """The histories of a session's texts, by their operation paths."""

    def __init__(self) -> None:
        self._root = _Node()
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
        self.weight += entry.weight
        history.append(entry, text, undo)

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

    def prune(self, most: int) -> None:
        """Forget the oldest commits where all together weigh more than ``most`` bytes, down to half
        of that. Not undone.
        """
        if self.weight <= most:
            return
        histories = [history for _, history in self.under(())]
        entries = sorted(
            ((entry.version, entry.weight) for history in histories for entry in history.entries),
            reverse=True,
        )
        kept = 0
        floor = 0
        for version, weight in entries:
            if kept + weight > most // 2:
                floor = version
                break
            kept += weight
        self.weight = 0
        for history in histories:
            del history.entries[: history.after(floor)]
            history.floor = max(history.floor, floor)
            history.views.clear()
            self.weight += sum(entry.weight for entry in history.entries)
        self._clear(self._root)

    def _clear(self, node: _Node) -> None:
        for token, child in list(node.children.items()):
            self._clear(child)
            if child.history is not None and not child.history.entries:
                child.history = None
            if child.history is None and not child.children:
                del node.children[token]

    def dump(self) -> list[Any]:
        """Return the histories as JSON, for `load`; client ids are written once."""
        clients: dict[str | None, int] = {}
        rows = [
            [
                join(path),
                history.floor,
                [
                    [entry.version, clients.setdefault(entry.client, len(clients)), *_pack(entry)]
                    for entry in history.entries
                ],
            ]
            for path, history in self.under(())
            if history.entries
        ]
        return [list(clients), rows]

    def load(self, dumped: Sequence[Any], document: Document) -> None:
        """Take in what `dump` wrote beside the state in ``document``."""
        if not dumped:
            return
        clients, rows = dumped
        undo: Undo = []
        for pointer, floor, entries in rows:
            path = parse(pointer)
            text = document.read(path)
            history = self.begin(path, floor, text if type(text) is str else "", undo)
            for version, client, *packed in entries:
                entry = _unpack(version, clients[client], packed)
                self.append(history, entry, history.text, undo)
        undo.clear()

    def log_row(self, history: History, entry: Entry, before: str) -> list[Any]:
        """Return what the log must tell of a commit for `replay`, beside its patch."""
        plainly = entry.whole and entry.sent is None and not entry.fix and entry.client is not None
        row: list[Any] = [entry.base] if plainly else _pack(entry)
        if entry.client is None:
            # Nobody's own, whoever's the commit is.
            row = [*row[:3], pack(entry.fix), entry.whole, None]
        if len(history.entries) == 1:
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
    same = entry.sent is not None and pack(entry.sent) == pack(entry.done)
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
