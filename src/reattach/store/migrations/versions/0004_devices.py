"""What people say of devices, what devices have, and lines of activity by their age."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns and the index."""
    text = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    op.add_column("session_devices", sa.Column("given_name", text))
    op.add_column("session_devices", sa.Column("revoked_at", sa.BigInteger()))
    op.add_column("session_devices", sa.Column("version", sa.BigInteger()))
    op.create_index("ix_session_activity_log_at", "session_activity_log", ["at"])


def downgrade() -> None:
    """Take them away."""
    op.drop_index("ix_session_activity_log_at", "session_activity_log")
    for name in ("version", "revoked_at", "given_name"):
        op.drop_column("session_devices", name)
