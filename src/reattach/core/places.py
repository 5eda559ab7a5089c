"""Where the elements of a long list are, so that nobody has to search through it."""

from __future__ import annotations

from math import isqrt
from typing import Any

from reattach.core.values import JSON

__all__ = ["Places", "element_id"]

_SHIFTS = 4
"""How many shifts are taken in, times the root of the list's length, before all is noted anew."""


def element_id(value: JSON) -> str | None:
    """Return the id by which a list element is addressed, None for one without."""
    if type(value) is dict:
        found = value.get("id")
        if type(found) is str:
            return found
    return None


class Places:
    """Where the elements of a list are, by their ids.

    An element stays noted where it was when somebody last asked for it; what was put in and taken
    out since then moves it along when it is asked for again. When that is much, all is noted anew:
    a step costs about the root of the list's length.
    """

    __slots__ = ("_items", "_most", "_noted", "_renewed", "_shifts", "unclear")

    def __init__(self, items: list[Any]) -> None:
        self._items = items
        ids = [  # as element_id() has it, of all of them at once
            found if type(item) is dict and type(found := item.get("id")) is str else None
            for item in items
        ]
        self._noted: dict[str | None, int] = dict(zip(ids, range(len(ids)), strict=True))
        """Where each was in the beginning."""
        self.unclear = len(self._noted) != len(ids) - max(ids.count(None) - 1, 0)
        """Whether an id stands twice: only a search finds the first."""
        self._noted.pop(None, None)
        self._renewed: dict[str, tuple[int, int]] = {}
        """Where one was later, and before which of the shifts."""
        self._shifts: list[tuple[int, int]] = []
        """From which index on elements were moved, and by how much."""
        self._most = _SHIFTS * max(1, isqrt(len(items)))

    def find(self, wanted: str) -> int:
        """Return where an element is, -1 where there is none."""
        renewed = self._renewed.get(wanted)
        if renewed is None:
            noted = self._noted.get(wanted)
            if noted is None:
                return -1
            at, seen = noted, 0
        else:
            at, seen = renewed
        shifts = self._shifts
        if seen < len(shifts):
            for start, by in shifts[seen:]:
                if at >= start:
                    at += by
            self._renewed[wanted] = at, len(shifts)
        return at

    def inserted(self, at: int, found: str | None) -> bool:
        """Take in a new element; return whether this goes on being of use."""
        if self.unclear:
            return True
        if found is not None and (found in self._renewed or found in self._noted):
            return False  # the id stands twice now
        if at < len(self._items) - 1:
            self._shifts.append((at, 1))
        if found is not None:
            self._renewed[found] = at, len(self._shifts)
        return len(self._shifts) < self._most

    def removed(self, at: int, found: str | None) -> bool:
        """Take out an element; return whether this goes on being of use."""
        if self.unclear:
            return True
        if found is not None:
            self._renewed.pop(found, None)
            self._noted.pop(found, None)
        if at < len(self._items):
            self._shifts.append((at + 1, -1))
        return len(self._shifts) < self._most
