"""A few connections to one PostgreSQL, made when they are needed and dropped when they fail.

Nothing is repaired: a connection whose work was cancelled or took too long is cut, at once and
without a word to the server, which may not be there to hear it. The next who needs one connects
anew. So a server that was stopped, killed or restarted is used again as soon as it is back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from reattach.errors import StoreError, StoreUnavailable

__all__ = ["Connection", "Connections", "closed", "connect", "unavailable", "where"]

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic for type checkers alone

# How a session of ours behaves, whatever the server is set to.
_SETTINGS: Final = {
    "application_name": "reattach",
    # A statement sees what was committed when it began, and rows that it locks as they are then.
    "default_transaction_isolation": "read committed",
    # Each statement is planned once for each connection: planning one of ours takes longer than
    # carrying it out. Big tables are asked by key alone, which is to be so while they are small and
    # their plans are made.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # A batch's rows are kept in memory.
    "work_mem": "32MB",
    # A node that was stopped, or cut off, in the middle of a transaction holds nobody up for long.
    "idle_in_transaction_session_timeout": "2s",
    "lock_timeout": "2s",
    "statement_timeout": "30s",
    "client_connection_check_interval": "1s",
}

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]@/]*)(:[0-9]{1,5})?")


def where(url: str) -> str:
    """Return a database's URL without who is let in, and how: fit to be shown.

    Raises `StoreError` for one that cannot be a PostgreSQL's.
    """
    found = urlsplit(url)
    hosts = found.netloc.rpartition("@")[2]
    if found.scheme not in {"postgresql", "postgres"} or not all(
        _HOST.fullmatch(host) for host in hosts.split(",")
    ):
        # Not shown: what is wrong may be that a password was not escaped.
        raise StoreError(
            "expected a database URL such as postgresql://user:password@host:5432/database, got"
            " one whose host cannot be read: write what is special in a password as %XX",
            code="bad_database_url",
        )
    return f"postgresql://{hosts}{found.path}"


async def connect(
    url: str, *, patience: float, settings: Mapping[str, str] = _SETTINGS
) -> Connection:
    """Connect within ``patience`` seconds; raises `StoreUnavailable`."""
    place = where(url)
    try:
        return await asyncpg.connect(
            url,
            timeout=patience,
            server_settings=dict(settings),
            statement_cache_size=512,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
        )
    except (asyncpg.ClientConfigurationError, ValueError):
        # Their words hold the URL, and the password with it.
        raise StoreError(
            f"expected a database URL that PostgreSQL's clients know, got another for {place}: see"
            " its options, and the file that they may name",
            code="bad_database_url",
        ) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreUnavailable(
            f"Expected to connect to {place}, got: {_words(error)}. "
            "See that PostgreSQL runs there and lets this user in"
        ) from error


class Connections:
    """At most ``size`` connections to the database at ``place``, each used by one at a time."""

    def __init__(
        self, make: Callable[[], Awaitable[Connection]], place: str, *, size: int, timeout: float
    ) -> None:
        self._make = make
        self._place = place
        self._size = size
        self._timeout = timeout
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._is_closed = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """Lend a connection, for `timeout` seconds at most, the wait for it included.

        Raises `StoreUnavailable` where there is none, or no answer. What the server says to a
        statement (`asyncpg.PostgresError`) is passed on.
        """
        try:
            async with asyncio.timeout(self._timeout), self._free:
                db = await self._take()
                try:
                    yield db
                except asyncpg.PostgresError as error:
                    self._give_back(db, is_over=error.severity not in {None, "ERROR"})
                    raise
                except BaseException:
                    db.terminate()
                    raise
                self._give_back(db)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"Expected {self._place} to answer within {self._timeout:g} s, got nothing: "
                "see to it and to the network; the next attempt starts afresh"
            ) from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise unavailable(self._place, error) from error

    async def close(self) -> None:
        """Wait for what is under way, and let go."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                for _ in range(self._size):
                    await self._free.acquire()
        for db in self._idle:
            with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await db.close(timeout=1)
        self._idle.clear()

    async def _take(self) -> Connection:
        if self._is_closed:
            raise closed(self._place)
        while self._idle:
            db = self._idle.pop()
            if not db.is_closed():
                return db
        return await self._make()

    def _give_back(self, db: Connection, *, is_over: bool = False) -> None:
        if is_over or db.is_closed() or db.is_in_transaction():
            db.terminate()
        else:
            self._idle.append(db)


def closed(place: str) -> StoreUnavailable:
    """Make the error of a store that is not open."""
    return StoreUnavailable(f"Expected {place} to be open, but it is not: call open() first")


def unavailable(place: str, error: BaseException) -> StoreUnavailable:
    """Make the error of work whose outcome nobody knows, or that could not be done now."""
    return StoreUnavailable(
        f"Expected {place} to do its work, got: {_words(error)}. "
        "See to the server and to the network; the next attempt starts afresh"
    )


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
