"""The Python client: state that survives lost connections, killed processes and dead servers."""

from __future__ import annotations

from reattach.client.effects import Event, Status
from reattach.client.session import (
    Change,
    Commit,
    Conflict,
    RejectedChange,
    Session,
    connect,
)
from reattach.client.writer import TextWriter

__all__ = [
    "Change",
    "Commit",
    "Conflict",
    "Event",
    "RejectedChange",
    "Session",
    "Status",
    "TextWriter",
    "connect",
]
