"""Secrets that open a session: claim it, hand it to another device, redeem what was handed over."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from reattach.runtime.credentials import claim, hand_off, redeem
from reattach.server import models
from reattach.server.body import hold_against, read_json
from reattach.server.routes.answers import changed, durable
from reattach.server.routes.base import (
    NOT_KEPT,
    Routes,
    SessionPath,
    json_answer,
    user_of,
    whole_user_of,
)
from reattach.server.routes.openapi import Add, schema_of
from reattach.wire import HelloDevice, encode

__all__ = ["CredentialRoutes"]

_CLAIM: Final = {"application/json": schema_of(models.ClaimBody)}
_HANDOFF: Final = {"application/json": schema_of(models.HandoffBody)}
_REDEEM: Final = {"application/json": schema_of(models.RedeemBody)}


class CredentialRoutes(Routes):
    """Routes over what opens one session."""

    def add_to(self, add: Add) -> None:
        """Add what needs a token."""
        one = "/session/{session_id}"
        add("POST", f"{one}/claim", self.claim, models.SessionAnswer, body=_CLAIM)
        add(
            "POST",
            f"{one}/handoff",
            self.hand_off,
            models.HandoffAnswer,
            status=201,
            body=_HANDOFF,
        )

    def add_redeeming_to(self, add: Add) -> None:
        """Add what a device asks that has only a link."""
        add("POST", "/handoff", self.redeem, models.RedeemedAnswer, body=_REDEEM)

    async def claim(self, request: Request, session_id: SessionPath) -> Response:
        """Make a session that nobody has signed in for the caller's own."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.ClaimBody, value)
        user = whole_user_of(request)
        await claim(await self.running(), session_id, body.claim_secret, user)
        registry, host, _ = await self.open(request, session_id)
        headers, answer = changed(*await durable(registry, host))
        return json_answer(answer, headers=headers)

    async def hand_off(self, request: Request, session_id: SessionPath) -> Response:
        """Make a link that lets one other device in, within ten minutes."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.HandoffBody, value)
        registry, _, role = await self.open(request, session_id)
        secret, expires_at = await hand_off(registry, session_id, user_of(request), role)
        page = request.headers.get("origin") or str(request.base_url).rstrip("/")
        url = body.url or f"{page}/"
        answer = {"link": f"{url}#handoff={secret}", "secret": secret, "expires_at": expires_at}
        return json_answer(encode(answer), 201, NOT_KEPT)

    async def redeem(self, request: Request) -> Response:
        """Give the device that opened a link a token for its session."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        body = hold_against(models.RedeemBody, value)
        device = HelloDevice(body.device.id, body.device.name, body.device.info)
        redeemed = await redeem(await self.running(), body.secret, device)
        return json_answer(encode(redeemed), headers=NOT_KEPT)
