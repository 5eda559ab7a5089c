"""The bodies and answers of HTTP (`docs/protocol.md`, section 7), as OpenAPI shows them.

Bodies are decoded by `reattach.server.body` and then held against these. Answers carry states and
patches that are JSON bytes already, so nothing is validated on its way out; tests do that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SkipValidation,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "ActivityPage",
    "BegunAnswer",
    "ChangesAnswer",
    "ChangesBody",
    "Checkpoint",
    "CheckpointBody",
    "CheckpointPage",
    "ClaimBody",
    "CommitPage",
    "ConflictPage",
    "CreateSession",
    "DeviceBody",
    "DevicePage",
    "DeviceStatus",
    "Difference",
    "ForkBody",
    "HandoffAnswer",
    "HandoffBody",
    "HeartbeatBody",
    "JsonPatchOperation",
    "Member",
    "MemberBody",
    "MemberPage",
    "Problem",
    "RedeemBody",
    "RedeemedAnswer",
    "RestoreBody",
    "SessionAnswer",
    "SessionId",
    "SessionPage",
    "Status",
]

_RESERVED = frozenset({"heartbeat", "check-connection", "import"})


def _not_reserved(value: str) -> str:
    if value in _RESERVED:
        raise PydanticCustomError(
            "reserved", "expected a session id, got {value}, which is a route", {"value": value}
        )
    return value


Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:~-]{1,128}$")]
SessionId = Annotated[Id, AfterValidator(_not_reserved)]
"""1 to 128 of these characters, and not the name of a route."""

Time = Annotated[int, Field(ge=0, le=2**53, description="Milliseconds since 1970.")]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class _Body(BaseModel):
    """What clients send: unknown fields are ignored, and nothing is converted."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


# Bodies


class CreateSession(_Body):
    """A session to be created. All fields may be left out."""

    session_id: SessionId | None = Field(None, description="A random UUID when left out.")
    state: dict[str, Any] | None = Field(None, description="Any JSON object; {} when left out.")
    schema_: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        None, alias="schema", description="The name of the session's schema."
    )
    device_info: dict[str, Any] | None = Field(
        None,
        description="The first device: its `id` (a random one when left out) and `name`, if they"
        " are strings, and whatever else is known of it, up to 4 KiB.",
    )


class Device(_Body):
    """What a client says of the device that it runs on."""

    id: Id
    name: Annotated[str, StringConstraints(max_length=256)] | None = None
    info: dict[str, Any] | None = Field(None, description="Anything, up to 4 KiB.")


class Operation(BaseModel):
    """One operation; which fields it needs is told by `op`. List elements go by `#id`."""

    model_config = ConfigDict(extra="allow")

    op: Literal[
        "set", "unset", "insert", "move", "inc", "splice", "test", "restore", "resolve", "end"
    ]
    path: str | None = Field(None, examples=["/user_responses/#r7/answer"])
    value: Any = None


class ChangeBody(BaseModel):
    """An atomic list of operations by one client."""

    seq: int = Field(ge=1, description="The client's number: 1, 2, 3, … without gaps.")
    epoch: str
    base: int = Field(ge=0, description="The newest version that the author had applied.")
    at: Time
    ops: list[Operation]
    schema_version: int | None = None


class ChangesBody(_Body):
    """A client's outbox, or the beginning of it."""

    client_id: Id
    device: Device
    t: Annotated[Time, Field(description="The client's clock as it sends, ms since 1970.")]
    changes: list[SkipValidation[ChangeBody]]


class ChosenValue(BaseModel):
    """Another value than either of a conflict."""

    value: Any


class ResolveBody(_Body):
    """How to settle a conflict."""

    keep: Literal["kept", "lost"] | ChosenValue


class CheckpointBody(_Body):
    """A mark on the current version."""

    name: Annotated[str, StringConstraints(max_length=256)] | None = None
    data: Any = Field(None, description="Anything, up to 4 KiB.")


class RestoreBody(_Body):
    """What to make the state: that of a version, or of a checkpoint; `latest` is the newest one."""

    version: _Count | None = None
    checkpoint_id: Annotated[str, StringConstraints(min_length=1, max_length=300)] | None = None


class ForkBody(_Body):
    """Where a new session begins."""

    version: _Count | None = Field(None, description="The newest when left out.")


class HeartbeatBody(_Body):
    """A sign of life of a device."""

    session_id: SessionId
    device: Device


class PresenceBody(_Body):
    """What a client tells the session's other connections; never stored."""

    client_id: Id
    device: Device
    data: Any


Role = Literal["owner", "editor", "viewer"]


class DeviceBody(_Body):
    """What people change about a device. What is left out stays."""

    name: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="What the device is called; null: what it calls itself."
    )
    is_primary: Literal[True] | None = Field(None, description="Makes it the primary one.")
    revoked: Literal[False] | None = Field(None, description="Lets it in again.")


class MemberBody(_Body):
    """What somebody may do with a session."""

    role: Role


_Secret = Annotated[str, StringConstraints(min_length=1, max_length=300)]


class ClaimBody(_Body):
    """What makes a session that nobody has signed in for the caller's."""

    claim_secret: _Secret


class HandoffBody(_Body):
    """Where a link for another device leads."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^#\s]{1,2000}$")] | None = Field(
        None, description="The application's page. Left out: the root of the page that asks."
    )


class RedeemBody(_Body):
    """What came with a link, and the device that it was opened on."""

    secret: _Secret
    device: Device


class JsonPatchOperation(BaseModel):
    """One operation of RFC 6902. Indexes mean the current version."""

    op: Literal["add", "remove", "replace", "move", "copy", "test"]
    path: str
    from_: str | None = Field(None, alias="from")
    value: Any = None


# Answers


class Schema(_Answer):
    """A session's schema."""

    name: str
    version: int | None


class SessionSummary(_Answer):
    """A session without its state."""

    session_id: str
    epoch: str
    version: int
    user_id: str
    schema_: Schema | None = Field(alias="schema")
    created_at: Time
    last_activity: Time
    is_active: bool
    disconnected_at: Time | None
    reconnected_at: Time | None


class SessionAnswer(SessionSummary):
    """A session as it is durably."""

    state: dict[str, Any]


class BegunAnswer(SessionAnswer):
    """A session that was created; the secrets come where nobody has signed in, and this once."""

    token: str | None = Field(None, description="Opens this session alone.")
    claim_secret: str | None = Field(None, description="Makes it a user's who has signed in.")


class HandoffAnswer(_Answer):
    """A link for another device."""

    link: str = Field(description="The secret stands in its fragment, which no server is sent.")
    secret: str
    expires_at: Time


class RedeemedAnswer(_Answer):
    """What a device gets for a link."""

    session_id: str
    token: str = Field(description="Opens this session alone.")
    user_id: str
    role: Role


class SessionPage(_Answer):
    """Sessions, newest activity first."""

    items: list[SessionSummary]
    next: str | None


class Rejected(_Answer):
    """A change that was refused for good; its number is used up."""

    type: Literal["rejected"]
    seq: int
    code: str
    message: str
    path: str | None = None


class ChangesAnswer(_Answer):
    """What became of the changes."""

    seq: int = Field(description="The client's last decided number.")
    version: int = Field(description="The session's version.")
    rejected: list[Rejected] = Field(description="Those of the changes that were refused.")


class By(_Answer):
    """Whose a commit or a value is."""

    client_id: str | None
    seq: int | None = None
    device_id: str | None
    user_id: str | None
    source: Literal["device", "server"]


class ConflictSide(_Answer):
    """A value of a conflict, or `absent`, and whose it is."""

    value: Any = None
    absent: bool | None = None
    merged: bool | None = Field(None, description="Others had their part in the value.")
    base: int | None = Field(None, description="The version over which a text was typed.")
    by: By
    at: Time
    version: int | None = None


class Conflict(_Answer):
    """A value that a merge did not keep."""

    id: str
    path: str
    policy: str
    status: Literal["auto", "open", "resolved"]
    kept: ConflictSide
    lost: ConflictSide
    version: int


class ConflictPage(_Answer):
    """Conflicts, newest first."""

    items: list[Conflict]
    next: str | None


class Checkpoint(_Answer):
    """A mark on a version whose state can always be had."""

    id: str
    name: str | None
    kind: Literal["automatic", "named", "before_restore"]
    version: int
    step: Any = Field(None, description="What the schema's step field held.")
    data: Any = None
    created_at: Time


class CheckpointPage(_Answer):
    """Checkpoints, newest version first."""

    items: list[Checkpoint]
    next: str | None


class Commit(_Answer):
    """A commit: the exact patch from `version` - 1."""

    type: Literal["state_update", "session_restored"]
    version: int
    patch: list[dict[str, Any]] = Field(
        description="RFC 6902 with `str_ins` and `str_del` for text, or without (`patches`)."
    )
    by: By
    at: Time
    conflicts: list[Conflict] | None = None
    from_version: int | None = None
    to_version: int | None = None
    checkpoint_id: str | None = None


class Difference(RootModel[list[JsonPatchOperation]]):
    """What makes one version of another (RFC 6902)."""


class PastCommit(Commit):
    """A commit of the history, with its change's `at` as the client sent it."""

    client_at: Time | None = None


class CommitPage(_Answer):
    """Commits, in order."""

    items: list[PastCommit]
    next: str | None


class DeviceStatus(_Answer):
    """A device of the session."""

    id: str
    name: str | None
    kind: str | None = Field(description="What it says it is: `kind` of its `info`.")
    info: dict[str, Any]
    user_id: str
    online: bool
    is_primary: bool
    created_at: Time = Field(description="When it was first here.")
    last_activity: Time
    version: int | None = Field(description="The newest version that it said it had.")
    revoked_at: Time | None


class DevicePage(_Answer):
    """The session's devices, oldest first."""

    items: list[DeviceStatus]
    next: str | None


class Member(_Answer):
    """Somebody who may use the session."""

    user_id: str
    role: Role


class MemberPage(_Answer):
    """The session's members, its owners among them, by user id."""

    items: list[Member]
    next: str | None


class ActivityLine(_Answer):
    """One line of the activity log."""

    activity_type: str
    at: Time
    user_id: str | None
    device_id: str | None
    data: dict[str, Any]


class ActivityPage(_Answer):
    """The activity log, newest first."""

    items: list[ActivityLine]
    next: str | None


class Status(_Answer):
    """That all is well."""

    status: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str = Field(description="What went wrong, for programs.", examples=["bad_path"])
    path: str | None = Field(None, description="Where: a JSON Pointer into the body or state.")
    expected: int | None = Field(None, description="The number that has to come first.")
    retry_after_ms: int | None = None
