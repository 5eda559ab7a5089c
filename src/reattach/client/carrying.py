"""Operations carried over what was done to their texts: by others, whose commits are read from
their patches, and by the server, where it merged a change of this client otherwise than was shown
(`docs/protocol.md`, section 4, rules TX1 to TX6).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from reattach.client.ops import Operation
from reattach.core.document import Document
from reattach.core.paths import Path, join, parse
from reattach.core.text import Edit, carry, plain, splice
from reattach.errors import ChangeRefused

__all__ = ["carried", "covers", "edits", "read", "spliced", "text"]


def text(document: Document, path: str) -> str:
    """Return the text at an operation's path; what is no string, or not there, counts as empty."""
    try:
        place = document.locate(parse(path))
    except ChangeRefused:
        return ""
    return place.value if place is not None and type(place.value) is str else ""


def spliced(views: Iterable[Sequence[Operation]]) -> set[str]:
    """Return the paths of the texts that operations edit."""
    return {op["path"] for view in views for op in view if op["op"] == "splice"}


def edits(op: Operation, path: str) -> list[Edit]:
    """Return what an operation does to the text at a path, as edits (TX1)."""
    if op["op"] != "splice" or op["path"] != path:
        return []
    return splice(op["index"], op.get("delete", 0), op.get("insert", ""))


def covers(op: Operation, path: str) -> bool:
    """Whether an operation writes the text at a path as a whole, there or above (TX6)."""
    match op["op"]:
        case "set" | "unset":
            return _above(op["path"], path)
        case "insert":
            value = op["value"]
            found = value.get("id") if isinstance(value, dict) else None
            return isinstance(found, str) and _above(op["path"] + join((f"#{found}",)), path)
    return False


def carried(
    view: Sequence[Operation], path: str, first: Sequence[Edit]
) -> tuple[Sequence[Operation], Sequence[Edit]]:
    """Return operations carried over edits of a text, and these edits as they read after them.

    The operations are the given ones, not a copy, where they stay as they are.
    """
    result: list[Operation] = []
    moved = False
    for op in view:
        if covers(op, path):
            # What came before a whole write is not there any more.
            first = ()
        mine = edits(op, path)
        if mine and first:
            first, then = carry(first, mine)
            if then != mine:
                moved = True
                result += [_splice(path, edit) for edit in then]
                continue
        result.append(op)
    return (result if moved else view), first


def read(
    document: Document,
    patch: Sequence[Mapping[str, Any]],
    paths: Collection[str],
    step: Callable[[Mapping[str, Any]], None],
) -> dict[str, list[Edit]]:
    """Carry out a commit's patch by ``step``, and return what it did to the texts at ``paths``: the
    edits in it where nothing else in it wrote the text, else the plain edit (TX2).
    """
    readers = [_Reader(document, path) for path in paths]
    for op in patch:
        for reader in readers:
            reader.before(op)
        step(op)
        for reader in readers:
            reader.after(op)
    return {reader.path: reader.result() for reader in readers}


class _Reader:
    """Follows one text through a patch."""

    def __init__(self, document: Document, path: str) -> None:
        self.path = path
        self._document = document
        self._tokens = parse(path)
        self._start = self._stands = text(document, path)
        self._edits: list[Edit] = []
        self._whole = False
        """A step wrote the whole text."""

    def before(self, op: Mapping[str, Any]) -> None:
        match op["op"]:
            case "str_ins" | "str_del":
                if op["path"] == _pointer(self._document, self._tokens):
                    self._edits += splice(op["pos"], op.get("len", 0), op.get("str", ""))
            case "remove":
                self._written(op["path"])
            case "move":
                self._stands = text(self._document, self.path)

    def after(self, op: Mapping[str, Any]) -> None:
        match op["op"]:
            case "add" | "replace":
                self._written(op["path"])
            case "move":
                # An element that moves within its list keeps its path.
                self._whole = self._whole or self._stands != text(self._document, self.path)

    def result(self) -> list[Edit]:
        if self._whole:
            return plain(self._start, text(self._document, self.path))
        return self._edits

    def _written(self, pointer: str) -> None:
        at = _pointer(self._document, self._tokens)
        self._whole = self._whole or (at is not None and _above(pointer, at))


def _pointer(document: Document, tokens: Path) -> str | None:
    """Return an operation's path as a patch names it, by index, whether a value is there or not;
    None where an element on the way is not.
    """
    value: Any = document.state
    steps: list[str] = []
    for token in tokens:
        if type(value) is list:
            index = document.find(value, token[1:])
            if index < 0:
                return None
            value = value[index]
            steps.append(str(index))
        else:
            value = value.get(token) if type(value) is dict else None
            steps.append(token)
    return join(steps)


def _above(pointer: str, other: str) -> bool:
    return pointer == other or other.startswith(f"{pointer}/")


def _splice(path: str, edit: Edit) -> Operation:
    if edit.inserts:
        return {"op": "splice", "path": path, "index": edit.pos, "delete": 0, "insert": edit.text}
    return {"op": "splice", "path": path, "index": edit.pos, "delete": edit.length, "insert": ""}
