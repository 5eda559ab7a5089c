"""The devices of one session: what is known of each, and when the others are told."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from reattach.core.limits import Limits
from reattach.core.values import check
from reattach.errors import BadRequest, Forbidden
from reattach.store.base import DeviceRecord
from reattach.wire import DeviceStatus, HelloDevice, encode

__all__ = ["DeviceList"]

_SHOWN = 20
"""Devices of one user that are told of, beside those that are online."""


class DeviceList:
    """Every device that was ever here. ``changed`` are those that are to be written."""

    def __init__(self, devices: Sequence[DeviceRecord], limits: Limits) -> None:
        self._limits = limits
        self._devices = {device.device_id: device for device in devices}
        self._untold = False
        self._told_at = 0
        self.changed: dict[str, DeviceRecord] = {}

    def check(self, user_id: str, device: HelloDevice) -> None:
        """Raise `Forbidden` for another user's device, or what is wrong with what it tells."""
        known = self._devices.get(device.id)
        if known is not None and known.user_id != user_id:
            raise Forbidden("this device is another user's")
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
            )
        )

    def touch(self, device_id: str, now: int) -> None:
        """Note a device's last sign of life."""
        known = self._devices.get(device_id)
        if known is not None:
            self._put(msgspec.structs.replace(known, last_activity=now))

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
        return [
            DeviceStatus(
                device.device_id,
                device.name,
                device.device_id in online,
                device.is_primary,
                device.last_activity,
            )
            for device in self._shown(online)
        ]

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
