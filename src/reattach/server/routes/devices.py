"""The devices of a session: list, rename, make primary, revoke."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import Path
from starlette.requests import Request
from starlette.responses import Response

from reattach.core.devices import called
from reattach.errors import BadRequest, NoSuchDevice
from reattach.runtime import devices
from reattach.runtime.access import Action
from reattach.runtime.registry import Registry
from reattach.server import models
from reattach.server.body import BadBody, hold_against, read_json
from reattach.server.routes.base import (
    PAGE,
    After,
    Routes,
    SessionPath,
    json_answer,
    page_answer,
    user_of,
)
from reattach.server.routes.openapi import Add, schema_of
from reattach.store.base import DeviceRecord
from reattach.store.shared import place_after, place_mark
from reattach.wire import encode

__all__ = ["DeviceRoutes"]

_DEVICE: Final = {"application/json": schema_of(models.DeviceBody)}

DevicePath = Annotated[str, Path(description="The device's id.")]


class DeviceRoutes(Routes):
    """Routes over a session's devices."""

    def add_to(self, add: Add) -> None:
        """Add them."""
        add("GET", "/session/{session_id}/devices", self.devices, models.DevicePage)
        device = "/session/{session_id}/devices/{device_id}"
        add("PATCH", device, self.change, models.DeviceStatus, body=_DEVICE)
        add("DELETE", device, self.revoke, None, status=204)

    async def devices(
        self, request: Request, session_id: SessionPath, after: After = None
    ) -> Response:
        """List the session's devices, oldest first, and whether each is connected."""
        registry, host, _ = await self.open(request, session_id)
        place = (-1, "") if after is None else place_after(after)
        found, online = await devices.listed(registry, host)
        rest = [one for one in found if (one.created_at, one.device_id) > place]
        page = rest[:PAGE]
        following = None
        if len(rest) > PAGE:
            following = place_mark(page[-1].created_at, page[-1].device_id)
        return page_answer([_item(one, one.device_id in online) for one in page], following)

    async def change(
        self, request: Request, session_id: SessionPath, device_id: DevicePath
    ) -> Response:
        """Rename a device, make it the primary one, or let it in again."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.DeviceBody, value)
        fields = _fields(body, value)
        action = Action.WRITE if "is_primary" in fields else Action.READ
        registry = await self._managing(request, session_id, device_id, action)
        by = user_of(request).id
        device = await devices.change(registry, session_id, device_id, by=by, **fields)
        host = await registry.open(session_id)
        return json_answer(encode(_item(device, device_id in host.room.online())))

    async def revoke(
        self, request: Request, session_id: SessionPath, device_id: DevicePath
    ) -> Response:
        """Let a device in no more, on any node; of a revoked one: nothing."""
        registry = await self._managing(request, session_id, device_id, Action.READ)
        await devices.revoke(registry, session_id, device_id, by=user_of(request).id)
        return Response(status_code=204)

    async def _managing(
        self, request: Request, session_id: str, device_id: str, action: Action
    ) -> Registry:
        """Let in whose the device is, where they may do ``action``, and whoever may manage."""
        registry, host, _ = await self.open(request, session_id, action)
        found, _ = await devices.listed(registry, host)
        device = next((one for one in found if one.device_id == device_id), None)
        if device is None or device.user_id != user_of(request).id:
            await self.open(request, session_id, Action.MANAGE)
        if device is None:
            raise NoSuchDevice("expected a device of this session: list them to see which are")
        return registry


def _fields(body: models.DeviceBody, value: dict[str, Any]) -> dict[str, Any]:
    """Return what is to be changed, by the names of `DeviceRecord`."""
    fields: dict[str, Any] = {}
    if "name" in value:
        fields["given_name"] = body.name
    if body.is_primary:
        fields["is_primary"] = True
    if body.revoked is False:
        fields["revoked_at"] = None
    if not fields:
        raise BadRequest("expected name, is_primary or revoked: say what is to be changed")
    try:
        encode(fields)
    except UnicodeEncodeError:
        raise BadBody("expected a name without lone surrogates", "/name") from None
    return fields


def _item(device: DeviceRecord, online: bool) -> dict[str, Any]:
    kind = msgspec.json.decode(device.info).get("kind")
    return {
        "id": device.device_id,
        "name": called(device),
        "kind": kind if isinstance(kind, str) else None,
        "info": msgspec.Raw(device.info),
        "user_id": device.user_id,
        "online": online,
        "is_primary": device.is_primary,
        "created_at": device.created_at,
        "last_activity": device.last_activity,
        "version": device.version,
        "revoked_at": device.revoked_at,
    }
