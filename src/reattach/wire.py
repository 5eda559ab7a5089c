"""Every message of the WebSocket (`docs/protocol.md`, section 5): the one source of their shapes.

Frames are JSON text, one object each, told apart by ``type``. Unknown fields are ignored. Times
are integers, milliseconds since 1970. JSON Schema and TypeScript are made from these classes.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from reattach.errors import BadRequest

__all__ = [
    "By",
    "Change",
    "Checkpoint",
    "CheckpointSaved",
    "Commit",
    "Conflict",
    "ConflictSide",
    "Create",
    "DeviceStatus",
    "Devices",
    "Error",
    "Frame",
    "Heartbeat",
    "HeartbeatEcho",
    "HeartbeatTimes",
    "Hello",
    "HelloDevice",
    "InitialState",
    "Op",
    "Operation",
    "PatchOperation",
    "Presence",
    "PresenceOf",
    "Rejected",
    "RequestSync",
    "Resumed",
    "SaveCheckpoint",
    "Schema",
    "ServerFrame",
    "SessionRestored",
    "StateUpdate",
    "Unreadable",
    "decode",
    "decode_json",
    "encode",
]

SUBPROTOCOL = "reattach.v1"

Id: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:~-]{1,128}\Z")]
"""Sessions, clients and devices are named by 1 to 128 of these characters."""
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Number: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
Time: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
"""Milliseconds since 1970."""


def _is(shape: str | list[str]) -> Meta:
    """Tell the schema what is not checked on arrival, or is encoded already when it is sent: an
    ``object``, a list of what is named, or one of some strings.
    """
    if isinstance(shape, list):
        return Meta(extra_json_schema={"enum": shape})
    if shape == "object":
        return Meta(extra_json_schema={"type": "object"})
    item = {"$ref": f"#/$defs/{shape.removesuffix('[]')}"}
    return Meta(extra_json_schema={"type": "array", "items": item})


# Client to server


class Op(msgspec.Struct, gc=False):
    """One operation (section 3), as it arrives: an `Operation`, or refused as none when decided."""

    op: str
    path: Any = UNSET
    value: Any = UNSET
    after: Any = UNSET
    by: Any = UNSET
    index: Any = UNSET
    delete: Any = UNSET
    insert: Any = UNSET
    version: Any = UNSET
    checkpoint_id: Any = UNSET
    conflict_id: Any = UNSET
    keep: Any = UNSET


class SetOp(msgspec.Struct, tag_field="op", tag="set"):
    """Creates or replaces."""

    path: str
    value: Any


class UnsetOp(msgspec.Struct, tag_field="op", tag="unset"):
    """Removes a key or an element."""

    path: str


class InsertOp(msgspec.Struct, tag_field="op", tag="insert"):
    """Inserts into a list: after an id, at the front (null), or at the end (left out)."""

    path: str
    value: Any
    after: str | UnsetType | None = UNSET


class MoveOp(msgspec.Struct, tag_field="op", tag="move"):
    """Moves an element within its list, as `InsertOp` places one."""

    path: str
    after: str | UnsetType | None = UNSET


class IncOp(msgspec.Struct, tag_field="op", tag="inc"):
    """Adds to a number."""

    path: str
    by: float


class SpliceOp(msgspec.Struct, tag_field="op", tag="splice"):
    """Edits text. Positions are Unicode code points, in the text as the author saw it."""

    path: str
    index: Count
    delete: Count
    insert: str


class TestOp(msgspec.Struct, tag_field="op", tag="test"):
    """Refuses the change where the value is another one."""

    __test__ = False  # what is called Test… is not always a test

    path: str
    value: Any


class RestoreOp(msgspec.Struct, tag_field="op", tag="restore"):
    """Makes the state that of a version, or of a checkpoint. Alone in its change."""

    version: Count | UnsetType = UNSET
    checkpoint_id: str | UnsetType = UNSET


class KeptValue(msgspec.Struct):
    """A value that settles a conflict."""

    value: Any


class ResolveOp(msgspec.Struct, tag_field="op", tag="resolve"):
    """Settles a conflict. Alone in its change."""

    conflict_id: str
    keep: Literal["kept", "lost"] | KeptValue


class EndOp(msgspec.Struct, tag_field="op", tag="end"):
    """Ends the session. Alone in its change."""


Operation: TypeAlias = (
    SetOp | UnsetOp | InsertOp | MoveOp | IncOp | SpliceOp | TestOp | RestoreOp | ResolveOp | EndOp
)
"""What a user meant (section 3). ``path`` is a JSON Pointer, with ``#id`` under a list."""


class Change(msgspec.Struct, tag="change"):
    """An atomic list of operations by one client, numbered by it without gaps."""

    seq: Number
    epoch: str
    base: Count
    at: Time
    ops: list[Op]
    schema_version: int | None = None


class HelloDevice(msgspec.Struct):
    """What a client says of the device that it runs on. ``info`` is any object up to 4 KiB."""

    id: Id
    name: Annotated[str, Meta(max_length=256)] | None = None
    info: dict[str, Any] | None = None


class Create(msgspec.Struct):
    """What a session is created with when it is not there."""

    state: dict[str, Any] | None = None
    schema: str | None = None


class Hello(msgspec.Struct, tag="hello"):
    """The first frame of a connection: who it is and what it has."""

    client_id: Id
    device: HelloDevice
    t: Time
    epoch: str | None = None
    version: Count | None = None
    seq: Count = 0
    token: str | None = None
    user_id: str | None = None
    """Whose outbox this is: with anybody else's token it must not be read or written (F4)."""
    schema_version: int | None = None
    create: Create | None = None


class Heartbeat(msgspec.Struct, tag="heartbeat"):
    """A sign of life; ``t`` comes back as it is."""

    t: Any = None


class RequestSync(msgspec.Struct, tag="request_sync"):
    """Asks for what is missing after a version."""

    epoch: str | None = None
    version: Count | None = None


class SaveCheckpoint(msgspec.Struct, tag="save_checkpoint"):
    """Asks for a mark on the current version."""

    ref: str
    name: str | None = None
    data: Any = None


class Presence(msgspec.Struct, tag="presence"):
    """Tells the other connections something that is not stored."""

    data: Any = None


Frame: TypeAlias = Change | Hello | Heartbeat | RequestSync | SaveCheckpoint | Presence


# Server to client


class By(msgspec.Struct, frozen=True):
    """Whose a commit or a value is. What the server wrote has no device."""

    client_id: str | None
    seq: int | UnsetType | None = UNSET
    """The number of the change; a conflict's sides have a version instead."""
    device_id: str | None = None
    user_id: str | None = None
    source: Annotated[str, _is(["device", "server"])] = "device"


class ConflictSide(msgspec.Struct, frozen=True, kw_only=True):
    """A value of a conflict, or ``absent``, and whose it is.

    ``merged``: others had their part in it, as in a sum or a text; ``by`` wrote last. ``base``: the
    version over which a text was typed that lost.
    """

    value: Any = UNSET
    absent: bool | UnsetType = UNSET
    merged: bool | UnsetType = UNSET
    base: int | UnsetType = UNSET
    by: By
    at: int
    version: int | UnsetType = UNSET


class Conflict(msgspec.Struct, frozen=True):
    """A record of a value that a merge did not keep. ``status``: auto, open or resolved."""

    id: str
    path: str
    policy: str
    status: Annotated[str, _is(["auto", "open", "resolved"])]
    kept: ConflictSide
    lost: ConflictSide
    version: int


class AddStep(msgspec.Struct, tag_field="op", tag="add"):
    """Adds a member, or an element before an index (RFC 6902)."""

    path: str
    value: Any


class ReplaceStep(msgspec.Struct, tag_field="op", tag="replace"):
    """Replaces what is there (RFC 6902)."""

    path: str
    value: Any


class RemoveStep(msgspec.Struct, tag_field="op", tag="remove"):
    """Removes what is there (RFC 6902)."""

    path: str


class MoveStep(msgspec.Struct, tag_field="op", tag="move"):
    """Takes a value out, and adds it elsewhere (RFC 6902)."""

    origin: str = msgspec.field(name="from")
    path: str


class InsertText(msgspec.Struct, tag_field="op", tag="str_ins"):
    """Puts text in before ``pos``, in code points."""

    path: str
    pos: Count
    text: str = msgspec.field(name="str")


class DeleteText(msgspec.Struct, tag_field="op", tag="str_del"):
    """Takes ``len`` code points out, from ``pos`` on."""

    path: str
    pos: Count
    length: Count = msgspec.field(name="len")


PatchOperation: TypeAlias = AddStep | ReplaceStep | RemoveStep | MoveStep | InsertText | DeleteText
"""A step of a patch: RFC 6902, and text. A token under a list is an index."""


class StateUpdate(msgspec.Struct, tag="state_update"):
    """A commit: the exact patch from ``version - 1``. To its author, the acknowledgement."""

    version: int
    patch: Annotated[Any, _is("PatchOperation[]")]
    by: By
    at: int
    conflicts: Annotated[Any, _is("Conflict[]")] = UNSET


class SessionRestored(msgspec.Struct, tag="session_restored", kw_only=True):
    """A commit that set the state back to that of an earlier version."""

    version: int
    patch: Annotated[Any, _is("PatchOperation[]")]
    by: By
    at: int
    conflicts: Annotated[Any, _is("Conflict[]")] = UNSET
    from_version: int
    to_version: int
    checkpoint_id: str | UnsetType = UNSET


Commit: TypeAlias = StateUpdate | SessionRestored


class Rejected(msgspec.Struct, tag="rejected"):
    """A change was refused for good; its number is used up."""

    seq: int
    code: str
    message: str
    path: str | UnsetType = UNSET


class Error(msgspec.Struct, tag="error"):
    """Something could not be done, and no number was used up."""

    code: str
    message: str
    ref: str | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET
    expected: int | UnsetType = UNSET


class DeviceStatus(msgspec.Struct, frozen=True):
    """A device of the session, as the others see it."""

    id: str
    name: str | None
    online: bool
    is_primary: bool
    last_activity: int


class Devices(msgspec.Struct, tag="devices"):
    """The session's devices, at most once a second."""

    devices: list[DeviceStatus]


class PresenceOf(msgspec.Struct, tag="presence"):
    """What another device told."""

    device_id: str
    data: Any


class HeartbeatEcho(msgspec.Struct, tag="heartbeat"):
    """The answer to a heartbeat."""

    t: Any
    server_time: int


class HeartbeatTimes(msgspec.Struct, frozen=True):
    """When to send a heartbeat, and when silence means disconnected."""

    interval_ms: int
    timeout_ms: int


class Schema(msgspec.Struct, frozen=True):
    """The session's schema."""

    name: str
    version: int


class _Welcome(msgspec.Struct, kw_only=True):
    session_id: str
    epoch: str
    epoch_version: int
    version: int
    seq: int
    seq_at: int | None
    rejected: Annotated[Any, _is("Rejected[]")]
    created: bool
    user_id: str
    role: str
    devices: list[DeviceStatus]
    conflicts: Annotated[Any, _is("Conflict[]")]
    policies: dict[str, str]
    schema: Schema | UnsetType = UNSET
    server_time: int
    heartbeat: HeartbeatTimes
    reconnect_jitter_ms: int
    limits: dict[str, int]


class InitialState(_Welcome, tag="initial_state", kw_only=True):
    """The welcome with the whole state."""

    state: Annotated[Any, _is("object")]


class Resumed(_Welcome, tag="resumed", kw_only=True):
    """The welcome with every commit after the client's version, in order."""

    commits: Annotated[Any, _is("Commit[]")]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A mark on a version whose state can always be had."""

    id: str
    name: str | None
    kind: Annotated[str, _is(["automatic", "named", "before_restore"])]
    version: int
    step: Any = UNSET
    """What the schema's step field held."""
    data: Any = UNSET
    created_at: int


class CheckpointSaved(msgspec.Struct, tag="checkpoint_saved"):
    """A checkpoint is durable."""

    checkpoint: Checkpoint
    ref: str | UnsetType = UNSET


ServerFrame: TypeAlias = (
    InitialState
    | Resumed
    | Commit
    | Rejected
    | CheckpointSaved
    | Devices
    | PresenceOf
    | HeartbeatEcho
    | Error
)


# Reading and writing


class Unreadable(BadRequest):
    """A frame that cannot be understood.

    ``code`` is ``unknown_type`` (the connection stays), ``bad_change`` with the ``seq`` that it
    refuses (a change whose head is sound and whose operations are not), or ``bad_frame`` (4400).
    """

    code = "bad_frame"
    close_code: ClassVar[int] = 4400

    def __init__(
        self, message: str, *, code: str = "bad_frame", head: Change | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.head = head


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Frame] = msgspec.json.Decoder(Frame)
_TYPES = frozenset({"change", "hello", "heartbeat", "request_sync", "save_checkpoint", "presence"})

encode = _encoder.encode
"""Make any of the above, or any JSON value, to UTF-8 bytes."""


def decode(data: bytes | bytearray | memoryview | str) -> Frame:
    """Read one client frame; raises `Unreadable`."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return _decode_odd(data, error)


def decode_json(data: bytes | bytearray | memoryview | str) -> Any:
    """Read any JSON, also what only the checks on values will refuse (such as lone surrogates).

    Raises `Unreadable` for what is no JSON, for NaN, and for nesting beyond all reason.
    """
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise Unreadable("expected JSON of reasonable nesting", code="too_deep") from None
    except ValueError as error:
        first = error
    try:
        text = data if isinstance(data, str) else bytes(data).decode()
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError:
        raise Unreadable("expected JSON of reasonable nesting", code="too_deep") from None
    except ValueError:
        raise Unreadable(f"expected JSON (RFC 8259): {first}") from None


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _decode_odd(data: bytes | bytearray | memoryview | str, error: Exception) -> Frame:
    """Read a frame that is not as it should be, as far as that goes."""
    value = decode_json(data)
    if not isinstance(value, dict):
        raise Unreadable(f"expected a JSON object as frame, got {type(value).__name__}")
    kind = value.get("type")
    if not isinstance(kind, str):
        raise Unreadable("expected a frame with a type (a string)")
    if kind not in _TYPES:
        raise Unreadable(
            f"expected one of the types {', '.join(sorted(_TYPES))}, got {kind[:40]!r}",
            code="unknown_type",
        )
    try:
        frame: Frame = msgspec.convert(value, Frame)
    except msgspec.ValidationError:
        pass
    else:
        return frame
    if kind != "change":
        raise Unreadable(f"expected a sound {kind} frame: {error}")
    ops = value.pop("ops", None)
    try:
        head = msgspec.convert({**value, "ops": []}, Change)
    except msgspec.ValidationError as broken:
        raise Unreadable(f"expected a sound change: {broken}") from None
    try:
        msgspec.convert(ops, list[Op])
    except msgspec.ValidationError as broken:
        message = f"expected ops to be a list of operations: {broken}"
        raise Unreadable(message, code="bad_change", head=head) from None
    raise Unreadable(f"expected a sound change: {error}", code="bad_change", head=head)
