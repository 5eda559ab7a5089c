"""`reattach doctor`: what it says is wrong is wrong, and what it says to do helps."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from reattach import Reattach
from reattach.cli import checks
from reattach.store.tables import REVISIONS
from tests.cli.conftest import fine, reattach
from tests.support.postgres import Postgres
from tests.support.server import free_port

MINE = ("--database", "sqlite:///mine.db")


class Usage(NamedTuple):
    free: int


async def examined(*options: str, exit_code: int = 0) -> dict[str, dict[str, Any]]:
    """What it found, by name; of several with one name the worst."""
    done = await reattach("doctor", "--json", *options)
    assert done.exit_code == exit_code, done.stdout + done.stderr
    found = msgspec.json.decode(done.stdout)["checks"]
    worst = ["fine", "warning", "wrong"]
    return {one["name"]: one for one in sorted(found, key=lambda one: worst.index(one["verdict"]))}


@pytest.fixture
async def server() -> Any:
    previous = os.umask(0o027)
    try:
        async with Reattach(database=MINE[1]) as started:
            await started.sessions.create({}, user_id="ann", session_id="s")
            yield started
    finally:
        os.umask(previous)


@pytest.mark.usefixtures("server")
async def test_all_is_well_beside_a_server() -> None:
    found = await examined(*MINE)
    assert {one["verdict"] for one in found.values()} == {"fine"}, found
    assert list(found) == [
        "Settings",
        "Database",
        "Permissions",
        "fsync",
        "Disk",
        "Server",
        "Tables",
        "Clock",
        "Redis",
        "Limits",
    ]
    assert f"process {os.getpid()} holds the file" in found["Server"]["found"]
    said = await fine("doctor", *MINE)
    assert said.count("✓") == 10


async def test_all_is_well_before_the_first_start() -> None:
    found = await examined(*MINE)
    assert "is not there yet" in found["Database"]["found"]
    assert not await asyncio.to_thread(lambda: list(Path().iterdir()))


async def test_settings_that_are_none_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REATTACH_DATABSE", "sqlite:///elsewhere.db")
    found = await examined(*MINE)
    assert found["Settings"]["found"] == "REATTACH_DATABSE is no setting"
    monkeypatch.setenv("REATTACH_AUTH", "jwt")
    found = await examined(*MINE, exit_code=1)
    assert found["Settings"]["verdict"] == "wrong"
    assert "REATTACH_JWT_SECRET" in found["Settings"]["found"]
    assert set(found) == {"Settings"}
    monkeypatch.delenv("REATTACH_AUTH")
    found = await examined("--database", "mysql://db", exit_code=1)
    assert "expected a database URL" in found["Settings"]["found"]


async def test_what_is_wrong_with_a_file_is_told(
    server: Reattach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.stop()
    file = tmp_path / "mine.db"
    file.chmod(0o644)
    found = await examined(*MINE)
    assert found["Permissions"]["verdict"] == "warning"
    assert "chmod o-rwx" in found["Permissions"]["remedy"]
    assert "none holds the file" in found["Server"]["found"]

    monkeypatch.setattr(os, "access", lambda place, _: Path(place) != file)
    found = await examined(*MINE, exit_code=1)
    assert f"may not write {file}" in found["Permissions"]["found"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    db = sqlite3.connect(file)
    db.execute("UPDATE sessions SET last_activity = last_activity + 3600000")
    db.execute("UPDATE alembic_version SET version_num = '0002'")
    db.commit()
    found = await examined(*MINE, exit_code=1)
    assert "reattach migrate" in found["Tables"]["found"]
    db.execute("UPDATE alembic_version SET version_num = ?", (REVISIONS[-1],))
    db.commit()
    db.close()
    found = await examined(*MINE)
    assert found["Clock"]["verdict"] == "warning"
    assert re.search(r"last active 3,[56]\d\d s from now", found["Clock"]["found"])

    body = bytearray(file.read_bytes())
    body[8192:] = bytes(len(body) - 8192)
    file.write_bytes(body)
    found = await examined(*MINE, exit_code=1)
    assert "damaged" in found["Database"]["found"]
    assert found["Database"]["remedy"] == "put a backup in its place"
    found = await examined("--database", "sqlite:///no/where.db", exit_code=1)
    assert "there is no directory" in found["Database"]["found"]


async def test_a_disk_that_does_not_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def verdict(name: str, exit_code: int = 0) -> tuple[str, str]:
        one = (await examined(*MINE, exit_code=exit_code))[name]
        return one["verdict"], one["found"]

    for took, says in ((0.001, "no disk is so fast"), (80.0, "every acknowledgement waits")):
        monkeypatch.setattr(checks, "_fsync_ms", lambda _, took=took: took)
        judged, said = await verdict("fsync")
        assert judged == "warning"
        assert says in said
    monkeypatch.setattr(checks, "_file_system", lambda _: "tmpfs")
    assert (await verdict("fsync"))[0] == "warning"
    monkeypatch.setattr(checks, "_file_system", lambda _: "nfs4")
    assert (await verdict("fsync", 1))[0] == "wrong"
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1024))
    assert (await verdict("Disk", 1))[0] == "warning"


def test_the_file_system_of_a_folder_is_known(tmp_path: Path) -> None:
    kind = checks._file_system(tmp_path)
    assert kind is None or kind.isascii()
    assert checks._file_system(Path("/proc")) in {None, "proc"}


async def test_a_redis_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REATTACH_REDIS", f"redis://:s3cret@127.0.0.1:{free_port()}")
    found = await examined(*MINE)
    assert found["Redis"]["verdict"] == "warning"
    assert "lose nothing" in found["Redis"]["found"]
    assert "s3cret" not in str(found)


async def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    assert "1024 open files" in (await examined(*MINE))["Limits"]["found"]


async def test_a_postgres_is_looked_at(postgres: Postgres) -> None:
    database = await postgres.own_database()
    found = await examined("--database", database)
    assert {one["verdict"] for one in found.values()} <= {"fine", "warning"}, found
    assert list(found) == ["Settings", "Database", "Tables", "Clock", "fsync", "Redis", "Limits"]
    assert "PostgreSQL" in found["Database"]["found"]
    assert "a commit takes" in found["fsync"]["found"]
    await postgres.execute(
        f"ALTER DATABASE {database.rpartition('/')[2]} SET synchronous_commit = off"
    )
    found = await examined("--database", database, exit_code=1)
    assert "synchronous_commit = off" in found["fsync"]["found"]


async def test_a_postgres_that_cannot_be_used_is_told(postgres: Postgres) -> None:
    empty = await postgres.empty_database()
    found = await examined("--database", empty, exit_code=1)
    assert "run `reattach migrate`" in found["Tables"]["found"]
    nowhere = "postgresql://user:secret@127.0.0.1:1/x"
    found = await examined("--database", nowhere, exit_code=1)
    assert "Expected to connect to" in found["Database"]["found"]
    assert "secret" not in str(found)
