"""The devices of one session: what is known of each, and when the others are told."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from reattach.core.limits import Limits
from reattach.core.values import check
from reattach.errors import BadRequest, Forbidden
from reattach.store.base import DeviceRecord
from reattach.wire import DeviceStatus, HelloDevice, encode

__all__ = ["NOBODY", "REVOKED", "DeviceList", "called"]

NOBODY: Final = ""
"""Whose a device is after its user was erased: the next one's who comes with it."""

REVOKED: Final = "this device was revoked: have it let in again on another one, or by a fresh link"

_SHOWN = 20
"""Devices of one user that are told of, beside those that are online."""


class DeviceList:
    """Every device that was ever here. ``changed`` are those that are to be written."""

    def __init__(self, devices: Sequence[DeviceRecord], limits: Limits) -> None:
        self._limits = limits
        self._devices = {device.device_id: device for device in devices}
        self._versions: dict[str, int] = {}
        """The newest version that each said it had, where it said so here."""
        self._untold = False
        self._told_at = 0
        self.changed: dict[str, DeviceRecord] = {}

    def check(self, user_id: str, device: HelloDevice) -> None:
        """Raise `Forbidden` for another user's device, or what is wrong with what it tells."""
        known = self._devices.get(device.id)
        if known is not None and known.user_id not in {user_id, NOBODY}:
            raise Forbidden("this device is another user's")
        if self.is_revoked(device.id):
            raise Forbidden(REVOKED, code="device_revoked")
        check([device.name, device.info], depth=self._limits.max_nesting + 1, path="/device")
        most = self._limits.max_device_info_bytes
        if len(encode(device.info)) > most:
            raise BadRequest(f"expected device.info of at most {most} bytes")

    def greet(self, user_id: str, device: HelloDevice, now: int) -> None:
        """Take a sign of life of a device without a connection; written now and then only."""
        self.check(user_id, device)
        known = self._devices.get(device.id)
        interval = self._limits.heartbeat_interval_ms
        if known is None or now - known.last_activity >= interval:
            self.sight(user_id, device, now)

    def sight(self, user_id: str, device: HelloDevice, now: int) -> None:
        """Note that a user's device was there, and what it tells of itself."""
        known = self._devices.get(device.id)
        self._put(
            DeviceRecord(
                device_id=device.id,
                user_id=user_id,
                name=device.name or (known.name if known else None),
                info=encode(device.info or {}) if device.info or not known else known.info,
                is_primary=known.is_primary if known else not self._devices,
                created_at=known.created_at if known else now,
                last_activity=now,
                given_name=known.given_name if known else None,
                version=self._version(device.id),
            )
        )

    def touch(self, device_id: str, now: int) -> None:
        """Note a device's last sign of life."""
        known = self._devices.get(device_id)
        if known is not None:
            version = self._version(device_id)
            self._put(msgspec.structs.replace(known, last_activity=now, version=version))

    def applied(self, device_id: str, version: int) -> None:
        """Note that a device has a version; it is written when the device comes or goes."""
        if version > self._versions.get(device_id, -1):
            self._versions[device_id] = version

    def get(self, device_id: str) -> DeviceRecord | None:
        """Return what is known of a device, ever so newly."""
        known = self._devices.get(device_id)
        if known is None:
            return None
        return msgspec.structs.replace(known, version=self._version(device_id))

    def everyone(self) -> list[DeviceRecord]:
        """Return all devices, oldest first, the revoked ones among them; one at most is primary."""
        found = (self.get(device_id) for device_id in self._devices)
        primary = self._primary()
        return [
            msgspec.structs.replace(device, is_primary=device.device_id == primary)
            for device in sorted((one for one in found if one), key=_age)
        ]

    def is_revoked(self, device_id: str | None) -> bool:
        """Say whether a device is let in no more."""
        known = self._devices.get(device_id or "")
        return known is not None and known.revoked_at is not None

    def meet(self, devices: Iterable[DeviceRecord]) -> None:
        """Take in the devices as the database has them, where people changed them elsewhere.

        What is to be written of them here goes on with what people made of them.
        """
        for device in devices:
            name = device.device_id
            self._devices[name] = _as_managed(self._devices.get(name), device)
            if name in self.changed:
                self.changed[name] = _as_managed(self.changed[name], device)
        self._untold = True

    def hear(self, devices: Iterable[DeviceRecord]) -> None:
        """Take in what another node wrote, as far as it is newer."""
        for device in devices:
            known = self._devices.get(device.device_id)
            if known is None or known.last_activity < device.last_activity:
                self._devices[device.device_id] = device
                self._untold = True

    def lacks(self, device_ids: Iterable[str]) -> bool:
        """Say whether some of these are not known."""
        return any(name not in self._devices for name in device_ids)

    def retell(self) -> None:
        """Who is online has changed: the others are to be told."""
        self._untold = True

    def take_changed(self) -> dict[str, DeviceRecord]:
        """Return what is to be written, and begin anew."""
        changed, self.changed = self.changed, {}
        return changed

    def retake(self, changed: dict[str, DeviceRecord]) -> None:
        """What was to be written may not have been: write it again, but for what is newer."""
        self.changed = changed | self.changed

    def statuses(self, online: Collection[str]) -> list[DeviceStatus]:
        """Return the devices as the others see them; ``online`` are those with a connection.

        Of each user those, and the newest few: nobody makes the list long for the others.
        """
        primary = self._primary()
        return [
            DeviceStatus(
                device.device_id,
                called(device),
                device.device_id in online,
                device.device_id == primary,
                device.last_activity,
            )
            for device in self._shown(online)
            if device.revoked_at is None
        ]

    def _version(self, device_id: str) -> int | None:
        known = self._devices.get(device_id)
        return self._versions.get(device_id, known.version if known else None)

    def _primary(self) -> str | None:
        """Return the one primary device: of two that nodes took for it at once, the older."""
        candidates = [device for device in self._devices.values() if device.revoked_at is None]
        first = min(candidates, key=lambda one: (not one.is_primary, *_age(one)), default=None)
        return None if first is None else first.device_id

    def _shown(self, online: Collection[str]) -> Collection[DeviceRecord]:
        if len(self._devices) <= _SHOWN:
            return self._devices.values()
        newest = sorted(self._devices.values(), key=lambda one: one.last_activity, reverse=True)
        counted: dict[str, int] = {}
        shown: set[str] = set(online)
        for device in newest:
            counted[device.user_id] = counted.get(device.user_id, 0) + 1
            if counted[device.user_id] <= _SHOWN:
                shown.add(device.device_id)
        return [device for device in self._devices.values() if device.device_id in shown]

    def due(self, now: int) -> bool:
        """Say whether it is time to tell of a change; saying so counts as telling."""
        if not self._untold or now - self._told_at < self._limits.devices_interval_ms:
            return False
        self._untold, self._told_at = False, now
        return True

    def _put(self, device: DeviceRecord) -> None:
        self._devices[device.device_id] = self.changed[device.device_id] = device
        self._untold = True


def called(device: DeviceRecord) -> str | None:
    """Return a device's name: what people call it, or else what it calls itself."""
    return device.name if device.given_name is None else device.given_name


def _age(device: DeviceRecord) -> tuple[int, str]:
    return device.created_at, device.device_id


def _as_managed(device: DeviceRecord | None, found: DeviceRecord) -> DeviceRecord:
    """Return a device as it is known here, with what people made of it in the database."""
    if device is None or found.user_id != device.user_id:
        return found
    return msgspec.structs.replace(
        device,
        given_name=found.given_name,
        is_primary=found.is_primary,
        revoked_at=found.revoked_at,
        last_activity=max(device.last_activity, found.last_activity),
    )
