"""How a command reaches a database's sessions.

Reads go to the database itself, which on SQLite is opened read-only. What writes is carried out by
a node: on SQLite by the server that holds the file, found through its lock file, or where there is
none by this process; on PostgreSQL by this process, a node as any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from reattach import logs
from reattach.cli.finding import load, settings_of
from reattach.cli.output import Exit, Refused
from reattach.errors import DatabaseHeld, ReattachError
from reattach.store.urls import sqlite_path, store_to_read_at

if TYPE_CHECKING:
    from reattach.runtime.operator import Task
    from reattach.store.base import Store

__all__ = ["carry_out", "doors", "operator_name", "reading", "served_by"]

_PATIENCE_S: Final = 3.0
"""How long a server that has just started may take to say where it is."""
_LOOK_S: Final = 0.05
_ANSWERS_S: Final = 5.0


def operator_name() -> str:
    """Return who stands in commits and activity logs for what this command does."""
    try:
        login = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        login = str(os.getuid())
    return f"operator:{login}"


@contextlib.asynccontextmanager
async def reading(app: str | None, database: str | None) -> AsyncIterator[Store]:
    """Have a database at hand that is only read."""
    logs.configure("error")
    settings = settings_of(app, database)
    store = store_to_read_at(settings.database, timeout_ms=settings.store_timeout_ms)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def carry_out(
    task: Task, app: str | None, database: str | None, progress: Callable[[int], None]
) -> Any:
    """Have a task carried out by whichever node may; returns what it answers.

    Raises what kept it from being done, as `ReattachError`.
    """
    logs.configure("error")
    path = sqlite_path(settings_of(app, database).database)
    if path is None:
        return await _do_it_here(task, app, database, progress)
    if not path.is_file():
        raise Refused(
            f"expected a database at {path.absolute()}, got no file: say where it is, or start a"
            " server, which makes one",
            Exit.UNREACHABLE,
            "unavailable",
        )
    until = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        door = await _open_door(path)
        if door is not None:
            return await door.order(task, progress)
        try:
            return await _do_it_here(task, app, database, progress)
        except DatabaseHeld:
            # It may be about to start, or about to end.
            if asyncio.get_running_loop().time() >= until:
                raise
            await asyncio.sleep(_LOOK_S)


async def served_by(path: Path) -> dict[str, Any] | None:
    """Return the ``pid`` and ``version`` of the server that holds a file, None without one."""
    from reattach.runtime.operator import Ping

    door = await _open_door(path)
    if door is None:
        return None
    answer: dict[str, Any] = await door.order(Ping(), lambda _: None)
    return answer


async def _do_it_here(
    task: Task, app: str | None, database: str | None, progress: Callable[[int], None]
) -> Any:
    """Be a node for as long as the task takes."""
    from reattach.runtime.operator import Operator

    served = load(app, database)
    registry = served.node()
    await registry.start(serves=False)
    try:
        operator = Operator(registry, history_days=served.settings.history_days, by=operator_name())
        return await operator.do(task, progress)
    finally:
        await registry.stop(timeout_ms=served.settings.shutdown_timeout_ms)


class _Door:
    """A connection to the server that holds a file."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def order(self, task: Task, progress: Callable[[int], None]) -> Any:
        """Have a task carried out there."""
        from reattach.server.operators import Answer, Done, Order, Step, receive, send

        try:
            await send(self._writer, Order(operator_name(), task))
            while True:
                raw = await receive(self._reader)
                answer: Answer = msgspec.msgpack.decode(raw, type=Answer)
                if isinstance(answer, Done):
                    return answer.value
                if not isinstance(answer, Step):
                    raise ReattachError(answer.message, code=answer.code)
                progress(answer.done)
        except (OSError, EOFError) as error:
            raise Refused(
                f"the server that holds the database went away before it answered ({error}): see"
                " whether it was done, and do it again if not",
                Exit.UNREACHABLE,
                "unavailable",
            ) from None
        finally:
            self._writer.close()


async def _open_door(path: Path) -> _Door | None:
    """Connect to the server that holds a file; None where there is none that can be asked."""
    from reattach.server.operators import GREETING

    found = doors(path)
    if found is None:
        return None
    port, secret = found
    try:
        async with asyncio.timeout(_ANSWERS_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(secret)
            if await reader.readexactly(len(GREETING)) == GREETING:
                return _Door(reader, writer)
            writer.close()
    except (OSError, EOFError, TimeoutError):
        pass  # it was killed, and what it said is still there
    return None


def doors(path: Path) -> tuple[int, bytes] | None:
    """Read from a lock file at which port its server listens, and the secret that opens it."""
    from reattach.store.sqlite.file import lock_of

    try:
        said = lock_of(path.resolve()).read_text("ascii")
    except FileNotFoundError:
        return None
    except PermissionError:
        raise Refused(
            f"expected to read {lock_of(path)}, which its owner alone may: run this as the user"
            " that runs the server",
            Exit.HELD,
            "database_held",
        ) from None
    with contextlib.suppress(ValueError):
        # The first line is the process alone: an older release, or a command, says no more.
        port, secret = said.partition("\n")[2].split()
        return int(port), bytes.fromhex(secret)
    return None
