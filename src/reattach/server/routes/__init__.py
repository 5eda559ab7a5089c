"""The HTTP routes of `docs/protocol.md`, section 7: read the request, ask the runtime, answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Security
from fastapi.security import HTTPBearer

from reattach.server.routes.changes import ChangeRoutes
from reattach.server.routes.checkpoints import CheckpointRoutes
from reattach.server.routes.credentials import CredentialRoutes
from reattach.server.routes.devices import DeviceRoutes
from reattach.server.routes.events import EventRoutes
from reattach.server.routes.exports import ExportRoutes
from reattach.server.routes.health import Health
from reattach.server.routes.members import MemberRoutes
from reattach.server.routes.openapi import Add, problem
from reattach.server.routes.past import PastRoutes
from reattach.server.routes.records import RecordRoutes
from reattach.server.routes.sessions import SessionRoutes
from reattach.server.served import Served

__all__ = ["routes"]


def routes(reattach: Served) -> APIRouter:
    """Return all routes over a server's sessions."""
    health, sessions = Health(reattach), SessionRoutes(reattach)
    credentials = CredentialRoutes(reattach)
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": problem("What is wrong."),
        "5XX": problem("The server cannot now."),
    }
    api = APIRouter(
        tags=["sessions"],
        dependencies=[Depends(health.enter), Security(HTTPBearer(auto_error=False))],
        responses=errors,
    )
    # In this order: a path is answered by the first that matches it.
    for one in (
        health,
        ChangeRoutes(reattach),
        sessions,
        EventRoutes(reattach),
        RecordRoutes(reattach),
        CheckpointRoutes(reattach),
        PastRoutes(reattach),
        MemberRoutes(reattach),
        DeviceRoutes(reattach),
        ExportRoutes(reattach),
    ):
        one.add_to(Add(api))
    credentials.add_to(Add(api))
    # What may be asked without having signed in.
    beginning = APIRouter(
        tags=["sessions"],
        dependencies=[Depends(health.enter_or_begin), Security(HTTPBearer(auto_error=False))],
        responses=errors,
    )
    sessions.add_beginning_to(Add(beginning))
    redeeming = APIRouter(
        tags=["sessions"], dependencies=[Depends(health.enter_from_here)], responses=errors
    )
    credentials.add_redeeming_to(Add(redeeming))
    router = APIRouter()
    router.include_router(health.open_routes())
    for one_router in (api, beginning, redeeming):
        router.include_router(one_router, prefix="/api/v0")
    return router
