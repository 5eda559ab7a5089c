"""The harness itself: a server that tests kill must really be dead, and come back the same."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Serve
from tests.support.server import ServerProcess, free_port

pytestmark = pytest.mark.faults


async def status(server: ServerProcess) -> int:
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        return (await client.get(f"{server.url}/readyz")).status_code


async def test_a_killed_server_is_gone_and_returns_at_the_same_address(serve: Serve) -> None:
    server = await serve()
    assert await status(server) == 200
    pids, url = {node.pid for node in server.nodes}, server.url

    await server.kill()
    assert not server.alive
    assert not any(map(psutil.pid_exists, pids))
    with pytest.raises(httpx.ConnectError):
        await status(server)

    await server.restart()
    assert server.url == url
    assert pids.isdisjoint(node.pid for node in server.nodes)
    assert await status(server) == 200


async def test_a_stopped_server_ends_by_itself(serve: Serve) -> None:
    server = await serve()
    # uvicorn finishes its work and then lets the signal have its way.
    assert await server.stop(within=5) in {0, -signal.SIGTERM}


async def test_a_paused_server_answers_nothing_until_it_goes_on(serve: Serve) -> None:
    server = await serve()
    server.signal(signal.SIGSTOP)
    with pytest.raises(httpx.ReadTimeout):
        async with httpx.AsyncClient(timeout=0.2, trust_env=False) as client:
            await client.get(f"{server.url}/readyz")
    server.signal(signal.SIGCONT)
    assert await status(server) == 200


async def test_a_server_that_cannot_start_shows_what_it_said(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "reattach.db", app="no.such.module:reattach")
    with pytest.raises(RuntimeError, match=r"no\.such|No module named"):
        await server.start()


def test_a_free_port_lies_below_those_of_outgoing_connections() -> None:
    assert free_port() < 32_768
