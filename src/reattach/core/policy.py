"""The policies of fields: what two concurrent writes of one path end as (`docs/protocol.md`, 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Final

from reattach.core.document import ABSENT, Absent
from reattach.core.paths import Path, join
from reattach.core.values import JSON

__all__ = ["ANY", "MERGING", "POLICIES", "Field", "Policy", "greater"]


class Policy:
    """The names of the policies."""

    LATEST = "latest"
    FIRST = "first"
    MAX = "max"
    MIN = "min"
    UNION = "union"
    TEXT = "text"
    ASK = "ask"


POLICIES: Final = frozenset({"latest", "first", "max", "min", "union", "text", "ask"})

MERGING: Final = frozenset({Policy.MAX, Policy.MIN, Policy.UNION, Policy.TEXT})
"""Those under which both writes go into what stands, also over an own standing write."""

ANY: Final = "*"
"""The token that stands for every key of an object or element of a list."""


class Field:
    """A place in a schema: its policy, and the fields in it. A recursive one has itself in it."""

    __slots__ = ("fields", "initial", "policy", "writers")

    def __init__(self, policy: str = Policy.LATEST) -> None:
        self.policy = policy
        self.writers: frozenset[str] | None = None
        """The roles that may write it, the server besides; None: all that write at all."""
        self.initial: JSON | Absent = ABSENT
        """For one that not all may write: what it is where nobody said otherwise."""
        self.fields: MutableMapping[str, Field] = {}
        """By token; `ANY` is for those that have no entry of their own."""

    def find(self, path: Path) -> Field | None:
        """Return the field at an operation path, None where the schema has no such place."""
        field: Field | None = self
        for token in path:
            if field is None:
                return None
            field = field.fields.get(token) or field.fields.get(ANY)
        return field

    def at(self, path: Path) -> str:
        """Return the policy of an operation path."""
        field = self
        for token in path:
            inner = field.fields.get(token) or field.fields.get(ANY)
            if inner is None:
                return Policy.LATEST
            field = inner
        return field.policy

    def named(self) -> Mapping[str, str]:
        """Return every policy but ``latest`` by its path, once around for a recursive schema."""
        return dict(self._walk((), ()))

    def _walk(self, path: Path, above: tuple[Field, ...]) -> Iterator[tuple[str, str]]:
        if self.policy != Policy.LATEST:
            yield join(path), self.policy
        if self in above:
            return
        for token, field in self.fields.items():
            yield from field._walk((*path, token), (*above, self))  # noqa: SLF001 - its own class


def greater(left: JSON | Absent, right: JSON | Absent) -> bool | None:
    """Say whether ``left`` is greater; None where the two have no order.

    Numbers, strings (by code points) and booleans have one among their own kind, and what is
    absent or null lies outside of it.
    """
    if left is ABSENT or right is ABSENT or left is None or right is None:
        return None
    numbers = (int, float)
    if type(left) in numbers and type(right) in numbers:
        return bool(left > right)
    if type(left) is type(right) and type(left) in {str, bool}:
        return bool(left > right)
    return None
