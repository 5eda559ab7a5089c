"""Reads that are gathered: what is asked for while one is under way is read by the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

from reattach.errors import StoreUnavailable
from reattach.runtime.tasks import Tasks

__all__ = ["Gathering"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_Asked: TypeAlias = dict[K, list[asyncio.Future[V]]]

_AT_ONCE: Final = 2
"""Reads under way at once: a heavy one does not keep all others waiting."""


class Gathering(Generic[K, V]):
    """Reads values by their keys, many at a time and without waiting for more to come.

    What is asked for in one turn of the event loop is read at once: the more a node has to do, the
    more there is in a turn.

    ``read`` takes keys, at most ``most``, and gives the values of the first of them, one at least:
    what it leaves out is read next. Each value was read after it was asked for.
    """

    def __init__(
        self,
        read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        tasks: Tasks,
        *,
        most: int,
        timeout_ms: int,
    ) -> None:
        self._read = read
        self._tasks = tasks
        self._most = most
        self._timeout_ms = timeout_ms
        self._waiting: _Asked[K, V] = {}
        self._under_way = 0
        self._begins = False
        """Whether the next read was begun, and has not taken its keys yet."""

    async def get(self, key: K) -> V:
        """Read a value; raises what the read raises, `StoreUnavailable` where it takes too long."""
        value: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(value)
        self._begin()
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await value
        except TimeoutError:
            raise StoreUnavailable("the database does not answer: nothing was lost") from None

    def _begin(self) -> None:
        if self._waiting and not self._begins and self._under_way < _AT_ONCE:
            self._begins = True
            self._under_way += 1
            self._tasks.spawn(self._carry_out())

    async def _carry_out(self) -> None:
        taken = list(self._waiting)[: self._most]
        asked = {key: self._waiting.pop(key) for key in taken}
        self._begins = False
        self._begin()
        try:
            left = await self._answer(asked)
        finally:
            self._under_way -= 1
        # What was not read yet comes before what was asked for meanwhile.
        for key, values in self._waiting.items():
            left.setdefault(key, []).extend(values)
        self._waiting = left
        self._begin()

    async def _answer(self, asked: _Asked[K, V]) -> _Asked[K, V]:
        """Read, and return what is to be read yet."""
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                found = await self._read(list(asked))
        except asyncio.CancelledError:
            # The node stops.
            for some in (asked, self._waiting):
                _fail(some, StoreUnavailable("the server restarts: come back"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are to hear of it
            if len(asked) == 1 or isinstance(error, (StoreUnavailable, OSError)):
                _fail(asked, error)
            else:
                # One of them cannot be read: the others are not to suffer for it.
                for key, values in asked.items():
                    await self._answer({key: values})
            return {}
        for key, value in found.items():
            for future in asked[key]:
                if not future.done():
                    future.set_result(value)
        return {key: values for key, values in asked.items() if key not in found}


def _fail(asked: _Asked[K, V], error: Exception) -> None:
    for values in asked.values():
        for value in values:
            if not value.done():
                value.set_exception(error)
