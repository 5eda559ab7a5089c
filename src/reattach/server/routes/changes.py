"""A client's outbox and sign of life without a WebSocket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from reattach.core.inbox import propose
from reattach.errors import ChangeRefused
from reattach.runtime.host import Host
from reattach.server import models
from reattach.server.body import BadBody, hold_against, read_json
from reattach.server.outbox import decide, introduce, runs
from reattach.server.routes.base import Routes, SessionPath, json_answer, user_of
from reattach.server.routes.openapi import Add, schema_of
from reattach.wire import Change, HelloDevice, encode

__all__ = ["ChangeRoutes"]

_CHANGES: Final = {"application/json": schema_of(models.ChangesBody)}
_PRESENCE: Final = {"application/json": schema_of(models.PresenceBody)}
_HEARTBEAT: Final = {"application/json": schema_of(models.HeartbeatBody)}


class ChangeRoutes(Routes):
    """What a client sends over HTTP."""

    def add_to(self, add: Add) -> None:
        """Add them."""
        add("POST", "/session/heartbeat", self.heartbeat, None, status=204, body=_HEARTBEAT)
        changes = "/session/{session_id}/changes"
        add("POST", changes, self.changes, models.ChangesAnswer, body=_CHANGES)
        presence = "/session/{session_id}/presence"
        add("POST", presence, self.presence, None, status=204, body=_PRESENCE)

    async def heartbeat(self, request: Request) -> Response:
        """Take a device's sign of life."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.HeartbeatBody, value)
        registry, host, _ = await self.open(request, body.session_id)
        device = HelloDevice(body.device.id, body.device.name, body.device.info)
        host.room.devices.greet(user_of(request).id, device, registry.clock.now())
        host.flush()
        return Response(status_code=204)

    async def presence(self, request: Request, session_id: SessionPath) -> Response:
        """Pass on what a client tells the session's other connections; never stored."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.PresenceBody, value)
        registry, host, _ = await self.open(request, session_id)
        user, device = user_of(request), HelloDevice(body.device.id)
        host.room.devices.check(user.id, device)
        host.room.present(user.id, body.client_id, device.id, value["data"], registry.clock.now())
        host.flush()
        return Response(status_code=204)

    async def changes(self, request: Request, session_id: SessionPath) -> Response:
        """Take a client's outbox: applied in order, up to a gap in its numbers."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        _, seq, version, rejected = await self.take(request, session_id, value)
        return json_answer(encode({"seq": seq, "version": version, "rejected": rejected}))

    async def take(
        self, request: Request, session_id: str, value: Any
    ) -> tuple[Host, int, int, list[msgspec.Raw]]:
        """Take an outbox; return its client's last number, the version, and what was refused."""
        body = hold_against(models.ChangesBody, value)
        device = HelloDevice(body.device.id, body.device.name, body.device.info)
        changes: Sequence[Any] = value["changes"]
        heads = [self._change(change, n) for n, change in enumerate(changes)]
        registry, host, role = await self.open(request, session_id)
        access_version = host.stands[2]
        user = user_of(request)
        offset = registry.clock.now() - body.t
        host.pins += 1
        try:
            await introduce(registry, host, user, body.client_id, device)
            limits, schema = registry.limits, host.room.session.schema
            proposals = [
                msgspec.structs.replace(
                    propose(body.client_id, role, change, offset, limits, schema, refused=refused),
                    access_version=access_version,
                )
                for change, refused in heads
            ]
            rejected: list[msgspec.Raw] = []
            for run in runs(proposals, limits.max_in_flight_changes):
                rejected += await decide(registry, host, run)
            seq, version = await host.at_rest(
                lambda room: (room.session.clients[body.client_id].seq, room.session.version)
            )
        finally:
            host.pins -= 1
        return host, seq, version, rejected

    def _change(self, value: Any, number: int) -> tuple[Change, ChangeRefused | None]:
        """Read a change; one whose head is sound and whose operations are not is refused."""
        refused = None
        try:
            change = msgspec.convert(value, Change)
        except msgspec.ValidationError as broken:
            refused = ChangeRefused(f"expected a sound change: {broken}", code="bad_op")
            try:
                change = msgspec.convert({**value, "ops": []}, Change)
            except (msgspec.ValidationError, TypeError):
                raise BadBody(refused.message, f"/changes/{number}") from None
        size, most = _weight(value), self.settings.max_change_bytes
        if size > most:
            message = f"expected a change of at most {most} bytes, got {size}"
            refused = ChangeRefused(message, code="change_too_large")
        return change, refused


def _weight(value: Any) -> int:
    try:
        return len(encode(value))
    except (ValueError, OverflowError):
        # What JSON cannot say back (a lone surrogate, a number beyond all) is refused later.
        return 0
