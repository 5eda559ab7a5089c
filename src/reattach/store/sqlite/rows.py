"""What is done on a connection: parts of a batch written, and rows read as records."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec.structs import astuple
from sqlalchemy.dialects import sqlite as dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from reattach.store.base import (
    Activity,
    Append,
    CheckpointRecord,
    ClientRecord,
    CommitRecord,
    Compaction,
    CredentialRecord,
    Decision,
    DeviceRecord,
    Everything,
    IdempotencyRecord,
    Loaded,
    MemberRecord,
    Outcome,
    RefusalRecord,
    SessionRecord,
    Standing,
    Tombstone,
)
from reattach.store.packing import packed, unpacked
from reattach.store.shared import (
    IDEMPOTENCY_LIFETIME_MS,
    MAX_INTEGER,
    changes_access,
    to_checkpoint,
    to_commit,
    to_conflict,
    to_number,
    to_tombstone,
    weight_of,
)
from reattach.store.sqlite import sql
from reattach.store.tables import metadata

__all__ = [
    "compact",
    "ddl",
    "read_all_clients",
    "read_all_refusals",
    "read_checkpoint",
    "read_client",
    "read_credentials",
    "read_decision",
    "read_devices",
    "read_everything",
    "read_key",
    "read_loaded",
    "read_many",
    "read_members",
    "read_refusals",
    "read_session",
    "read_since",
    "read_standing",
    "remove_old_keys",
    "to_session",
    "transaction",
    "weighed",
    "write_parts",
]

_Row = tuple[Any, ...]


# --- Writing --------------------------------------------------------------------------------------


def ddl() -> Iterator[str]:
    """Write out the tables and indexes in SQLite's words."""
    for table in metadata.sorted_tables:
        yield str(CreateTable(table).compile(dialect=dialect.dialect()))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield str(CreateIndex(index).compile(dialect=dialect.dialect()))


@contextmanager
def transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    db.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def write_parts(db: sqlite3.Connection, parts: Sequence[Append]) -> Outcome:
    """Write the parts, all guards first; stop at the first kind of guard that one does not pass.

    Then what was written has to be rolled back, and the outcome is the part's, if it was one.
    """
    outcome = _pass_guards(db, parts)
    if outcome is Outcome.OK:
        _write_rows(db, parts)
    return outcome


def _pass_guards(db: sqlite3.Connection, parts: Sequence[Append]) -> Outcome:
    creations: list[_Row] = []
    updates: list[_Row] = []
    erasures: list[tuple[Append, Tombstone]] = []
    for part in parts:
        expected = part.expected
        if expected is None:
            if part.session is not None:
                creations.append((*astuple(part.session), part.session_id))
            continue
        stands = (part.session_id, expected.version, expected.epoch, expected.access_version)
        if part.erase is not None:
            if not _all_change(db, sql.ERASE_SESSION, [stands]):
                return Outcome.STALE
            erasures.append((part, part.erase))
        elif part.session is not None:
            updates.append((*astuple(part.session)[1:], *stands))
        elif db.execute(sql.SESSION_STANDS, stands).fetchone() is None:
            return Outcome.STALE
    if not _all_change(db, sql.CREATE_SESSION, creations):
        return Outcome.EXISTS
    if not _all_change(db, sql.UPDATE_SESSION, updates):
        return Outcome.STALE
    for part, tombstone in erasures:
        _erase(db, part, tombstone)
    if _clients_advance(db, parts) and _keys_are_free(db, parts):
        return Outcome.OK
    return Outcome.STALE


def _all_change(db: sqlite3.Connection, guard: str, rows: Sequence[_Row]) -> bool:
    return not rows or db.executemany(guard, rows).rowcount == len(rows)


def _clients_advance(db: sqlite3.Connection, parts: Sequence[Append]) -> bool:
    met: list[_Row] = []
    started: list[_Row] = []
    advanced: list[_Row] = []
    for part in parts:
        name = part.session_id
        for advance in part.clients if part.erase is None else ():
            client = advance.client
            if advance.before != 0:
                advanced.append(
                    (
                        client.device_id,
                        client.seq,
                        client.at,
                        name,
                        client.client_id,
                        client.user_id,
                        advance.before,
                    )
                )
            elif client.seq == 0:
                met.append((name, *astuple(client)))
            else:
                started.append((name, *astuple(client)))
    # In this order, because one part may take a client through all three.
    return (
        _all_change(db, sql.MEET_CLIENT, met)
        and _all_change(db, sql.START_CLIENT, started)
        and _all_change(db, sql.ADVANCE_CLIENT, advanced)
    )


def _keys_are_free(db: sqlite3.Connection, parts: Sequence[Append]) -> bool:
    return _all_change(
        db,
        sql.RECORD_KEY,
        [
            (*astuple(key), part.session_id, key.created_at - IDEMPOTENCY_LIFETIME_MS)
            for part in parts
            if (key := part.idempotency) is not None
        ],
    )


def _erase(db: sqlite3.Connection, part: Append, tombstone: Tombstone) -> None:
    for statement in sql.ERASE_REST:
        db.execute(statement, (part.session_id,))
    members = msgspec.msgpack.encode(list(tombstone.members))
    db.execute(
        sql.INSERT_TOMBSTONE, (part.session_id, tombstone.erased_at, tombstone.salt, members)
    )


def _write_rows(db: sqlite3.Connection, parts: Sequence[Append]) -> None:
    """Write what needs no guard: one statement for each table, over all parts."""
    commits: list[_Row] = []
    refusals: list[_Row] = []
    conflicts: list[_Row] = []
    checkpoints: list[_Row] = []
    devices: list[_Row] = []
    activity: list[_Row] = []
    states: list[_Row] = []
    moved: list[_Row] = []
    wanted: list[_Row] = []
    for part in parts:
        if part.erase is not None:
            continue
        name = part.session_id
        # The columns of these statements stand in the order of the records' fields. Most parts have
        # commits and nothing else, so it pays to look first.
        if part.commits:
            commits += [(name, *astuple(commit)) for commit in part.commits]
        if part.refusals:
            refusals += [(name, *astuple(refusal)) for refusal in part.refusals]
        if part.conflicts:
            conflicts += [
                (name, one.conflict_id, one.path.encode(), one.status, one.version, one.body)
                for one in part.conflicts
            ]
        if part.checkpoints:
            checkpoints += [(name, *astuple(mark)) for mark in part.checkpoints]
        if part.devices:
            devices += [(name, *astuple(device)) for device in part.devices]
        if part.activity:
            activity += [(name, *astuple(line), name) for line in part.activity]
        if part.state is not None:
            states.append((name, *astuple(packed(part.state))))
        if part.kept_states:
            states += [(name, *astuple(packed(one))) for one in part.kept_states]
        if changes_access(part):
            _write_access(db, part)
        row = part.session
        if row is not None and part.reactions:
            before = row.version - len(part.commits)
            wanted += [(name, one, before, row.version) for one in part.reactions]
        if row is not None and row.access_version > 0:
            moved.append((row.last_activity, name, row.last_activity))
    for statement, rows in (
        (sql.INSERT_COMMIT, commits),
        (sql.INSERT_REFUSAL, refusals),
        (sql.PUT_CONFLICT, conflicts),
        (sql.INSERT_CHECKPOINT, checkpoints),
        (sql.PUT_DEVICE, devices),
        (sql.INSERT_ACTIVITY, activity),
        (sql.PUT_STATE, states),
        (sql.MOVE_MEMBERS_UP, moved),
        (sql.WANT_REACTION, wanted),
    ):
        if rows:
            db.executemany(statement, rows)


def _write_access(db: sqlite3.Connection, part: Append) -> None:
    """Write who may do what: rare, so part by part."""
    name, row = part.session_id, part.session
    assert row is not None, "check_batch has seen to it"
    gone = [*part.members_removed, *([] if part.claim is None else [part.claim.after])]
    db.executemany(sql.REMOVE_MEMBER, [(name, user_id) for user_id in gone])
    put = [(name, *astuple(member), row.last_activity) for member in part.members]
    db.executemany(sql.PUT_MEMBER, put)
    db.executemany(sql.REMOVE_CREDENTIAL, [(name, one) for one in part.credentials_removed])
    db.executemany(sql.PUT_CREDENTIAL, [(name, *astuple(one)) for one in part.credentials])
    if part.claim is not None:
        for statement in sql.CLAIM:
            db.execute(statement, (part.claim.after, name, part.claim.before))


def compact(db: sqlite3.Connection, compaction: Compaction) -> bool:
    """Write a compaction."""
    name, floor = compaction.session_id, compaction.floor
    if db.execute(sql.HAS_EPOCH, (name, compaction.epoch)).fetchone() is None:
        return False
    kept = [(name, *astuple(packed(one))) for one in compaction.states]
    db.executemany(sql.KEEP_STATE, kept)
    db.execute(sql.COMPACT_LOG, (name, floor))
    db.execute(sql.COMPACT_STATES, (name, floor, json.dumps(list(compaction.kept))))
    removed = [(name, one) for one in compaction.checkpoints_removed]
    db.executemany(sql.REMOVE_CHECKPOINT, removed)
    return True


def remove_old_keys(db: sqlite3.Connection, parts: Sequence[Append], now: int) -> None:
    """Remove a few more idempotency keys than the parts bring, so that old ones do not pile up."""
    brought = len([part for part in parts if part.idempotency is not None])
    if brought:
        db.execute(sql.REMOVE_OLD_KEYS, (now - IDEMPOTENCY_LIFETIME_MS, 4 * brought))


# --- Reading --------------------------------------------------------------------------------------


def to_session(row: _Row) -> SessionRecord:
    return SessionRecord(
        session_id=row[0],
        user_id=row[1],
        epoch=row[2],
        epoch_version=row[3],
        version=row[4],
        access_version=row[5],
        schema_name=row[6],
        schema_version=row[7],
        created_at=row[8],
        last_activity=row[9],
        is_active=bool(row[10]),
        disconnected_at=row[11],
        reconnected_at=row[12],
    )


def weighed(commits: Iterable[CommitRecord], max_bytes: int | None) -> list[CommitRecord]:
    """Take commits up to the one with which their bodies weigh more than ``max_bytes``."""
    if max_bytes is None:
        return list(commits)
    taken: list[CommitRecord] = []
    weight = 0
    for commit in commits:
        taken.append(commit)
        weight += len(commit.body)
        if weight > max_bytes:
            break
    return taken


def read_session(db: sqlite3.Connection, session_id: str) -> SessionRecord | Tombstone | None:
    row = db.execute(sql.READ_SESSION, (session_id,)).fetchone()
    if row is not None:
        return to_session(row)
    row = db.execute(sql.READ_TOMBSTONE, (session_id,)).fetchone()
    return None if row is None else to_tombstone(row)


def read_since(
    db: sqlite3.Connection, session_id: str, after: int
) -> tuple[SessionRecord, Sequence[CommitRecord]] | None:
    row = db.execute(sql.READ_SESSION, (session_id,)).fetchone()
    if row is None:
        return None
    commits = db.execute(sql.READ_LOG, (session_id, to_number(after + 1), MAX_INTEGER, -1))
    return to_session(row), [to_commit(one) for one in commits]


def read_standing(
    db: sqlite3.Connection, session_id: str, user_id: str
) -> Standing | Tombstone | None:
    # All three are asked for, whatever the first finds: so nobody can tell by the time it takes.
    row = db.execute(sql.READ_SESSION_OR_NOTHING, (session_id,)).fetchone()
    member = db.execute(sql.READ_MEMBER, (session_id, user_id)).fetchone()
    left = db.execute(sql.READ_TOMBSTONE, (session_id,)).fetchone()
    found = Standing(session=to_session(row), role=None if member is None else member[0])
    if row[13]:
        return found
    return None if left is None else to_tombstone(left)


def read_members(db: sqlite3.Connection, session_id: str) -> list[MemberRecord]:
    found = db.execute(sql.READ_MEMBERS, (session_id,))
    return [MemberRecord(user_id=row[0], role=row[1]) for row in found]


def read_credentials(
    db: sqlite3.Connection, session_id: str, secret_hash: bytes | None = None
) -> list[CredentialRecord]:
    """Read a session's credentials, or the one with a hash."""
    if secret_hash is None:
        found = db.execute(sql.READ_CREDENTIALS, (session_id,))
    else:
        found = db.execute(sql.READ_CREDENTIAL, (session_id, secret_hash))
    return [
        CredentialRecord(
            secret_hash=row[0],
            kind=row[1],
            user_id=row[2],
            role=row[3],
            device_id=row[4],
            created_at=row[5],
            expires_at=row[6],
        )
        for row in found
    ]


def read_loaded(db: sqlite3.Connection, session_id: str, version: int | None) -> Loaded | None:
    row = db.execute(sql.READ_SESSION, (session_id,)).fetchone()
    if row is None:
        return None
    session = to_session(row)
    end = session.version if version is None else to_number(version)
    row = db.execute(sql.READ_STATE, (session_id, end)).fetchone()
    if row is None:
        return None
    saved = unpacked(*row)
    tail = db.execute(sql.READ_LOG, (session_id, saved.version + 1, end, -1))
    return Loaded(
        session=session,
        saved=saved,
        tail=[to_commit(row) for row in tail],
        conflicts=[to_conflict(row) for row in db.execute(sql.READ_UNRESOLVED, (session_id,))],
        devices=read_devices(db, session_id),
        members=read_members(db, session_id),
    )


def read_many(
    db: sqlite3.Connection, session_ids: Sequence[str], max_bytes: int
) -> dict[str, Loaded | None]:
    """Read sessions up to the one with which they weigh more than ``max_bytes``."""
    found: dict[str, Loaded | None] = {}
    weight = 0
    for session_id in session_ids:
        if weight > max_bytes:
            break
        loaded = found[session_id] = read_loaded(db, session_id, None)
        weight += 0 if loaded is None else weight_of(loaded)
    return found


def read_refusals(
    db: sqlite3.Connection, session_id: str, client_id: str, after: int
) -> list[RefusalRecord]:
    return [
        RefusalRecord(client_id=row[0], seq=row[1], client_at=row[2], body=row[3])
        for row in db.execute(sql.READ_REFUSALS, (session_id, client_id, to_number(after)))
    ]


def read_all_refusals(
    db: sqlite3.Connection, session_id: str, place: tuple[int, str, int], limit: int
) -> list[RefusalRecord]:
    return [
        RefusalRecord(client_id=row[0], seq=row[1], client_at=row[2], body=row[3])
        for row in db.execute(sql.PAGE_OF_REFUSALS, (session_id, *place, limit))
    ]


def read_all_clients(db: sqlite3.Connection, session_id: str) -> list[ClientRecord]:
    return [
        ClientRecord(client_id=row[0], user_id=row[1], device_id=row[2], seq=row[3], at=row[4])
        for row in db.execute(sql.ALL_CLIENTS, (session_id,))
    ]


def read_client(db: sqlite3.Connection, session_id: str, client_id: str) -> ClientRecord | None:
    row = db.execute(sql.READ_CLIENT, (session_id, client_id)).fetchone()
    if row is None:
        return None
    return ClientRecord(client_id=row[0], user_id=row[1], device_id=row[2], seq=row[3], at=row[4])


def read_decision(
    db: sqlite3.Connection, session_id: str, client_id: str, seq: int
) -> Decision | None:
    seq = to_number(seq)
    client = read_client(db, session_id, client_id)
    if client is None or client.seq < seq:
        return None
    row = db.execute(sql.READ_REFUSAL, (session_id, client_id, seq)).fetchone()
    if row is not None:
        return Decision(seq=seq, client_at=row[0], refusal=row[1])
    # A number that was no refusal is a commit, and so were those before it that were none: that
    # many versions lie below it. The log is read from there, and in a session with one writer the
    # first row is the one. From its beginning only where numbers came without their decisions.
    refused: int = db.execute(sql.COUNT_REFUSALS, (session_id, client_id, seq)).fetchone()[0]
    for first in (seq - refused, 0):
        row = db.execute(sql.FIND_COMMIT, (session_id, first, client_id, seq)).fetchone()
        if row is not None:
            return Decision(seq=seq, client_at=row[0], refusal=None)
    return None


def read_checkpoint(
    db: sqlite3.Connection, session_id: str, checkpoint_id: str | None
) -> CheckpointRecord | None:
    if checkpoint_id is None:
        row = db.execute(sql.READ_LATEST_CHECKPOINT, (session_id,)).fetchone()
    else:
        row = db.execute(sql.READ_CHECKPOINT, (session_id, checkpoint_id)).fetchone()
    return None if row is None else to_checkpoint(row)


def read_devices(db: sqlite3.Connection, session_id: str) -> list[DeviceRecord]:
    return [
        DeviceRecord(
            device_id=row[0],
            user_id=row[1],
            name=row[2],
            info=row[3],
            is_primary=bool(row[4]),
            created_at=row[5],
            last_activity=row[6],
            given_name=row[7],
            revoked_at=row[8],
            version=row[9],
        )
        for row in db.execute(sql.READ_DEVICES, (session_id,))
    ]


def read_everything(db: sqlite3.Connection, session_id: str) -> Everything | None:
    session = read_session(db, session_id)
    oldest = db.execute(sql.ALL_STATE, (session_id,)).fetchone()
    if not isinstance(session, SessionRecord) or oldest is None:
        return None

    def every(statement: str) -> list[_Row]:
        return db.execute(statement, (session_id,)).fetchall()

    return Everything(
        session=session,
        saved=unpacked(*oldest),
        kept=[unpacked(*row) for row in db.execute(sql.ALL_KEPT_STATES, (session_id, oldest[0]))],
        commits=[to_commit(row) for row in every(sql.ALL_COMMITS)],
        clients=read_all_clients(db, session_id),
        refusals=[
            RefusalRecord(client_id=row[0], seq=row[1], client_at=row[2], body=row[3])
            for row in every(sql.ALL_REFUSALS)
        ],
        conflicts=[to_conflict(row) for row in every(sql.ALL_CONFLICTS)],
        checkpoints=[to_checkpoint(row) for row in every(sql.ALL_CHECKPOINTS)],
        devices=read_devices(db, session_id),
        members=read_members(db, session_id),
        activity=[
            Activity(activity_type=row[0], at=row[1], user_id=row[2], device_id=row[3], data=row[4])
            for row in every(sql.ALL_ACTIVITY)
        ],
    )


def read_key(
    db: sqlite3.Connection, user_id: str, route: str, key: str, since: int
) -> IdempotencyRecord | None:
    row = db.execute(sql.READ_KEY, (user_id, route, key, since)).fetchone()
    if row is None:
        return None
    return IdempotencyRecord(
        user_id=row[0],
        route=row[1],
        key=row[2],
        request=row[3],
        status=row[4],
        headers=row[5],
        body=row[6],
        created_at=row[7],
    )
