"""`make run-full`: everything at once, by one command."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.server import free_port
from tests.support.wire_client import WireClient

pytestmark = pytest.mark.faults


@pytest.mark.timeout(120)
async def test_the_full_stack_starts_shows_one_session_on_both_nodes_and_ends() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.run_full", "--port", str(port)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(90):
            while "Ctrl-C" not in said:
                line = await process.stdout.readline()
                assert line, said
                said += line.decode()
        for part in (f":{port} ", f":{port + 1} ", "PostgreSQL", "Valkey"):
            assert part in said
        here, there = (f"ws://127.0.0.1:{one}" for one in (port, port + 1))
        async with (
            WireClient(here, "s", "c1", create={"n": 0}) as one,
            WireClient(there, "s", "c2", create={"n": 0}) as other,
        ):
            await one.change({"op": "inc", "path": "/n", "by": 1})
            await other.at(1)
            assert other.state == {"n": 1}
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            rest = await process.stdout.read()
            assert await process.wait() == 0, rest.decode()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)  # which takes along what it has started
            await process.wait()
