"""An application that mounts a Reattach, served by plain uvicorn in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from reattach import Reattach
from tests.support.server import free_port
from tests.support.waiting import until

PREFIX = "/work"


def host_of(reattach: Reattach) -> FastAPI:
    """As docs tell: the Reattach runs as long as its host does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with reattach:
            yield

    host = FastAPI(lifespan=lifespan)

    @host.get("/hello")
    async def hello() -> str:
        return "hello"

    host.mount(PREFIX, reattach)
    return host


@asynccontextmanager
async def uvicorn_of(app: Callable[..., Any], **options: Any) -> AsyncIterator[str]:
    """The address (without scheme) that the application is served at."""
    port = free_port()
    options = {"lifespan": "on", "ws": "websockets-sansio", "log_config": None} | options
    config = uvicorn.Config(app, port=port, access_log=False, **options)
    server = uvicorn.Server(config)
    # Its shell only: signals are the test's.
    task = asyncio.create_task(server._serve())
    try:
        await until(lambda: server.started or task.done(), within=10, what="uvicorn to listen")
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)
