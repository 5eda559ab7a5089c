"""JSON values: what may be stored, and when two of them are equal (`docs/protocol.md`, section 2).

A value is what RFC 8259 can say, held as Python's dict, list, str, int, float, bool and None.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

from reattach.errors import ChangeRefused

__all__ = ["JSON", "check", "equal"]

JSON: TypeAlias = Any
"""A JSON value."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_EXACT = 2**53
"""Every integer up to this, either sign, is a double."""


def check(value: JSON, *, depth: int, path: str) -> None:
    """Refuse what a client in another language would not get back as it was sent.

    ``depth`` is how many containers may still be nested. Raises `ChangeRefused` with the code
    ``bad_number``, ``bad_string`` or ``too_deep``.
    """
    kind = type(value)
    if kind is str:
        _check_string(value, path)
    elif kind is int:
        _check_integer(value, path)
    elif kind is float:
        if not math.isfinite(value):
            raise ChangeRefused(
                f"expected a finite number, got {value}: JSON has no infinities and no NaN",
                code="bad_number",
                path=path,
            )
    elif kind is dict:
        if depth <= 0:
            raise _too_deep(path)
        for key, item in value.items():
            _check_string(key, path)
            # The most common leaves are looked at here: a call each would cost more than the look.
            leaf = type(item)
            if (leaf is str and item.isascii()) or (leaf is int and -_EXACT <= item <= _EXACT):
                continue
            check(item, depth=depth - 1, path=path)
    elif kind is list:
        if depth <= 0:
            raise _too_deep(path)
        for item in value:
            check(item, depth=depth - 1, path=path)
    elif value is not None and kind is not bool:
        raise ChangeRefused(
            f"expected a JSON value, got {kind.__name__}", code="bad_value", path=path
        )


def _check_string(value: JSON, path: str) -> None:
    if type(value) is str and value.isascii():
        return
    if type(value) is not str:
        raise ChangeRefused(
            f"expected a string as key, got {type(value).__name__}", code="bad_string", path=path
        )
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise ChangeRefused(
            "expected Unicode text, got a lone surrogate: it has no UTF-8 form",
            code="bad_string",
            path=path,
        )


def _check_integer(value: int, path: str) -> None:
    if -_EXACT <= value <= _EXACT:
        return
    try:
        exact = int(float(value)) == value
    except OverflowError:
        exact = False
    if not exact:
        raise ChangeRefused(
            "expected an integer that an IEEE double holds exactly: send a longer one as a string",
            code="bad_number",
            path=path,
        )


def _too_deep(path: str) -> ChangeRefused:
    return ChangeRefused(
        "expected a value that is nested less deeply: see limits.nesting",
        code="too_deep",
        path=path,
    )


def equal(left: JSON, right: JSON) -> bool:
    """Equal JSON types, then equal values: ``true`` is not ``1``, and ``1`` is ``1.0``."""
    kind = type(left)
    if kind is dict:
        return (
            type(right) is dict
            and len(left) == len(right)
            and all(key in right and equal(item, right[key]) for key, item in left.items())
        )
    if kind is list:
        return (
            type(right) is list
            and len(left) == len(right)
            and all(equal(one, other) for one, other in zip(left, right, strict=True))
        )
    if kind is bool or type(right) is bool:
        return left is right
    return bool(left == right)
