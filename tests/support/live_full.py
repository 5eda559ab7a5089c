"""The live tests of the TypeScript client on the full stack: `python -m tests.support.live_full`.

With `run COMMAND …` it starts a PostgreSQL and a Valkey and carries a command out, for which
`REATTACH_BIN` is this program again. As that it takes `serve --port PORT --database FILE`, and what
serves is two nodes on those two behind a balancer; each file stands for a database of its own. They
end with it, however it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from reattach.store.migrations import migrate
from tests.support import full
from tests.support.pair import ServerPair
from tests.support.paths import BIN, ROOT
from tests.support.postgres import Postgres
from tests.support.valkey import ValkeyServer

_POSTGRES = "REATTACH_LIVE_POSTGRES"
_ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")


async def run(command: Sequence[str]) -> int:
    """Carries a command out; returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="reattach-live-") as name:
        folder = Path(name)
        program = folder / "reattach"
        again = shlex.join([sys.executable, "-m", __spec__.name])
        program.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {again} "$@"\n')
        program.chmod(0o755)
        async with Postgres() as postgres, ValkeyServer(folder) as valkey:
            ours = {"REATTACH_BIN": str(program), _POSTGRES: postgres.url("postgres")}
            ours |= {"REATTACH_REDIS": valkey.url, full.SEED: full.seed()}
            child = await asyncio.create_subprocess_exec(*command, env=os.environ | ours)
            return await child.wait()


async def serve(port: int, database: str) -> None:
    """Serves, until it is killed."""
    admin, _, _ = os.environ[_POSTGRES].rpartition("/")
    name = f"live_{hashlib.sha256(database.encode()).hexdigest()[:16]}"
    if await _make(name):
        await migrate(f"{admin}/{name}")
    pair = ServerPair(
        Path(database.removeprefix("sqlite:///")),
        chance=full.chance_of(name),
        database_url=f"{admin}/{name}",
        app=None,
        command=(*_ENDS_WITH_US, str(BIN / "reattach")),
        port=port or None,
    )
    await pair.start()
    sys.stdout.write(f"Two nodes: serves {pair.url}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def _make(name: str) -> bool:
    db = await asyncpg.connect(os.environ[_POSTGRES], timeout=10)
    try:
        await db.execute(f"CREATE DATABASE {name} STRATEGY wal_log")
    except asyncpg.DuplicateDatabaseError:
        return False
    finally:
        await db.close()
    return True


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", *command]:
            sys.exit(asyncio.run(run(command)))
        case ["serve", "--port", port, "--database", database]:
            asyncio.run(serve(int(port), database))
        case _:
            sys.exit("expected run COMMAND …, or serve --port PORT --database FILE")
