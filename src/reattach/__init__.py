"""Reattach: a session server and its clients that never lose a user's work."""

from __future__ import annotations

from reattach.errors import ChangeRefused, NotAuthenticated, ReattachError
from reattach.runtime.registry import User
from reattach.schema import SessionModel
from reattach.server.app import Reattach
from reattach.sessions import Commit, Sessions, Snapshot
from reattach.settings import Settings

__all__ = [
    "ChangeRefused",
    "Commit",
    "NotAuthenticated",
    "Reattach",
    "ReattachError",
    "SessionModel",
    "Sessions",
    "Settings",
    "Snapshot",
    "User",
]
