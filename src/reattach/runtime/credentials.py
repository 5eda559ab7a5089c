"""Secrets that open one session, for those who have not signed in and for other devices.

A session that nobody has signed in for belongs to an anonymous user of its own, and comes with two
secrets: a *token*, good for that session alone, and a *claim secret*, by which a user who has
signed in makes the session theirs. A *handoff* is redeemed by one other device for a token of its
own.

A secret names its kind and its session, has 256 random bits, and is known here by its SHA-256
alone. So many bits need no salt and no slow hash: there is nothing to be guessed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from reattach.core.devices import REVOKED
from reattach.core.room import Room
from reattach.errors import (
    Forbidden,
    HandoffOver,
    NotAuthenticated,
    ReattachError,
    SessionErased,
    SessionNotFound,
    Unavailable,
)
from reattach.runtime.access import User, at_most
from reattach.runtime.members import token_member
from reattach.runtime.registry import Registry
from reattach.store.base import (
    Activity,
    Append,
    Claim,
    CredentialRecord,
    DeviceRecord,
    SessionRecord,
)
from reattach.wire import HelloDevice, encode

__all__ = [
    "HANDOFF_LASTS_MS",
    "REVOKED_TOKEN",
    "Begun",
    "Redeemed",
    "begin",
    "change",
    "claim",
    "hand_off",
    "holder",
    "is_anonymous",
    "is_token",
    "redeem",
]

HANDOFF_LASTS_MS: Final = 10 * 60 * 1000

REVOKED_TOKEN: Final = "revoked"
"""The kind of what was a token until its device was revoked: it opens nothing for ever."""

Kind: TypeAlias = Literal["claim", "token", "handoff"]

_ANONYMOUS: Final = "anonymous:"
_NAMES: Final = {
    "claim": "reattach_claim_",
    "token": "reattach_token_",
    "handoff": "reattach_link_",
}
_REST = re.compile(r"[A-Za-z0-9_-]{43}\.([A-Za-z0-9._:~-]{1,128})")

_REFUSED: Final = "expected a token that lets in on this session: sign in, or get a fresh link"
_OVER: Final = (
    "expected a link that is not over: it is good for ten minutes, and for the first device that"
    " opens it. Make another one on the device that it came from"
)


class _Moved(ReattachError):
    """Who may do what changed since the credentials were read: read them again."""


# Secrets


def _new(kind: Kind, session_id: str) -> str:
    return f"{_NAMES[kind]}{secrets.token_urlsafe(32)}.{session_id}"


def _session_of(secret: str, kind: Kind) -> str | None:
    """Return the session that a secret is for; None for what is no secret of this kind."""
    name = _NAMES[kind]
    found = _REST.fullmatch(secret, len(name)) if secret.startswith(name) else None
    return found[1] if found else None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def is_token(token: str) -> bool:
    """Say whether a bearer token is one of ours; whether it is good is another matter."""
    return token.startswith(_NAMES["token"])


def is_anonymous(user_id: str) -> bool:
    """Say whether a user id is one of those who have not signed in."""
    return user_id.startswith(_ANONYMOUS)


async def holder(registry: Registry, token: str) -> User:
    """Return whom a token of ours stands for, on its session.

    Raises `NotAuthenticated`, and `SessionErased` where it was good until that.
    """
    session_id = _session_of(token, "token")
    if session_id is None:
        raise NotAuthenticated(_REFUSED)
    found = await registry.store.credential(session_id, _hash(token))
    if found is None and await registry.members.was_erased(session_id, token_member(_hash(token))):
        raise SessionErased("the session was erased")
    if found is not None and found.kind == REVOKED_TOKEN:
        raise Forbidden(REVOKED, code="device_revoked")
    if found is None or found.kind != "token" or _is_over(found, registry.clock.now()):
        raise NotAuthenticated(_REFUSED)
    return User(
        found.user_id,
        found.expires_at,
        session_id=session_id,
        role=found.role,
        device_id=found.device_id,
    )


def _is_over(credential: CredentialRecord, now: int) -> bool:
    return credential.expires_at is not None and credential.expires_at <= now


# Sessions that nobody has signed in for


class Begun(msgspec.Struct, frozen=True):
    """A session that nobody has signed in for; its secrets are told this once."""

    record: SessionRecord
    token: str
    claim_secret: str


async def begin(
    registry: Registry,
    *,
    session_id: str | None = None,
    state: dict[str, Any] | None = None,
    schema: str | None = None,
    first_device: Callable[[User], DeviceRecord | None] = lambda _: None,
) -> Begun:
    """Create a session for nobody who has signed in, with secrets that open it.

    Raises what `Registry.create` does.
    """
    session_id = session_id or registry.clock.new_id()
    now, user = registry.clock.now(), User(_ANONYMOUS + registry.clock.new_id())
    token, secret = _new("token", session_id), _new("claim", session_id)
    record = await registry.create(
        user,
        session_id=session_id,
        state=state,
        schema=schema,
        device=first_device(user),
        credentials=[
            CredentialRecord(
                secret_hash=_hash(text), kind=kind, user_id=user.id, role="owner", created_at=now
            )
            for kind, text in (("token", token), ("claim", secret))
        ],
    )
    return Begun(record, token, secret)


async def claim(registry: Registry, session_id: str, secret: str, user: User) -> None:
    """Make a session that nobody has signed in for a user's, with its clients and devices.

    The tokens of who had it before are over. A second time by the same user does nothing; to
    anybody else, and with a wrong secret, the session does not exist (`SessionNotFound`).
    """
    digest = _hash(secret)

    def make(room: Room, kept: Sequence[CredentialRecord]) -> Append | None:
        mine = next((one for one in kept if one.secret_hash == digest), None)
        if mine is None or mine.kind != "claim":
            raise SessionNotFound("there is no such session")
        if mine.user_id == user.id:
            return None
        record = room.recorded
        if mine.user_id != record.user_id or not is_anonymous(record.user_id):
            raise SessionNotFound("there is no such session")
        over = [one for one in kept if one.user_id == record.user_id and one is not mine]
        return registry.members.part(
            room,
            Activity(activity_type="claimed", at=registry.clock.now(), user_id=user.id),
            session=msgspec.structs.replace(record, user_id=user.id),
            claim=Claim(before=record.user_id, after=user.id),
            credentials=[msgspec.structs.replace(mine, user_id=user.id)],
            credentials_removed=[one.secret_hash for one in over],
        )

    # Before the session is opened, which a stranger's guess is not worth.
    if await registry.store.credential(session_id, digest) is None:
        raise SessionNotFound("there is no such session")
    await change(registry, session_id, make)


# Other devices


class Redeemed(msgspec.Struct, frozen=True):
    """What a device gets for a link."""

    session_id: str
    token: str
    user_id: str
    role: str


async def hand_off(registry: Registry, session_id: str, user: User, role: str) -> tuple[str, int]:
    """Make what a link for another device carries; returns it, and until when it is good."""
    secret, now = _new("handoff", session_id), registry.clock.now()
    expires_at = now + HANDOFF_LASTS_MS
    fresh = CredentialRecord(
        secret_hash=_hash(secret),
        kind="handoff",
        user_id=user.id,
        role=role,
        created_at=now,
        expires_at=expires_at,
    )

    def make(room: Room, kept: Sequence[CredentialRecord]) -> Append:
        return registry.members.part(
            room,
            Activity(activity_type="handed_off", at=now, user_id=user.id),
            credentials=[fresh],
            credentials_removed=[one.secret_hash for one in kept if _is_over(one, now)],
        )

    await change(registry, session_id, make)
    return secret, expires_at


async def redeem(registry: Registry, secret: str, device: HelloDevice) -> Redeemed:
    """Give a device a token for a link. The same device may ask again while the link is good, and
    its token from before is over then; raises `HandoffOver`.
    """
    digest = _hash(secret)
    session_id = _session_of(secret, "handoff")
    if session_id is None or await registry.store.credential(session_id, digest) is None:
        raise HandoffOver(_OVER)
    redeemed: list[Redeemed] = []

    def make(room: Room, kept: Sequence[CredentialRecord]) -> Append:
        now = registry.clock.now()
        link = next((one for one in kept if one.secret_hash == digest), None)
        if link is None or link.kind != "handoff" or _is_over(link, now):
            raise HandoffOver(_OVER)
        role = at_most(room.role_of(link.user_id), link.role)
        if role is None or link.device_id not in {None, device.id}:
            raise HandoffOver(_OVER)
        _check_device(room, link.user_id, device)
        token = _new("token", session_id)
        redeemed[:] = [Redeemed(session_id, token, link.user_id, role)]
        return registry.members.part(
            room,
            Activity(
                activity_type="device_added", at=now, user_id=link.user_id, device_id=device.id
            ),
            devices=[_let_in(room, link.user_id, device, now)],
            credentials=[
                msgspec.structs.replace(link, device_id=device.id),
                CredentialRecord(
                    secret_hash=_hash(token),
                    kind="token",
                    user_id=link.user_id,
                    role=role,
                    device_id=device.id,
                    created_at=now,
                ),
            ],
            credentials_removed=[
                one.secret_hash
                for one in kept
                if one.kind in {"token", REVOKED_TOKEN}
                and (one.user_id, one.device_id) == (link.user_id, device.id)
            ],
        )

    try:
        await change(registry, session_id, make)
    except SessionNotFound:
        raise HandoffOver(_OVER) from None
    return redeemed[0]


def _check_device(room: Room, user_id: str, device: HelloDevice) -> None:
    """Raise as `DeviceList.check`, but for a revoked one: a fresh link lets that in again."""
    if room.devices.is_revoked(device.id):
        known = room.devices.get(device.id)
        if known is not None and known.user_id == user_id:
            return
    room.devices.check(user_id, device)


def _let_in(room: Room, user_id: str, device: HelloDevice, now: int) -> DeviceRecord:
    """Make the device that opened a link one of the session's, before it ever connects."""
    known = room.devices.get(device.id)
    if known is not None:
        return msgspec.structs.replace(known, last_activity=now, revoked_at=None)
    return DeviceRecord(
        device_id=device.id,
        user_id=user_id,
        name=device.name,
        info=encode(device.info or {}),
        is_primary=not room.devices.everyone(),
        created_at=now,
        last_activity=now,
    )


async def change(
    registry: Registry,
    session_id: str,
    make: Callable[[Room, Sequence[CredentialRecord]], Append | None],
) -> None:
    """Change a session's credentials, as they are at the moment when that takes effect.

    ``make`` makes the part (`Members.part`), None where there is nothing to change.
    """
    while True:
        host = await registry.open(session_id)
        stood = host.stands[2]
        kept = await registry.store.credentials(session_id)

        def change_it(
            room: Room,
            stood: int = stood,
            kept: Sequence[CredentialRecord] = kept,
        ) -> Append | None:
            if room.recorded.access_version != stood:
                raise _Moved("read the credentials again")
            return make(room, kept)

        try:
            await registry.members.change(session_id, change_it)
        except _Moved:
            continue
        except Unavailable:
            if not host.closed or registry.stopping:
                raise
            continue  # another claim came first, and closed it
        return
