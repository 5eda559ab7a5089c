"""Fields that only some may write: what of a change's author touches them, and whether it altered
one.

A change may write what lies around such a field, as long as the field stays as it is. So a change
that came near one is looked at twice: the state with it, and the state without. What lies in a
container that the change makes or removes may be the field's default: so whoever may add an
element to a list may add one whose protected fields are as they are to begin with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reattach.core.document import ABSENT, Absent, element_id
from reattach.core.index import ANONYMOUS
from reattach.core.merge import Merge
from reattach.core.paths import Path, join, parse
from reattach.core.policy import ANY, Field
from reattach.core.values import JSON, equal
from reattach.errors import ChangeRefused

__all__ = ["Guard", "protected"]

Root = tuple[Path, Field]
"""A place that a change touched, with a protected field at it or in it."""


def protected(path: Path) -> ChangeRefused:
    """Return what refuses a write of a protected field."""
    return ChangeRefused(
        "this field is not yours to write: leave it as it is",
        code="forbidden",
        path=join(path),
    )


class Guard:
    """Looks after the protected fields of a schema. ``any`` says whether it has any."""

    def __init__(self, fields: Field) -> None:
        self._fields = fields
        self._near: dict[str, set[int]] = {}
        """By role: the fields (their identities) that are or have in them one that it may not
        write."""
        self.any = any(field.writers is not None for field in _all(fields))

    def touched(self, role: str, merge: Merge, *, by_index: bool) -> list[Root]:
        """Return where a change came near what its author may not write.

        ``by_index``: it named list elements by their index, so that one whose id is another's as
        well may be the one that was written. Raises `ChangeRefused` for what needs no second look:
        an order that was changed, and a value that lost against another and would be kept for
        somebody to choose it.
        """
        roots: dict[Path, Field] = {}
        written = [parse(row[1]) for row in merge.writes]
        for path in written:
            root = self._root(role, _outside_lists(path) if by_index else path)
            if root is not None:
                roots[root[0]] = root[1]
        for step in merge.document.patch:
            if step["op"] == "move":
                self.refuse_inside(role, parse(step["path"]))
        for lost in merge.lost:
            whole = any(lost.path[: len(path)] == path for path in written)
            if lost.lost.version == merge.version and not whole:
                self.refuse_inside(role, lost.path)
        return list(roots.items())

    def refuse_inside(self, role: str, path: Path) -> None:
        """Raise `ChangeRefused` for a path at or in what a role may not write."""
        field: Field | None = self._fields
        for depth, token in enumerate(path):
            if field is None:
                return
            if not _may(role, field):
                raise protected(path[:depth])
            field = _inner(field, token)
        if field is not None and not _may(role, field):
            raise protected(path)

    def compare(self, role: str, root: Root, before: JSON | Absent, after: JSON | Absent) -> None:
        """Raise `ChangeRefused` where what a role may not write is another value than before."""
        path, field = root
        self._compare(role, field, path, before, after, whole=False)

    def begin(self, role: str, state: JSON) -> None:
        """Raise `ChangeRefused` where a new state has more than defaults in what a role may not
        write.
        """
        self._compare(role, self._fields, (), ABSENT, state, whole=False)

    # Inside

    def _root(self, role: str, path: Path) -> Root | None:
        """Return the protected field that a path is at or in, or the path where one is in it."""
        field: Field | None = self._fields
        if path[-1:] == (ANONYMOUS,):
            path = path[:-1]
        for depth, token in enumerate(path):
            if field is None or not self._is_near(role, field):
                return None
            if not _may(role, field):
                return path[:depth], field
            field = _inner(field, token)
        return None if field is None or not self._is_near(role, field) else (path, field)

    def _is_near(self, role: str, field: Field) -> bool:
        near = self._near.get(role)
        if near is None:
            near = self._near[role] = _reaching(role, self._fields)
        return id(field) in near

    def _compare(
        self,
        role: str,
        field: Field,
        path: Path,
        before: JSON | Absent,
        after: JSON | Absent,
        *,
        whole: bool,
    ) -> None:
        """``whole``: what is around it was made or removed with it."""
        if not self._is_near(role, field):
            return
        if not _may(role, field):
            if not _as_it_was(field, before, after, whole=whole):
                raise protected(path)
            return
        appears = type(before) is not type(after) or type(before) not in {dict, list}
        for token, one, other in _parts(before, after):
            inner = _inner(field, token)
            if inner is not None:
                self._compare(role, inner, (*path, token), one, other, whole=appears)


def _outside_lists(path: Path) -> Path:
    for depth, token in enumerate(path):
        if token[:1] == "#":
            return path[:depth]
    return path


def _may(role: str, field: Field) -> bool:
    return field.writers is None or role in field.writers


def _inner(field: Field, token: str) -> Field | None:
    return field.fields.get(token) or field.fields.get(ANY)


def _as_it_was(field: Field, before: JSON | Absent, after: JSON | Absent, *, whole: bool) -> bool:
    if before is ABSENT or after is ABSENT:
        there = after if before is ABSENT else before
        if there is ABSENT:
            return True
        return whole and field.initial is not ABSENT and equal(there, field.initial)
    return equal(before, after)


def _parts(
    before: JSON | Absent, after: JSON | Absent
) -> Iterator[tuple[str, JSON | Absent, JSON | Absent]]:
    """Pair what is in two containers: by key, by id, and elements without one by their order."""
    ones, others = _named(before), _named(after)
    for token in [*ones, *(token for token in others if token not in ones)]:
        yield token, ones.get(token, ABSENT), others.get(token, ABSENT)


def _named(value: JSON | Absent) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    if isinstance(value, list):
        nameless = 0
        for item in value:
            name = element_id(item)
            # An id that comes twice is its first element's; the others count by their order.
            if name is not None and f"#{name}" not in found:
                found[f"#{name}"] = item
            else:
                found[str(nameless)] = item
                nameless += 1
    return found


def _all(field: Field, seen: set[int] | None = None) -> Iterator[Field]:
    seen = set() if seen is None else seen
    if id(field) in seen:
        return
    seen.add(id(field))
    yield field
    for inner in field.fields.values():
        yield from _all(inner, seen)


def _reaching(role: str, fields: Field) -> set[int]:
    """Find the fields that are, or have in them, one that a role may not write."""
    every = list(_all(fields))
    near = {id(field) for field in every if not _may(role, field)}
    grown = True
    while grown:
        more = {
            id(field)
            for field in every
            if id(field) not in near and any(id(one) in near for one in field.fields.values())
        }
        grown = bool(more)
        near |= more
    return near
