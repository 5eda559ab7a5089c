"""Any JSON goes through set, patch, resume and history and comes back equal by type and value, in
Python and in JavaScript, or is refused with a reason.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reattach.client import Session, connect
from reattach.core.values import equal
from reattach.errors import ChangeRefused
from tests.conftest import NewServer
from tests.support.paths import ROOT
from tests.support.server import ServerProcess
from tests.support.wire_client import WireClient

# Lone surrogates, U+0000, and names that JavaScript and JSON Pointers treat in their own way.
KEYS = st.text() | st.sampled_from(["__proto__", "constructor", "id", "", "~", "/", "#", "0", "-"])
NUMBERS = (
    st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([-0.0, 0.1, 1e308, 5e-324, 2**53, 2**53 + 1, 2**60, 1e22])
)
ANY = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
# Commits weigh less than this state, so that whoever was away gets them and not the state.
HEAVY = {"values": {}, "filler": "x" * 300_000}
REASONS = {"bad_number", "bad_string", "too_deep"}


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all examples of a test."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def server(
    new_server: NewServer, tmp_path: Path, runner: asyncio.Runner
) -> Iterator[ServerProcess]:
    server = new_server(tmp_path / "any.db", app=None)
    runner.run(server.start())
    yield server
    runner.run(server.kill())


async def begin(api: httpx.AsyncClient) -> str:
    """A new session's id."""
    answer = await api.post("/api/v0/session", json={"state": HEAVY})
    assert answer.status_code == 201
    name: str = answer.json()["session_id"]
    return name


async def through_python(server: ServerProcess, values: list[Any]) -> int:
    """Check what each value comes to; return how many were refused."""
    refused = 0
    async with httpx.AsyncClient(base_url=server.url) as api, AsyncExitStack() as stack:
        name = await begin(api)
        away = await stack.enter_async_context(WireClient(server.ws_url, name, "away"))
        session = await stack.enter_async_context(connect(server.url, name))
        await away.disconnect()
        first = session.version
        sound: dict[str, Any] = {}
        for number, value in enumerate(values):
            code = await refusal(session, f"/values/{number}", value)
            if code is None:
                sound[str(number)] = value
                assert equal(session.get(f"/values/{number}"), value)
            else:
                assert code in REASONS
                refused += 1
        welcome = await away.connect()
        assert welcome["type"] == "resumed"
        assert away.state is not None
        assert equal(away.state["values"], sound)
        assert equal((await api.get(f"/api/v0/session/{name}")).json()["state"]["values"], sound)
        query = {"from": str(first + 1)}
        page = (await api.get(f"/api/v0/session/{name}/history", params=query)).json()
        assert page["next"] is None
        found = {one["patch"][0]["path"]: one["patch"][0]["value"] for one in page["items"]}
        assert equal(found, {f"/values/{number}": value for number, value in sound.items()})
    return refused


async def refusal(session: Session, path: str, value: Any) -> str | None:
    """Set a value; return why it was refused, if it was."""
    try:
        await session.set(path, value)
    except ChangeRefused as refused:
        return refused.code
    return None


def test_in_python(server: ServerProcess, runner: asyncio.Runner) -> None:
    """Rules V1 to V4, R1."""

    @given(st.lists(ANY, min_size=5, max_size=30))
    @settings(max_examples=12)
    def run(values: list[Any]) -> None:
        assert runner.run(through_python(server, values)) <= len(values)

    run()


async def through_javascript(server: ServerProcess, values: list[Any]) -> list[dict[str, Any]]:
    script = ROOT / "tests" / "client" / "any_json.mjs"
    async with httpx.AsyncClient(base_url=server.url) as api:
        name = await begin(api)
    lines = "\n".join(json.dumps(value) for value in values)
    node = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "tools" / "node.py",
        "node",
        script,
        server.url,
        name,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    output, _ = await node.communicate(lines.encode())
    assert node.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def test_in_javascript(server: ServerProcess, runner: asyncio.Runner) -> None:
    """Rules V1 to V4, R1: the browser's client, cut off now and then."""

    @given(st.lists(ANY, min_size=20, max_size=60))
    @settings(max_examples=6)
    def run(values: list[Any]) -> None:
        results = runner.run(through_javascript(server, values))
        assert len(results) == len(values)
        for value, result in zip(values, results, strict=True):
            if "refused" in result:
                assert result["refused"] in REASONS
                continue
            # JavaScript has doubles only.
            expected = json.loads(json.dumps(value), parse_int=_double)
            for name in ("seen", "live", "fresh", "history"):
                assert equal(result[name], expected), name

    run()


def _double(text: str) -> Any:
    value = float(text)
    return int(value) if value.is_integer() else value
