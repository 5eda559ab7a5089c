"""Everything that can be set, with its unit in its name. Frozen: a setting is made at the start.

Each is also an environment variable: ``REATTACH_`` and its name in capitals. The defaults are the
protocol's (`docs/protocol.md`, sections 5 and 8).
"""

from __future__ import annotations

import msgspec
from pydantic_settings import BaseSettings, SettingsConfigDict

from reattach.core.limits import Limits

__all__ = ["Settings"]

_KIB = 1024
_MIB = 1024 * _KIB
_DEFAULT = Limits()


class Settings(BaseSettings):
    """Times in milliseconds, sizes in bytes of JSON text."""

    model_config = SettingsConfigDict(env_prefix="REATTACH_", frozen=True, extra="forbid")

    database: str = "sqlite:///reattach.db"
    """Where sessions live: ``sqlite:///`` and a file's path."""

    heartbeat_interval_ms: int = _DEFAULT.heartbeat_interval_ms
    """Silence after which a sign of life is sent, either way."""
    heartbeat_timeout_ms: int = _DEFAULT.heartbeat_timeout_ms
    """Silence that means disconnected."""
    hello_timeout_ms: int = _DEFAULT.hello_timeout_ms
    """How long a connection may be open before its first frame."""
    reconnect_jitter_ms: int = _DEFAULT.reconnect_jitter_ms
    """Clients that are told to come back do so within a random part of this."""
    devices_interval_ms: int = _DEFAULT.devices_interval_ms
    """How often, at most, connections are told of the session's devices."""
    idle_session_ms: int = 60_000
    """How long a session that nobody uses stays in memory."""
    store_timeout_ms: int = 10_000
    """How long the database may take before a batch's outcome counts as unknown."""
    shutdown_timeout_ms: int = 4_000
    """How long a stopping server waits for the batch in flight and for its connections."""

    max_frame_bytes: int = _DEFAULT.max_frame_bytes
    max_change_bytes: int = _DEFAULT.max_change_bytes
    max_change_operations: int = _DEFAULT.max_change_operations
    max_state_bytes: int = _DEFAULT.max_state_bytes
    max_nesting: int = _DEFAULT.max_nesting
    """Containers within containers, the state itself included."""
    max_in_flight_changes: int = _DEFAULT.max_in_flight_changes
    """Changes of one client that wait for their decision; beyond it the server stops reading."""
    max_user_connections: int = 16
    """Connections of one user on one session; not with ``--auth none``."""
    max_presence_bytes: int = _DEFAULT.max_presence_bytes
    max_device_info_bytes: int = _DEFAULT.max_device_info_bytes
    max_send_buffer_bytes: int = 8 * _MIB
    """What may wait for a slow reader before its connection is closed (4429)."""
    max_text_history_bytes: int = _DEFAULT.max_text_history_bytes
    """What one session remembers of how its texts were edited, to find the place of edits that were
    made offline. Beyond it, the oldest are forgotten, and what met them becomes a conflict."""
    saved_state_floor_bytes: int = _DEFAULT.saved_state_floor_bytes
    """A state is saved when the log after the last one weighs more than it, and than this."""

    def limits(self, *, one_user: bool) -> Limits:
        """Return what the core keeps to; ``one_user`` leaves out what is counted by user."""
        names = {field.name for field in msgspec.structs.fields(Limits)}
        values = {name: value for name, value in self.model_dump().items() if name in names}
        if one_user:
            values["max_user_connections"] = None
        return Limits(**values)
