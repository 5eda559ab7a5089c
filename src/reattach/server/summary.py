"""A session without its state, as every answer and command shows it."""

from __future__ import annotations

from typing import Any

from reattach.store.base import SessionRecord

__all__ = ["summary"]


def summary(record: SessionRecord) -> dict[str, Any]:
    """Return all fields but the state."""
    schema = None
    if record.schema_name is not None:
        schema = {"name": record.schema_name, "version": record.schema_version}
    return {
        "session_id": record.session_id,
        "epoch": record.epoch,
        "version": record.version,
        "user_id": record.user_id,
        "schema": schema,
        "created_at": record.created_at,
        "last_activity": record.last_activity,
        "is_active": record.is_active,
        "disconnected_at": record.disconnected_at,
        "reconnected_at": record.reconnected_at,
    }
