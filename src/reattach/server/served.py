"""The server, as its own parts see it."""

from __future__ import annotations

from typing import Protocol

from reattach.runtime.registry import Registry
from reattach.server.auth import Auth
from reattach.server.inspector.access import Inspecting
from reattach.server.inspector.nodes import Peers
from reattach.settings import Settings

__all__ = ["Served"]


class Served(Protocol):
    """What routes and shells need of the server that they belong to."""

    @property
    def auth(self) -> Auth:
        """Says who is there."""

    @property
    def settings(self) -> Settings:
        """The limits and times."""

    @property
    def inspecting(self) -> Inspecting | None:
        """Says who inspects; None: there is no inspector."""

    @property
    def peers(self) -> Peers:
        """The nodes, as an inspector sees them; raises `Unavailable` while it does not run."""

    async def metrics(self) -> bytes:
        """Return the metrics of this process, and of the other workers if there are any."""

    async def running(self) -> Registry:
        """Return the sessions, started."""
