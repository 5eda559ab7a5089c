"""All that a session holds as one JSON file, and a session made of such a file.

What is JSON in the database is so in the file, byte for byte. Secrets are not in it, nor are what
`Idempotency-Key`s were answered, how far reactions are, and on which server it was: the epoch is
another one where it is imported, because the history may go on here as well.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal

import msgspec

from reattach.core.connection import Role
from reattach.core.guard import Guard
from reattach.core.schema import Schema
from reattach.core.session import Session
from reattach.core.values import check
from reattach.errors import AlreadyExists, BadRequest, ChangeRefused, SessionNotFound, TooLarge
from reattach.runtime.access import User
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.store.base import (
    Activity,
    Append,
    CheckpointRecord,
    ClientAdvance,
    ClientRecord,
    CommitRecord,
    ConflictRecord,
    DeviceRecord,
    Everything,
    Loaded,
    MemberRecord,
    Outcome,
    RefusalRecord,
    SavedState,
    SessionRecord,
)
from reattach.wire import encode

__all__ = ["FORMAT", "export_session", "import_session"]

FORMAT: Final = "reattach.session.1"
"""What a file says that it is."""

_MOST_MEMBERS: Final = 1_000

_SessionId = Annotated[
    str,
    msgspec.Meta(pattern=r"^(?!(heartbeat|check-connection|import)$)[A-Za-z0-9._:~-]{1,128}$"),
]
_Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:~-]{1,128}$")]
_User = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Raw = msgspec.Raw


class _File(msgspec.Struct, kw_only=True):
    """The form of a file. Each list has what `Everything` has, as JSON where that is bytes."""

    format: Literal["reattach.session.1"]
    exported_at: _Count
    session: _Session
    state: _State
    kept: list[_State] = []  # files from before history was compacted have none
    commits: list[_Commit]
    clients: list[_Client]
    refusals: list[_Refusal]
    conflicts: list[_Conflict]
    checkpoints: list[_Checkpoint]
    devices: list[_Device]
    members: Annotated[list[_Member], msgspec.Meta(max_length=_MOST_MEMBERS)]
    activity: list[_Line]


class _Session(msgspec.Struct, kw_only=True):
    session_id: _SessionId
    user_id: _User
    epoch: str
    epoch_version: _Count
    version: _Count
    schema_name: str | None
    schema_version: _Count | None
    created_at: _Count
    last_activity: _Count
    is_active: bool
    disconnected_at: _Count | None
    reconnected_at: _Count | None


class _State(msgspec.Struct, kw_only=True):
    version: _Count
    state: _Raw
    index: _Raw


class _Commit(msgspec.Struct, kw_only=True):
    version: _Count
    body: _Raw
    writes: _Raw
    at: _Count
    client_id: _Id | None
    seq: _Count | None
    client_at: _Count | None


class _Client(msgspec.Struct, kw_only=True):
    client_id: _Id
    user_id: str
    device_id: str
    seq: _Count
    at: _Count | None


class _Refusal(msgspec.Struct, kw_only=True):
    client_id: _Id
    seq: _Count
    client_at: _Count
    body: _Raw


class _Conflict(msgspec.Struct, kw_only=True):
    conflict_id: str
    path: str
    status: Literal["auto", "open", "resolved"]
    version: _Count
    body: _Raw


class _Checkpoint(msgspec.Struct, kw_only=True):
    checkpoint_id: str
    name: str | None
    kind: Literal["automatic", "named", "before_restore"]
    version: _Count
    step: _Raw
    data: _Raw
    created_at: _Count


class _Device(msgspec.Struct, kw_only=True):
    device_id: _Id
    user_id: str
    name: str | None
    info: _Raw
    is_primary: bool
    created_at: _Count
    last_activity: _Count
    given_name: str | None
    revoked_at: _Count | None
    version: _Count | None


class _Member(msgspec.Struct, kw_only=True):
    user_id: _User
    role: Literal["owner", "editor", "viewer"]


class _Line(msgspec.Struct, kw_only=True):
    activity_type: str
    at: _Count
    user_id: str | None
    device_id: str | None
    data: _Raw


class _Frame(msgspec.Struct):
    """What each commit's frame has to say of itself."""

    type: Literal["state_update", "session_restored"]
    version: int


# Out of the database


async def export_session(registry: Registry, host: Host, *, by: str) -> bytes:
    """Return all that a session holds, as a file, and have it told that it was exported."""
    now = registry.clock.now()
    async with registry.files:
        found = await registry.store.everything(host.session_id)
        if found is None:
            raise SessionNotFound("there is no such session")
        # Not in the event loop: whoever else is served would wait for it.
        body = await asyncio.to_thread(lambda: encode(_written(found, now)))
    line = Activity(activity_type="exported", at=now, user_id=by)
    await host.at_rest(lambda room: room.tell(line))
    host.flush()
    return body


def _written(found: Everything, now: int) -> dict[str, Any]:
    session = msgspec.to_builtins(found.session)
    del session["access_version"]
    lists = ("kept", "commits", "clients", "refusals", "conflicts", "checkpoints", "devices")
    return {
        "format": FORMAT,
        "exported_at": now,
        "session": session,
        "state": _plain(found.saved),
        **{name: [_plain(one) for one in getattr(found, name)] for name in (*lists, "members")},
        "activity": [_plain(line) for line in found.activity],
    }


def _plain(record: msgspec.Struct) -> dict[str, Any]:
    """Return a record's fields, bytes as the JSON that they are."""
    fields = msgspec.structs.asdict(record)
    return {
        name: _Raw(value) if isinstance(value, bytes) else value for name, value in fields.items()
    }


# Into the database


async def import_session(
    registry: Registry,
    data: bytes,
    user: User | None,
    *,
    by: str | None = None,
    role: str | None = Role.OWNER,
) -> SessionRecord:
    """Make a session of a file, for a user: with its id and history, in an epoch of its own.

    ``user`` None leaves it to whom the file names, ``by`` is who imports it, where that is another
    than the user. No version may have what ``role`` may not write; None may write everything.
    Raises `BadRequest` for what is no such file, `AlreadyExists` where the id is taken, and what
    speaks against its state.
    """
    async with registry.files:
        part = await asyncio.to_thread(_read_file, registry, data, user, by, role)
    if await registry.write(part) is not Outcome.OK:
        raise AlreadyExists(
            f"the session id {part.session_id!r} is taken, or was that of one that was erased here:"
            " import it into another database"
        )
    record = part.session
    assert record is not None
    return record


def _read_file(
    registry: Registry, data: bytes, user: User | None, by: str | None, role: str | None
) -> Append:
    """Make of a file the part that writes the session; in a thread, next to the event loop."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"expected an exported session: {error}", code="bad_export") from None
    owner = file.session.user_id if user is None else user.id
    part = _part(registry, file, owner, owner if by is None else by)
    _checked(registry, part, role)
    return part


def _part(registry: Registry, file: _File, owner: str, by: str) -> Append:
    now, its = registry.clock.now(), file.session
    fields = msgspec.structs.asdict(its)
    record = SessionRecord(
        **fields
        | {
            "user_id": owner,
            "epoch": registry.clock.new_id(),
            "epoch_version": its.version,
            "access_version": 1,
        }
    )
    line = Activity(
        activity_type="imported", at=now, user_id=by, data=encode({"version": its.version})
    )
    return Append(
        session_id=its.session_id,
        expected=None,
        session=record,
        state=_read(SavedState, file.state),
        kept_states=[_read(SavedState, one) for one in file.kept],
        commits=[_read(CommitRecord, one) for one in file.commits],
        clients=[ClientAdvance(client=_read(ClientRecord, one), before=0) for one in file.clients],
        refusals=[_read(RefusalRecord, one) for one in file.refusals],
        conflicts=[_read(ConflictRecord, one) for one in file.conflicts],
        checkpoints=[_read(CheckpointRecord, one) for one in file.checkpoints],
        devices=[_read(DeviceRecord, one) for one in file.devices],
        members=[_read(MemberRecord, one) for one in file.members if one.user_id != owner],
        activity=[*(_read(Activity, one) for one in file.activity), line],
    )


def _read(kind: Any, one: msgspec.Struct) -> Any:
    """Make a record of its form in a file."""
    return kind(**{name: _bytes(value) for name, value in msgspec.structs.asdict(one).items()})


def _bytes(value: Any) -> Any:
    """Return JSON as bytes. A mark without step or data has null there."""
    if not isinstance(value, _Raw):
        return value
    return None if bytes(value) == b"null" else bytes(value)


def _checked(registry: Registry, part: Append, role: str | None) -> None:
    """Play the whole history; raises where it is none, or comes to what may not be."""
    record, saved = part.session, part.state
    assert record is not None
    assert saved is not None
    schema = None if record.schema_name is None else registry.schemas.get(record.schema_name)
    try:
        session = _played(registry, part, record, saved, None if role is None else schema)
    except BadRequest:
        raise
    except Exception as error:
        if isinstance(error, ChangeRefused) and error.code == "forbidden":
            raise
        raise BadRequest(
            f"expected an exported session whose history can be played, got: {error!r}",
            code="bad_export",
        ) from None
    state = session.document.state
    check(state, depth=registry.limits.max_nesting, path="")
    if session.document.weight > registry.limits.max_state_bytes:
        raise TooLarge(f"expected a state of at most {registry.limits.max_state_bytes} bytes")
    if schema is not None and record.schema_version == schema.version:
        registry.begin(record.schema_name, state, role)
    elif schema is not None and role is not None:
        Guard(schema.fields).begin(role, state)


def _played(
    registry: Registry,
    part: Append,
    record: SessionRecord,
    saved: SavedState,
    schema: Schema | None,
) -> Session:
    """Play the history. No version of it may have what an owner may not write: each one can be
    forked and restored.
    """
    wanted = list(range(saved.version + 1, record.version + 1))
    versions = [msgspec.json.decode(one.body, type=_Frame).version for one in part.commits]
    if versions != wanted or [one.version for one in part.commits] != wanted:
        raise BadRequest(
            "expected a commit for each version from the state's to the session's, in order",
            code="bad_export",
        )
    state = msgspec.json.decode(saved.state, type=dict[str, Any])
    check(state, depth=registry.limits.max_nesting, path="")
    _kept_states(registry, part, record, saved, schema)
    for device in part.devices:
        msgspec.json.decode(device.info, type=dict[str, Any])
    loaded = Loaded(
        session=record,
        saved=saved,
        tail=(),
        conflicts=[one for one in part.conflicts if one.status != "resolved"],
        devices=(),
    )
    session = Session(loaded, registry.limits)
    guard = None if schema is None else Guard(schema.fields)
    if guard is None or not guard.any:
        session.replay(part.commits)
        return session
    guard.begin(Role.OWNER, state)
    for commit in part.commits:
        session.replay([commit])
        guard.begin(Role.OWNER, session.document.state)
    return session


def _kept_states(
    registry: Registry,
    part: Append,
    record: SessionRecord,
    saved: SavedState,
    schema: Schema | None,
) -> None:
    """Look at the states from before the log: each early mark must have its own."""
    versions = [one.version for one in part.kept_states]
    early = {one.version for one in part.checkpoints if one.version < saved.version}
    late = [one.version for one in part.checkpoints if one.version > record.version]
    if versions != sorted(set(versions)) or versions[-1:] >= [saved.version] or late:
        raise BadRequest(
            "expected states from before the log, in order, and checkpoints on versions that are"
            " there",
            code="bad_export",
        )
    if not early <= set(versions):
        raise BadRequest(
            "expected a state for each checkpoint from before the log", code="bad_export"
        )
    for one in part.kept_states:
        if len(one.state) > registry.limits.max_state_bytes:
            raise BadRequest("expected states within the limit", code="bad_export")
        alone = msgspec.structs.replace(record, version=one.version)
        loaded = Loaded(session=alone, saved=one, tail=(), conflicts=(), devices=())
        Session(loaded, registry.limits)
        state = msgspec.json.decode(one.state, type=dict[str, Any])
        check(state, depth=registry.limits.max_nesting, path="")
        if schema is not None:
            Guard(schema.fields).begin(Role.OWNER, state)
