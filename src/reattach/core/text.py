"""Text by Unicode code points: edits, and how they are carried over what others committed.

An `Edit` puts text in or takes text out. Two sequences of edits that were made of one text without
each other become, by `carry`, two that follow each other: the step of operational transformation
that Jupiter has between a client and its server (Nichols et al., "High-latency, low-bandwidth
windowing in the Jupiter collaboration system", UIST 1995). `packages/client/src/core/text.ts` is
the same in TypeScript, and `vectors/transform.json` holds both to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from diff_match_patch import diff_match_patch

__all__ = [
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
    start = _common(before, after, shorter)
    room = shorter - start
    end = _common(before[::-1], after[::-1], room) if room else 0
    gone = before[start : len(before) - end]
    return splice(start, len(gone), after[start : len(after) - end], gone)


def _common(left: str, right: str, most: int) -> int:
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


_MOST: Final = 300_000
"""Texts whose lengths multiply to more are compared by lines: a diff costs as much at its worst."""


def fine(before: str, after: str) -> list[Edit]:
    """Return the edits from one text to another as a person would see them."""
    coarse = plain(before, after)
    if len(coarse) < 2:
        return coarse
    start = coarse[0].pos
    gone, new = coarse[0].text or "", coarse[1].text or ""
    differ = diff_match_patch()
    differ.Diff_Timeout = 0  # the same answer however fast the machine is
    if len(gone) * len(new) <= _MOST:
        diffs = differ.diff_main(gone, new, False)
        differ.diff_cleanupSemantic(diffs)
    else:
        left, right, lines = differ.diff_linesToChars(gone, new)
        if len(left) * len(right) > _MOST:
            return coarse
        diffs = differ.diff_main(left, right, False)
        differ.diff_charsToLines(diffs, lines)
    edits: list[Edit] = []
    at = start
    for kind, text in diffs:
        if kind == differ.DIFF_DELETE:
            edits += splice(at, len(text), "", text)
        else:
            if kind == differ.DIFF_INSERT:
                edits += splice(at, 0, text)
            at += len(text)
    return edits


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


def place(seen: str, stands: str, mine: Sequence[Edit]) -> tuple[list[Edit], bool]:
    """Merge three ways: edits made of the text ``seen``, which became ``stands`` meanwhile.

    ``mine`` goes through the text once, from front to back. Returns the edits of ``stands`` that
    come of it, and whether all could be placed: text put where the other side took the ground away
    has no place, nor have two replacements of one stretch.
    """
    theirs = fine(seen, stands)
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
