"""JSON Pointers (RFC 6901), and the ``#id`` tokens that address list elements in operations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from reattach.errors import ChangeRefused

__all__ = ["Path", "join", "parse"]

Path: TypeAlias = tuple[str, ...]
"""The unescaped tokens of a pointer; ``()`` is the whole document."""

_BAD_ESCAPE = re.compile("~(?![01])")


@lru_cache(maxsize=8192)
def parse(pointer: str) -> Path:
    """Split a pointer into its tokens; raises `ChangeRefused` (``bad_path``) where it is none."""
    if pointer == "":
        return ()
    if pointer[0] != "/":
        raise ChangeRefused(
            'expected a JSON Pointer ("" or "/…"), got one without its leading slash',
            code="bad_path",
            path=pointer,
        )
    if "~" not in pointer:
        return tuple(pointer[1:].split("/"))
    if _BAD_ESCAPE.search(pointer):
        raise ChangeRefused(
            "expected ~0 (for ~) or ~1 (for /) after each ~ of a JSON Pointer",
            code="bad_path",
            path=pointer,
        )
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/"))


def join(path: Sequence[str]) -> str:
    """Put tokens together to a pointer."""
    if not path:
        return ""
    plain = f"/{'/'.join(path)}"
    if "~" not in plain and plain.count("/") == len(path):
        return plain
    return "".join(
        ["/" + token.replace("~", "~0").replace("/", "~1") for token in path],
    )
