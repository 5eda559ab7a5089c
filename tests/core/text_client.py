"""A client of one text that keeps to the rules TX1 to TX6, and to no others."""

from __future__ import annotations

import copy
from typing import Any

from reattach.core.text import Edit, apply, carry, plain, splice
from tests.core.rig import Rig

PATH = "/t"


class Pending:
    def __init__(self, op: dict[str, Any], base: int, at: int) -> None:
        self.op = op
        self.base = base
        self.at = at
        self.view: list[Edit] = (
            splice(op["index"], op["delete"], op["insert"]) if op["op"] == "splice" else []
        )

    @property
    def whole(self) -> bool:
        return bool(self.op["op"] != "splice")

    def over(self, text: str) -> str:
        """The text with this change over it."""
        if self.op["op"] == "splice":
            return apply(text, self.view)
        return str(self.op.get("value", ""))


class TextClient:
    def __init__(self, name: str, rig: Rig) -> None:
        self.name = name
        self.rig = rig
        self.version = rig.version
        self.state: dict[str, Any] = copy.deepcopy(rig.state)
        self.pending: list[Pending] = []
        self.sent = 0
        """How many of the pending are on their way."""

    @property
    def confirmed(self) -> str:
        text = self.state.get("t", "")
        return text if isinstance(text, str) else ""

    @property
    def shown(self) -> str:
        text = self.confirmed
        for one in self.pending:
            text = one.over(text)
        return text

    def splice(self, index: int, delete: int, insert: str, at: int = 0) -> None:
        assert index + delete <= len(self.shown)
        op = {"op": "splice", "path": PATH, "index": index, "delete": delete, "insert": insert}
        self.pending.append(Pending(op, self.version, at))

    def put(self, text: str, at: int = 0) -> None:
        self.pending.append(Pending({"op": "set", "path": PATH, "value": text}, self.version, at))

    def send(self) -> Any:
        """The server decides the next change."""
        one = self.pending[self.sent]
        self.sent += 1
        return self.rig.change(self.name, one.op, base=one.base, at=one.at)

    def hear(self) -> None:
        """The next commit of the log arrives."""
        frame = self.rig.frames[self.version]
        own = frame["by"]["client_id"] == self.name
        before = self.confirmed
        edits, after = self._read(frame["patch"])
        expected = ""
        if own:
            expected = self.pending.pop(0).over(before)
            self.sent -= 1
        self.version += 1
        if own:
            edits = plain(expected, after)
        for one in self.pending:
            if one.whole:
                break
            edits, one.view = carry(edits, one.view)

    def _read(self, patch: list[dict[str, Any]]) -> tuple[list[Edit], str]:
        before = self.confirmed
        edits: list[Edit] = []
        whole = False
        for step in patch:
            if step["op"] == "str_ins":
                edits += splice(step["pos"], 0, step["str"])
            elif step["op"] == "str_del":
                edits += splice(step["pos"], step["len"], "")
            else:
                whole = True
            if step["op"] in {"str_ins", "str_del"}:
                text = self.state["t"]
                last = edits[-1]
                self.state["t"] = apply(text, [last])
            elif step["op"] == "remove":
                del self.state["t"]
            else:
                self.state["t"] = step["value"]
        return (plain(before, self.confirmed) if whole else edits), self.confirmed
