"""Erasure of all that a user has, whoever asks for it: a route, or an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from reattach.errors import SessionNotFound
from reattach.runtime.registry import Registry

_PAGE: Final = 100
"""How many sessions are asked for at once."""


async def erase_user(
    registry: Registry,
    user_id: str,
    *,
    by: str,
    erased: Callable[[int], None] | None = None,
) -> int:
    """Erase the sessions that a user owns, and end what they are in of others'.

    Their devices in others' sessions are forgotten, too. `erased` is told after each session how
    many were erased so far; so many are returned. Whether `by` may do it has been asked before.
    """
    count = 0
    while True:
        page = await registry.store.sessions(user_id, None, _PAGE)
        for record in page.items:
            try:
                if record.user_id == user_id:
                    await registry.erase(record.session_id)
                    count += 1
                else:
                    await registry.members.remove(record.session_id, user_id, by=by, forget=True)
            except SessionNotFound:
                continue  # it was erased meanwhile
            if erased is not None:
                erased(count)
        if not page.items:
            return count
