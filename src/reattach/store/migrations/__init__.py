"""How the tables came to their form, one revision after another, on both databases.

Each revision is a file in ``versions/``; what they make together is `reattach.store.tables`, as a
test holds. The release before must run on the tables of the next one, because its nodes go on while
the tables are changed: what is taken away goes a release later than its last use.

Alembic takes long to import, so only whoever has something to migrate does it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from reattach.errors import StoreError
from reattach.store.tables import REVISIONS

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "VERSION_TABLE",
    "is_newer",
    "migrate",
    "migrate_sqlite",
    "upgrade",
]

VERSION_TABLE: Final = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)
"""
"""Where Alembic keeps a database's revision, as it makes the table itself."""

_ONE_AT_A_TIME: Final = threading.Lock()
"""Alembic keeps what it is doing in module variables, and each file is opened in its own thread."""

_PATIENCE: Final = 10.0
"""Seconds to connect within."""

# What waits for a table keeps others waiting behind it: rather not at all than for long.
_SETTINGS: Final = {"application_name": "reattach migrate", "lock_timeout": "5s"}

_FOLDER: Final = Path(__file__).parent


def is_newer(revision: str | None) -> bool:
    """Say whether a database has tables that only a later release knows."""
    return revision is not None and revision not in REVISIONS


async def migrate(url: str) -> None:
    """Bring the PostgreSQL at ``url`` to this release's tables, in one transaction.

    Of several who do it at once one does it, and the others find it done. Raises `StoreError` where
    the tables are of a later release or cannot be changed, `StoreUnavailable` where nobody answers.
    """
    # Only here are Alembic, SQLAlchemy's engine and the driver needed for it.
    from alembic.util import CommandError  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    from reattach.store.postgres.connections import connect, where  # noqa: PLC0415

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(url, patience=_PATIENCE, settings=_SETTINGS),
        poolclass=NullPool,
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)
    except CommandError as error:
        raise StoreError(
            f"Expected tables of revision {REVISIONS[-1]} or older at {where(url)}, got others"
            f" ({error}): migrate with the release that made them, or a later one",
            code="not_migrated",
        ) from error
    except DBAPIError as error:
        raise _failed(where(url), error) from error
    finally:
        await engine.dispose()


def migrate_sqlite(path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
    """Bring the SQLite file at ``path``, which ``connect`` opens, to this release's tables.

    In one transaction; raises `StoreError` where it cannot be done.
    """
    from sqlalchemy import create_engine  # noqa: PLC0415  # as above
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    try:
        with _ONE_AT_A_TIME, engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            upgrade(connection)
    except DBAPIError as error:
        raise _failed(str(path), error) from error


def _failed(place: str, error: DBAPIError) -> StoreError:
    return StoreError(
        f"Expected {place} to change its tables, got: {error.orig}. Nothing was changed: see what"
        " is in the way, and try again",
        code="not_migrated",
    )


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring a database to a revision, within the transaction that the caller has begun."""
    from alembic import command  # noqa: PLC0415  # see above: it takes long
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
