"""How one state becomes another one: by the fewest steps that say so."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from reattach.core.document import ABSENT, Document, Place, element_id
from reattach.core.index import Kind
from reattach.core.paths import Path, join
from reattach.core.values import JSON, equal

__all__ = ["become"]

Note: TypeAlias = Callable[[Path, Any, Any, str], None]
"""Told of each write before it is carried out: its path, the value or `ABSENT`, what stands there,
and its `Kind`."""

_MOST_WORK: Final = 4_000_000
"""Elements looked at, for all that changes in one list; beyond it the list is put as a whole."""


def become(document: Document, target: dict[str, Any], note: Note) -> None:
    """Make a state another one, whose parts it takes over; ``note`` is told of each write."""
    _Becoming(document, note).walk((), target)


class _Becoming:
    def __init__(self, document: Document, note: Note) -> None:
        self.document = document
        self.note = note

    def walk(self, path: Path, target: JSON) -> None:
        place = self.document.locate(path)
        assert place is not None, "what is around it was just looked at"
        current = place.value
        if type(current) is dict and type(target) is dict:
            self._walk_object(path, place, target)
        elif type(current) is list and type(target) is list:
            if not self._walk_list(path, place, target) and not equal(current, target):
                self._put(path, place, target)
        elif type(current) is not type(target) or current != target:
            self._put(path, place, target)

    def _put(self, path: Path, place: Place, value: JSON) -> None:
        self.note(path, value, place.value, Kind.SET)
        self.document.put(place, value)

    def _walk_object(self, path: Path, place: Place, target: dict[str, Any]) -> None:
        current, inside = place.value, _inside(place)
        for key in [key for key in current if key not in target]:
            self.note((*path, key), ABSENT, current[key], Kind.UNSET)
            self.document.remove(Place(current, key, inside, current[key]))
        for key, value in target.items():
            if key in current:
                self.walk((*path, key), value)
            else:
                self._put((*path, key), Place(current, key, inside, ABSENT), value)

    def _walk_list(self, path: Path, place: Place, target: list[Any]) -> bool:
        """Go through lists whose elements all have ids of their own; False for any others."""
        items: list[Any] = place.value
        here, wanted = _ids(items), _ids(target)
        if here is None or wanted is None:
            return False
        order = {name: at for at, name in enumerate(wanted)}
        common = [name for name in here if name in order]
        stay = _longest_run([order[name] for name in common])
        changes = len(here) + len(wanted) - len(common) - len(stay)
        if changes * max(len(here), len(wanted)) > _MOST_WORK:
            return False
        document, inside = self.document, _inside(place)
        for at in reversed(range(len(here))):
            if here[at] not in order:
                self.note((*path, f"#{here[at]}"), ABSENT, items[at], Kind.UNSET)
                document.remove(Place(items, at, inside, items[at]))
        known, before = set(common), -1
        for at, name in enumerate(wanted):
            if name not in known:
                before += 1
                self.note((*path, f"#{name}"), target[at], ABSENT, Kind.INSERT)
                document.insert(items, before, target[at], inside)
                continue
            source = document.find(items, name)
            if at not in stay:
                # Counted without the element itself.
                goal = before + 1 if before < source else before
                if goal != source:
                    document.move(items, source, goal, inside)
                source = goal
            before = source
        for name in common:
            self.walk((*path, f"#{name}"), target[order[name]])
        return True


def _ids(items: list[Any]) -> list[str] | None:
    found = [element_id(item) for item in items]
    names = [name for name in found if name is not None]
    return names if len(set(names)) == len(items) else None


def _longest_run(places: list[int]) -> set[int]:
    """Return the members of a longest increasing run: what may stay while the others move."""
    ends: list[int] = []
    at_end: list[int] = []
    earlier: list[int] = []
    for number, place in enumerate(places):
        length = bisect_left(ends, place)
        earlier.append(at_end[length - 1] if length else -1)
        if length == len(ends):
            ends.append(place)
            at_end.append(number)
        else:
            ends[length], at_end[length] = place, number
    run: set[int] = set()
    number = at_end[-1] if at_end else -1
    while number != -1:
        run.add(places[number])
        number = earlier[number]
    return run


def _inside(place: Place) -> str:
    return "" if place.container is None else f"{place.pointer}{join((str(place.key),))}"
