"""What this client shows: the state that the server confirmed, and over it the changes that it has
not decided yet.

There is one document, changed in place. The pending changes lie on top of the confirmed state as
steps that can be taken back: a local change is applied to what is shown, and a confirmed one that
ended as expected becomes a part of what is below. Both cost what they touch. When another client's
commit arrives the pending changes are taken off, and applied anew when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from reattach.client.carrying import carried, covers, edits, read, spliced, text
from reattach.client.ops import SERVERS, Operation, own, to_op
from reattach.core.document import Document
from reattach.core.index import Index, Undo, Write
from reattach.core.limits import Limits
from reattach.core.merge import Author, Merge
from reattach.core.patch import step
from reattach.core.paths import Path
from reattach.core.policy import Field
from reattach.core.text import Edit, plain, shift
from reattach.core.texts import Texts
from reattach.core.values import equal
from reattach.errors import ChangeRefused
from reattach.wire import encode

__all__ = ["Cursor", "Misfit", "Patch", "Pending", "Replica"]

Patch = Sequence[Mapping[str, Any]]

_NESTING: Final = Limits().max_nesting
_MISFITS: Final = (ChangeRefused, LookupError, TypeError, ValueError, AttributeError)
"""What carrying out a patch on the wrong state can raise."""


class Misfit(Exception):
    """A commit's patch does not fit the confirmed state: the copy here cannot be right."""


class Pending(msgspec.Struct, eq=False):
    """A change that the server has not decided."""

    ref: str
    """Names the change on this device, whatever its number becomes."""
    change: dict[str, Any]
    """As it is sent: never altered, only replaced by one with another number."""
    view: Sequence[Operation]
    """The operations as they read over the confirmed state of now."""
    stored: bool = False
    unsure: Literal["", "view", "change"] = ""
    """``view``: how it reads is a guess, since commits were missed, or a change before it was
    refused; what is sent is right. ``change``: it was made behind such a guess, and is sent, as it
    reads then, when nothing of that is undecided any more (TX5)."""
    mark: int = 0
    """Where its steps begin in the document's undo log, where they are applied."""
    patch: bytes = b""
    """The patch that these steps wrote."""

    @property
    def texts(self) -> set[str]:
        """Return the paths of the texts that it edits: here, or where the server carries it."""
        return spliced([self.view, self.change["ops"]])


class Cursor(msgspec.Struct, eq=False):
    """A place in a text that is shown. It stays behind what stands before it."""

    path: str
    pos: int


class _Alone(Index):
    """The writes of others, to somebody who is alone: there are none."""

    def record(self, path: Path, write: Write, undo: Undo, *, under: Write | None = None) -> None:
        """Enter nothing: one's own writes are no opponents."""


_ALONE: Final = _Alone()
_ME: Final = Author("me", 0, 0)
_FIELDS: Final = Field()
"""What a merge would come to is the server's to say: here nothing is merged."""


class Replica:
    """One session's state here. ``moved`` has the changes whose ``view`` changed, by ``ref``."""

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.version = 0
        self.pending: list[Pending] = []
        self.moved: dict[str, Pending] = {}
        self.cursors: list[Cursor] = []
        self.doubts = False
        """Some pending change is unsure."""
        self._document: Document | None = None
        self._applied = 0
        """How many of the pending changes, from the first on, are applied to the document."""
        self._trimmed = 0
        """How many entries were cut off the front of its undo log."""

    @property
    def known(self) -> bool:
        """Whether there is a state at all."""
        return self._document is not None

    @property
    def shown(self) -> Document:
        """The confirmed state with the pending changes over it. Not to be altered."""
        return self._show(len(self.pending))

    @property
    def confirmed(self) -> Document:
        """The state that the server confirmed. Not to be altered."""
        return self._take_off(0)

    def cursor(self, path: str) -> Cursor:
        """Return a cursor behind the text that is shown at a path; in ``cursors`` it moves along
        with what is done to the text.
        """
        return Cursor(path, len(text(self.shown, path)))

    # This client's changes

    def add(self, pending: Pending) -> None:
        """Add a change; raises `ChangeRefused`, and alters nothing, where it makes no sense."""
        document = self.shown
        whole = [
            (cursor, text(document, cursor.path))
            for cursor in self.cursors
            if any(covers(op, cursor.path) for op in pending.view)
        ]
        self._apply(pending, strict=True)
        if self.doubts and spliced([pending.view]):
            pending.unsure = "change"
        self.pending.append(pending)
        self._applied += 1
        for cursor, before in whole:
            cursor.pos = shift(cursor.pos, plain(before, text(document, cursor.path)))
        for cursor in self.cursors:
            if all(cursor is not one for one, _ in whole):
                done = (edit for op in pending.view for edit in edits(op, cursor.path))
                cursor.pos = shift(cursor.pos, done)

    def restore(self, pending: Iterable[Pending]) -> None:
        """Add changes that the outbox held."""
        self.pending += pending
        self.doubts = any(one.unsure for one in self.pending)

    def put_first(self, pending: Pending) -> None:
        """Add a change before all others."""
        if self.known:
            self._take_off(0)
        self.pending.insert(0, pending)

    def remove(self, gone: Pending) -> None:
        """Take a change out. Those behind it were meant for a text with it, and are carried over
        its going.
        """
        at = self.pending.index(gone)
        before: dict[str, str] = {}
        if self.known:
            before = self._texts(at + 1)
            self._take_off(at)
        del self.pending[at]
        if self._carry_over(before, at):
            # The server knows nothing of what was refused, nor what was made behind it.
            self._guess(at)

    # What the server said

    def reset(self, epoch: str | None, version: int, state: Any, *, decided: int = 0) -> None:
        """Take a whole state as the confirmed one.

        The first ``decided`` pending changes are in it, and go.
        """
        known = self.known
        before = self._texts(decided) if known else {}
        self.epoch, self.version = epoch, version
        self._document = Document(own(state))
        self._applied = self._trimmed = 0
        del self.pending[:decided]
        self._carry_over(before, 0)
        if known:
            self._guess(0)

    def commit(self, version: int, patch: Patch, mine: Pending | None) -> None:
        """Move the confirmed state to the next version.

        ``mine``: the pending change, the first, that this is the commit of. Raises `Misfit`, and
        alters nothing, where the patch does not fit.
        """
        if mine is None:
            self._commit_other(patch)
        else:
            self._commit_mine(patch, mine)
        self.version = version

    def _commit_other(self, patch: Patch) -> None:
        self._take_off(0)
        for path, done in self._step(patch, self._watched(0)).items():
            self._carry(path, done, 0)

    def _commit_mine(self, patch: Patch, mine: Pending) -> None:
        document = self._show(1)
        if equal(msgspec.json.decode(mine.patch), patch):
            # As expected: its steps are no longer to be taken back.
            ends = self.pending[1].mark if self._applied > 1 else len(document.undo) + self._trimmed
            del document.undo[: ends - self._trimmed]
            self._trimmed = ends
            self._applied -= 1
            del self.pending[0]
            return
        # The server merged it otherwise: what comes behind it is meant for the text as shown (TX5).
        before = self._texts(1)
        self._take_off(0)
        self._step(patch, ())
        del self.pending[0]
        self._carry_over(before, 0)

    # Steps

    def _must(self) -> Document:
        if self._document is None:
            raise ChangeRefused("expected a state: nothing is known yet", code="not_ready")
        return self._document

    def _show(self, count: int) -> Document:
        """Apply at least the first ``count`` pending changes."""
        document = self._must()
        for pending in self.pending[self._applied : count]:
            self._apply(pending, strict=False)
            self._applied += 1
        return document

    def _take_off(self, count: int) -> Document:
        """Take back all but the first ``count`` pending changes."""
        document = self._must()
        if self._applied > count:
            document.rollback(self.pending[count].mark - self._trimmed)
            self._applied = count
        return document

    def _apply(self, pending: Pending, *, strict: bool) -> None:
        """Apply a change: ``strict``, or what still makes sense of it, since others may have
        removed what it writes to. With a ``test`` in it, it takes effect whole or not at all.
        """
        document = self._must()
        start = len(document.undo)
        pending.mark = start + self._trimmed
        whole = strict or any(op["op"] == "test" for op in pending.view)
        merge = Merge(document, _ALONE, _ME, 0, nesting=_NESTING, texts=Texts(), fields=_FIELDS)
        for op in pending.view:
            mark, noted = len(document.undo), len(document.patch)
            try:
                if op["op"] not in SERVERS:
                    merge.apply(to_op(op))
            except ChangeRefused:
                document.rollback(start if whole else mark)
                del document.patch[0 if whole else noted :]
                if strict:
                    raise
                if whole:
                    break
        pending.patch = encode(document.take_patch())

    def _step(self, patch: Patch, watched: Iterable[str]) -> dict[str, list[Edit]]:
        """Carry out a commit's patch for good, and return what it did to some texts."""
        document = self._must()
        mark = len(document.undo)
        document.recording = False
        try:
            done = read(document, patch, list(watched), lambda op: step(document, [_own_step(op)]))
        except _MISFITS as error:
            document.rollback(mark)
            raise Misfit(f"expected a patch that fits, got {error!r}") from error
        finally:
            document.recording = True
        document.settle()
        self._trimmed = 0
        return done

    # Texts

    def _watched(self, start: int) -> set[str]:
        """Return the paths of the texts that changes from ``start`` on edit, or cursors are in."""
        views = (pending.view for pending in self.pending[start:])
        return spliced(views) | {cursor.path for cursor in self.cursors}

    def _texts(self, count: int) -> dict[str, str]:
        """Return the texts that matter as they stand behind the first ``count`` changes."""
        watched = self._watched(count)
        if not watched:
            return {}
        document = self._take_off(count)
        self._show(count)
        return {path: text(document, path) for path in watched}

    def _carry_over(self, before: Mapping[str, str], start: int) -> bool:
        """Carry pending splices over what became of their texts; return whether that was any."""
        edits = {path: plain(was, text(self._show(start), path)) for path, was in before.items()}
        for path, first in edits.items():
            self._carry(path, first, start)
        return any(edits.values())

    def _guess(self, start: int) -> None:
        """Mark the splices from a change on as carried as well as can be told here."""
        for pending in self.pending[start:]:
            if pending.texts:
                pending.unsure = pending.unsure or "view"
                self.moved[pending.ref] = pending
                self.doubts = True

    def _carry(self, path: str, first: Sequence[Edit], start: int) -> None:
        """Carry the pending splices of a text, from a change on, over edits that came before them
        (TX3, TX4), and the cursors over what these are in the text that is shown.
        """
        for pending in self.pending[start:]:
            if not first:
                return
            view, first = carried(pending.view, path, first)
            if view is not pending.view:
                pending.view = view
                self.moved[pending.ref] = pending
        for cursor in self.cursors:
            if cursor.path == path:
                cursor.pos = shift(cursor.pos, first)


def _own_step(op: Mapping[str, Any]) -> Mapping[str, Any]:
    # The value becomes a part of the state; the patch itself is told to others, and kept.
    return {**op, "value": own(op["value"])} if "value" in op else op
