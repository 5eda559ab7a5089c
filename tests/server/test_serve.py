"""`reattach serve`: starting, refusing to start, and ending in good order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from reattach.cli.output import Exit
from tests.conftest import Serve
from tests.server.peer import joined, opened
from tests.support.database import ON_POSTGRES, behind
from tests.support.paths import BIN
from tests.support.server import free_port


def reattach(
    *arguments: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "reattach"), *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "80"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def refusal(*arguments: str, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """What it says when it does not start: one line, no traceback."""
    done = reattach("serve", *arguments, cwd=cwd, environment=environment)
    assert done.returncode in {Exit.CANNOT, Exit.WRONG, Exit.UNREACHABLE, Exit.HELD}
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# Starting


def test_the_version_is_told(tmp_path: Path) -> None:
    assert reattach("--version", cwd=tmp_path).stdout == f"reattach {version('reattach')}\n"


async def test_one_line_tells_the_address(serve: Serve) -> None:
    server = await serve(app=None)
    said = [f"Reattach serves {node.url}" for node in server.nodes]
    assert sorted(server.log_tail().splitlines()) == sorted(said)


def write_app(folder: Path, text: str) -> None:
    (folder / "wizard.py").write_text(text)


async def test_an_application_of_the_working_directory_is_served(
    serve: Serve, tmp_path: Path
) -> None:
    write_app(
        tmp_path,
        "from reattach import Reattach\n"
        "reattach = Reattach(database='sqlite:///ignored.db')\n"
        "@reattach.app.get('/mine')\n"
        "async def mine() -> str:\n"
        "    return 'mine'\n",
    )
    server = await serve(app="wizard:reattach", cwd=tmp_path)
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{server.url}/mine")).json() == "mine"
    assert ON_POSTGRES or server.database.exists()
    assert not (tmp_path / "ignored.db").exists()


async def test_authenticate_sees_which_session_a_websocket_is_for(
    serve: Serve, tmp_path: Path
) -> None:
    """Regression: only a mounted application's had the path's parameters."""
    write_app(
        tmp_path,
        "from reattach import Reattach, User\n"
        "async def authenticate(connection) -> User:\n"
        "    return User(connection.path_params['session_id'])\n"
        "reattach = Reattach(authenticate=authenticate)\n",
    )
    server = await serve(app="wizard:reattach", cwd=tmp_path)
    async with opened(server.ws_url, "mine") as peer:
        assert (await peer.hello(create={}))["user_id"] == "mine"


async def test_the_log_can_be_json_lines(serve: Serve) -> None:
    server = await serve(app=None, arguments=["--json-logs"])
    await server.stop()
    count, lines = len(server.nodes), server.log_tail().splitlines()
    assert all(line.startswith("Reattach serves ") for line in lines[:count])
    told = sorted(map(json.loads, lines[count:]), key=lambda line: str(line["event"]))
    stopped, stopping = told[:count], told[count:]
    assert len(stopping) == len(stopped) == count
    for line in stopping:
        assert (line["event"], line["level"]) == ("stopping", "info")
    for line in stopped:
        assert (line["event"], line["logger"]) == ("stopped", "reattach.serve")


def test_neither_states_nor_tokens_are_in_tracebacks(tmp_path: Path) -> None:
    for json_logs in (True, False):
        program = (
            "import structlog\nfrom reattach import logs\n"
            f"logs.configure(json={json_logs})\n"
            "def fail(token): raise RuntimeError('failed')\n"
            "try:\n    fail(token='sec' + 'ret')\n"
            "except RuntimeError:\n    structlog.get_logger('x').exception('it failed')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert "RuntimeError: failed" in done.stderr
        assert "secret" not in done.stderr


# Refusing to start


@pytest.mark.skipif(ON_POSTGRES, reason="only a file is held by one server")
async def test_a_second_server_on_the_database_says_who_holds_it(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(app=None)
    port = str(free_port())
    said = refusal("--port", port, "--database", f"sqlite:///{server.database}", cwd=tmp_path)
    assert re.search(rf"process {server.pid} holds it: stop that one, or give", said)


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal("--port", str(port), cwd=tmp_path)
    assert f"127.0.0.1 port {port}: Address already in use" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("no.such.module:reattach", "there is no module 'no.such.module' (No module named 'no')"),
        ("wizard:nothing", "expected wizard:nothing to be a Reattach, got nothing"),
        ("wizard:text", "expected wizard:text to be a Reattach, got an object of type str"),
        ("wizard", "expected --app package.module:attribute, got 'wizard'"),
    ],
)
def test_an_application_that_is_none_is_told(tmp_path: Path, app: str, says: str) -> None:
    write_app(tmp_path, "text = ''\n")
    assert says in refusal("--app", app, cwd=tmp_path)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://user:se/secret@db/x", "got one whose host cannot be read"),
        ("postgresql://user:secret@127.0.0.1:1/x", "Expected to connect to postgresql://127.0.0.1"),
        ("mysql://user:secret@db/x", "postgresql://user:password@host/database, got one of"),
        ("reattach.db", "expected a database URL such as sqlite:///reattach.db"),
        ("sqlite://reattach.db", "expected sqlite:/// and the path of a file"),
        ("sqlite:///:memory:", "expected sqlite:/// and the path of a file"),
    ],
)
def test_a_database_that_is_none_is_told(tmp_path: Path, url: str, says: str) -> None:
    said = refusal("--database", url, cwd=tmp_path)
    assert says in said
    assert "secret" not in said


def test_several_workers_are_refused_on_sqlite(tmp_path: Path) -> None:
    said = refusal("--workers", "2", cwd=tmp_path)
    assert "expected one worker on SQLite" in said
    assert "postgresql://" in said


@pytest.mark.parametrize("way", ["--redis", "REATTACH_REDIS"])
def test_a_redis_url_that_is_none_is_refused_and_not_told(tmp_path: Path, way: str) -> None:
    url = "http://:s3cret@localhost"
    if way == "--redis":
        said = refusal("--redis", url, cwd=tmp_path)
    else:
        said = refusal(cwd=tmp_path, environment={way: url})
    assert "expected the URL of a Redis or Valkey server: redis://host:6379/0" in said
    assert "s3cret" not in said


def test_a_setting_that_is_none_is_told(tmp_path: Path) -> None:
    said = refusal(cwd=tmp_path, environment={"REATTACH_MAX_NESTING": "deep"})
    assert "REATTACH_MAX_NESTING: Input should be a valid integer" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])  # noqa: S104
def test_without_authentication_only_this_machine_is_served(tmp_path: Path, host: str) -> None:
    """Section 8: --auth none, loopback only."""
    said = refusal("--host", host, cwd=tmp_path)
    assert f"expected a loopback host (127.0.0.1, ::1 or localhost), got {host}" in said


# Ending


async def test_sigterm_says_1012_to_everybody_and_ends(serve: Serve) -> None:
    """Section 5: 1012, the server restarts."""
    server = await serve(app=None)
    async with joined(server.ws_url) as one, opened(server.ws_url) as greeting:
        ended = asyncio.create_task(server.stop(within=5))
        assert await one.closed() == (1012, "the server restarts: come back")
        assert (await greeting.closed())[0] == 1012
        assert await ended == 0


async def test_sigterm_makes_durable_what_was_acknowledged_and_loses_nothing(
    serve: Serve,
) -> None:
    """Section 5: durable first; exactly once."""
    server = await serve(app=None)
    async with joined(server.ws_url, state={"n": 0}) as peer:
        epoch = peer.epoch
        stop = asyncio.create_task(server.stop(within=5))
        acknowledged = 0
        with contextlib.suppress(ConnectionClosed):
            while True:
                await peer.change({"op": "inc", "path": "/n", "by": 1})
                acknowledged = (await peer.expect("state_update"))["version"]
        assert await stop == 0
    await server.start()
    async with opened(server.ws_url) as again:
        welcome = await again.hello()
    assert welcome["epoch"] == epoch
    assert welcome["state"]["n"] == welcome["version"] >= acknowledged > 0


async def test_sigterm_does_not_wait_for_clients_that_hang(serve: Serve) -> None:
    """SIGTERM ends within 5 s, whoever does not go: here sockets that are never read again."""
    server = await serve(app=None)
    async with joined(server.ws_url) as stuck, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{server.url}/healthz")).status_code == 200  # kept alive
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(b"GET /ws/session/s1 HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            stuck.stop_reading()
            begun = time.monotonic()
            assert await server.stop(within=5) == 0
            assert time.monotonic() - begun < 5
        stuck.go_on_reading()


async def test_sigterm_does_not_wait_for_a_database_that_hangs(serve: Serve) -> None:
    """SIGTERM ends within 5 s; what was not acknowledged may be lost by the server alone."""
    server = await serve(app=None)
    async with joined(server.ws_url) as peer:
        with behind(server).write_lock():
            await peer.change({"op": "set", "path": "/n", "value": 1})
            await peer.send(type="heartbeat")
            await peer.expect("heartbeat")
            assert await server.stop(within=5) == 0
    await server.start()
    async with opened(server.ws_url) as again:
        assert (await again.hello())["version"] in {0, 1}


async def test_sigterm_ends_event_streams(serve: Serve) -> None:
    """SIGTERM ends within 5 s, with readers of Server-Sent Events."""
    server = await serve(app=None)
    async with httpx.AsyncClient(trust_env=False, base_url=server.url) as client:
        made = await client.post("/api/v0/session", json={"session_id": "s1"})
        assert made.status_code == 201
        async with client.stream("GET", "/api/v0/session/s1/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: initial_state"
            begun = time.monotonic()
            ended = asyncio.create_task(server.stop(within=5))
            async for _ in lines:
                pass
            assert await ended == 0
            assert time.monotonic() - begun < 3


async def test_sigint_is_the_same(serve: Serve) -> None:
    server = await serve(app=None)
    async with joined(server.ws_url) as one:
        for node in server.nodes:
            subprocess.run(["kill", "-INT", str(node.pid)], check=True)
        assert (await one.closed())[0] == 1012
    assert await server.stop(within=5) == 0
