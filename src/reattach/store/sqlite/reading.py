"""A SQLite file for whoever only reads it, beside the server that holds it or without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from reattach.errors import StoreUnavailable
from reattach.store.sqlite import SQLiteStore

__all__ = ["SQLiteReader"]

_T = TypeVar("_T")


class SQLiteReader(SQLiteStore):
    """The store in a file that is opened read-only: it takes no lock and changes no byte of it.

    Whatever writes raises `StoreUnavailable`.
    """

    async def open(self) -> str:
        """Look at the file and return its identity.

        Raises `StoreUnavailable` where there is none or it cannot be read, `StoreError` where it is
        not ours or has the tables of another release.
        """
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="reattach-sqlite-reader")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._file.look)
        except BaseException:
            await self.close()
            raise

    async def _write(self, work: Callable[[], _T]) -> _T:
        del work
        raise StoreUnavailable(
            f"Expected {self._file.path} to be open for writing, but it is only read here: use an"
            " SQLiteStore, if no server holds it"
        )

    async def close(self) -> None:
        """Let go of the file."""
        readers, self._readers = self._readers, None
        if readers is not None:
            await asyncio.get_running_loop().run_in_executor(readers, self._file.close)
            readers.shutdown()
