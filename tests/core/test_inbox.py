"""What waits for its decision, when batches are lost."""

from __future__ import annotations

from typing import Any

import msgspec

from reattach.core.effects import Request, Result, Settle
from reattach.core.limits import Limits
from reattach.core.room import Room
from reattach.core.session import Proposal, apply_ops
from reattach.errors import KeyAnswered
from reattach.store.base import ClientRecord
from reattach.wire import Op
from tests.core.rig import inc, loaded


def room_with_a_server() -> Room:
    room = Room(loaded({"n": 0}), Limits())
    row = ClientRecord(client_id="server", user_id="", device_id="")
    room.session.know(row, known=False, source="server")
    return room


def request(op: dict[str, Any]) -> Request:
    edit = apply_ops([msgspec.convert(op, Op)])
    return Request(proposal=Proposal(client_id="server", edit=edit))


def settled(room: Room) -> list[tuple[Request, Any]]:
    return [(one.request, one.result) for one in room.take_effects() if isinstance(one, Settle)]


def test_a_request_follows_one_that_was_withdrawn_from_a_lost_batch() -> None:
    """Regression: it kept the number after the withdrawn one's, and was answered with a gap."""
    room = room_with_a_server()
    first, second = request(inc("/n", 1)), request(inc("/n", 10))
    room.inbox.submit(first)
    room.inbox.submit(second)
    assert room.cut(1) is not None
    room.abort()
    room.catch_up(room.recorded, [], [])
    room.inbox.withdraw(first, KeyAnswered("answered before"))
    assert room.cut(2) is not None
    room.land(3)
    answers = dict(settled(room))
    assert isinstance(answers[first], KeyAnswered)
    assert isinstance(answers[second], Result)
    assert room.session.document.state == {"n": 10}


def test_a_request_whose_batch_was_written_after_all_is_not_made_twice() -> None:
    room = room_with_a_server()
    one = request(inc("/n", 1))
    room.inbox.submit(one)
    part = room.cut(1)
    assert part is not None
    assert part.session is not None
    commits = list(part.commits)
    room.abort()
    room.catch_up(part.session, commits, [])
    room.session.know(part.clients[0].client, known=True)
    room.cut(2)
    if not room.at_rest:
        room.land(3)
    ((_, result),) = settled(room)
    assert result.decision == commits[0]
    assert room.session.document.state == {"n": 1}
