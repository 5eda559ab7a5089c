"""Reattach: a session server and its clients that never lose a user's work."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reattach.errors import ChangeRefused, NotAuthenticated, ReattachError
    from reattach.runtime.access import User
    from reattach.schema import SessionModel
    from reattach.server.app import Reattach
    from reattach.server.inspector.access import Inspector
    from reattach.sessions import Commit, Sessions, Snapshot
    from reattach.settings import Settings

__all__ = [
    "ChangeRefused",
    "Commit",
    "Inspector",
    "NotAuthenticated",
    "Reattach",
    "ReattachError",
    "SessionModel",
    "Sessions",
    "Settings",
    "Snapshot",
    "User",
]

_HOMES = {
    "ChangeRefused": "reattach.errors",
    "Commit": "reattach.sessions",
    "Inspector": "reattach.server.inspector.access",
    "NotAuthenticated": "reattach.errors",
    "Reattach": "reattach.server.app",
    "ReattachError": "reattach.errors",
    "SessionModel": "reattach.schema",
    "Sessions": "reattach.sessions",
    "Settings": "reattach.settings",
    "Snapshot": "reattach.sessions",
    "User": "reattach.runtime.access",
}
"""Loaded when it is asked for (PEP 562): a script with the client loads no server."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
