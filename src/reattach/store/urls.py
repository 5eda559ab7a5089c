"""Which store a database URL means."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from reattach.errors import StoreError
from reattach.store.base import Store

__all__ = ["sqlite_path", "store_at", "store_to_read_at"]

_SQLITE: Final = "sqlite:///"


def store_at(url: str, *, timeout_ms: int = 10_000) -> Store:
    """Return the store that a database URL means; raises `StoreError` for one that means none.

    ``timeout_ms`` is how long a database may take that is reached over a network.
    """
    path = sqlite_path(url)
    if path is None:
        # Its driver takes a third of a second to import, which nobody else is to wait for.
        from reattach.store.postgres import PostgresStore  # noqa: PLC0415

        return PostgresStore(url, timeout=timeout_ms / 1000)
    from reattach.store.sqlite import SQLiteStore  # noqa: PLC0415  # nor for this one

    return SQLiteStore(path)


def store_to_read_at(url: str, *, timeout_ms: int = 10_000) -> Store:
    """Return the same for somebody who only reads: a file of SQLite may be a running server's."""
    path = sqlite_path(url)
    if path is None:
        return store_at(url, timeout_ms=timeout_ms)
    from reattach.store.sqlite.reading import SQLiteReader  # noqa: PLC0415  # as above

    return SQLiteReader(path)


def sqlite_path(url: str) -> Path | None:
    """Return the file that a database URL means, None for a PostgreSQL's; raises `StoreError`."""
    scheme, _, _ = url.partition(":")
    if scheme in {"postgresql", "postgres"}:
        return None
    if scheme != "sqlite":
        raise StoreError(
            "expected a database URL such as sqlite:///reattach.db or"
            f" postgresql://user:password@host/database, got one of {scheme!r}",
            code="bad_database_url",
        )
    path = url.removeprefix(_SQLITE)
    if path in {"", url} or path.startswith(":memory:"):
        raise StoreError(
            "expected sqlite:/// and the path of a file (sqlite:///relative.db or"
            f" sqlite:////absolute.db), got {url!r}",
            code="bad_database_url",
        )
    return Path(path)
