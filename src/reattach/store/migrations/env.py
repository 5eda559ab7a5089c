"""What Alembic runs: the revisions, on the connection that it was given."""

from __future__ import annotations

from typing import Final

from alembic import context
from sqlalchemy import Connection, text

from reattach.store.tables import metadata

_LOCK: Final = 7_353_018_284_611
"""The key of the lock that whoever migrates a PostgreSQL holds: any number that nobody else has."""


def _run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    context.configure(
        connection=connection,
        target_metadata=metadata,
        # On SQLite, too: the caller has begun a transaction.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])
