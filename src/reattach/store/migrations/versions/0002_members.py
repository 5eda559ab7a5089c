"""Who may use a session beside its owner of record, and what opens one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.types import TypeEngine

revision = "0002"
down_revision = "0001"


def _text() -> TypeEngine[str]:
    """Text that is compared by its bytes."""
    return sa.Text().with_variant(TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "members",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("role", _text(), nullable=False),
        sa.Column("last_activity", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "user_id", name="pk_members"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_members_user_id_last_activity_session_id",
        "members",
        ["user_id", "last_activity", "session_id"],
    )
    op.create_table(
        "credentials",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("kind", _text(), nullable=False),
        sa.Column("user_id", _text(), nullable=False),
        sa.Column("role", _text(), nullable=False),
        sa.Column("device_id", _text()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("session_id", "secret_hash", name="pk_credentials"),
        sqlite_with_rowid=False,
    )
