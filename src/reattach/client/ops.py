"""Operations as they are kept and sent: checked copies, each inserted object with an ``id``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from reattach.core.limits import Limits
from reattach.core.values import check
from reattach.errors import ChangeRefused
from reattach.wire import Op, encode

__all__ = ["SERVERS", "Operation", "own", "prepare", "to_op"]

Operation: TypeAlias = dict[str, Any]

SERVERS: Final = frozenset({"restore", "resolve", "end"})
"""Only the server knows what these make of the state."""

_DEPTH: Final = Limits().max_nesting + 1
"""The operation itself is one container around its value."""


def prepare(ops: Sequence[Mapping[str, Any]], new_id: Callable[[], str]) -> list[Operation]:
    """Return copies that the caller cannot change. Raises `ChangeRefused` for what the server would
    refuse whatever the state is.
    """
    prepared = [_copy(op) for op in ops]
    alone = next((op["op"] for op in prepared if op["op"] in SERVERS), None)
    if alone is not None and len(prepared) > 1:
        raise ChangeRefused(f"expected {alone!r} alone in its change", code="bad_op")
    for op in prepared:
        value = op.get("value")
        if op["op"] == "insert" and isinstance(value, dict) and "id" not in value:
            op["value"] = {"id": new_id(), **value}
    return prepared


def own(value: Any) -> Any:
    """Return a copy of a JSON value that shares nothing that can change."""
    return msgspec.json.decode(encode(value)) if type(value) in {dict, list} else value


def to_op(op: Operation) -> Op:
    """Return an operation to be carried out: its value becomes a part of the state."""
    return msgspec.convert({**op, "value": own(op["value"])} if "value" in op else op, Op)


def _copy(op: Any) -> Operation:
    if not isinstance(op, Mapping) or not isinstance(op.get("op"), str):
        raise ChangeRefused(
            f"expected operations like {{'op': 'set', 'path': …, 'value': …}}, got {op!r:.80}",
            code="bad_op",
        )
    path = op.get("path")
    plain = dict(op)
    check(plain, depth=_DEPTH, path=path if isinstance(path, str) else "")
    copy: Operation = own(plain)
    return copy
