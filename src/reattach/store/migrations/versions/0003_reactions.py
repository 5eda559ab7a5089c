"""How far back-end code has dealt with the commits of a session, and which node is at it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.types import TypeEngine

revision = "0003"
down_revision = "0002"


def _text() -> TypeEngine[str]:
    """Text that is compared by its bytes."""
    return sa.Text().with_variant(TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "reactions",
        sa.Column("session_id", _text(), nullable=False),
        sa.Column("name", _text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.BigInteger(), nullable=False),
        sa.Column("owner", _text()),
        sa.Column("leased_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "name", name="pk_reactions"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_reactions_leased_until",
        "reactions",
        ["leased_until"],
        sqlite_where=sa.text("wanted > version"),
        postgresql_where=sa.text("wanted > version"),
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_table("reactions")
