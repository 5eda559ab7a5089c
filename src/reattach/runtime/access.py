"""Who may do what with a session: by role, and by what an application's ``authorize`` says."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from reattach.core.connection import Role

__all__ = [
    "Action",
    "Authorize",
    "SessionAccess",
    "User",
    "allows",
    "at_most",
    "effective_role",
    "may",
]


class User(msgspec.Struct, frozen=True):
    """Who somebody is: ``id`` is any string up to 255 bytes.

    ``expires_at``, in milliseconds since 1970, is when this has to be shown anew: connections are
    closed then (4401). None: never. Who came with a token for one session alone is let in on
    ``session_id`` and no other, with at most ``role``, as ``device_id`` if it was made for one.
    """

    id: str
    expires_at: int | None = None
    session_id: str | None = None
    role: str | None = None
    device_id: str | None = None


class Action(StrEnum):
    """What somebody wants with a session."""

    READ = "read"
    """See it, live or by any route; who may not, to them it does not exist."""
    WRITE = "write"
    """Change its state, settle its conflicts, end it."""
    MANAGE = "manage"
    """Say who its members are."""
    ERASE = "erase"
    """Erase it with its history."""


_ALLOWED: Final = {
    Role.OWNER: frozenset(Action),
    Role.EDITOR: frozenset({Action.READ, Action.WRITE}),
    Role.VIEWER: frozenset({Action.READ}),
}


class SessionAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What an ``authorize`` is told of a session.

    ``user_id`` is its owner of record, and ``role`` that of the one who asks, None of a stranger.
    Of a session that does not exist it is asked as well, so that nobody can tell by the time it
    takes: ``user_id`` is then the empty string, which is nobody's. And whoever wants to erase all
    that another user has is asked about with ``session_id`` the empty string and that ``user_id``.
    """

    session_id: str
    user_id: str
    role: str | None
    schema: str | None


Answer: TypeAlias = bool | str | None
"""Yes or no; a role: as it may; None: as the user's own role may."""

Authorize: TypeAlias = Callable[[User, SessionAccess, Action], Answer | Awaitable[Answer]]
"""An application's word on what a user may do with a session, beside the session's members."""


def may(role: str | None, action: Action) -> bool:
    """Say whether a role may do something; None is a stranger's."""
    return role is not None and action in _ALLOWED[role]


def at_most(role: str | None, most: str | None) -> str | None:
    """Return the lesser of two roles; ``most`` None is no bound, ``role`` None a stranger's."""
    if role is None or most is None or _ALLOWED[role] <= _ALLOWED[most]:
        return role
    return most


async def allows(
    authorize: Authorize | None, user: User, session: SessionAccess, action: Action
) -> bool:
    """Say whether a user may do something."""
    if authorize is None:
        return may(session.role, action)
    answer = await _ask(authorize, user, session, action)
    return answer if isinstance(answer, bool) else may(answer or session.role, action)


async def effective_role(
    authorize: Authorize | None, user: User, session: SessionAccess
) -> str | None:
    """Return what a user is on a session's connections; None: to them it does not exist."""
    if authorize is None:
        return session.role
    answer = await _ask(authorize, user, session, Action.READ)
    if not isinstance(answer, bool):
        return answer or session.role
    if not answer:
        return None
    if not await allows(authorize, user, session, Action.WRITE):
        return Role.VIEWER
    manages = await allows(authorize, user, session, Action.MANAGE)
    return Role.OWNER if manages else Role.EDITOR


async def _ask(authorize: Authorize, user: User, session: SessionAccess, action: Action) -> Answer:
    answer = authorize(user, session, action)
    if inspect.isawaitable(answer):
        answer = await answer
    if answer is None or isinstance(answer, bool) or answer in _ALLOWED:
        return answer
    raise TypeError(
        f"expected authorize to return True, False, None or one of the roles"
        f" {', '.join(_ALLOWED)}, got {answer!r}"
    )
