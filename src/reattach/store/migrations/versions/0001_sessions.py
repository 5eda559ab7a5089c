"""The tables of the first release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None


def _text() -> TypeEngine[str]:
    """Text that is compared by its bytes."""
    return sa.Text().with_variant(TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "clients",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("client_id", _text(), nullable=False),
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("device_id", _text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "client_id", name="pk_clients"),
    )
    op.create_table(
        "commits",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("writes", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("client_id", _text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("client_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "version", name="pk_commits"),
    )
    op.create_table(
        "conflicts",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("conflict_id", _text(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("status", _text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "conflict_id", name="pk_conflicts"),
    )
    op.create_index(
        "ix_conflicts_session_id_status_version_conflict_id",
        "conflicts",
        ["session_id", "status", "version", "conflict_id"],
    )
    op.create_index(
        "ix_conflicts_session_id_version_conflict_id",
        "conflicts",
        ["session_id", "version", "conflict_id"],
    )
    op.create_table(
        "erased_sessions",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("erased_at", sa.BigInteger(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("members", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_erased_sessions"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("route", _text(), nullable=False),
        sa.Column("key", _text(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("session_id", _text(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "route", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.create_index("ix_idempotency_keys_session_id", "idempotency_keys", ["session_id"])
    op.create_table(
        "meta",
        sa.Column("key", _text(), nullable=False),
        sa.Column("value", _text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "refusals",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("client_id", _text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("client_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "client_id", "seq", name="pk_refusals"),
    )
    op.create_table(
        "session_activity_log",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("entry", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("activity_type", _text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("user_id", _text(), nullable=True),
        sa.Column("device_id", _text(), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "entry", name="pk_session_activity_log"),
    )
    op.create_table(
        "session_checkpoints",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("checkpoint_id", _text(), nullable=False),
        sa.Column("name", _text(), nullable=True),
        sa.Column("kind", _text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.LargeBinary(), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "checkpoint_id", name="pk_session_checkpoints"),
    )
    op.create_index(
        "ix_session_checkpoints_session_id_version_checkpoint_id",
        "session_checkpoints",
        ["session_id", "version", "checkpoint_id"],
    )
    op.create_table(
        "session_devices",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("device_id", _text(), nullable=False),
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("name", _text(), nullable=True),
        sa.Column("info", sa.LargeBinary(), nullable=False),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_activity", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "device_id", name="pk_session_devices"),
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("epoch", _text(), nullable=False),
        sa.Column("epoch_version", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("access_version", sa.BigInteger(), nullable=False),
        sa.Column("schema_name", _text(), nullable=True),
        sa.Column("schema_version", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_activity", sa.BigInteger(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("disconnected_at", sa.BigInteger(), nullable=True),
        sa.Column("reconnected_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", name="pk_sessions"),
    )
    op.create_index(
        "ix_sessions_user_id_last_activity_session_id",
        "sessions",
        ["user_id", "last_activity", "session_id"],
    )
    op.create_table(
        "states",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("last_writers", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "version", name="pk_states"),
    )
