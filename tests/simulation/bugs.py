"""Deliberate bugs, as patches on the production modules: each breaks one thing, and is caught.

A bug is a function that takes a `pytest.MonkeyPatch` and puts its patches in. `SEEDS` has for each
one a seed that catches it; `tests.simulation.hunt` finds them anew.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from reattach.client.core import ClientCore
from reattach.client.ledger import Ledger
from reattach.client.line import Line
from reattach.core import drafts, past
from reattach.core.connection import Connection, Phase
from reattach.core.document import Document
from reattach.core.inbox import Inbox
from reattach.core.index import Node
from reattach.core.merge import Merge
from reattach.core.room import Room
from reattach.core.session import Session
from reattach.core.text import Edit, carry
from reattach.runtime import recall
from reattach.runtime.committer import Committer, Member
from reattach.runtime.connections import Connections
from reattach.runtime.host import Host
from reattach.store.base import Append, Loaded, Outcome

__all__ = ["BUGS", "SEEDS", "Bug"]

Bug = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Bug] = {}


def bug(function: Bug) -> Bug:
    """Enter a bug under its function's name."""
    BUGS[function.__name__.replace("_", " ")] = function
    return function


# The committer and the host


@bug
def acknowledged_before_it_is_committed(patch: pytest.MonkeyPatch) -> None:
    """W5: the host is told that a batch is durable when it is sent off."""

    async def write(self: Committer, parts: Sequence[tuple[Member, Append]]) -> None:
        for member, _ in parts:
            member.landed(Outcome.OK)
        await asyncio.gather(
            self._store.append([part for _, part in parts]), return_exceptions=True
        )

    patch.setattr(Committer, "_write", write)


@bug
def told_before_it_is_committed(patch: pytest.MonkeyPatch) -> None:
    """W5: the others hear of a commit when it is cut."""
    cut = Host.cut

    def early(self: Host) -> Append | None:
        part = cut(self)
        if part is not None and part.commits:
            frames = [commit.body for commit in part.commits]
            for connection in self.room.connections.values():
                connection.line.send(frames)
        return part

    patch.setattr(Host, "cut", early)


@bug
def a_welcome_shows_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    """W5: whoever wants to see the state sees it at once."""

    async def at_once(self: Host, read: Callable[[Room], Any]) -> Any:
        result = read(self.room)
        self.flush()
        return result

    patch.setattr(Host, "at_rest", at_once)


@bug
def the_number_is_recorded_outside_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """X1: the effects go first, the numbers in a transaction of their own."""
    write = Committer._write

    async def apart(self: Committer, parts: Sequence[tuple[Member, Append]]) -> None:
        numbers = []
        for _, part in parts:
            if part.session is not None and part.expected is not None and part.commits:
                expected = msgspec.structs.replace(part.expected, version=part.session.version)
                numbers.append(
                    Append(session_id=part.session_id, expected=expected, clients=part.clients)
                )
                part.clients = []
        await write(self, parts)
        if numbers:
            await asyncio.gather(self._store.append(numbers), return_exceptions=True)

    patch.setattr(Committer, "_write", apart)


@bug
def what_was_stale_is_taken_for_written(patch: pytest.MonkeyPatch) -> None:
    """The other node's commit was first, and nobody looks."""
    landed = Host.landed
    patch.setattr(Host, "landed", lambda self, _: landed(self, Outcome.OK))


@bug
def one_broadcast_in_500_is_skipped(patch: pytest.MonkeyPatch) -> None:
    """A frame that is not sent, now and then."""
    tell = Room._tell

    def mostly(self: Room, told: Any) -> None:
        tell(self, [one for one in told if one[0] or zlib.crc32(one[1]) % 500])

    patch.setattr(Room, "_tell", mostly)


@bug
def what_the_log_turned_out_to_hold_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """After a lost answer the state is right, and its clients are behind."""
    patch.setattr(Inbox, "found", lambda *_: [])


@bug
def notes_are_taken_without_looking_at_their_versions(patch: pytest.MonkeyPatch) -> None:
    """A note that is repeated or late is applied anyway."""

    def hear(self: Host, note: Any) -> None:
        room = self.room
        if not self.closed and room.at_rest and note.session.epoch == room.recorded.epoch:
            room.session.version = note.commits[0].version - 1
            room.catch_up(note.session, note.commits, [])
            self._rest()

    patch.setattr(Host, "hear", hear)


@bug
def a_quiet_session_is_not_compared_with_the_database(patch: pytest.MonkeyPatch) -> None:
    """A last note that is lost is lost for good."""
    patch.setattr(Host, "compare", lambda *_: None)


# Decisions


@bug
def a_refusal_does_not_use_up_its_number(patch: pytest.MonkeyPatch) -> None:
    """X1: a refusal is written without the guard of its client's number."""
    cut = Room.cut

    def unguarded(self: Room, now: int, *, most: int | None = None) -> Append | None:
        part = cut(self, now, most=most)
        if part is not None and part.refusals and not part.commits:
            part.clients = []
        return part

    patch.setattr(Room, "cut", unguarded)


@bug
def a_number_that_was_decided_is_decided_again(patch: pytest.MonkeyPatch) -> None:
    """X3: what comes again takes effect again, under the next number."""
    decide = Inbox._decide

    def again(self: Inbox, queued: Any, decided: Any, now: int) -> None:
        proposal = queued.proposal
        client = self._session.clients[proposal.client_id]
        if 0 < proposal.seq <= client.seq:
            proposal = msgspec.structs.replace(proposal, seq=client.seq + 1)
            queued = msgspec.structs.replace(queued, proposal=proposal)
        decide(self, queued, decided, now)

    patch.setattr(Inbox, "_decide", again)


@bug
def an_act_may_lie_in_the_future(patch: pytest.MonkeyPatch) -> None:
    """C2: a device whose clock is ahead wins for ever."""
    decide = Session.decide

    def trusting(self: Session, proposal: Any, **options: Any) -> Any:
        ahead = msgspec.structs.replace(proposal, corrected=max(proposal.corrected, proposal.at))
        return decide(self, ahead, **options)

    patch.setattr(Session, "decide", trusting)


@bug
def a_version_is_known_whatever_its_epoch(patch: pytest.MonkeyPatch) -> None:
    """E1: a client of the lost history resumes as if it were this one."""
    welcome = Room._welcome

    def blind(
        self: Room, connection: Connection, epoch: Any, version: Any, seq: int, **more: Any
    ) -> None:
        del epoch
        welcome(self, connection, self.recorded.epoch, version, seq, **more)

    patch.setattr(Room, "_welcome", blind)


@bug
def who_is_ahead_of_the_log_begins_no_epoch(patch: pytest.MonkeyPatch) -> None:
    """E3: the history that a backup lost is gone on with under its old name."""

    async def never(*_: Any) -> bool:
        return False

    patch.setattr(Connections, "_begins_epoch", never)


@bug
def a_fenced_connection_marks_its_device_offline(patch: pytest.MonkeyPatch) -> None:
    """F2: whichever connection closes takes the client's place away."""
    leave = Room.leave

    def careless(self: Room, connection: Connection, why: str, now: int) -> None:
        current = self.connections.get(connection.client_id)
        if current is not None and current is not connection:
            del self.connections[connection.client_id]
            current.phase = Phase.LIVE
            self._tell_devices(now)
        leave(self, connection, why, now)

    patch.setattr(Room, "leave", careless)


# Merging


@bug
def the_loser_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """M14: of two concurrent values one is forgotten."""
    compete = Merge._compete

    def forgetful(self: Merge, *more: Any) -> bool:
        known = len(self.lost)
        stands = compete(self, *more)
        del self.lost[known:]
        return stands

    patch.setattr(Merge, "_compete", forgetful)


@bug
def a_set_of_an_ancestor_covers_what_was_written_below(patch: pytest.MonkeyPatch) -> None:
    """M6: what others wrote deeper is gone without a record."""
    patch.setattr(Merge, "_below", lambda *_: ())


@bug
def an_unset_of_an_ancestor_forgets_what_was_written_below(patch: pytest.MonkeyPatch) -> None:
    """M7: only what was written back is kept."""
    patch.setattr(Merge, "_keep_as_conflict", lambda *_: None)


@bug
def ones_own_standing_write_is_an_opponent(patch: pytest.MonkeyPatch) -> None:
    """M2: a user disagrees with himself."""

    def anybody(self: Node, client: str | None, base: int) -> Any:
        del client
        write = self.last
        return write if write is not None and write.version > base else None

    patch.setattr(Node, "opponent", anybody)


@bug
def what_one_adds_to_a_part_of_what_another_wrote_is_ones_own(patch: pytest.MonkeyPatch) -> None:
    """M2: who replaces it later drops what they never saw."""
    patch.setattr(Node, "written_beside", lambda *_: None)


@bug
def conflicts_are_told_and_not_kept(patch: pytest.MonkeyPatch) -> None:
    """M14: the record is in the frame, and in no table."""
    cut = Room.cut

    def told_only(self: Room, now: int, *, most: int | None = None) -> Append | None:
        part = cut(self, now, most=most)
        if part is not None:
            part.conflicts = []
        return part

    patch.setattr(Room, "cut", told_only)


@bug
def an_inc_is_a_set_of_what_its_author_saw(patch: pytest.MonkeyPatch) -> None:
    """M4: of two who count at once, one counts."""
    inc = Merge._inc

    def lossy(self: Merge, path: Any, op: Any) -> None:
        concurrent = self.index.covered(path, self.author.client, self.author.base)
        if concurrent is None:
            inc(self, path, op)

    patch.setitem(Merge._OPS, "inc", lossy)


@bug
def a_splice_is_carried_over_what_its_author_had_seen(patch: pytest.MonkeyPatch) -> None:
    """T3: positions are carried over every edit, in the wrong context."""

    def once_more(ahead: Any, mine: Sequence[Edit]) -> list[Edit]:
        moved = list(mine)
        for step in ahead:
            _, moved = carry(step.edits, moved)
        return moved

    patch.setattr(drafts, "_through", once_more)


@bug
def a_splice_is_not_carried_at_all(patch: pytest.MonkeyPatch) -> None:
    """M12: positions mean whatever stands there now."""
    patch.setattr(drafts, "_through", lambda _, mine: list(mine))


@bug
def what_a_resolve_makes_of_a_text_was_seen_by_its_author(patch: pytest.MonkeyPatch) -> None:
    """TX5: the positions of what was typed meanwhile mean another text."""
    patch.setattr(drafts.Drafts, "unseen", lambda _: None)


# The client


@bug
def a_restore_leaves_out_the_last_change_before(patch: pytest.MonkeyPatch) -> None:
    """RE1: what is restored is the state of the version before the one that is meant."""
    replayed = past.document_of

    def short(loaded: Loaded) -> tuple[Document, int]:
        _, version = replayed(loaded)
        document, _ = replayed(msgspec.structs.replace(loaded, tail=loaded.tail[:-1]))
        return document, version

    patch.setattr(recall, "document_of", short)


@bug
def a_clock_that_is_set_back_makes_a_dead_line_look_fresh(patch: pytest.MonkeyPatch) -> None:
    """H2: nobody asks for a sign of life until the clock is that late again."""
    patch.setattr(Line, "_set_back", lambda *_: None)


@bug
def a_sent_change_is_altered(patch: pytest.MonkeyPatch) -> None:
    """X6: what is sent again is brought up to date first."""
    hello = ClientCore._hello

    def freshen(self: ClientCore, *more: Any) -> None:
        for pending in self._replica.pending:
            if self._replica.epoch == pending.change["epoch"]:
                pending.change = {**pending.change, "base": self._replica.version}
        hello(self, *more)

    patch.setattr(ClientCore, "_hello", freshen)


@bug
def a_number_is_given_out_twice(patch: pytest.MonkeyPatch) -> None:
    """B2: the next number is not in the transaction that stores its change."""
    take = Ledger.take

    def behind(self: Ledger) -> Any:
        rows = take(self)
        return [
            (key, {**value, "next": max(1, value["next"] - 1)} if key == "meta" else value)
            for key, value in rows
        ]

    patch.setattr(Ledger, "take", behind)


@bug
def a_change_is_sent_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    """B1: the disk is not waited for."""
    flush = ClientCore._flush

    def eager(self: ClientCore) -> None:
        was = [pending.stored for pending in self._replica.pending]
        pendings = list(self._replica.pending)
        for pending in pendings:
            pending.stored = True
        flush(self)
        for pending, stored in zip(pendings, was, strict=True):
            pending.stored = stored

    patch.setattr(ClientCore, "_flush", eager)


@bug
def the_records_of_a_disk_that_went_back_are_believed(patch: pytest.MonkeyPatch) -> None:
    """B5: nobody compares `seq_at`."""
    patch.setattr(Ledger, "agrees", lambda *_: True)


@bug
def what_was_sent_is_not_sent_again(patch: pytest.MonkeyPatch) -> None:
    """X2: a new connection begins behind what the old one had sent."""
    welcome = ClientCore._on_welcome

    def forgetful(self: ClientCore, *more: Any) -> None:
        sent = self._sent
        welcome(self, *more)
        self._sent = max(sent, self._sent)

    patch.setattr(ClientCore, "_on_welcome", forgetful)


@bug
def a_refused_change_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """L3: the user never sees it again."""

    def drop(self: Ledger, pending: Any, refusal: Any) -> None:
        del refusal
        self.accept([pending])

    patch.setattr(Ledger, "refuse", drop)


SEEDS: dict[str, int] = {
    "acknowledged before it is committed": 0,
    "told before it is committed": 0,
    "a welcome shows what is in flight": 1,
    "the number is recorded outside the transaction": 0,
    "what was stale is taken for written": 0,
    "one broadcast in 500 is skipped": 8,
    "what the log turned out to hold is not told": 0,
    "notes are taken without looking at their versions": 0,
    "a quiet session is not compared with the database": 40,
    "a refusal does not use up its number": 0,
    "a number that was decided is decided again": 0,
    "an act may lie in the future": 0,
    "a version is known whatever its epoch": 25,
    "who is ahead of the log begins no epoch": 1,
    "a fenced connection marks its device offline": 2,
    "the loser is dropped": 0,
    "a set of an ancestor covers what was written below": 1,
    "an unset of an ancestor forgets what was written below": 1,
    "ones own standing write is an opponent": 0,
    "what one adds to a part of what another wrote is ones own": 37,
    "conflicts are told and not kept": 0,
    "an inc is a set of what its author saw": 1,
    "a splice is carried over what its author had seen": 7,
    "a splice is not carried at all": 4,
    "what a resolve makes of a text was seen by its author": 104,
    "a restore leaves out the last change before": 1,
    "a clock that is set back makes a dead line look fresh": 0,
    "a sent change is altered": 2,
    "a number is given out twice": 1,
    "a change is sent before it is stored": 0,
    "the records of a disk that went back are believed": 2,
    "what was sent is not sent again": 1,
    "a refused change is forgotten": 0,
}
"""A seed that catches each bug."""
