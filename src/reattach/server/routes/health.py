"""Health: whether the process lives, and whether it can commit; and what it tells its operator."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from reattach.errors import Forbidden, Unavailable
from reattach.server import models
from reattach.server.auth import is_from_here
from reattach.server.routes.base import Routes, json_answer
from reattach.server.routes.openapi import Add, problem
from reattach.server.served import Served
from reattach.wire import encode

__all__ = ["Health"]

_CHECK_TIMEOUT: Final = 2.0
"""Seconds that the database has to prove that it can commit."""


class Health(Routes):
    """Routes that anybody may ask, and the one that asks for a token."""

    def __init__(self, reattach: Served) -> None:
        """Belong to a server."""
        super().__init__(reattach)
        self._checking: asyncio.Task[None] | None = None

    def open_routes(self) -> APIRouter:
        """Return what needs no token."""
        router = APIRouter(tags=["health"])
        router.add_api_route(
            "/healthz",
            self.healthz,
            methods=["GET"],
            summary="The process lives",
            responses={200: {"model": models.Status}},
        )
        router.add_api_route(
            "/readyz",
            self.readyz,
            methods=["GET"],
            summary="The server can commit",
            responses={200: {"model": models.Status}, 503: problem("It cannot, and why.")},
        )
        router.add_api_route(
            "/metrics",
            self.metrics,
            methods=["GET"],
            summary="What the node does, for Prometheus",
            responses={200: {"content": {"text/plain": {}}}, 403: problem("Not from here.")},
        )
        router.add_api_route(
            "/openapi.json", self.openapi, methods=["GET"], include_in_schema=False
        )
        return router

    def add_to(self, add: Add) -> None:
        """Add what needs one."""
        add("GET", "/session/check-connection", self.check_connection, None, status=204)

    async def healthz(self) -> Response:
        """Say that the process lives."""
        return json_answer(encode(models.Status(status="ok").model_dump()))

    async def readyz(self) -> Response:
        """Say that the server can commit, having committed something."""
        await self._check()
        return json_answer(encode(models.Status(status="ready").model_dump()))

    async def metrics(self, request: Request) -> Response:
        """Tell Prometheus what the node does, from this machine or where settings let others."""
        _check_reader(request, "REATTACH_PUBLIC_METRICS", public=self.settings.public_metrics)
        text = await self._reattach.metrics()
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: Request) -> Response:
        """Describe the routes, to this machine or where settings let others."""
        _check_reader(request, "REATTACH_PUBLIC_OPENAPI", public=self.settings.public_openapi)
        document = request.app.openapi()
        mounted_at = request.scope["root_path"]
        servers = {"servers": [{"url": mounted_at}]} if mounted_at else {}
        return json_answer(encode({**document, **servers}))

    async def check_connection(self) -> Response:
        """Say that the token is good and the server can commit."""
        await self._check()
        return Response(status_code=204)

    async def _check(self) -> None:
        """Try the database once for everybody who asks at the time."""
        registry = await self.running()
        if registry.stopping:
            raise Unavailable("the server restarts: come back")
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(registry.store.check())
            self._checking.add_done_callback(_retrieve)
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT):
                await asyncio.shield(self._checking)
        except TimeoutError:
            raise Unavailable("the database did not commit in time: try again") from None
        if not registry.can_commit():
            raise Unavailable("the database does not commit what is sent: see the server's log")


def _check_reader(request: Request, setting: str, *, public: bool) -> None:
    if not (public or is_from_here(request)):
        raise Forbidden(
            "expected a client on this machine, by a loopback address and without a proxy: set"
            f" {setting} to let others read this",
            code="forbidden_client",
        )


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
