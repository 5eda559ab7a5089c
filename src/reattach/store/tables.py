"""The tables of both databases, and the revisions of their form.

Where the indexes come from, measured on SQLite with batches of 200 one-commit sessions:

- What a commit costs is the number of pages that it dirties, so the log has no index but its key.
  One by client and number made an append up to 85 % dearer, and the two reads that would use it
  can do without: both are rare, and start close to what they look for.
- ``WITHOUT ROWID`` made it 40 % dearer: the log's rows are too fat for the inner pages of a B-tree,
  and keys are random while rowids grow, so that sessions which are active together, being of one
  age, share the pages of their rows. It is used where rows are tiny and seldom written.
- The index of a user's sessions costs 10 to 40 %, the more the more users; without it one page of a
  list would read all that its user ever had. Members have the same with a copy of the session's
  ``last_activity``, kept by each commit; a session that never had a member (its access version is
  0) does not pay for it.

Every primary key starts with the session's id, so that a database can be split by session. What is
of no session is in `meta` and `nodes`, a few rows each. An ``Idempotency-Key`` has to be found
where there is no session yet: by a unique index, which starts with the user's id.

Who is connected (`nodes`, `seats`) is true for seconds. Its tables are unlogged on PostgreSQL:
nothing that a crash takes from them is missed, and to write them waits for no disk.

What may hold any character that JSON can (a path) is kept as UTF-8 bytes: PostgreSQL's text has no
U+0000. Times are milliseconds since 1970.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    event,
    text,
)
from sqlalchemy import Text as PlainText
from sqlalchemy.dialects.postgresql import TEXT

__all__ = ["REVISIONS", "metadata"]

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005")
"""The forms that the tables have had, oldest first, as `reattach.store.migrations` makes them. This
code reads and writes the last; which one a database has, its ``alembic_version`` says."""

# Ids are compared by their bytes everywhere, whatever language the database server is set to.
Text = PlainText().with_variant(TEXT(collation="C"), "postgresql")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("epoch", Text, nullable=False),
    Column("epoch_version", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("access_version", BigInteger, nullable=False),
    Column("schema_name", Text),
    Column("schema_version", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("last_activity", BigInteger, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("disconnected_at", BigInteger),
    Column("reconnected_at", BigInteger),
    # A user's sessions, newest activity first, page by page.
    Index(None, "user_id", "last_activity", "session_id"),
)

commits = Table(
    "commits",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
    Column("writes", LargeBinary, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("client_id", Text),
    Column("seq", BigInteger),
    Column("client_at", BigInteger),
)

states = Table(
    "states",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("state", LargeBinary, nullable=False),
    Column("last_writers", LargeBinary, nullable=False),
)

clients = Table(
    "clients",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("client_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("at", BigInteger),
)

refusals = Table(
    "refusals",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("client_id", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("client_at", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

conflicts = Table(
    "conflicts",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("conflict_id", Text, primary_key=True),
    Column("path", LargeBinary, nullable=False),
    Column("status", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    # Newest first, of one status and of all; the first also finds the unresolved ones of a load.
    Index(None, "session_id", "status", "version", "conflict_id"),
    Index(None, "session_id", "version", "conflict_id"),
)

session_devices = Table(
    "session_devices",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("device_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("name", Text),
    Column("info", LargeBinary, nullable=False),
    Column("is_primary", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_activity", BigInteger, nullable=False),
    Column("given_name", Text),
    Column("revoked_at", BigInteger),
    # The newest version that it said it had.
    Column("version", BigInteger),
)

members = Table(
    "members",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("role", Text, nullable=False),
    # The session's.
    Column("last_activity", BigInteger, nullable=False),
    # A member's sessions, newest activity first, page by page.
    Index(None, "user_id", "last_activity", "session_id"),
    sqlite_with_rowid=False,
)

credentials = Table(
    "credentials",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("secret_hash", LargeBinary, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("device_id", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    sqlite_with_rowid=False,
)

reactions = Table(
    "reactions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    # What was dealt with, and what is to be dealt with. Both in one row, so that whoever lets go of
    # it while another commits sees by the row alone that more has come.
    Column("version", BigInteger, nullable=False),
    Column("wanted", BigInteger, nullable=False),
    Column("owner", Text),
    Column("leased_until", BigInteger, nullable=False),
    # The few that are due.
    Index(
        None,
        "leased_until",
        sqlite_where=text("wanted > version"),
        postgresql_where=text("wanted > version"),
    ),
    sqlite_with_rowid=False,
)

session_activity_log = Table(
    "session_activity_log",
    metadata,
    Column("session_id", Text, primary_key=True),
    # 1, 2, 3, … within the session: the order in which the lines were written.
    Column("entry", BigInteger, primary_key=True, autoincrement=False),
    Column("activity_type", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("user_id", Text),
    Column("device_id", Text),
    Column("data", LargeBinary, nullable=False),
    # The oldest, to remove what is older than it is kept. Times grow, so that a batch dirties one
    # page of it, whatever sessions are in it.
    Index(None, "at"),
)

session_checkpoints = Table(
    "session_checkpoints",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("checkpoint_id", Text, primary_key=True),
    Column("name", Text),
    Column("kind", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    # Whatever the schema's step field held, as JSON.
    Column("step", LargeBinary),
    Column("data", LargeBinary),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "session_id", "version", "checkpoint_id"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    # Answers hold state: they go when their session is erased.
    Column("session_id", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request", LargeBinary, nullable=False),
    Column("status", Integer, nullable=False),
    Column("headers", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # A key is a user's, whichever session it came to; and one that creates a session has none yet.
    Index(None, "user_id", "route", "key", unique=True),
    # The oldest, to remove what is older than a day.
    Index(None, "created_at"),
)

erased_sessions = Table(
    "erased_sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("erased_at", BigInteger, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    # A list of hashes, as MessagePack.
    Column("members", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# A SQLite file has one node: there these two stay empty.
nodes = Table(
    "nodes",
    metadata,
    Column("node", Text, primary_key=True),
    # By the database's own clock.
    Column("leased_until", BigInteger, nullable=False),
    # What it said of its sessions up to this number is in `seats`; 0: nothing is, -1: it has left.
    Column("told", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

seats = Table(
    "seats",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("node", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    # Who of the session is connected to the node, as MessagePack.
    Column("body", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

_UNLOGGED: Final = DDL("ALTER TABLE %(table)s SET UNLOGGED")  # type: ignore[no-untyped-call]

for _table in (nodes, seats):
    event.listen(_table, "after_create", _UNLOGGED.execute_if(dialect="postgresql"))
