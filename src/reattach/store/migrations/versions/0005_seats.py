"""Which nodes live, and who is connected to which; keys of requests by their session first."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.types import TypeEngine

revision = "0005"
down_revision = "0004"


def _text() -> TypeEngine[str]:
    """Text that is compared by its bytes."""
    return sa.Text().with_variant(TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables, and the key of `idempotency_keys` anew."""
    op.create_table(
        "nodes",
        sa.Column("node", _text(), nullable=False),
        sa.Column("leased_until", sa.BigInteger(), nullable=False),
        sa.Column("told", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_nodes"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "seats",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("node", _text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "node", name="pk_seats"),
        sqlite_with_rowid=False,
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE nodes SET UNLOGGED")
        op.execute("ALTER TABLE seats SET UNLOGGED")
    # The code before finds a key, and sees that it is taken, by the three of the unique index.
    _rekey("session_id", "user_id", "route", "key")
    op.create_index(
        "ix_idempotency_keys_user_id_route_key",
        "idempotency_keys",
        ["user_id", "route", "key"],
        unique=True,
    )


def downgrade() -> None:
    """Take them away."""
    _rekey("user_id", "route", "key")
    op.create_index("ix_idempotency_keys_session_id", "idempotency_keys", ["session_id"])
    op.drop_table("seats")
    op.drop_table("nodes")


def _rekey(*key: str) -> None:
    """Give `idempotency_keys` another primary key, and one index, that of the oldest."""
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint("pk_idempotency_keys", "idempotency_keys")
        op.create_primary_key("pk_idempotency_keys", "idempotency_keys", list(key))
        op.execute("DROP INDEX IF EXISTS ix_idempotency_keys_session_id")
        op.execute("DROP INDEX IF EXISTS ix_idempotency_keys_user_id_route_key")
        return
    # SQLite makes a table anew for it. Names of indexes are the database's, and go with the table.
    op.rename_table("idempotency_keys", "former_keys")
    columns: list[sa.Column[Any]] = [
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("route", _text(), nullable=False),
        sa.Column("key", _text(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    ]
    op.create_table(
        "idempotency_keys", *columns, sa.PrimaryKeyConstraint(*key, name="pk_idempotency_keys")
    )
    table = sa.table("idempotency_keys", *(sa.column(one.name) for one in columns))
    former = sa.table("former_keys", *(sa.column(one.name) for one in columns))
    names = [column.name for column in columns]
    op.execute(table.insert().from_select(names, former.select()))
    op.drop_table("former_keys")
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
