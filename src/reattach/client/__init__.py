"""The Python client: state that survives lost connections, killed processes and dead servers."""

from __future__ import annotations

from reattach.client.changes import Change, Commit, Conflict, RejectedChange
from reattach.client.effects import Event, Status
from reattach.client.session import Session, connect
from reattach.client.writer import TextWriter
from reattach.wire import Checkpoint

__all__ = [
    "Change",
    "Checkpoint",
    "Commit",
    "Conflict",
    "Event",
    "RejectedChange",
    "Session",
    "Status",
    "TextWriter",
    "connect",
]
