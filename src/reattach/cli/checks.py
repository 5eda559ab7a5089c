"""What ``reattach doctor`` looks at: a function for each thing, which says what it found."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import stat
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from rich.table import Table
from rich.text import Text

from reattach import logs
from reattach.cli.finding import load, settings_of
from reattach.cli.output import Refused, out, print_json, safe
from reattach.cli.reach import served_by
from reattach.errors import BadSetting, ReattachError
from reattach.settings import Settings
from reattach.store.base import Search
from reattach.store.sqlite.file import lock_of
from reattach.store.tables import REVISIONS
from reattach.store.urls import sqlite_path, store_to_read_at

if TYPE_CHECKING:
    from reattach.store.base import Store

__all__ = ["Check", "Verdict", "examine", "tell"]

_MIB: Final = 1024 * 1024
_QUICK_BYTES: Final = 1024 * _MIB
"""A larger file is not read through: it would take minutes."""
_TRIES: Final = 20
_NO_DISK_MS: Final = 0.02
"""No disk writes as fast: something on the way says that it did, and did not."""
_SLOW_DISK_MS: Final = 25.0
_LITTLE_BYTES: Final = 1024 * _MIB
_FEW_FILES: Final = 4_096
_CLOCKS_MS: Final = 1_000
_AHEAD_MS: Final = 5_000
_PATIENCE_S: Final = 5.0
_FAR_DISKS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs", "ceph"})
_NO_DISKS: Final = frozenset({"tmpfs", "ramfs"})


class Verdict(StrEnum):
    """What becomes of it."""

    FINE = "fine"
    WARNING = "warning"
    """It works, and somebody should look at it."""
    WRONG = "wrong"
    """A server does not work with it, or loses what it says is saved."""


class Check(msgspec.Struct, frozen=True):
    """What was looked at, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None


def tell(found: list[Check], *, json: bool) -> None:
    """Print what was found."""
    if json:
        print_json({"checks": [msgspec.to_builtins(one) for one in found]})
        return
    marks = {
        Verdict.FINE: ("✓", "green"),
        Verdict.WARNING: ("!", "yellow"),
        Verdict.WRONG: ("✗", "bold red"),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for one in found:
        mark, style = marks[one.verdict]
        text = Text(safe(one.found))
        if one.remedy is not None:
            text.append(f"\n→ {safe(one.remedy)}", style)
        table.add_row(Text(mark, style), one.name, text)
    out().print(table, soft_wrap=False)


async def examine(app: str | None, database: str | None) -> list[Check]:
    """Look at everything; what cannot be looked at after something else went wrong is left out."""
    logs.configure("error")
    found = list(_environment())
    try:
        settings = settings_of(app, database)
        if app is not None or settings.auth != "none":
            load(app, database)  # what tokens are checked with has to be there
        path = sqlite_path(settings.database)
    except (Refused, BadSetting, ReattachError) as error:
        return [*found, _wrong("Settings", str(error), "mend it where the server gets it from")]
    given = f"auth {settings.auth}, history of {settings.history_days} days"
    found.append(Check("Settings", Verdict.FINE, given))
    if path is not None:
        found += [one async for one in _file(path)]
    else:
        found += [one async for one in _postgres(settings)]
    found.append(await _redis(settings))
    found.append(_files())
    return found


def _wrong(name: str, found: str, remedy: str | None = None) -> Check:
    return Check(name, Verdict.WRONG, found, remedy)


def _warning(name: str, found: str, remedy: str) -> Check:
    return Check(name, Verdict.WARNING, found, remedy)


# Settings


def _environment() -> Iterator[Check]:
    known = {f"REATTACH_{name}".upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith("REATTACH_") and name.upper() not in known:
            yield _warning(
                "Settings", f"{name} is no setting", "see docs/deploy.md for what there is"
            )


# SQLite


async def _file(path: Path) -> AsyncIterator[Check]:
    path = path.resolve()
    if not path.parent.is_dir():
        yield _wrong("Database", f"there is no directory {path.parent}", "make it, or name another")
        return
    there = path.exists()
    if there:
        yield await _whole(path)
    else:
        yield Check("Database", Verdict.FINE, f"{path} is not there yet: a server makes it")
    for check in (_permissions(path), _disk(path), _space(path)):
        yield check
    if not there:
        return
    yield await _holder(path)
    async for one in _inside(f"sqlite:///{path}", _ahead):
        yield one


async def _whole(path: Path) -> Check:
    size = path.stat().st_size
    told = f"{path}, {size / _MIB:,.1f} MiB, SQLite {sqlite3.sqlite_version}"
    if size > _QUICK_BYTES:
        return Check("Database", Verdict.FINE, f"{told}; too large to be read through here")
    try:
        said = await asyncio.to_thread(_quick_check, path)
    except sqlite3.OperationalError as error:
        return _wrong("Database", f"{told}: {error}", "see that this user may read it")
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        return _wrong("Database", f"{told} is damaged: {said}", "put a backup in its place")
    return Check("Database", Verdict.FINE, told)


def _quick_check(path: Path) -> str:
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_S)
    try:
        said: str = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    finally:
        db.close()
    return said


def _permissions(path: Path) -> Check:
    name = "Permissions"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return _wrong(
            name,
            f"this user may not write in {path.parent}, where the log file has its place",
            "run this as the server's user, or let it write there",
        )
    if not path.exists():
        return Check(name, Verdict.FINE, f"this user may write in {path.parent}")
    if not os.access(path, os.R_OK | os.W_OK):
        return _wrong(
            name, f"this user may not write {path}", "run this as the server's user: see ls -l"
        )
    open_to_all = [
        one.name
        for one in (path, lock_of(path))
        if one.exists() and one.stat().st_mode & stat.S_IROTH
    ]
    if open_to_all:
        return _warning(
            name,
            f"every user of this machine may read {' and '.join(open_to_all)}",
            f"chmod o-rwx {path}*, and start the server under umask 027",
        )
    return Check(name, Verdict.FINE, "this user may read and write it, and not everybody")


def _disk(path: Path) -> Check:
    kind = _file_system(path.parent)
    if kind in _FAR_DISKS:
        return _wrong(
            "fsync",
            f"{path.parent} is on another machine ({kind}), where SQLite's locks do not hold",
            "keep the file on a local disk, or the sessions in a PostgreSQL",
        )
    if kind in _NO_DISKS:
        return _warning(
            "fsync",
            f"{path.parent} is in memory ({kind}): everything is gone when the machine goes down",
            "keep the file on a disk, unless this is a trial",
        )
    try:
        took = _fsync_ms(path.parent)
    except OSError as error:
        return _wrong("fsync", f"cannot write in {path.parent}: {error.strerror}", "see the disk")
    return _judged("fsync", took, "writing to the disk takes")


def _judged(name: str, took: float, what: str) -> Check:
    told = f"{what} {took:.2f} ms (median of {_TRIES})"
    if took < _NO_DISK_MS:
        return _warning(
            name,
            f"{told}: no disk is so fast",
            "see that no layer below leaves fsync out (libeatmydata, nobarrier, a disk's cache)",
        )
    if took > _SLOW_DISK_MS:
        return _warning(
            name, f"{told}: every acknowledgement waits for that", "use a faster disk, or see why"
        )
    return Check(name, Verdict.FINE, told)


def _fsync_ms(folder: Path) -> float:
    took = []
    with tempfile.NamedTemporaryFile(prefix=".reattach-doctor-", dir=folder) as file:
        for _ in range(_TRIES):
            begun = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fsync(file.fileno())
            took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def _file_system(folder: Path) -> str | None:
    """Say of which kind the file system is, where the system tells (Linux)."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return None
    fields = (line.split() for line in mounts)
    places = {Path(one[1].replace("\\040", " ")): one[2] for one in fields}
    around = [place for place in (folder, *folder.parents) if place in places]
    return places[around[0]] if around else None


def _space(path: Path) -> Check:
    free = shutil.disk_usage(path.parent).free
    told = f"{free / _MIB / 1024:,.1f} GiB are free in {path.parent}"
    if free < _LITTLE_BYTES:
        return _warning("Disk", told, "make room: where the disk is full nothing can be saved")
    return Check("Disk", Verdict.FINE, told)


async def _holder(path: Path) -> Check:
    try:
        found = await served_by(path)
    except (Refused, ReattachError) as error:
        return _warning("Server", str(error), "run this as the server's user")
    if found is None:
        return Check("Server", Verdict.FINE, "none holds the file, or it is of an older release")
    told = f"process {found['pid']} holds the file, of release {found['version']}"
    if found["version"] != version("reattach"):
        return _warning("Server", f"{told}; this is {version('reattach')}", "use the same release")
    return Check("Server", Verdict.FINE, told)


async def _ahead(store: Store) -> Check:
    page = await store.search(Search(), None, 1)
    now = time.time_ns() // 1_000_000
    ahead = max((one.last_activity - now for one in page.items), default=0)
    if ahead > _AHEAD_MS:
        return _warning(
            "Clock",
            f"a session was last active {ahead / 1000:,.0f} s from now",
            "see that the clock is right (timedatectl): it was ahead, or is behind now",
        )
    return Check("Clock", Verdict.FINE, "no session is ahead of this machine's clock")


# Both databases


async def _inside(url: str, clock: Callable[[Store], Awaitable[Check]]) -> AsyncIterator[Check]:
    """Look at the tables, and at the clock where these can be read."""
    store = store_to_read_at(url, timeout_ms=round(_PATIENCE_S * 1000))
    try:
        await store.open()
    except ReattachError as error:
        yield _wrong("Tables", error.message)
        return
    try:
        yield Check("Tables", Verdict.FINE, f"revision {REVISIONS[-1]}, this release's")
        yield await clock(store)
    finally:
        await store.close()


# PostgreSQL


async def _postgres(settings: Settings) -> AsyncIterator[Check]:
    from reattach.store.postgres.connections import connect, where

    try:
        place = where(settings.database)
        db = await connect(settings.database, patience=_PATIENCE_S)
    except ReattachError as error:
        yield _wrong("Database", error.message)
        return
    try:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
        said = {name: await db.fetchval("SELECT current_setting($1)", name) for name in names}
        before = time.time() * 1000
        there = await db.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8 * 1000")
        apart = there - (before + time.time() * 1000) / 2
    finally:
        await db.close()
    yield Check("Database", Verdict.FINE, f"{place}, PostgreSQL {said['server_version']}")
    off = [name for name in names[1:] if said[name] == "off"]
    if off:
        yield _wrong(
            "fsync",
            f"{' and '.join(off)} = off there: a power cut would lose what was said to be saved",
            "set it to on, in postgresql.conf or for this database and user",
        )
        return

    async def clock(store: Store) -> Check:
        del store
        told = f"{abs(apart) / 1000:.2f} s apart from the database server's"
        if abs(apart) > _CLOCKS_MS:
            return _warning(
                "Clock", told, "have both machines take the time from a server (timedatectl)"
            )
        return Check("Clock", Verdict.FINE, told)

    took: list[float] = []

    async def commits(store: Store) -> Check:
        for _ in range(_TRIES):
            begun = time.perf_counter()
            await store.check()
            took.append((time.perf_counter() - begun) * 1000)
        return await clock(store)

    async for one in _inside(settings.database, commits):
        yield one
    if took:
        yield _judged("fsync", statistics.median(took), "a commit takes")


# Redis


async def _redis(settings: Settings) -> Check:
    name = "Redis"
    if settings.redis is None:
        return Check(
            name, Verdict.FINE, "none is set: several nodes hear of commits within a second"
        )
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    url = settings.redis.get_secret_value()
    client = Redis.from_url(url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S)
    try:
        begun = time.perf_counter()
        await client.ping()
        took = (time.perf_counter() - begun) * 1000
        said = await client.info("server")
    except (RedisError, OSError, TimeoutError) as error:
        return _warning(
            name,
            f"it does not answer ({error}): nodes hear of commits a second late, and lose nothing",
            "see that it runs, and that REATTACH_REDIS has its address and password",
        )
    finally:
        await client.aclose()
    which = said.get("valkey_version") or said.get("redis_version")
    return Check(name, Verdict.FINE, f"answers in {took:.1f} ms, release {which}")


# This process


def _files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FEW_FILES:
        return _warning(
            "Limits",
            f"{soft} open files: as many connections, at most",
            "raise it for the server: ulimit -n 20000, or LimitNOFILE= of its unit",
        )
    return Check(
        "Limits", Verdict.FINE, "open files without bound" if soft < 0 else f"{soft:,} open files"
    )
