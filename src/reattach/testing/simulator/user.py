"""What simulated users do to a document that they look at.

Each value that they write carries a mark of its own (`w17w`; in texts a character), so that the
witness can find it again.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["PROFILES", "Marks", "User"]

Op = dict[str, Any]


class Marks:
    """Gives out marks, each once."""

    def __init__(self) -> None:
        """Begin."""
        self._words = 0
        self._characters = 0

    def word(self) -> str:
        """Return a mark for a value."""
        self._words += 1
        return f"w{self._words}w"

    def characters(self, n: int) -> str:
        """Return marks for a text: some lie beyond the Basic Multilingual Plane."""
        found = []
        for _ in range(n):
            self._characters += 1
            base = 0x20000 if self._characters % 3 == 0 else 0x4E00
            found.append(chr(base + self._characters))
        return "".join(found)


class User:
    """One user's habits in one change: ``chance`` is the step's own."""

    def __init__(self, chance: Random, marks: Marks, profile: str, device: str) -> None:
        """Sit down."""
        self.chance = chance
        self.marks = marks
        self.device = device
        self.deleted: set[str] = set()
        """The characters that this change deletes from texts."""
        self._habits = _PROFILES[profile]

    def act(self, shown: dict[str, Any], conflicts: list[dict[str, Any]]) -> list[Op]:
        """Return the operations of one change, over what is shown."""
        chance = self.chance
        if conflicts and chance.random() < 0.05:
            return [self._resolve(chance.choice(conflicts))]
        habits = [habit for habit, _ in self._habits]
        weights = [weight for _, weight in self._habits]
        count = 1 if chance.random() < 0.8 else chance.randrange(2, 4)
        ops: list[Op] = []
        for habit in chance.choices(habits, weights, k=count):
            ops += habit(self, shown)
            if habit in _ALONE:
                break
        return ops

    # Habits

    def field(self, shown: dict[str, Any]) -> list[Op]:
        """Fill in a field, at some depth."""
        paths = ["/title", "/form/a", "/form/b", "/form/group/x", "/form/group/y", "/form/c"]
        path = self.chance.choice(paths)
        if path.startswith("/form/group") and not self._has(shown, "form", "group"):
            path = "/title"
        if path.startswith("/form") and not self._has(shown, "form"):
            path = "/title"
        return [{"op": "set", "path": path, "value": self.marks.word()}]

    def clear(self, shown: dict[str, Any]) -> list[Op]:
        """Remove a field or a group of them."""
        path = self.chance.choice(["/form/a", "/form/group/x", "/form/group", "/form/c"])
        parent = path.split("/")[1:-1]
        return [{"op": "unset", "path": path}] if self._has(shown, *parent) else []

    def group(self, shown: dict[str, Any]) -> list[Op]:
        """Set a group of fields as a whole."""
        del shown
        word = self.marks.word
        if self.chance.random() < 0.5:
            value: Any = {"x": word(), "y": word()}
            return [
                {"op": "set", "path": "/form", "value": {"a": word(), "group": value}},
            ]
        return [{"op": "set", "path": "/form/group", "value": {"x": word(), "y": word()}}]

    def whole(self, shown: dict[str, Any]) -> list[Op]:
        """Set what is around a text or around sums."""
        if self.chance.random() < 0.6:
            notes = shown.get("notes")
            text = notes.get("first", "") if isinstance(notes, dict) else ""
            first = self._put_in(text if isinstance(text, str) else "")
            return [{"op": "set", "path": "/notes", "value": {"first": first}}]
        counters = {self.device: self.chance.randrange(9), "all": 0}
        return [{"op": "set", "path": "/counters", "value": counters}]

    def everything(self, shown: dict[str, Any]) -> list[Op]:
        """Set the whole state, with one value of it another one."""
        return [{"op": "set", "path": "", "value": shown | {"title": self.marks.word()}}]

    def add(self, shown: dict[str, Any]) -> list[Op]:
        """Put an element into a list."""
        items = shown.get("items")
        if not isinstance(items, list):
            return [{"op": "set", "path": "/items", "value": []}]
        name = f"i{self.marks.word()}"
        op: Op = {
            "op": "insert",
            "path": "/items",
            "value": {"id": name, "v": self.marks.word(), "tags": {}},
        }
        where = self.chance.random()
        if where < 0.2:
            op["after"] = None
        elif where < 0.6 and items:
            op["after"] = self.chance.choice(items)["id"]
        return [op]

    def element(self, shown: dict[str, Any]) -> list[Op]:
        """Change, move, replace or remove an element of a list."""
        items = shown.get("items")
        if not isinstance(items, list) or not items:
            return self.add(shown)
        name = self.chance.choice(items)["id"]
        path = f"/items/#{name}"
        what = self.chance.random()
        if what < 0.4:
            return [{"op": "set", "path": f"{path}/v", "value": self.marks.word()}]
        if what < 0.55:
            value = {"id": name, "v": self.marks.word(), "tags": {}}
            return [{"op": "set", "path": path, "value": value}]
        if what < 0.7:
            after = self.chance.choice([None, self.chance.choice(items)["id"]])
            return [{"op": "move", "path": path, "after": after}]
        if what < 0.85:
            return [{"op": "unset", "path": path}]
        tag = self.chance.choice("pqr")
        return [{"op": "set", "path": f"{path}/tags/{tag}", "value": self.marks.word()}]

    def loose(self, shown: dict[str, Any]) -> list[Op]:
        """Put an element without an id into a list, or set that list."""
        plain = shown.get("plain")
        if isinstance(plain, list) and self.chance.random() < 0.8:
            return [{"op": "insert", "path": "/plain", "value": self.marks.word()}]
        return [{"op": "set", "path": "/plain", "value": [self.marks.word()]}]

    def count(self, shown: dict[str, Any]) -> list[Op]:
        """Count something."""
        path = self.chance.choice(["/n", f"/counters/{self.device}", "/counters/all"])
        if path != "/n" and not self._has(shown, "counters"):
            path = "/n"
        return [{"op": "inc", "path": path, "by": self.chance.randrange(1, 9)}]

    def type(self, shown: dict[str, Any]) -> list[Op]:
        """Edit a text."""
        path = self.chance.choice(["/text", "/memo", "/notes/first"])
        holder = shown.get("notes") if path == "/notes/first" else shown
        text = holder.get(path.split("/")[-1], "") if isinstance(holder, dict) else None
        if not isinstance(text, str):
            return []
        ops: list[Op] = []
        for _ in range(1 if self.chance.random() < 0.75 else 2):
            index = self.chance.randint(0, len(text))
            delete = min(len(text) - index, self.chance.choice([0, 0, 0, 1, 2, 5]))
            insert = self.marks.characters(self.chance.choice([0, 1, 1, 3]) if delete else 2)
            self.deleted |= set(text[index : index + delete])
            ops.append(
                {"op": "splice", "path": path, "index": index, "delete": delete, "insert": insert}
            )
            text = text[:index] + insert + text[index + delete :]
        return ops

    def rewrite(self, shown: dict[str, Any]) -> list[Op]:
        """Set a text as a whole."""
        path = self.chance.choice(["/text", "/memo", "/notes/first"])
        if path == "/notes/first" and not self._has(shown, "notes"):
            return []
        return [{"op": "set", "path": path, "value": self.marks.characters(4)}]

    def policies(self, shown: dict[str, Any]) -> list[Op]:
        """Write a field that its schema, if there is one, has another policy for."""
        chance, word = self.chance, self.marks.word
        what = chance.choice(["asked", "first", "most", "least", "all", "all", "memo"])
        value: Any = word()
        if what in {"most", "least"}:
            value = word() if chance.random() < 0.05 else chance.randrange(1_000)
        elif what == "all":
            stands = shown.get("all")
            value = list(stands) if isinstance(stands, list) else []
            if value and chance.random() < 0.2:
                value.pop(chance.randrange(len(value)))
            else:
                value.append(word())
        elif what == "memo":
            stands = shown.get("memo", "")
            value = self._put_in(stands if isinstance(stands, str) else "")
        return [{"op": "set", "path": f"/{what}", "value": value}]

    def careful(self, shown: dict[str, Any]) -> list[Op]:
        """Set a field only if it is still what it was."""
        title = shown.get("title")
        if title is None:
            return []
        return [
            {"op": "test", "path": "/title", "value": title},
            {"op": "set", "path": "/title", "value": self.marks.word()},
        ]

    def too_much(self, shown: dict[str, Any]) -> list[Op]:
        """Do more at once than the server takes."""
        del shown
        return [{"op": "set", "path": "/title", "value": self.marks.word()} for _ in range(9)]

    def nothing(self, shown: dict[str, Any]) -> list[Op]:
        """Change nothing."""
        del shown
        return []

    def _put_in(self, text: str) -> str:
        """Return a text with something put in."""
        at = self.chance.randint(0, len(text))
        return text[:at] + self.marks.characters(2) + text[at:]

    def _resolve(self, conflict: dict[str, Any]) -> Op:
        text = conflict["path"] in {"/text", "/memo", "/notes/first"}
        value = self.marks.characters(3) if text else self.marks.word()
        keep: Any = self.chance.choice(["kept", "lost", {"value": value}])
        return {"op": "resolve", "conflict_id": conflict["id"], "keep": keep}

    @staticmethod
    def _has(shown: Any, *path: str) -> bool:
        for token in path:
            shown = shown.get(token) if isinstance(shown, dict) else None
        return isinstance(shown, dict)


Habit = Callable[[User, dict[str, Any]], list[Op]]

_ALONE: tuple[Habit, ...] = (
    User.type,
    User.policies,
    User.rewrite,
    User.whole,
    User.everything,
    User.careful,
    User.too_much,
    User.nothing,
)

_RARE: list[tuple[Habit, float]] = [(User.careful, 2), (User.too_much, 0.7), (User.nothing, 0.7)]

_PROFILES: dict[str, list[tuple[Habit, float]]] = {
    "form": [(User.field, 50), (User.clear, 10), (User.group, 8), (User.everything, 2), *_RARE],
    "list": [(User.add, 30), (User.element, 50), (User.loose, 10), *_RARE],
    "text": [(User.type, 60), (User.rewrite, 4), (User.whole, 2), *_RARE],
    "wholes": [
        (User.type, 30),
        (User.rewrite, 16),
        (User.whole, 20),
        (User.everything, 2),
        *_RARE,
    ],
    "count": [(User.count, 50), (User.whole, 4), (User.field, 20), (User.policies, 20), *_RARE],
    "policies": [(User.policies, 70), (User.type, 10), (User.everything, 1), *_RARE],
    "all": [
        (User.field, 20),
        (User.clear, 6),
        (User.group, 5),
        (User.everything, 2),
        (User.add, 12),
        (User.element, 20),
        (User.loose, 5),
        (User.count, 12),
        (User.type, 20),
        (User.rewrite, 2),
        (User.whole, 2),
        (User.policies, 12),
        *_RARE,
    ],
}
PROFILES = tuple(_PROFILES)
