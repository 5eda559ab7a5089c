"""What the machine can do by itself, and what it is."""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil

__all__ = ["describe", "fsyncs", "postgres_rows", "sqlite_rows"]

_BATCH: Final = 200
_ROW: Final = b"x" * 400
"""About what a commit weighs in the log."""


def describe() -> str:
    """Name the hardware and the system, on one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    memory = psutil.virtual_memory().total // 2**30
    system = f"{platform.system()} {platform.release()}"
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{os.cpu_count()} cores ({model}), {memory} GiB of memory, {system}, {versions}"


def fsyncs(folder: Path, seconds: float) -> float:
    """Return how many times a second 4 KiB can be appended to a file and synced."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        done, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds:
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            done += 1
    return done / spent


def sqlite_rows(folder: Path, seconds: float) -> float:
    """Return how many rows a second SQLite takes in transactions of 200, each synced."""
    with closing(sqlite3.connect(folder / "rows.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = wal")
        db.execute("PRAGMA synchronous = full")
        db.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, body BLOB)")
        done, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO rows (body) VALUES (?)", [(_ROW,)] * _BATCH)
            db.execute("COMMIT")
            done += _BATCH
    return done / spent


async def postgres_rows(url: str, seconds: float) -> float:
    """Return how many rows a second PostgreSQL takes in statements of 200."""
    db: Any = await asyncpg.connect(url)
    try:
        await db.execute("CREATE TABLE bench_rows (number bigserial PRIMARY KEY, body bytea)")
        write = await db.prepare("INSERT INTO bench_rows (body) SELECT unnest($1::bytea[])")
        done, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds:
            await write.fetch([_ROW] * _BATCH)
            done += _BATCH
        await db.execute("DROP TABLE bench_rows")
    finally:
        await asyncio.wait_for(db.close(), 5)
    return done / spent
