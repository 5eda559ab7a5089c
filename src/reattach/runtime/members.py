"""Who may do what: who is let into a session, and its members as they change."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from reattach.bus.base import Note
from reattach.core.connection import Close, Connection, Role
from reattach.core.devices import NOBODY, REVOKED
from reattach.core.room import Room
from reattach.errors import (
    Forbidden,
    LastOwner,
    ReattachError,
    SessionErased,
    SessionNotFound,
    TooManyMembers,
    Unavailable,
)
from reattach.runtime.access import (
    Action,
    Authorize,
    SessionAccess,
    User,
    allows,
    at_most,
    effective_role,
    may,
)
from reattach.runtime.host import Host
from reattach.store.base import (
    Activity,
    Append,
    Expected,
    MemberRecord,
    Outcome,
    SessionRecord,
    Standing,
    Tombstone,
)
from reattach.wire import encode

if TYPE_CHECKING:
    from reattach.runtime.registry import Registry

__all__ = ["Members", "access_to", "member_hash", "token_member"]

log = structlog.get_logger("reattach.members")

_MOST_MEMBERS: Final = 1_000
"""Members of a session beside its owner of record: all are read when it is opened."""


class Members:
    """The one way into a session for every route and connection, and who is let in."""

    def __init__(self, registry: Registry, authorize: Authorize | None) -> None:
        self._registry = registry
        self._clock = registry.clock
        self._authorize = authorize

    async def admit(
        self, session_id: str, user: User, action: Action = Action.READ
    ) -> tuple[Host, str]:
        """Return a session and the user's role in it.

        To a stranger it does not exist (`SessionNotFound`); to a member of an erased one it is
        gone (`SessionErased`). Raises `Forbidden` for what a member may not do.

        A stranger has the session's row read, as for one that does not exist, and nothing more.
        """
        if user.session_id not in {None, session_id}:
            # Whether it is there makes no difference: it is not looked at.
            raise SessionNotFound("there is no such session")
        access, version = await self._access(session_id, user)
        role = at_most(await effective_role(self._authorize, user, access), user.role)
        if role is None or not access.user_id:
            raise SessionNotFound("there is no such session")
        allowed = await allows(self._authorize, user, access, action)
        if not allowed or (user.role is not None and not may(user.role, action)):
            raise Forbidden(f"a session's {role} may not {action} it: ask one of its owners")
        host = await self._registry.open(session_id)
        if self._authorize is None and host.stands[2] >= version:
            # It may have been opened, or heard of more, after its row was read.
            role = at_most(host.room.role_of(user.id), user.role)
            if role is None:
                raise SessionNotFound("there is no such session")
        if host.room.devices.is_revoked(user.device_id):
            raise Forbidden(REVOKED, code="device_revoked")
        return host, role

    async def _access(self, session_id: str, user: User) -> tuple[SessionAccess, int]:
        """Return what a user is to a session by the members' list, and the list's version."""
        host = self._registry.hosts.get(session_id)
        role = None if host is None else host.room.role_of(user.id)
        if host is not None and role is not None:
            record = host.room.recorded
        else:
            found = await self._registry.loader.standing(session_id, user.id)
            if isinstance(found, Tombstone) and member_hash(found.salt, user.id) in found.members:
                raise SessionErased("the session was erased")
            if not isinstance(found, Standing):
                nobodys = SessionAccess(session_id=session_id, user_id="", role=None, schema=None)
                return nobodys, 0
            record = found.session
            role = Role.OWNER if record.user_id == user.id else found.role
        return access_to(record, at_most(role, user.role)), record.access_version

    async def was_erased(self, session_id: str, member: str) -> bool:
        """Say whether a session was erased that somebody was a member of."""
        found = await self._registry.store.session(session_id)
        return isinstance(found, Tombstone) and member_hash(found.salt, member) in found.members

    def readmit(self, host: Host) -> None:
        """Who may do what has changed: have it so on every connection."""
        room = host.room
        for connection in room.everybody():
            devices = {connection.device_id, connection.user.device_id}
            if any(map(room.devices.is_revoked, devices)):
                room.turn_away(connection, Close.FORBIDDEN, REVOKED)
            elif self._authorize is None:
                role = at_most(room.role_of(connection.user_id), connection.user.role)
                room.set_role(connection, role, self._clock.now())
            else:
                self._registry.tasks.spawn(self._ask_again(host, connection, self._authorize))

    async def _ask_again(self, host: Host, connection: Connection, authorize: Authorize) -> None:
        room, user = host.room, connection.user
        access = access_to(room.recorded, at_most(room.role_of(user.id), user.role))
        try:
            role = at_most(await effective_role(authorize, user, access), user.role)
            await host.at_rest(lambda room: room.set_role(connection, role, self._clock.now()))
        except ReattachError as error:
            self._registry.connections.hang_up(
                connection, Close.RESTART, f"come back to be let in anew: {error}"
            )
        except Exception:
            log.exception("authorize failed", session=room.session_id)
            self._registry.connections.hang_up(
                connection, Close.RESTART, "come back to be let in anew"
            )

    async def change(self, session_id: str, change: Callable[[Room], Append | None]) -> None:
        """Change who may do what with a session, durably, and have it so on its connections here.

        ``change`` makes the part at rest, with the row's access version raised (`part`);
        None: there is nothing to change. It is asked anew where somebody else was quicker.
        """
        outcome = None
        while outcome is not Outcome.OK:
            host = await self._registry.open(session_id)
            part = await host.at_rest(partial(_held, host, change))
            if part is None:
                return
            try:
                outcome = await self._registry.write(part)
            finally:
                host.go_on()
            if part.session is not None and outcome is Outcome.OK:
                # They need not wait for the second to pass.
                self._registry.nodes.tell(Note(session=part.session, commits=[]))
            with contextlib.suppress(Unavailable):
                # From then on it is in force here. Where the session has another owner of record,
                # it is closed instead, and everybody is let in anew.
                await host.at_rest(lambda room: room.session_id)

    def part(self, room: Room, activity: Activity | None = None, **fields: Any) -> Append:
        """Make the part that changes who may do what; ``fields`` are those of `Append`."""
        record = room.recorded
        session = msgspec.structs.replace(
            fields.pop("session", record), access_version=record.access_version + 1
        )
        return Append(
            session_id=record.session_id,
            expected=Expected.of(record),
            session=session,
            activity=[] if activity is None else [activity],
            **fields,
        )

    async def put(self, session_id: str, user_id: str, role: str, *, by: str) -> None:
        """Give a user a role in a session; raises `LastOwner` where none would be left."""

        def change(room: Room) -> Append | None:
            before = room.role_of(user_id)
            if before == role:
                return None
            if before is None and len(room.members) >= _MOST_MEMBERS:
                raise TooManyMembers(
                    f"expected at most {_MOST_MEMBERS} members of a session: remove one first"
                )
            member = MemberRecord(user_id=user_id, role=role)
            data = {"user_id": user_id, "role": role}
            return self._members_part(room, user_id, [member], "member_set", data, by)

        await self.change(session_id, change)

    async def remove(self, session_id: str, user_id: str, *, by: str, forget: bool = False) -> None:
        """Take a user's role in a session away; raises `LastOwner` where none would be left.

        With ``forget`` their devices are nobody's, and tell nothing of themselves any more.
        """

        def change(room: Room) -> Append | None:
            if room.role_of(user_id) is None:
                return None
            data = {"user_id": user_id}
            part = self._members_part(room, user_id, [], "member_removed", data, by)
            if forget:
                part.devices = [
                    msgspec.structs.replace(
                        device, user_id=NOBODY, name=None, given_name=None, info=b"{}"
                    )
                    for device in room.devices.everyone()
                    if device.user_id == user_id
                ]
            return part

        await self.change(session_id, change)

    async def check_erasure(self, user_id: str, by: User) -> None:
        """Raise `Forbidden` where somebody may not erase all that a user has.

        The user may, and whoever ``authorize`` lets. It is asked about ``erase``, once, with no
        session's id and the user as the owner.
        """
        if by.id == user_id:
            return
        everything = SessionAccess(session_id="", user_id=user_id, role=None, schema=None)
        if self._authorize is None or not await allows(
            self._authorize, by, everything, Action.ERASE
        ):
            raise Forbidden("only the user may erase all that is the user's, and who is let to")

    def _members_part(
        self,
        room: Room,
        user_id: str,
        put: list[MemberRecord],
        what: str,
        data: dict[str, Any],
        by: str,
    ) -> Append:
        """Make the part that has a user be just the member ``put``, or none."""
        record, removed = room.recorded, [user_id]
        activity = Activity(activity_type=what, at=self._clock.now(), user_id=by, data=encode(data))
        if user_id == record.user_id:
            # Another owner becomes the one of record.
            heir = min(
                (one for one, role in room.members.items() if role == Role.OWNER), default=None
            )
            if heir is None:
                raise LastOwner(
                    "expected a session to keep an owner: make somebody else one first, or erase it"
                )
            record = msgspec.structs.replace(record, user_id=heir)
            removed = [heir]
        return self.part(room, activity, session=record, members=put, members_removed=removed)


def _held(host: Host, change: Callable[[Room], Append | None], room: Room) -> Append | None:
    part = change(room)
    if part is not None:
        host.hold()
    return part


def access_to(record: SessionRecord, role: str | None) -> SessionAccess:
    """Return what an ``authorize`` is told of a session."""
    return SessionAccess(
        session_id=record.session_id, user_id=record.user_id, role=role, schema=record.schema_name
    )


def token_member(secret_hash: bytes) -> str:
    """Return the name of a token among those who are told of an erasure; no user's."""
    return f"token:{secret_hash.hex()}:"


def member_hash(salt: bytes, user_id: str) -> bytes:
    """Return what an erased session keeps of a member."""
    return hashlib.sha256(salt + user_id.encode()).digest()
