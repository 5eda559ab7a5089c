"""A session without a server: changes go in, commits and refusals come out, nothing waits."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec

from reattach.core.limits import Limits
from reattach.core.schema import Schema
from reattach.core.session import Proposal, Session, apply_ops, empty_index
from reattach.store.base import (
    ClientRecord,
    CommitRecord,
    Loaded,
    RefusalRecord,
    SavedState,
    SessionRecord,
)
from reattach.wire import Op, encode


def record(version: int = 0, **values: Any) -> SessionRecord:
    given: dict[str, Any] = {
        "session_id": "s",
        "user_id": "u",
        "epoch": "e",
        "epoch_version": 0,
        "version": version,
        "created_at": 0,
        "last_activity": 0,
    }
    return SessionRecord(**{**given, **values})


def loaded(state: dict[str, Any] | None = None, **values: Any) -> Loaded:
    return Loaded(
        session=record(**values),
        saved=SavedState(version=0, state=encode(state or {}), index=empty_index()),
        tail=(),
        conflicts=(),
        devices=(),
    )


class Rig:
    """Drives one `Session`. Every change is a batch of its own, and durable at once."""

    def __init__(
        self,
        state: dict[str, Any] | None = None,
        limits: Limits | None = None,
        schema: Schema | None = None,
        **values: Any,
    ) -> None:
        self.limits = limits or Limits()
        self.initial = json.loads(json.dumps(state or {}))
        self.schema = schema
        self.session = Session(loaded(state, **values), self.limits, schema)
        self.log: list[CommitRecord] = []
        self.frames: list[dict[str, Any]] = []
        """The commits as frames: the first makes version 1."""
        self.now = 1_000

    @property
    def state(self) -> dict[str, Any]:
        return self.session.document.state

    @property
    def version(self) -> int:
        return self.session.version

    def client(self, name: str) -> None:
        if name not in self.session.clients:
            row = ClientRecord(client_id=name, user_id="u", device_id=f"d-{name}")
            self.session.know(row, known=False)

    def decide(
        self, name: str, *ops: dict[str, Any], **values: Any
    ) -> CommitRecord | RefusalRecord:
        """Decide a change inside the batch that has been cut."""
        self.client(name)
        self.now += 1
        at = values.pop("at", self.now)
        given = msgspec.convert(copy.deepcopy(list(ops)), list[Op])
        proposal = Proposal(
            client_id=name,
            seq=self.session.clients[name].seq + 1,
            at=at,
            corrected=at,
            edit=apply_ops(given),
            resolve=given[0] if given and given[0].op == "resolve" else None,
            **values,
        )
        return self.session.decide(proposal)

    def change(self, name: str, *ops: dict[str, Any], **values: Any) -> Any:
        """Decide a change and land it; returns the frame, decoded."""
        self.session.cut()
        decision = self.decide(name, *ops, **values)
        self.session.land()
        frame = json.loads(decision.body)
        if isinstance(decision, CommitRecord):
            self.log.append(decision)
            self.frames.append(frame)
        return frame

    def refused(self, name: str, *ops: dict[str, Any], **values: Any) -> str:
        frame = self.change(name, *ops, **values)
        assert frame["type"] == "rejected", frame
        code: str = frame["code"]
        return code

    def conflicts(self, name: str, *ops: dict[str, Any], **values: Any) -> list[Any]:
        """Commit a change and return its conflicts as (path, kept, lost), absent as None."""
        frame = self.change(name, *ops, **values)
        assert frame["type"] == "state_update", frame
        return [
            (one["path"], one["kept"].get("value"), one["lost"].get("value"))
            for one in frame.get("conflicts", ())
        ]

    def reload(self) -> Session:
        """Open the session anew from its log alone."""
        saved = SavedState(version=0, state=encode(self.initial), index=empty_index())
        row = record(self.session.version)
        return Session(
            Loaded(session=row, saved=saved, tail=self.log, conflicts=(), devices=()),
            self.limits,
            self.schema,
        )


def put(path: str, value: Any) -> dict[str, Any]:
    return {"op": "set", "path": path, "value": value}


def unset(path: str) -> dict[str, Any]:
    return {"op": "unset", "path": path}


def insert(path: str, value: Any, **after: Any) -> dict[str, Any]:
    return {"op": "insert", "path": path, "value": value, **after}


def move(path: str, **after: Any) -> dict[str, Any]:
    return {"op": "move", "path": path, **after}


def inc(path: str, by: Any) -> dict[str, Any]:
    return {"op": "inc", "path": path, "by": by}


def splice(path: str, index: int, delete: int, text: str) -> dict[str, Any]:
    return {"op": "splice", "path": path, "index": index, "delete": delete, "insert": text}


def check(path: str, value: Any) -> dict[str, Any]:
    return {"op": "test", "path": path, "value": value}
