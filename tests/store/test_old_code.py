"""The code before the newest migration runs on the tables that it makes.

That is what a rolling restart needs: the tables are changed first, and the nodes of the release
before go on with them until it is their turn. The old code comes out of git, with its own suite.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reattach.store import migrations
from reattach.store.sqlite import SQLiteStore
from reattach.store.tables import REVISIONS
from tests.support.paths import ROOT
from tests.support.postgres import Postgres

VERSIONS = Path(migrations.__file__).parent / "versions"

# In words of the old code. It would not start on newer tables, but it goes on with them: so their
# revision is called by the name that it knows.
SUITE = """
import os, shutil, sqlite3

import asyncpg
import pytest

import reattach
from reattach.store.postgres import PostgresStore
from reattach.store.sqlite import SQLiteStore
from reattach.store.tables import REVISIONS, metadata
from reattach.testing.store import DurableStoreSuite


def test_it_is_the_old_code():
    assert os.path.dirname(reattach.__file__) == os.path.join(os.getcwd(), "src", "reattach")


class TestOnSQLite(DurableStoreSuite):
    @pytest.fixture
    def make_store(self, tmp_path):
        path = tmp_path / "sessions.db"
        shutil.copy(os.environ["NEW_FILE"], path)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE alembic_version SET version_num = ?", (REVISIONS[-1],))
        db.close()
        return lambda: SQLiteStore(path)


class TestOnPostgres(DurableStoreSuite):
    @pytest.fixture
    async def make_store(self):
        db = await asyncpg.connect(os.environ["NEW_DATABASE"])
        await db.execute(f"UPDATE alembic_version SET version_num = '{REVISIONS[-1]}'")
        for table in metadata.sorted_tables:
            await db.execute(f"DELETE FROM {table.name}")
        await db.close()
        return lambda: PostgresStore(os.environ["NEW_DATABASE"])
"""


def git(*arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True
    ).stdout


def newest_old_code() -> str:
    """The newest tag, or else the commit before the one that added the newest migration."""
    tags = git("tag", "--merged", "HEAD", "--sort=-creatordate", "v*").decode().split()
    if tags:
        return tags[0]
    newest = next(VERSIONS.glob(f"{REVISIONS[-1]}_*.py"))
    added = git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
    # One that is not committed yet comes after all that is.
    return f"{added[-1]}~1" if added else "HEAD"


def suite_of(code: str, folder: Path, new_file: Path, new_database: str) -> str:
    """Runs the suite of some old code on new tables; returns what it printed."""
    archive = git("archive", code, "src", "pyproject.toml")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    (folder / "test_on_new_tables.py").write_text(SUITE)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "test_on_new_tables.py"],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(folder / "src"),
            "NEW_FILE": str(new_file),
            "NEW_DATABASE": new_database,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout
    return found.stdout


@pytest.mark.timeout(120)
async def test_old_code_runs_on_new_tables(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.empty_database()
    await migrations.migrate(url)
    store = SQLiteStore(tmp_path / "new.db")
    await store.open()
    await store.close()
    folder = tmp_path / "old"
    folder.mkdir()
    said = await asyncio.to_thread(suite_of, newest_old_code(), folder, tmp_path / "new.db", url)
    assert " passed" in said
