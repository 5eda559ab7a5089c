"""What the simulator raises when a promise is broken."""

from __future__ import annotations

__all__ = ["Broken"]


class Broken(AssertionError):
    """A promise was broken. ``promise`` names it, the same while a story shrinks."""

    def __init__(self, promise: str, message: str) -> None:
        """Say which promise, and how it was broken."""
        super().__init__(f"{promise}: {message}")
        self.promise = promise
