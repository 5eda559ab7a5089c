"""What a session's schema tells the core. `reattach.schema` makes one of a pydantic model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from reattach.core.paths import Path, join, parse
from reattach.core.policy import ANY, Field
from reattach.core.values import JSON
from reattach.errors import ChangeRefused
from reattach.wire import Op

__all__ = ["Rename", "Schema", "renamed"]

Rename = tuple[Path, Path]
"""A place and its new name; `ANY` in the first stands for the same token in the second."""


class Schema(Protocol):
    """A shape that states keep, in one version, and the way to it from earlier ones."""

    name: str
    version: int
    oldest: int
    """The oldest version whose clients may still write: from there on only names changed."""
    fields: Field
    step: Path | None
    """The path of the field that tells how far its work is."""
    renames: Mapping[int, Sequence[Rename]]
    """What each version renamed."""

    def check(self, state: dict[str, Any], paths: Iterable[Path]) -> None:
        """Raise `ChangeRefused` (``schema_mismatch``) where the state does not fit at ``paths``
        (operation paths that were written).
        """

    def upgrade(self, state: dict[str, Any], version: int) -> dict[str, Any]:
        """Return a state of an earlier version as it is in this one; it may be altered in place."""

    def begin(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a new session's state: the given one, and the defaults of what it lacks.

        Raises `ChangeRefused` where it does not fit.
        """


def renamed(schema: Schema, version: int, ops: Sequence[Op]) -> Sequence[Op]:
    """Return operations of a client that had an earlier version of the schema, by today's names."""
    for later in range(version + 1, schema.version + 1):
        for old, new in schema.renames.get(later, ()):
            ops = [_rename(op, old, new) for op in ops]
    return ops


def _rename(op: Op, old: Path, new: Path) -> Op:
    if type(op.path) is not str:
        return op
    try:
        path = parse(op.path)
    except ChangeRefused:
        return op  # it will be refused for what it is
    if _covers(old, path):
        tokens = path[: len(old)]
        path = (*_named(new, old, tokens), *path[len(old) :])
        return msgspec.structs.replace(op, path=join(path))
    if op.op in {"set", "insert", "test"} and op.value is not msgspec.UNSET:
        # An element's own token is not in an insert's path.
        at = (*path, "#") if op.op == "insert" else path
        if len(at) < len(old) and _covers(old[: len(at)], at):
            value = rename_in(op.value, old[len(at) :], new[len(at) :])
            return msgspec.structs.replace(op, value=value)
    return op


def _covers(pattern: Path, path: Path) -> bool:
    return len(pattern) <= len(path) and all(
        one in (ANY, token) for one, token in zip(pattern, path, strict=False)
    )


def _named(new: Path, old: Path, tokens: Path) -> Path:
    """Fill in what stood for any token."""
    found = [token for one, token in zip(old, tokens, strict=True) if one == ANY]
    return tuple(found.pop(0) if one == ANY else one for one in new)


def rename_in(value: JSON, old: Path, new: Path) -> JSON:
    """Return a value in which what was called ``old`` (relative to it) is called ``new``.

    Both have the same tokens but for the last.
    """
    if len(old) == 1:
        if type(value) is not dict or old[0] not in value:
            return value
        return {new[0] if key == old[0] else key: item for key, item in value.items()}
    token = old[0]
    if type(value) is list:
        return [rename_in(item, old[1:], new[1:]) if token == ANY else item for item in value]
    if type(value) is dict:
        return {
            key: rename_in(item, old[1:], new[1:]) if token in (ANY, key) else item
            for key, item in value.items()
        }
    return value
