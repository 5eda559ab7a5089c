"""What a session hands out: changes on their way, and what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from reattach.wire import SessionRestored, StateUpdate

__all__ = ["Change", "Commit", "Conflict", "Ops", "RejectedChange"]

Commit: TypeAlias = StateUpdate | SessionRestored
"""A commit: its ``version``, ``patch`` (RFC 6902 and text), ``by``, ``at`` and ``conflicts``."""

Ops: TypeAlias = Sequence[Mapping[str, Any]]
"""Operations of the protocol's section 3, as plain dicts."""


class Change:
    """A change on its way. Awaiting it waits until the server has it, durably.

    ``stored`` is done when the change is in the outbox's file (True), or this process is all that
    has it (False). ``acknowledged`` is done when the change is in the server's database, which can
    take until the network is back. It raises `ChangeRefused` with the protocol's code where the
    server refused for good. Where the server takes nothing of this client any more it raises the
    reason (`SessionEnded`, `NotAuthenticated`, …), and `SessionClosed` where the session was closed
    before: then the change stays in the outbox.

    Not awaiting it is fine: a refusal is also listed in ``session.rejected``.
    """

    def __init__(self, ref: str, loop: asyncio.AbstractEventLoop) -> None:
        self.ref = ref
        """Names the change on this device."""
        self.stored: asyncio.Future[bool] = loop.create_future()
        self.acknowledged: asyncio.Future[None] = loop.create_future()
        # Nobody has to ask: then its exception is no news.
        self.acknowledged.add_done_callback(
            lambda done: None if done.cancelled() else done.exception()
        )

    def __await__(self) -> Generator[Any, None, Change]:
        """Wait until the server has the change; returns the change."""
        # A waiter that is cancelled leaves the change as it is.
        yield from asyncio.shield(self.acknowledged).__await__()
        return self


class Conflict(msgspec.Struct, frozen=True):
    """A value that a merge did not keep: ``kept`` and ``lost`` have ``value`` or ``absent``, ``by``
    and ``at`` each.
    """

    id: str
    path: str
    policy: str
    status: str
    kept: dict[str, Any]
    lost: dict[str, Any]
    version: int
    resolve: Callable[[Any], Change]
    """Settles it on all devices: ``"kept"``, ``"lost"``, or another ``{"value": …}``."""


class RejectedChange(msgspec.Struct, frozen=True):
    """A change that the server refused for good. It stays in the list until it is dealt with."""

    ref: str
    code: str
    message: str
    path: str | None
    """The JSON Pointer of the operation that was the reason, where one was."""
    ops: list[dict[str, Any]]
    at: int
    """When its user acted, ms since 1970."""
    edit: Callable[[Ops], Change]
    """Makes another change in its place, as `Session.update` does."""
    discard: Callable[[], None]
    """Forgets it."""

    def send_again(self) -> Change:
        """Make the change anew, over the state of now. Raises `ChangeRefused` where it makes no
        sense there.
        """
        return self.edit(self.ops)
