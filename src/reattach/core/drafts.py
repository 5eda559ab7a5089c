"""What one change does to texts: splices find their place, and the books say what was done.

A draft is one text as the change's author shows it. Between it and the text that stands lies what
the author had not seen (`reattach.core.texts.Ahead`); a splice is carried over that. Where the text
was replaced meanwhile, it is merged three ways from the text that the author had.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reattach.core.document import ABSENT, element_id
from reattach.core.index import Undo
from reattach.core.paths import Path
from reattach.core.text import Between, Edit, apply, carry, fill, plain, undo
from reattach.core.texts import Ahead, Entry, History, Step, Texts

__all__ = ["Draft", "Drafts", "text_of"]


def text_of(value: Any) -> str:
    """Read a value as a text: what is none, or not there, is the empty one."""
    return value if type(value) is str else ""


class Draft:
    """One text in a change. ``before`` is what stood before the change."""

    def __init__(
        self, history: History, before: str, ahead: Ahead, between: Between | None = None
    ) -> None:
        self.history = history
        self.before = before
        self._between = copy.copy(between)
        """A copy, since the change may yet be refused."""
        self.ahead = ahead
        """What the author had not seen, through what the change did so far."""
        self.unseen = [one.copy() for one in ahead]
        """The same when the change began."""
        self.sent: list[Edit] | None = []
        """What the author meant, None once the change wrote the whole text."""
        self.done: list[Edit] = []
        self.shown: str | None = None
        """The author's text, where the change wrote the whole of it."""
        self.whole = False
        """Whether the text was changed by more than the splices in ``done``."""
        self.astray = False
        """Whether a splice ended otherwise than its author shows it."""

    def length(self, stands: str) -> int:
        """Return how many code points the author's text has."""
        return len(stands) - sum(
            edit.length if edit.inserts else -edit.length
            for step in self.ahead
            for edit in step.edits
        )

    def author_text(self, stands: str) -> str:
        """Return the text as the author shows it."""
        return undo(stands, [edit for step in self.ahead for edit in step.edits])

    def between(self, stands: str) -> Between:
        """Return what to merge by where the text was replaced; it follows the author's edits."""
        if self._between is None:
            self._between = Between(self.author_text(stands), stands)
        return self._between

    @property
    def merged_by(self) -> Between | None:
        """Return what it was last merged by, if it was."""
        return self._between

    @property
    def replaced(self) -> bool:
        """Whether what the author had not seen replaced the text."""
        return any(step.whole for step in self.ahead)

    def splice(
        self, stands: str, mine: Sequence[Edit], version: int
    ) -> tuple[list[Edit], str, bool]:
        """Return what a splice does to the text that stands, that text after it, and whether the
        splice could be placed.
        """
        between = self.between(stands) if self.replaced else None
        moved, placed = self._mean(mine), True
        if between is not None:
            merged, placed = between.merge(stands, mine)
            self._stray(plain(apply(stands, moved), apply(stands, merged)), version)
            moved = merged
        done, result = fill(stands, moved)
        self.done += done
        return done, result, placed

    def lose(self, mine: Sequence[Edit], version: int) -> None:
        """Note a splice that has no place at all, since no text stands there."""
        self._between = None
        self._stray(plain(apply("", self._mean(mine)), ""), version)

    def rewrite(self, shown: str, between: Between | None) -> None:
        """Note that the author wrote the text as a whole, ``shown``."""
        self.sent, self.shown = None, shown
        self.ahead = []
        self._between = between

    def _mean(self, mine: Sequence[Edit]) -> list[Edit]:
        """Note what the author meant; return it as carried to what stands."""
        if self.sent is not None:
            self.sent += mine
        if self.shown is not None:
            self.shown = apply(self.shown, mine)
        return _through(self.ahead, mine)

    def _stray(self, fix: Sequence[Edit], version: int) -> None:
        if fix:
            self.astray = True
            self.ahead.append(Step(version, list(fix), True, version))

    def entry(self, version: int, client: str | None, base: int, after: str) -> Entry:
        """Return what goes into the books when the change has made the text ``after``."""
        shown = self.shown
        if self.sent is not None and (self.astray or self.whole):
            shown = apply(self.before, _through(self.unseen, self.sent))
        return Entry(
            version,
            client,
            base,
            self.sent,
            plain(self.before, after) if self.whole else self.done,
            [] if shown is None else plain(shown, after),
            self.whole,
        )


def _through(ahead: Ahead, mine: Sequence[Edit]) -> list[Edit]:
    moved = list(mine)
    for step in ahead:
        step.edits, moved = carry(step.edits, moved)
    return moved


class Drafts:
    """The texts that one change touches.

    ``look`` reads what stands at a path, ``since`` says since which version nobody wrote there,
    ``replaced`` whether a client's own whole write made a version.
    """

    def __init__(
        self,
        texts: Texts,
        client: str | None,
        base: int,
        version: int,
        undo: Undo,
        look: Callable[[Path], Any],
        since: Callable[[Path], int],
        replaced: Callable[[Path, str | None, int], bool],
    ) -> None:
        self._texts = texts
        self._client = client
        self._base = base
        self._version = version
        self._undo = undo
        self._look = look
        self._since = since
        self._replaced = replaced
        self._drafts: dict[Path, Draft] = {}
        self.whole: list[tuple[Path, Any]] = []
        """The paths that the change wrote as a whole, and what stood there before."""

    def open(self, path: Path, stands: str, *, concurrent: bool) -> Draft | None:
        """Return the author's draft of a text that is to be spliced.

        ``concurrent``: another client wrote at or above the path since the author looked. None
        where what was done to the text is no longer known.
        """
        draft = self._drafts.get(path)
        if draft is not None:
            if draft.sent is None and draft.shown is not None and not draft.ahead:
                fix = plain(draft.shown, stands)
                draft.ahead = [Step(self._version, fix, True, self._version)] if fix else []
            return draft
        history = self._texts.find(path)
        if history is None:
            if concurrent:
                return None
            for above, before in self.whole:
                if path[: len(above)] == above:
                    return self._own(path, text_of(_dig(before, path[len(above) :])), stands)
            history = self._begin(path, stands)
        own = self._base < history.floor and self._replaced(path, self._client, history.floor)
        ahead = history.ahead(self._client, self._base, own=own)
        if ahead is None:
            if concurrent:
                return None
            # What came before the books began was the author's own: nobody else has written since.
            history.see(self._client, self._base)
            ahead = []
        between = history.between(self._client, self._base)
        draft = self._drafts[path] = Draft(history, history.text, ahead, between)
        return draft

    def _own(self, path: Path, before: str, stands: str) -> Draft:
        """Return the draft of a text that the change itself wrote, with what is around it."""
        draft = self._drafts[path] = Draft(self._begin(path, before), before, [])
        draft.whole, draft.sent, draft.shown = True, None, stands
        return draft

    def wrote(
        self,
        path: Path,
        value: Any,
        before: Any,
        edits: Sequence[Edit] | None = None,
        between: Between | None = None,
        *,
        stands: bool = True,
    ) -> None:
        """Note that the change writes all that is at a path, whether or not it will stand.

        ``before`` is what stood there; what the author wrote is ``value``, or `ABSENT`. ``edits``
        are what was done to the text there, where the patch tells of it as edits; ``between`` is
        what it was merged by, if it was. Where it is known that it does not stand, books begin for
        every text in it: their author shows another one than there is.
        """
        self.whole.append((path, before))
        if type(before) is str or type(value) is str:
            self._begin(path, text_of(before))
        if not stands:
            for at, text in _texts_in(path, value):
                there = text_of(self._look(at))
                if there != text:
                    self._begin(at, there)
        for draft, at in self._all(path):
            if edits is None:
                draft.whole = True
            else:
                draft.done += edits
            draft.rewrite(text_of(_dig(value, at[len(path) :])), between)

    def unseen(self) -> None:
        """What the change does to texts comes to its author, too, as if others had done it."""
        self._client = None

    def touched(self, path: Path) -> None:
        """Note that a server's edit is about to change what is at or below a path."""
        before = self._look(path)
        self.whole.append((path, before))
        if type(before) is str:
            self._begin(path, before)
        for draft, _ in self._all(path):
            draft.whole = True
            draft.sent = None

    def rename(self, old: Path, new: Path) -> None:
        """Have what is known of the texts at one path at another."""
        self._texts.rename(old, new, self._undo)

    def _begin(self, path: Path, text: str) -> History:
        return self._texts.begin(path, self._since(path), text, self._undo)

    def _all(self, path: Path) -> list[tuple[Draft, Path]]:
        """Return the drafts of all texts at or below a path."""
        found: list[tuple[Draft, Path]] = []
        for at, history in self._texts.under(path):
            draft = self._drafts.get(at)
            if draft is None:
                draft = self._drafts[at] = Draft(history, history.text, [])
            found.append((draft, at))
        return found

    def finish(self) -> list[tuple[Path, list[Any]]]:
        """Enter what the change did into the books; return what the log must tell of each text."""
        rows: list[tuple[Path, list[Any]]] = []
        for path, draft in self._drafts.items():
            history = draft.history
            after = text_of(self._look(path))
            entry = draft.entry(self._version, self._client, self._base, after)
            if not history.last and not entry.sent and not entry.done and not entry.fix:
                continue
            self._texts.append(history, entry, after, self._undo)
            history.met = self._client, self._base, draft.merged_by
            rows.append((path, self._texts.log_row(history, entry, draft.before)))
        return rows


def _texts_in(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    """Go through the texts in a value that lies at an operation path."""
    if type(value) is str:
        yield path, value
    elif type(value) is dict:
        for key, item in value.items():
            yield from _texts_in((*path, key), item)
    elif type(value) is list:
        for item in value:
            found = element_id(item)
            if found is not None:
                yield from _texts_in((*path, f"#{found}"), item)


def _dig(value: Any, path: Path) -> Any:
    """Return what a value has at an operation path below it, `ABSENT` where that is nothing."""
    for token in path:
        if type(value) is dict:
            value = value.get(token, ABSENT)
        elif type(value) is list and token[:1] == "#":
            value = next(
                (one for one in value if type(one) is dict and one.get("id") == token[1:]), ABSENT
            )
        else:
            return ABSENT
    return value
