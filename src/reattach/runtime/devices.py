"""The devices of a session as people manage them: names, the primary one, who is let in no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from reattach.core.devices import called
from reattach.core.room import Room
from reattach.errors import NoSuchDevice
from reattach.runtime import credentials
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.store.base import Activity, Append, CredentialRecord, DeviceRecord
from reattach.wire import encode

__all__ = ["change", "listed", "revoke"]

_WORDS: Final = {"given_name": "renamed", "is_primary": "made_primary", "revoked_at": "let_in"}


async def listed(registry: Registry, host: Host) -> tuple[list[DeviceRecord], set[str]]:
    """Return all devices of a session, oldest first, and the ids of those that are connected.

    Nobody need have told this node of those that came to other ones: the database has them.
    """
    found = await registry.store.devices(host.session_id)

    def read(room: Room) -> tuple[list[DeviceRecord], set[str]]:
        room.devices.hear(found)
        return room.devices.everyone(), room.online()

    return await host.at_rest(read)


async def change(
    registry: Registry, session_id: str, device_id: str, *, by: str, **fields: Any
) -> DeviceRecord:
    """Change some of ``given_name``, ``is_primary`` (to True) and ``revoked_at`` (to None).

    Returns the device; raises `NoSuchDevice`.
    """

    def make(room: Room, _: Sequence[CredentialRecord]) -> Append | None:
        device = _find(room, device_id)
        now = {name: getattr(device, name) for name in fields}
        # One that is primary only because the others are not stays so by being made it.
        stored = room.devices.get(device_id)
        by_age = fields.get("is_primary") and stored is not None and not stored.is_primary
        if now == fields and not by_age:
            return None
        devices = [msgspec.structs.replace(device, **fields)]
        if fields.get("is_primary"):
            devices += [
                msgspec.structs.replace(one, is_primary=False)
                for one in room.devices.everyone()
                if one.is_primary and one.device_id != device_id
            ]
        done = [word for name, word in _WORDS.items() if now.get(name) != fields.get(name)]
        line = _line(registry, "device_changed", device, by, done=done) if done else None
        return registry.members.part(room, line, devices=devices)

    await listed(registry, await registry.open(session_id))
    await credentials.change(registry, session_id, make)
    host = await registry.open(session_id)
    return await host.at_rest(lambda room: _find(room, device_id))


async def revoke(registry: Registry, session_id: str, device_id: str, *, by: str) -> None:
    """Let a device in no more: its connections are closed on every node, its tokens are over.

    So are the links that wait to be opened of the user whose it is, who may have made them there.
    Raises `NoSuchDevice`.
    """

    def make(room: Room, kept: Sequence[CredentialRecord]) -> Append | None:
        device = _find(room, device_id)
        if device.revoked_at is not None:
            return None
        tokens = [one for one in kept if one.kind == "token" and one.device_id == device_id]
        links = [
            one.secret_hash
            for one in kept
            if one.kind == "handoff"
            and one.user_id == device.user_id
            and one.device_id in {None, device_id}
        ]
        over = credentials.REVOKED_TOKEN
        return registry.members.part(
            room,
            _line(registry, "revoked", device, by, tokens=len(tokens), links=len(links)),
            devices=[
                msgspec.structs.replace(device, is_primary=False, revoked_at=registry.clock.now())
            ],
            credentials=[msgspec.structs.replace(one, kind=over) for one in tokens],
            credentials_removed=links,
        )

    await listed(registry, await registry.open(session_id))
    await credentials.change(registry, session_id, make)


def _find(room: Room, device_id: str) -> DeviceRecord:
    """Return a device; of those that are primary, one at most says so."""
    found = next((one for one in room.devices.everyone() if one.device_id == device_id), None)
    if found is None:
        raise NoSuchDevice("expected a device of this session: list them to see which there are")
    return found


def _line(registry: Registry, what: str, device: DeviceRecord, by: str, **data: Any) -> Activity:
    return Activity(
        activity_type=what,
        at=registry.clock.now(),
        user_id=by,
        data=encode({"device_id": device.device_id, "name": called(device), **data}),
    )
