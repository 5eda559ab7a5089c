"""JSON for the witness, on its own: nothing here is shared with the code that it judges."""

from __future__ import annotations

import re
from typing import Any

import msgspec

__all__ = ["MISSING", "apply", "at", "covers", "encoded", "marks", "tokens", "within"]

MISSING: Any = object()
"""Nothing is there."""

_MARK = re.compile(r"\bw\d+w|[\u4e00-\u9fff]|[\U00020000-\U0002a6df]")
_encoder = msgspec.json.Encoder(order="sorted")


def encoded(value: Any) -> bytes:
    """Return a value as bytes that are equal where the values are; `1.0` is `1`."""
    return _encoder.encode(value)


def marks(text: str) -> set[str]:
    """Find the marks in a JSON text: each is what one user wrote once, and nobody else ever."""
    return set(_MARK.findall(text))


def tokens(pointer: str) -> tuple[str, ...]:
    """Take apart a JSON Pointer."""
    parts = pointer.split("/")[1:]
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def covers(above: tuple[str, ...], below: tuple[str, ...]) -> bool:
    """Say whether a path is another one, or above it."""
    return below[: len(above)] == above


def within(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """List every string in a value that is put at ``path``, with where it then is."""
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, dict):
        return [one for key, inner in value.items() for one in within(inner, (*path, key))]
    if isinstance(value, list):
        return [one for inner in value for one in within(inner, (*path, token_of(inner)))]
    return []


def token_of(element: Any) -> str:
    """Return what addresses a list's element."""
    name = element.get("id") if isinstance(element, dict) else None
    return f"#{name}" if isinstance(name, str) else "-"


def at(state: Any, path: tuple[str, ...]) -> Any:
    """Return what is at an operation's path, or `MISSING`."""
    for token in path:
        if isinstance(state, list):
            state = next((one for one in state if token_of(one) == token), MISSING)
        elif isinstance(state, dict):
            state = state.get(token, MISSING)
        else:
            return MISSING
        if state is MISSING:
            return MISSING
    return state


def apply(state: Any, patch: list[dict[str, Any]]) -> Any:
    """Apply a patch (RFC 6902 and text) in place; return the state, which may be another object."""
    for step in patch:
        state = _apply(state, step)
    return state


def _apply(state: Any, step: dict[str, Any]) -> Any:
    op, path = step["op"], tokens(step["path"])
    if op == "move":
        source = tokens(step["from"])
        value = _take(_parent(state, source), source[-1])
    elif op in {"str_ins", "str_del"}:
        parent = _parent(state, path)
        key = int(path[-1]) if isinstance(parent, list) else path[-1]
        parent[key] = _edited(parent[key], step)
        return state
    elif op == "remove":
        _take(_parent(state, path), path[-1])
        return state
    else:
        value = _copied(step["value"])
    if not path:
        return value
    parent = _parent(state, path)
    if isinstance(parent, list):
        if op == "replace":
            parent[int(path[-1])] = value
        else:
            if int(path[-1]) > len(parent):
                raise IndexError(f"expected an index up to {len(parent)}, got {path[-1]}")
            parent.insert(int(path[-1]), value)
    else:
        if op == "replace" and path[-1] not in parent:
            raise KeyError(path[-1])
        parent[path[-1]] = value
    return state


def _edited(text: str, step: dict[str, Any]) -> str:
    pos = step["pos"]
    if step["op"] == "str_ins":
        if pos > len(text):
            raise IndexError(f"expected a position up to {len(text)}, got {pos}")
        return text[:pos] + str(step["str"]) + text[pos:]
    if pos + step["len"] > len(text):
        raise IndexError(f"expected positions up to {len(text)}, got {pos} and {step['len']} more")
    return text[:pos] + text[pos + step["len"] :]


def _parent(state: Any, path: tuple[str, ...]) -> Any:
    for token in path[:-1]:
        state = state[int(token)] if isinstance(state, list) else state[token]
    return state


def _take(parent: Any, token: str) -> Any:
    return parent.pop(int(token)) if isinstance(parent, list) else parent.pop(token)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value
