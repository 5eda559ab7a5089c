"""A client's outbox that comes by HTTP: its changes decided as those of a WebSocket are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from reattach.core.effects import Request as Proposed
from reattach.core.room import Room
from reattach.core.session import Proposal
from reattach.errors import (
    ReattachError,
    SessionEnded,
)
from reattach.runtime.access import User
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.store.base import (
    RefusalRecord,
)
from reattach.wire import HelloDevice

__all__ = ["SeqReused", "decide", "introduce", "runs"]


async def introduce(
    registry: Registry, host: Host, user: User, client_id: str, device: HelloDevice
) -> None:
    """Make a client and its device known; raises `Forbidden` where they are another user's."""
    record, _ = await registry.client(host, client_id)

    def know(room: Room) -> None:
        if room.ended:
            raise SessionEnded("the session has ended: start another one")
        room.introduce(user.id, client_id, device, record=record, now=registry.clock.now())

    await host.at_rest(know)


def runs(proposals: Sequence[Proposal], most: int) -> list[list[Proposal]]:
    """Split changes where their numbers do not go on, and where they are too many at a time.

    What follows a gap must not be decided, even where its own number fits.
    """
    found: list[list[Proposal]] = []
    for one in proposals:
        if not found or len(found[-1]) >= most or one.seq != found[-1][-1].seq + 1:
            found.append([])
        found[-1].append(one)
    return found


async def decide(registry: Registry, host: Host, run: Sequence[Proposal]) -> list[msgspec.Raw]:
    """Have changes decided, in order; return the refusals, raise what stopped them."""
    requests = [Proposed(proposal=one) for one in run]
    results = await asyncio.gather(*map(host.submit, requests), return_exceptions=True)
    rejected: list[msgspec.Raw] = []
    for change, result in zip(run, results, strict=True):
        if isinstance(result, BaseException):
            raise result
        decision: Any = result.decision
        if decision is None:  # decided before
            name = host.room.session_id
            decision = await registry.store.decision(name, change.client_id, change.seq)
        if decision is None:
            continue
        if decision.client_at != change.at:
            raise SeqReused(change.seq)
        body = decision.body if isinstance(decision, RefusalRecord) else None
        body = getattr(decision, "refusal", body)
        if body is not None:
            rejected.append(msgspec.Raw(body))
    return rejected


class SeqReused(ReattachError):
    """A number was decided for another change: take a new client id."""

    code = "seq_reused"
    status = 409

    def __init__(self, seq: int) -> None:
        super().__init__(
            f"number {seq} was decided for another change: take a new client id, ask history which"
            " changes were committed, and send the others"
        )
