"""What a session and its connections must keep within. `reattach.settings` explains each."""

from __future__ import annotations

import msgspec

__all__ = ["Limits"]

_KIB = 1024
_MIB = 1024 * _KIB


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes of JSON, times in milliseconds."""

    heartbeat_interval_ms: int = 5_000
    heartbeat_timeout_ms: int = 15_000
    hello_timeout_ms: int = 10_000
    reconnect_jitter_ms: int = 1_000
    devices_interval_ms: int = 1_000

    max_frame_bytes: int = _MIB
    max_change_bytes: int = 256 * _KIB
    max_change_operations: int = 500
    max_state_bytes: int = 4 * _MIB
    max_nesting: int = 64
    max_in_flight_changes: int = 256
    max_in_flight_bytes: int = _MIB
    max_backlog_bytes: int = 64 * _MIB
    max_user_connections: int | None = 16
    max_presence_bytes: int = 4 * _KIB
    max_presence_rate: int = 20
    """Frames of one connection that are passed on in a second; then the newest waits for the next.
    """
    max_device_info_bytes: int = 4 * _KIB
    max_checkpoint_bytes: int = 4 * _KIB
    max_text_history_bytes: int = 512 * _KIB
    max_removals_known: int = 1_024
    """Beyond it the oldest are forgotten: what a change made before them meets is concurrent."""
    saved_state_floor_bytes: int = 64 * _KIB

    def announced(self) -> dict[str, int]:
        """Return what a welcome tells clients."""
        return {
            "frame_bytes": self.max_frame_bytes,
            "change_bytes": self.max_change_bytes,
            "change_operations": self.max_change_operations,
            "state_bytes": self.max_state_bytes,
            "nesting": self.max_nesting,
            "in_flight_changes": self.max_in_flight_changes,
            "presence_bytes": self.max_presence_bytes,
            "checkpoint_bytes": self.max_checkpoint_bytes,
        }
