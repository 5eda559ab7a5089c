"""JSON Patch (RFC 6902) with text operations, and JSON Merge Patch (RFC 7396).

A patch's paths hold indexes: it applies to exactly one version. Three uses: commits from the log
are replayed with `step`, HTTP PATCH is carried out with `json_patch` and `merge_patch`, and `plain`
turns a commit's text operations into ``replace`` for readers who know only the RFC.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from reattach.core.document import ABSENT, Document, Place, element_id
from reattach.core.index import ANONYMOUS, Kind
from reattach.core.merge import Merge
from reattach.core.paths import Path, join, parse
from reattach.core.text import Edit, fill, splice
from reattach.core.values import JSON, check, equal
from reattach.errors import ChangeRefused

__all__ = ["json_patch", "merge_patch", "plain", "step"]

_Patch = Sequence[Mapping[str, Any]]


def step(document: Document, patch: _Patch) -> None:
    """Carry out a commit's patch."""
    for op in patch:
        pointer = op["path"]
        place = _find(document, parse(pointer), inserting=op["op"] == "add")
        match op["op"]:
            case "add":
                _add(document, place, op["value"])
            case "replace":
                document.put(place, op["value"])
            case "remove":
                document.remove(place)
            case "move":
                _move(document, parse(op["from"]), parse(pointer))
            case "str_ins":
                _edit(document, place, splice(op["pos"], 0, op["str"]))
            case "str_del":
                _edit(document, place, splice(op["pos"], op["len"], ""))
            case other:
                raise _refused("bad_op", pointer, f"expected a patch operation, got {other!r}")


def _edit(document: Document, place: Place, edits: Sequence[Edit]) -> None:
    filled, result = fill(place.value, edits)
    document.edit(place, filled, result)


def plain(document: Document, patch: _Patch) -> list[Mapping[str, Any]]:
    """Carry out a commit's patch and return it with RFC 6902's operations alone."""
    result: list[Mapping[str, Any]] = []
    for op in patch:
        # A copy: later operations reach into the document's values, not into what is returned.
        step(document, [copy.deepcopy(op)])
        if op["op"] in {"str_ins", "str_del"}:
            place = _find(document, parse(op["path"]), inserting=False)
            # Two edits of one text in a row are one replacement.
            if result and result[-1]["op"] == "replace" and result[-1]["path"] == op["path"]:
                result.pop()
            result.append({"op": "replace", "path": op["path"], "value": place.value})
        else:
            result.append(op)
    return result


def json_patch(merge: Merge, patch: Any) -> None:
    """Carry out a JSON Patch on the current version; raises `ChangeRefused`."""
    if not isinstance(patch, list):
        raise _refused("bad_patch", None, "expected a JSON array of operations (RFC 6902)")
    for op in patch:
        if not isinstance(op, dict) or not isinstance(op.get("op"), str):
            raise _refused("bad_patch", None, "expected objects with an op (RFC 6902)")
        carry_out = _OPS.get(op["op"])
        if carry_out is None:
            raise _refused("bad_op", None, f"expected {', '.join(_OPS)}, got {op['op'][:40]!r}")
        carry_out(merge, op, _pointer(merge, op, "path"))


def merge_patch(merge: Merge, patch: Any) -> None:
    """Carry out a JSON Merge Patch on the current version; raises `ChangeRefused`."""
    if not isinstance(patch, dict):
        raise _refused("bad_patch", None, "expected a JSON object: the state stays an object")
    check(patch, depth=merge.nesting, path="")
    _merge_into(merge, (), patch)


def _merge_into(merge: Merge, path: Path, patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        at = (*path, key)
        place = _find(merge.document, at, inserting=False)
        if value is None:
            if place.value is not ABSENT:
                _remove(merge, at)
        elif isinstance(value, dict):
            if not isinstance(place.value, dict):
                _write(merge, at, {}, inserting=True)
            _merge_into(merge, at, value)
        elif place.value is ABSENT or not equal(place.value, value):
            _write(merge, at, value, inserting=True)


# RFC 6902, section 4


def _op_add(merge: Merge, op: dict[str, Any], path: Path) -> None:
    _write(merge, path, _value(merge, op, path), inserting=True)


def _op_replace(merge: Merge, op: dict[str, Any], path: Path) -> None:
    value = _value(merge, op, path)
    _existing(merge, path)
    _write(merge, path, value, inserting=False)


def _op_remove(merge: Merge, op: dict[str, Any], path: Path) -> None:
    del op
    _existing(merge, path)
    if not path:
        raise _refused("bad_path", "", "the whole state cannot be removed: replace it by {}")
    _remove(merge, path)


def _op_move(merge: Merge, op: dict[str, Any], path: Path) -> None:
    source = _pointer(merge, op, "from")
    value = _existing(merge, source).value
    if source == path:
        return
    if path[: len(source)] == source:
        raise _refused("bad_path", join(path), "a value cannot be moved into itself")
    _remove(merge, source)
    _write(merge, path, value, inserting=True)


def _op_copy(merge: Merge, op: dict[str, Any], path: Path) -> None:
    source = _pointer(merge, op, "from")
    value = copy.deepcopy(_existing(merge, source).value)
    check(value, depth=merge.nesting - len(path), path=join(path))
    _write(merge, path, value, inserting=True)


def _op_test(merge: Merge, op: dict[str, Any], path: Path) -> None:
    value = _value(merge, op, path)
    if not equal(_existing(merge, path).value, value):
        raise _refused("test_failed", join(path), "the value is not the expected one")


_OPS: dict[str, Callable[[Merge, dict[str, Any], Path], None]] = {
    "add": _op_add,
    "remove": _op_remove,
    "replace": _op_replace,
    "move": _op_move,
    "copy": _op_copy,
    "test": _op_test,
}


# Steps that also tell the index


def _write(merge: Merge, path: Path, value: JSON, *, inserting: bool) -> None:
    document = merge.document
    place = _find(document, path, inserting=inserting)
    if place.container is None and not isinstance(value, dict):
        raise _refused("bad_value", "", "expected an object as the whole state")
    if isinstance(place.container, list):
        if inserting:
            _note(merge, path[:-1], element_id(value), Kind.INSERT)
            _add(document, place, value)
            return
        old, new = element_id(place.value), element_id(value)
        if old is not None and old != new:
            _note(merge, path[:-1], old, Kind.UNSET)
        _note(merge, path[:-1], new, Kind.SET if old == new else Kind.INSERT)
    else:
        _note_at(merge, path, Kind.SET)
    document.put(place, value)


def _remove(merge: Merge, path: Path) -> None:
    place = _find(merge.document, path, inserting=False)
    if isinstance(place.container, list):
        _note(merge, path[:-1], element_id(place.value), Kind.UNSET)
    else:
        _note_at(merge, path, Kind.UNSET)
    merge.document.remove(place)


def _note(merge: Merge, items: Path, element: str | None, kind: str) -> None:
    """Enter a write of a list's element."""
    address, exact = _address(merge.document, items)
    if not exact:
        _record(merge, address, Kind.LOOSE)
    elif element is None:
        _record(merge, (*address, ANONYMOUS), Kind.LOOSE)
    else:
        _record(merge, (*address, f"#{element}"), kind)


def _note_at(merge: Merge, path: Path, kind: str) -> None:
    """Enter a write of an object's key, or of the whole state."""
    address, exact = _address(merge.document, path[:-1])
    if exact:
        _record(merge, (*address, *path[-1:]), kind)
    else:
        _record(merge, address, Kind.LOOSE)


def _record(merge: Merge, path: Path, kind: str) -> None:
    merge.drafts.touched(path)
    merge.record(path, kind)


def _address(document: Document, path: Path) -> tuple[Path, bool]:
    """Turn a patch path into an operation path, and say whether it has one: where an element
    without an id lies on the way it ends there, with `ANONYMOUS`.
    """
    current: Any = document.state
    address: list[str] = []
    for token in path:
        if isinstance(current, list):
            current = current[int(token)]
            element = element_id(current)
            if element is None:
                return (*address, ANONYMOUS), False
            address.append(f"#{element}")
        else:
            current = current[token]
            address.append(token)
    return tuple(address), True


# Places by index


def _find(document: Document, path: Path, *, inserting: bool) -> Place:
    """Find a patch path's place; ``inserting`` lets it be one past a list's end, or ``-``."""
    current: Any = document.state
    if not path:
        return Place(None, None, "", current)
    last = len(path) - 1
    for depth, token in enumerate(path):
        if isinstance(current, list):
            key: Any = _position(token, len(current), path, inserting and depth == last)
            found = current[key] if key != len(current) else ABSENT
        elif isinstance(current, dict):
            key = token
            found = current.get(token, ABSENT)
        else:
            raise _refused("bad_path", join(path), "expected a path whose parent exists")
        if depth == last:
            return Place(current, key, join(path[:-1]), found)
        if found is ABSENT:
            raise _refused("bad_path", join(path), "expected a path whose parent exists")
        current = found
    raise AssertionError("a path that is not empty has a last token")


def _position(token: str, length: int, path: Path, inserting: bool) -> int:
    if token == "-" and inserting:
        return length
    # RFC 6901, section 4: digits without a leading zero.
    if not (token.isascii() and token.isdigit()) or (token[0] == "0" and token != "0"):
        raise _refused("bad_path", join(path), f"expected an index under a list, got {token!r}")
    at = int(token) if len(token) < 12 else length + 1
    if at > length or (at == length and not inserting):
        raise _refused("bad_path", join(path), f"expected an index below {length}, got {token}")
    return at


def _add(document: Document, place: Place, value: JSON) -> None:
    if isinstance(place.container, list):
        document.insert(place.container, place.key, value, place.pointer)
    else:
        document.put(place, value)


def _move(document: Document, source: Path, target: Path) -> None:
    """Carry out a commit's ``move``, which stays within its list."""
    place = _find(document, source, inserting=False)
    document.move(place.container, place.key, int(target[-1]), place.pointer)


def _existing(merge: Merge, path: Path) -> Place:
    place = _find(merge.document, path, inserting=False)
    if place.value is ABSENT:
        raise _refused("bad_path", join(path), "expected a path that exists")
    return place


def _pointer(merge: Merge, op: dict[str, Any], field: str) -> Path:
    pointer = op.get(field)
    if not isinstance(pointer, str):
        raise _refused("bad_patch", None, f"expected {field} to be a JSON Pointer")
    check(pointer, depth=0, path="")
    path = parse(pointer)
    if len(path) > merge.nesting:
        raise _refused("too_deep", pointer, f"expected at most {merge.nesting} tokens")
    return path


def _value(merge: Merge, op: dict[str, Any], path: Path) -> JSON:
    value = op.get("value", msgspec.UNSET)
    if value is msgspec.UNSET:
        raise _refused("bad_patch", join(path), f"expected {op['op']} to have a value")
    check(value, depth=merge.nesting - len(path), path=join(path))
    return value


def _refused(code: str, path: str | None, message: str) -> ChangeRefused:
    return ChangeRefused(message, code=code, path=path)
