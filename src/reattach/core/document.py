"""The state of a session as one mutable JSON tree, changed step by step, each step undoable.

Every step writes the patch operation that says the same to a client (RFC 6902, with ``str_ins``
and ``str_del`` for text). A step costs what it touches, never what the state weighs.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Literal

import msgspec

from reattach.core.index import Undo
from reattach.core.paths import Path, join
from reattach.core.places import Places, element_id
from reattach.core.text import Edit
from reattach.core.values import JSON
from reattach.errors import ChangeRefused

__all__ = ["ABSENT", "Absent", "Document", "Place", "element_id"]


class Absent(Enum):
    """The type of `ABSENT`, which stands where there is no value at all (null is a value)."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final[Literal[Absent.ABSENT]] = Absent.ABSENT

_encode = msgspec.json.encode

_SCAN = 16
"""Lists up to this length are searched through; longer ones get a map of their ids."""
_LISTS = 256
"""Maps kept at a time."""


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where an operation's path leads: a container that exists, a key in it, and what is there.

    ``key`` is an index under a list (-1: no such element) and a string under an object (which may
    not have it: ``value`` is `ABSENT`). The whole state has ``container`` None. ``pointer`` is the
    patch path of the container.
    """

    container: Any
    key: Any
    pointer: str
    value: Any

    @property
    def target(self) -> str:
        """The patch path of what is there."""
        key = str(self.key)
        if "~" in key or "/" in key:
            key = key.replace("~", "~0").replace("/", "~1")
        return f"{self.pointer}/{key}"


class Document:
    """A state, the steps taken since the last `settle`, and how to take them back."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.recording = True
        """Whether steps write their patch; a replayed log has it already."""
        self.patch: list[dict[str, Any]] = []
        self.undo: Undo = []
        self.weight = len(_encode(state))
        """What the state weighs as JSON, in bytes: kept by what each step adds and takes away."""
        self._ids: dict[int, Places] = {}

    # Reading

    def locate(self, path: Path) -> Place | None:
        """Find where a path leads; None where its parent does not exist.

        Raises `ChangeRefused` (``bad_path``) where the path names a list element by an index.
        """
        current: Any = self.state
        if not path:
            return Place(None, None, "", current)
        steps: list[str] = []
        last = len(path) - 1
        for depth, token in enumerate(path):
            key: Any = token
            if type(current) is list:
                key = self.find(current, _id_of(token, path))
            elif type(current) is not dict:
                return None
            if type(current) is list:
                found = current[key] if key != -1 else ABSENT
            else:
                found = current.get(key, ABSENT)
            if depth == last:
                return Place(current, key, join(steps), found)
            if found is ABSENT:
                return None
            current = found
            steps.append(str(key))
        return None  # pragma: no cover - the loop returns at its last token

    def reach(self, path: Path) -> Place | None:
        """Find where a path leads; None also where it makes no sense in this state."""
        try:
            return self.locate(path)
        except ChangeRefused:
            return None

    def read(self, path: Path) -> Any:
        """Return what is at a path, `ABSENT` where nothing is."""
        place = self.reach(path)
        return ABSENT if place is None else place.value

    def find(self, items: list[Any], wanted: str) -> int:
        """Return the index of the first element with an id, -1 where there is none."""
        if len(items) <= _SCAN:
            return _scan(items, wanted)
        places = self._ids.get(id(items)) or self._map(items)
        return _scan(items, wanted) if places.unclear else places.find(wanted)

    def _map(self, items: list[Any]) -> Places:
        if len(self._ids) >= _LISTS:
            self._ids.clear()
        # The list is kept beside its map, so that its identity cannot be reused meanwhile.
        places = self._ids[id(items)] = Places(items)
        return places

    # Steps

    def put(self, place: Place, value: JSON) -> None:
        """Set what is at a place: the whole state, an object's key or an existing element."""
        container, key = place.container, place.key
        raw = _encode(value)
        if container is None:
            self.undo.append((self._put_back_all, (self.state, self.weight)))
            self.weight = len(raw)
            self._note("replace", "", raw)
            self.state = value
            return
        before = place.value
        if before is ABSENT:
            self.undo.append((self._take_back, (container, key, self.weight)))
            self.weight += len(raw) + len(_encode(key)) + 1 + bool(container)
            self._note("add", place.target, raw)
        else:
            self.undo.append((self._put_back, (container, key, before, self.weight)))
            self.weight += len(raw) - len(_encode(before))
            self._note("replace", place.target, raw)
            if type(container) is list and element_id(value) != element_id(before):
                self._ids.pop(id(container), None)
                self.undo.append((self._ids.pop, (id(container), None)))
        container[key] = value

    def remove(self, place: Place) -> None:
        """Remove a key or an element that is there."""
        container, key = place.container, place.key
        if self.recording:
            self.patch.append({"op": "remove", "path": place.target})
        named = 0 if type(container) is list else len(_encode(key)) + 1
        self.weigh(-len(_encode(place.value)) - named - (len(container) > 1))
        if type(container) is list:
            value = self._pop(container, key)
            self.undo.append((self._insert, (container, key, value)))
        else:
            self.undo.append((container.__setitem__, (key, container.pop(key))))

    def insert(self, items: list[Any], at: int, value: JSON, pointer: str) -> None:
        """Insert before index ``at`` of a list whose own patch path is ``pointer``."""
        raw = _encode(value)
        self._insert(items, at, value)
        self.undo.append((self._take_out, (items, at, self.weight)))
        self.weight += len(raw) + (len(items) > 1)
        self._note("add", f"{pointer}/{at}", raw)

    def move(self, items: list[Any], source: int, target: int, pointer: str) -> None:
        """Move an element to index ``target``, counted without it."""
        self._move(items, source, target)
        self.undo.append((self._move, (items, target, source)))
        if self.recording:
            self.patch.append(
                {"op": "move", "from": f"{pointer}/{source}", "path": f"{pointer}/{target}"}
            )

    def edit(self, place: Place, edits: Sequence[Edit], result: str) -> None:
        """Edit a string, which becomes ``result``; a missing one counts as empty.

        ``edits`` know what they take out (`reattach.core.text.fill`).
        """
        container, key, text = place.container, place.key, place.value
        if text is ABSENT:
            self.put(place, result)
            return
        pointer = place.target
        self.undo.append((container.__setitem__, (key, text)))
        container[key] = result
        quotes = 2
        for edit in edits:
            weight = len(_encode(edit.text)) - quotes
            if edit.inserts:
                self.weigh(weight)
                step = {"op": "str_ins", "path": pointer, "pos": edit.pos, "str": edit.text}
            else:
                self.weigh(-weight)
                step = {"op": "str_del", "path": pointer, "pos": edit.pos, "len": edit.length}
            if self.recording:
                self.patch.append(step)

    def take_patch(self) -> list[dict[str, Any]]:
        """Return the patch written since the last call, and begin the next one."""
        patch, self.patch = self.patch, []
        return patch

    def weigh(self, change: int) -> None:
        """Note that the state weighs ``change`` bytes more."""
        self.undo.append((setattr, (self, "weight", self.weight)))
        self.weight += change

    def _note(self, op: str, pointer: str, raw: bytes) -> None:
        if self.recording:
            # Encoded at once: a later step may reach into the value, which now is the state's.
            self.patch.append({"op": op, "path": pointer, "value": msgspec.Raw(raw)})

    # Undoing

    def rollback(self, mark: int) -> None:
        """Take back every step after the first ``mark`` entries of ``undo``."""
        undo = self.undo
        while len(undo) > mark:
            call, arguments = undo.pop()
            call(*arguments)

    def settle(self) -> None:
        """Make every step so far final."""
        self.undo.clear()

    def _insert(self, items: list[Any], at: int, value: JSON) -> None:
        items.insert(at, value)
        places = self._ids.get(id(items))
        if places is not None and not places.inserted(at, element_id(value)):
            del self._ids[id(items)]

    def _pop(self, items: list[Any], at: int) -> JSON:
        value: JSON = items.pop(at)
        places = self._ids.get(id(items))
        if places is not None and not places.removed(at, element_id(value)):
            del self._ids[id(items)]
        return value

    # Each takes back a step and what it made the state weigh: one entry for both.

    def _put_back_all(self, state: dict[str, Any], weight: int) -> None:
        self.state, self.weight = state, weight

    def _put_back(self, container: Any, key: Any, value: JSON, weight: int) -> None:
        container[key] = value
        self.weight = weight

    def _take_back(self, container: dict[str, Any], key: str, weight: int) -> None:
        del container[key]
        self.weight = weight

    def _take_out(self, items: list[Any], at: int, weight: int) -> None:
        self._pop(items, at)
        self.weight = weight

    def _move(self, items: list[Any], source: int, target: int) -> None:
        self._insert(items, target, self._pop(items, source))


def _scan(items: list[Any], wanted: str) -> int:
    for at, item in enumerate(items):
        if type(item) is dict and item.get("id") == wanted:
            return at
    return -1


def _id_of(token: str, path: Path) -> str:
    if token[:1] != "#":
        raise ChangeRefused(
            f"expected # and an element's id under a list, got {token!r}: an index would mean"
            " another element by the time the change arrives",
            code="bad_path",
            path=join(path),
        )
    return token[1:]
