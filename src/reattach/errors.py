"""Every error that Reattach raises, seen at a glance.

Each class has the ``code`` that goes over the wire and the HTTP status it becomes. A message says
what was expected, what came, and what to do.
"""

from __future__ import annotations

__all__ = [
    "AlreadyExists",
    "BadRequest",
    "BadSetting",
    "ChangeRefused",
    "DatabaseHeld",
    "Forbidden",
    "HandoffOver",
    "KeyAnswered",
    "LastOwner",
    "NoSuchDevice",
    "NotAuthenticated",
    "OutboxHeld",
    "PreconditionFailed",
    "ReattachError",
    "SessionClosed",
    "SessionEnded",
    "SessionErased",
    "SessionNotFound",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "TooLarge",
    "TooManyMembers",
    "Unavailable",
    "VersionGone",
]


class ReattachError(Exception):
    """The base of all errors that Reattach raises."""

    code = "error"
    status = 500

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class BadRequest(ReattachError):
    """What was sent cannot be understood: mend it, then send it again."""

    code = "bad_request"
    status = 400


class BadSetting(ReattachError):
    """What the server was set to cannot be: mend the setting, then start it again."""

    code = "bad_setting"


class NotAuthenticated(ReattachError):
    """No valid credentials came with the request: sign in and repeat it."""

    code = "not_authenticated"
    status = 401


class Forbidden(ReattachError):
    """The caller is known and may not do this: ask the session's owner for a role that may."""

    code = "forbidden"
    status = 403


class SessionNotFound(ReattachError):
    """There is no such session for this caller."""

    code = "session_not_found"
    status = 404


class NoSuchDevice(ReattachError):
    """The session has no device of this id: list its devices."""

    code = "no_such_device"
    status = 404


class HandoffOver(ReattachError):
    """The link is over, was opened on another device, or never was one: make a new one."""

    code = "handoff_over"
    status = 404


class AlreadyExists(ReattachError):
    """The session id is taken: choose another, or leave it out to be given one."""

    code = "already_exists"
    status = 409


class KeyAnswered(ReattachError):
    """Another request with this ``Idempotency-Key`` took effect first: its answer is recorded."""

    code = "idempotency_key_answered"
    status = 409


class LastOwner(ReattachError):
    """A session has an owner as long as it is there: make somebody else one, or erase it."""

    code = "last_owner"
    status = 409


class TooManyMembers(ReattachError):
    """A session has as many members as it may: remove one first."""

    code = "too_many_members"
    status = 409


class SessionEnded(ReattachError):
    """The session has ended: it can be read, and written no more."""

    code = "session_ended"
    status = 410


class SessionErased(ReattachError):
    """The session was erased, and nothing of it is left."""

    code = "session_erased"
    status = 410


class VersionGone(ReattachError):
    """The version is older than what the log retains, or newer than what there is."""

    code = "version_gone"
    status = 410


class PreconditionFailed(ReattachError):
    """``If-Match`` names another version than the current one: read the session again."""

    code = "precondition_failed"
    status = 412


class TooLarge(ReattachError):
    """What was sent is over a limit: split it."""

    code = "too_large"
    status = 413


class ChangeRefused(ReattachError):
    """The change was refused for good and altered nothing.

    ``path`` is the JSON Pointer of the operation that could not be carried out, or None.
    """

    code = "refused"
    status = 422

    def __init__(self, message: str, *, code: str, path: str | None = None) -> None:
        super().__init__(message, code=code)
        self.path = path


class Unavailable(ReattachError):
    """The server cannot do this now and lost nothing: try again after ``retry_after_ms``."""

    code = "unavailable"
    status = 503

    def __init__(self, message: str, *, retry_after_ms: int = 1_000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class StoreError(ReattachError):
    """Something went wrong between the server and its database."""

    code = "store"
    status = 503


class StoreUnavailable(StoreError):
    """The database did not answer, or its answer was lost: what was asked may have been done."""

    code = "unavailable"


class StoreRefused(StoreError):
    """The database refused the batch as a whole and did nothing of it."""

    code = "store_refused"


class DatabaseHeld(StoreError):
    """Another server holds the database file: stop that one, or give this one another file."""

    code = "database_held"


# What only a client raises


class OutboxHeld(StoreError):
    """Another process holds the outbox: stop that one, or give this one another file."""

    code = "outbox_held"


class SessionClosed(ReattachError):
    """The client was closed: connect again. With an outbox nothing is lost by that."""

    code = "closed"
