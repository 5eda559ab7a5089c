"""Batches as arrays for `sql.append_statement`, and rows as records.

PostgreSQL's text has no U+0000, which ids of people and names of devices may have: there it is
written as U+0001 U+0001, and U+0001 as U+0001 U+0002.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, overload

import msgspec
from msgspec.structs import astuple

from reattach.store.base import (
    Append,
    CheckpointRecord,
    ClientAdvance,
    ClientRecord,
    CredentialRecord,
    DeviceRecord,
    IdempotencyRecord,
    Loaded,
    MemberRecord,
    Outcome,
    RefusalRecord,
    SessionRecord,
    Tombstone,
)
from reattach.store.packing import packed, unpacked
from reattach.store.postgres import sql
from reattach.store.shared import to_checkpoint as _to_checkpoint
from reattach.store.shared import to_commit, to_conflict

__all__ = [
    "PIECES",
    "Batch",
    "plain",
    "text",
    "to_checkpoint",
    "to_client",
    "to_credential",
    "to_device",
    "to_key",
    "to_loaded",
    "to_members",
    "to_refusal",
    "to_session",
]

Row = Sequence[Any]

_NO_ROW: Final = (None,) * 12


@overload
def text(value: str) -> str: ...
@overload
def text(value: str | None) -> str | None: ...
def text(value: str | None) -> str | None:
    """Write a string without U+0000."""
    if value is None or ("\x00" not in value and "\x01" not in value):
        return value
    return value.replace("\x01", "\x01\x02").replace("\x00", "\x01\x01")


@overload
def plain(value: str) -> str: ...
@overload
def plain(value: str | None) -> str | None: ...
def plain(value: str | None) -> str | None:
    """Read what `text` wrote."""
    if value is None or "\x01" not in value:
        return value
    return value.replace("\x01\x01", "\x00").replace("\x01\x02", "\x01")


class Batch:
    """A batch as the statement that writes it, with its arguments.

    Its parts stand in the order of their sessions' ids, in which they are locked; a part is known
    by its ``number`` among them, from 1.
    """

    def __init__(self, batch: Sequence[Append]) -> None:
        self.given = batch
        self._places = sorted(range(len(batch)), key=lambda place: batch[place].session_id)
        self.parts = [batch[place] for place in self._places]
        self._rows: dict[sql.Piece, list[Row]] = {}
        self._keys: set[tuple[str, str, str]] = set()
        for number, part in enumerate(self.parts, start=1):
            self._add(number, part)
        pieces = tuple(piece for piece in PIECES if piece in self._rows)
        self.statement = sql.append_statement(pieces)
        self.arguments = [
            _written_out(column) if kind in sql.WRITTEN_OUT else column
            for piece in (sql.PARTS, *pieces)
            if piece.types
            for kind, column in zip(piece.types, zip(*self._rows[piece], strict=True), strict=True)
        ]

    def outcomes(self, good: Sequence[bool], taken: Sequence[bool]) -> list[Outcome]:
        """Say what became of the parts, in the order in which they came."""
        if all(good):
            return [Outcome.OK] * len(self.parts)
        outcomes = [Outcome.STALE] * len(self.parts)
        for place, is_good, is_taken in zip(self._places, good, taken, strict=True):
            if is_good:
                outcomes[place] = Outcome.OK
            elif is_taken:
                outcomes[place] = Outcome.EXISTS
        return outcomes

    def _add(self, number: int, part: Append) -> None:
        name = part.session_id
        erases = part.erase is not None
        is_sound = True
        if part.idempotency is not None:
            is_sound = self._add_key(number, part, part.idempotency)
        if part.erase is not None:
            self._add_erasure(number, part, part.erase)
        else:
            steps = _joined(part.clients)
            is_sound = is_sound and steps is not None
            for step in steps or ():
                client = step.client
                self._put(
                    sql.CLIENTS,
                    (
                        *(number, name, client.client_id, text(client.user_id), client.device_id),
                        *(step.before, client.seq, client.at),
                    ),
                )
            self._add_rows(number, part)
        row = part.session
        expected = part.expected
        if row is not None and not erases:
            self._rows.setdefault(sql.UPDATES if expected is not None else sql.CREATIONS, [])
            if row.access_version > 0 and expected is not None:
                self._rows.setdefault(sql.MEMBERS_UP, [])
        self._put(
            sql.PARTS,
            (
                *(name, expected is None, erases, row is not None, is_sound),
                *((None, None, None) if expected is None else astuple(expected)),
                *(_NO_ROW if row is None else (text(row.user_id), *astuple(row)[2:])),
            ),
        )

    def _add_key(self, number: int, part: Append, key: IdempotencyRecord) -> bool:
        """Add a part's idempotency key; False where an earlier part brings the same one.

        That earlier one may come to nothing, but to call the other stale is always true enough: it
        is looked at again.
        """
        place = (key.user_id, key.route, key.key)
        if place in self._keys:
            return False
        self._keys.add(place)
        self._put(sql.KEYS, (number, text(key.user_id), *astuple(key)[1:], part.session_id))
        return True

    def _add_erasure(self, number: int, part: Append, tombstone: Tombstone) -> None:
        members = msgspec.msgpack.encode(list(tombstone.members))
        self._put(
            sql.ERASURES,
            (number, part.session_id, tombstone.erased_at, tombstone.salt, members),
        )

    def _add_rows(self, number: int, part: Append) -> None:
        """Add what needs no guard. Most parts have commits and nothing else: it pays to look."""
        name = part.session_id
        for commit in part.commits:
            self._put(sql.COMMITS, (number, name, *astuple(commit)))
        for refusal in part.refusals:
            self._put(sql.REFUSALS, (number, name, *astuple(refusal)))
        if part.conflicts:
            # One statement can put a row once: the last one stands.
            for conflict in {one.conflict_id: one for one in part.conflicts}.values():
                self._put(
                    sql.CONFLICTS,
                    (
                        *(number, name, conflict.conflict_id, conflict.path.encode()),
                        *(conflict.status, conflict.version, conflict.body),
                    ),
                )
        for mark in part.checkpoints:
            self._put(
                sql.CHECKPOINTS,
                (number, name, mark.checkpoint_id, text(mark.name), *astuple(mark)[2:]),
            )
        if part.devices:
            first = {one.device_id: one.created_at for one in reversed(part.devices)}
            for device in {one.device_id: one for one in part.devices}.values():
                self._put(
                    sql.DEVICES,
                    (
                        *(number, name, device.device_id, text(device.user_id), text(device.name)),
                        *(device.info, device.is_primary, first[device.device_id]),
                        *(device.last_activity, text(device.given_name), device.revoked_at),
                        device.version,
                    ),
                )
        for line, activity in enumerate(part.activity, start=1):
            self._put(
                sql.ACTIVITY,
                (
                    *(number, name, line, activity.activity_type, activity.at),
                    *(text(activity.user_id), activity.device_id, activity.data),
                ),
            )
        if part.reactions and part.session is not None:
            wanted = part.session.version
            for reaction in dict.fromkeys(part.reactions):
                before = wanted - len(part.commits)
                self._put(sql.REACTIONS, (number, name, reaction, before, wanted))
        if part.state is not None:
            self._put(sql.STATES, (number, name, *astuple(packed(part.state))))
        for one in part.kept_states:
            self._put(sql.STATES, (number, name, *astuple(packed(one))))

    def _put(self, piece: sql.Piece, row: Row) -> None:
        self._rows.setdefault(piece, []).append(row)


PIECES: Final = (
    sql.KEYS,
    sql.CLIENTS,
    sql.CREATIONS,
    sql.UPDATES,
    sql.MEMBERS_UP,
    sql.ERASURES,
    sql.COMMITS,
    sql.REFUSALS,
    sql.CONFLICTS,
    sql.CHECKPOINTS,
    sql.DEVICES,
    sql.ACTIVITY,
    sql.REACTIONS,
    sql.STATES,
)


def _written_out(column: Sequence[int | None]) -> str:
    """Write numbers or booleans as PostgreSQL's text of an array."""
    return f"{{{','.join(map(str, column))}}}".replace("None", "NULL")


def _joined(steps: Sequence[ClientAdvance]) -> Iterable[ClientAdvance] | None:
    """Make one step of all that a client takes; None where they do not follow on one another."""
    if len(steps) == 1:
        return steps
    joined: dict[str, ClientAdvance] = {}
    for step in steps:
        client = step.client
        earlier = joined.get(client.client_id)
        if earlier is None:
            joined[client.client_id] = step
        elif client.user_id != earlier.client.user_id:
            return None
        elif client.seq == step.before == 0:
            continue
        elif step.before == earlier.client.seq:
            joined[client.client_id] = ClientAdvance(client=client, before=earlier.before)
        else:
            return None
    return joined.values()


# --- Reading --------------------------------------------------------------------------------------


def to_session(row: Row) -> SessionRecord:
    return SessionRecord(
        session_id=row[0],
        user_id=plain(row[1]),
        epoch=row[2],
        epoch_version=row[3],
        version=row[4],
        access_version=row[5],
        schema_name=row[6],
        schema_version=row[7],
        created_at=row[8],
        last_activity=row[9],
        is_active=row[10],
        disconnected_at=row[11],
        reconnected_at=row[12],
    )


def to_loaded(row: Row) -> Loaded:
    return Loaded(
        session=to_session(row),
        saved=unpacked(*row[13:16]),
        tail=[to_commit(one) for one in row[16]],
        conflicts=[to_conflict(one) for one in row[17]],
        devices=[to_device(one) for one in row[18]],
        members=to_members(row[19]),
    )


def to_checkpoint(row: Row) -> CheckpointRecord:
    mark = _to_checkpoint(row)
    return mark if mark.name is None else msgspec.structs.replace(mark, name=plain(mark.name))


def to_device(row: Row) -> DeviceRecord:
    return DeviceRecord(
        device_id=row[0],
        user_id=plain(row[1]),
        name=plain(row[2]),
        info=row[3],
        is_primary=row[4],
        created_at=row[5],
        last_activity=row[6],
        given_name=plain(row[7]),
        revoked_at=row[8],
        version=row[9],
    )


def to_members(rows: Sequence[Row]) -> list[MemberRecord]:
    members = (MemberRecord(user_id=plain(row[0]), role=row[1]) for row in rows)
    return sorted(members, key=lambda member: member.user_id)


def to_credential(row: Row) -> CredentialRecord:
    return CredentialRecord(
        secret_hash=row[0],
        kind=row[1],
        user_id=plain(row[2]),
        role=row[3],
        device_id=row[4],
        created_at=row[5],
        expires_at=row[6],
    )


def to_client(row: Row) -> ClientRecord:
    return ClientRecord(
        client_id=row[0], user_id=plain(row[1]), device_id=row[2], seq=row[3], at=row[4]
    )


def to_refusal(row: Row) -> RefusalRecord:
    return RefusalRecord(client_id=row[0], seq=row[1], client_at=row[2], body=row[3])


def to_key(row: Row) -> IdempotencyRecord:
    return IdempotencyRecord(
        user_id=plain(row[0]),
        route=row[1],
        key=row[2],
        request=row[3],
        status=row[4],
        headers=row[5],
        body=row[6],
        created_at=row[7],
    )
