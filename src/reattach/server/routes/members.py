"""Who may use a session: list, grant, revoke, leave."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path
from starlette.requests import Request
from starlette.responses import Response

from reattach.core.connection import Role
from reattach.errors import BadRequest
from reattach.runtime.access import Action
from reattach.server import models
from reattach.server.auth import MAX_USER_ID
from reattach.server.body import hold_against, read_json
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
from reattach.wire import encode

__all__ = ["MemberRoutes"]

_MEMBER: Final = {"application/json": schema_of(models.MemberBody)}

UserPath = Annotated[str, Path(description="The user's id.")]


class MemberRoutes(Routes):
    """Routes over a session's members."""

    def add_to(self, add: Add) -> None:
        """Add them."""
        add("GET", "/session/{session_id}/members", self.members, models.MemberPage)
        member = "/session/{session_id}/members/{user_id:path}"
        add("PUT", member, self.put, models.Member, body=_MEMBER)
        add("DELETE", member, self.remove, None, status=204)

    async def members(
        self, request: Request, session_id: SessionPath, after: After = None
    ) -> Response:
        """List who may use the session, by user id."""
        _, host, _ = await self.open(request, session_id)
        room = host.room
        roles = {**room.members, room.recorded.user_id: Role.OWNER}
        found = sorted(user_id for user_id in roles if after is None or user_id > after)
        page = [{"user_id": one, "role": roles[one]} for one in found[:PAGE]]
        return page_answer(page, found[PAGE - 1] if len(found) > PAGE else None)

    async def put(self, request: Request, session_id: SessionPath, user_id: UserPath) -> Response:
        """Give a user a role; in force at once, on every node within a second."""
        _, value = await read_json(request, self.settings.max_frame_bytes)
        role = hold_against(models.MemberBody, value).role
        if not 0 < len(user_id.encode("utf-8", "surrogatepass")) <= MAX_USER_ID:
            raise BadRequest(f"expected a user id of 1 to {MAX_USER_ID} bytes", code="bad_id")
        registry, _, _ = await self.open(request, session_id, Action.MANAGE)
        await registry.members.put(session_id, user_id, role, by=user_of(request).id)
        return json_answer(encode({"user_id": user_id, "role": role}))

    async def remove(
        self, request: Request, session_id: SessionPath, user_id: UserPath
    ) -> Response:
        """Take a user's role away, or leave; of one who has none: nothing."""
        me = user_of(request).id
        action = Action.READ if user_id == me else Action.MANAGE
        registry, _, _ = await self.open(request, session_id, action)
        await registry.members.remove(session_id, user_id, by=me)
        return Response(status_code=204)
