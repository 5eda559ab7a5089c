"""Text by Unicode code points: edits, and how they are carried over what others committed.

An `Edit` puts text in or takes text out. Two sequences of edits that were made of one text without
each other become, by `carry`, two that follow each other: the step of operational transformation
that Jupiter has between a client and its server (Nichols et al., "High-latency, low-bandwidth
windowing in the Jupiter collaboration system", UIST 1995). `packages/client/src/core/text.ts` is
the same in TypeScript, and `vectors/transform.json` holds both to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from diff_match_patch import diff_match_patch

__all__ = [
    "Between",
    "Edit",
    "apply",
    "carry",
    "fill",
    "fine",
    "pack",
    "place",
    "plain",
    "shift",
    "splice",
    "through",
    "undo",
    "unpack",
]


class Edit(msgspec.Struct, frozen=True, gc=False):
    """Puts ``text`` in at ``pos``, or takes ``length`` code points out from there on.

    For what is taken out, ``text`` is that text where it is known, else None.
    """

    pos: int
    length: int
    text: str | None
    inserts: bool


def splice(index: int, delete: int, insert: str, gone: str | None = None) -> list[Edit]:
    """Return what a ``splice`` operation does, as edits; ``gone`` is what it takes out."""
    edits: list[Edit] = []
    if delete:
        edits.append(Edit(index, delete, gone, False))
    if insert:
        edits.append(Edit(index, len(insert), insert, True))
    return edits


def plain(before: str, after: str) -> list[Edit]:
    """Return the plain edit from one text to another: all that lies between what both begin with
    and what both end with is taken out, and the new text put in.
    """
    if before == after:
        return []
    shorter = min(len(before), len(after))
    start = _alike(before, after, shorter)
    # What ends alike, without turning long texts round.
    low, high = 0, shorter - start
    while low < high:
        middle = (low + high + 1) // 2
        if _tail(before, low, middle) == _tail(after, low, middle):
            low = middle
        else:
            high = middle - 1
    gone = before[start : len(before) - low]
    return splice(start, len(gone), after[start : len(after) - low], gone)


def _alike(left: str, right: str, most: int) -> int:
    """Return how many code points two texts begin with alike, up to ``most``."""
    low = 0
    high = most
    # Comparing slices is much faster than comparing code points.
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _tail(text: str, start: int, end: int) -> str:
    """Return what lies from ``start`` to ``end``, counted from a text's end."""
    return text[len(text) - end : len(text) - start]


_WORD: Final = re.compile(r"\w+|\W")
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")
_PARTS: Final = 6_000
"""How many parts two texts may have together to be compared part by part."""
_ROUGHLY: Final = 16
"""A text with more code points for each part than this is not cut up to count them."""
_EFFORT: Final = 12_000
"""How many steps a comparison may take: texts with much more than 150 differences are compared by
larger parts."""


class _Effort:
    """Stands for the library's deadline: counts steps, so that each machine has the same answer."""

    def __init__(self) -> None:
        self.left = _EFFORT
        self.round = 0

    def __lt__(self, now: float) -> bool:
        """Whether it is over. Asked once a round, each of which takes a step more than the last."""
        self.round += 1
        self.left -= self.round
        return self.left < 0


class _Differ(diff_match_patch):  # type: ignore[misc]  # the library has no types
    def diff_bisect(self, text1: str, text2: str, deadline: _Effort) -> Any:
        deadline.round = 0
        return super().diff_bisect(text1, text2, deadline)


def fine(before: str, after: str) -> list[Edit]:
    """Return the edits from one text to another as a person would see them: by characters, by words
    or by lines, whichever is the finest that does not take long.
    """
    coarse = plain(before, after)
    if len(coarse) < 2:
        return coarse
    at, gone, new = coarse[0].pos, coarse[0].text or "", coarse[1].text or ""
    edits: list[Edit] = []
    for kind, text in _differences(gone, new):
        if kind == diff_match_patch.DIFF_DELETE:
            edits += splice(at, len(text), "", text)
        else:
            if kind == diff_match_patch.DIFF_INSERT:
                edits += splice(at, 0, text)
            at += len(text)
    return edits


def _differences(gone: str, new: str) -> list[tuple[int, str]]:
    """Return what two texts have in common and what not, in order."""
    found = [(diff_match_patch.DIFF_DELETE, gone), (diff_match_patch.DIFF_INSERT, new)]
    size = len(gone) + len(new)
    if size <= _PARTS:
        found, over = _compare(gone, new)
        if not over:
            return found
    for part in (_WORD, _LINE):
        if part is _WORD and size > _PARTS * _ROUGHLY:
            continue
        known: dict[str, str] = {}
        cut = [part.findall(text) for text in (gone, new)]
        if len(cut[0]) + len(cut[1]) > _PARTS:
            continue
        # A letter for each part that is another: letters are what the library compares.
        left, right = (
            "".join([known.setdefault(one, chr(0x4E00 + len(known))) for one in parts])
            for parts in cut
        )
        letters, over = _compare(left, right)
        meant = {letter: one for one, letter in known.items()}
        found = [(kind, "".join([meant[letter] for letter in text])) for kind, text in letters]
        if not over:
            break
    return found


def _compare(left: str, right: str) -> tuple[list[tuple[int, str]], bool]:
    """Compare by letters; also say whether it would have taken too long to be done."""
    effort = _Effort()
    differ = _Differ()
    differences = differ.diff_main(left, right, False, effort)
    differ.diff_cleanupSemantic(differences)
    return differences, effort.left < 0


def apply(text: str, edits: Iterable[Edit]) -> str:
    """Return the text after edits."""
    for edit in edits:
        pos = edit.pos
        if edit.inserts:
            text = f"{text[:pos]}{edit.text}{text[pos:]}"
        else:
            text = f"{text[:pos]}{text[pos + edit.length :]}"
    return text


def fill(text: str, edits: Iterable[Edit]) -> tuple[list[Edit], str]:
    """Return edits that know what they take out of a text, and the text after them."""
    filled: list[Edit] = []
    for edit in edits:
        pos = edit.pos
        if edit.inserts:
            text = f"{text[:pos]}{edit.text}{text[pos:]}"
            filled.append(edit)
        else:
            end = pos + edit.length
            gone = text[pos:end]
            text = f"{text[:pos]}{text[end:]}"
            filled.append(Edit(pos, len(gone), gone, False))
    return filled, text


def undo(text: str, edits: Sequence[Edit]) -> str:
    """Return the text before edits, all of which know what they took out."""
    for edit in reversed(edits):
        pos = edit.pos
        if edit.inserts:
            text = f"{text[:pos]}{text[pos + edit.length :]}"
        else:
            text = f"{text[:pos]}{edit.text}{text[pos:]}"
    return text


def carry(first: Sequence[Edit], then: Sequence[Edit]) -> tuple[list[Edit], list[Edit]]:
    """Return ``first'`` and ``then'`` with text·first·then' = text·then·first'.

    At one position the text of ``first`` stands left. Text put into a range that the other side
    takes out stays.
    """
    after: list[Edit] = list(first)
    carried: list[Edit] = []
    for edit in then:
        moved = [edit]
        passed: list[Edit] = []
        for other in after:
            if len(moved) == 1:
                one = moved[0]
                if one.inserts and other.inserts:
                    # By far the most frequent: one of the two moves on by the other's length.
                    if other.pos > one.pos:
                        pos = other.pos + one.length
                        passed.append(Edit(pos, other.length, other.text, True))
                    else:
                        passed.append(other)
                        moved = [Edit(one.pos + other.length, one.length, one.text, True)]
                    continue
                passed += _over(other, one, left=True)
                moved = _over(one, other, left=False)
            elif moved:
                parts, moved = carry([other], moved)
                passed += parts
            else:
                passed.append(other)
        after = passed
        carried += moved
    return after, carried


class _Hunk(msgspec.Struct, frozen=True, gc=False):
    """A stretch of a text that is replaced: ``start`` to ``end``, by ``text``."""

    start: int
    end: int
    text: str


def _hunks(edits: Iterable[Edit]) -> list[_Hunk]:
    """Read edits that go through a text once, from front to back, as what they replace in it."""
    hunks: list[_Hunk] = []
    grown = 0
    for edit in edits:
        start = edit.pos - grown
        end, text = start, ""
        if edit.inserts:
            text = edit.text or ""
            grown += edit.length
        else:
            end += edit.length
            grown -= edit.length
        last = hunks[-1] if hunks else None
        if last is not None and edit.inserts and start == last.end and not last.text:
            hunks[-1] = _Hunk(last.start, last.end, text)
        else:
            hunks.append(_Hunk(start, end, text))
    return hunks


def place(theirs: Sequence[Edit], mine: Sequence[Edit]) -> tuple[list[Edit], bool]:
    """Merge three ways: two sequences of edits made of one text, each going through it once, from
    front to back.

    Returns what ``mine`` comes to behind ``theirs``, and whether all could be placed: text put
    where the other side took the ground away has no place, nor have two replacements of a
    stretch.
    """
    taken = [hunk for hunk in _hunks(theirs) if hunk.end > hunk.start]
    placed: list[Edit] = []
    whole = True
    grown = 0
    for hunk in _hunks(mine):
        fits = not hunk.text or not any(
            other.start < hunk.end and hunk.start < other.end for other in taken
        )
        if fits:
            placed += splice(hunk.start + grown, hunk.end - hunk.start, hunk.text)
            grown += len(hunk.text) - (hunk.end - hunk.start)
        whole = whole and fits
    return carry(theirs, placed)[1], whole


_Piece: TypeAlias = tuple[int, int, str]

_ENDLESS: Final = 1 << 62


def through(edits: Iterable[Edit]) -> list[Edit]:
    """Return edits that do what ``edits`` do, but go through the text once, from front to back."""
    # What is left of the text, from where to where, and what was put in between.
    pieces: list[_Piece] = [(0, _ENDLESS, "")]
    n, at = 0, 0
    for edit in edits:
        if edit.pos < at:
            n, at = 0, 0
        n, at = _split(pieces, n, at, edit.pos)
        if edit.inserts:
            pieces.insert(n, (0, 0, edit.text or ""))
        else:
            end, _ = _split(pieces, n, at, edit.pos + edit.length)
            del pieces[n:end]
    made: list[Edit] = []
    seen = grown = 0
    put = ""
    for start, end, text in pieces:
        if text:
            put += text
            continue
        made += splice(seen + grown, start - seen, put)
        grown += len(put) - (start - seen)
        seen, put = end, ""
    return made


def _split(pieces: list[_Piece], n: int, at: int, pos: int) -> tuple[int, int]:
    """Return the piece that begins at ``pos``, which one is made to do, and that position; piece
    ``n`` begins at ``at``.
    """
    while at < pos:
        start, end, text = pieces[n]
        length = len(text) or end - start
        if at + length > pos:
            length = pos - at
            middle = start + length
            pieces[n : n + 1] = (
                [(0, 0, text[:length]), (0, 0, text[length:])]
                if text
                else [(start, middle, ""), (middle, end, "")]
            )
        at += length
        n += 1
    return n, at


class Between:
    """What lies between a text as its author sees it and the text that stands, to merge by."""

    __slots__ = ("seen", "theirs")

    def __init__(self, seen: str, stands: str) -> None:
        self.seen = seen
        self.theirs = fine(seen, stands)

    def merge(self, stands: str, mine: Sequence[Edit]) -> tuple[list[Edit], bool]:
        """Return what the author's next edits come to in the text that stands, and whether all
        could be placed.
        """
        placed, whole = place(self.theirs, mine)
        self.theirs, carried = carry(self.theirs, mine)
        self.seen = apply(self.seen, mine)
        if not whole:
            # What has no place lies in the author's text alone.
            missing = plain(apply(stands, carried), apply(stands, placed))
            self.theirs = through([*self.theirs, *missing])
        return placed, whole


def shift(pos: int, edits: Iterable[Edit]) -> int:
    """Return where a caret stands after edits; text put in right there comes behind it."""
    for edit in edits:
        if edit.pos < pos:
            pos = pos + edit.length if edit.inserts else max(edit.pos, pos - edit.length)
    return pos


def _over(edit: Edit, other: Edit, *, left: bool) -> list[Edit]:
    """Return an edit as it reads after another; ``left``: it stands left where both put text in."""
    pos, length = edit.pos, edit.length
    if edit.inserts:
        if other.pos > pos or (other.pos == pos and (left or not other.inserts)):
            return [edit]
        at = pos + other.length if other.inserts else max(other.pos, pos - other.length)
        return [Edit(at, length, edit.text, True)]
    end = pos + length
    if other.inserts:
        if other.pos <= pos:
            return [Edit(pos + other.length, length, edit.text, False)]
        if other.pos >= end:
            return [edit]
        before = other.pos - pos
        return [
            Edit(pos, before, _part(edit.text, 0, before), False),
            Edit(pos + other.length, length - before, _part(edit.text, before, length), False),
        ]
    far = other.pos + other.length
    before = max(0, min(end, other.pos) - pos)
    behind = max(0, end - max(pos, far))
    if before + behind == 0:
        return []
    at = pos if pos <= other.pos else max(other.pos, pos - other.length)
    text = edit.text
    if text is not None and before + behind < length:
        text = text[:before] + text[length - behind :]
    return [Edit(at, before + behind, text, False)]


def _part(text: str | None, start: int, end: int) -> str | None:
    return None if text is None else text[start:end]


def pack(edits: Iterable[Edit]) -> list[list[Any]]:
    """Return edits as JSON: ``[pos, text]`` puts in, ``[pos, length, text or null]`` takes out."""
    return [
        [edit.pos, edit.text] if edit.inserts else [edit.pos, edit.length, edit.text]
        for edit in edits
    ]


def unpack(packed: Iterable[Sequence[Any]]) -> list[Edit]:
    """Read what `pack` made."""
    return [
        Edit(one[0], len(one[1]), one[1], True)
        if len(one) == 2
        else Edit(one[0], one[1], one[2], False)
        for one in packed
    ]
