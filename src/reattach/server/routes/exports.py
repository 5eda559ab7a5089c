"""All that a session holds as one file, and a session made of one."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from reattach.runtime.access import Action
from reattach.runtime.exports import export_session, import_session
from reattach.server import models
from reattach.server.body import JSON_TYPE, media_type, read
from reattach.server.routes.answers import created, durable
from reattach.server.routes.base import Routes, SessionPath, json_answer, user_of, whole_user_of
from reattach.server.routes.openapi import Add

__all__ = ["ExportRoutes"]

_FILE: Final = {JSON_TYPE: {"type": "object", "description": "What an export answered."}}


class ExportRoutes(Routes):
    """Out of the server and into it."""

    def add_to(self, add: Add) -> None:
        """Add them."""
        add("GET", "/session/{session_id}/export", self.export, None)
        add("POST", "/session/import", self.import_, models.SessionAnswer, status=201, body=_FILE)

    async def export(self, request: Request, session_id: SessionPath) -> Response:
        """Answer with everything that a session holds, but secrets."""
        registry, host, _ = await self.open(request, session_id, Action.MANAGE)
        file = await export_session(registry, host, by=user_of(request).id)
        name = f'attachment; filename="{session_id.replace(":", "_")}.json"'
        return json_answer(file, headers={"Content-Disposition": name, "Cache-Control": "no-store"})

    async def import_(self, request: Request) -> Response:
        """Make a session of what an export answered, for the caller."""
        user = whole_user_of(request)
        media_type(request, (JSON_TYPE,))
        file = await read(request, self.settings.max_import_bytes)
        registry = await self.running()
        record = await import_session(registry, file, user)
        headers, answer = created(*await durable(registry, await registry.open(record.session_id)))
        return json_answer(answer, 201, headers)
