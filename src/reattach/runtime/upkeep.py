"""What is done now and then to the whole database, by whichever nodes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from reattach.errors import StoreError

if TYPE_CHECKING:
    from reattach.runtime.registry import Registry

__all__ = ["DAY_MS", "Upkeep"]

log = structlog.get_logger("reattach.upkeep")

DAY_MS: Final = 24 * 60 * 60 * 1000
_EVERY_MS: Final = 10 * 60 * 1000
"""How often a node looks."""
_LINES: Final = 1_000
"""Lines of activity that one transaction removes."""
_BREATH_MS: Final = 50
"""Between two of them, so that whoever works comes first."""


class Upkeep:
    """One node's part of it. There is no leader: what two do at once, one finds done."""

    def __init__(self, registry: Registry, *, activity_days: int) -> None:
        """Keep lines of activity for so many days; 0: for ever."""
        self._registry = registry
        self._activity_days = activity_days

    async def run(self) -> None:
        """Go on until the server stops."""
        clock = self._registry.clock
        while True:
            await clock.sleep(_EVERY_MS)
            try:
                await self._trim_activity()
            except StoreError as error:
                log.debug("the upkeep waits for the database", error=str(error))

    async def _trim_activity(self) -> None:
        if not self._activity_days:
            return
        clock, store = self._registry.clock, self._registry.store
        before = clock.now() - self._activity_days * DAY_MS
        while await store.trim_activity(before, _LINES) == _LINES:
            await clock.sleep(_BREATH_MS)
