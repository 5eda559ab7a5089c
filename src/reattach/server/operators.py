"""Where the operators of this machine find the server that holds a SQLite file.

It listens on a loopback port of its own, and says in the lock file, which only the file's owner can
read, which one and with which secret (`docs/adr/0011-operators-by-the-lock-file.md`). Whoever sends
that secret first has one task carried out.

Both ways go frames: four bytes with a length (big-endian), and so much MessagePack.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any, Final, TypeAlias

import msgspec
import structlog

from reattach.errors import ReattachError
from reattach.runtime.operator import Operator, Ping, Task
from reattach.runtime.registry import Registry
from reattach.settings import Settings
from reattach.store.sqlite import SQLiteStore

__all__ = [
    "GREETING",
    "SECRET_BYTES",
    "Answer",
    "Done",
    "Failed",
    "Order",
    "Step",
    "operated",
    "receive",
    "send",
]

log = structlog.get_logger("reattach.operators")

SECRET_BYTES: Final = 32
GREETING: Final = b"reattach"
"""What whoever sent the secret is sent first: another program may listen where a server was."""
_PATIENCE_S: Final = 5.0
"""Within which whoever connects has to have sent the secret and its task's first bytes."""
_ENVELOPE_BYTES: Final = 64 * 1024
_MOST: Final = 2**32 - 1


class Order(msgspec.Struct, frozen=True):
    """A task, and who gives it."""

    by: str
    task: Task


class Step(msgspec.Struct, tag="step", frozen=True):
    """So many sessions are done."""

    done: int


class Done(msgspec.Struct, tag="done", frozen=True):
    """The task was carried out."""

    value: Any


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """It was not, and why, by the code of a `ReattachError`."""

    code: str
    message: str


Answer: TypeAlias = Step | Done | Failed

_order: Final = msgspec.msgpack.Decoder(Order)


@contextlib.asynccontextmanager
async def operated(registry: Registry, settings: Settings) -> AsyncIterator[None]:
    """Be there for the operators of this machine, where a file is held by this process."""
    store = registry.store
    if not isinstance(store, SQLiteStore):
        yield
        return
    try:
        listening = socket.create_server(("127.0.0.1", 0))
    except OSError as error:
        log.warning("the command line cannot reach this server", error=str(error))
        yield
        return
    window = _Window(registry, settings)
    server = await asyncio.start_server(window.serve, sock=listening)
    await store.announce(f"{listening.getsockname()[1]} {window.secret.hex()}")
    try:
        yield
    finally:
        server.close()
        await window.close()


class _Window:
    """One server's, with its secret."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._registry = registry
        self._settings = settings
        self._serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one who has connected."""
        mine = asyncio.current_task()
        assert mine is not None
        self._serving.add(mine)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError):
            log.debug("an operator went away")
        except asyncio.CancelledError:
            log.info("an operator's task was broken off: the server stops")
        finally:
            self._serving.discard(mine)
            writer.close()

    async def close(self) -> None:
        """Break off what is under way: nothing is half done by that."""
        serving = list(self._serving)
        for one in serving:
            one.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            if not hmac.compare_digest(await reader.readexactly(SECRET_BYTES), self.secret):
                log.warning("somebody without the lock file's secret wanted to be an operator")
                return
        writer.write(GREETING)
        most = self._settings.max_import_bytes + _ENVELOPE_BYTES
        try:
            order = _order.decode(await receive(reader, most))
        except (ValueError, msgspec.MsgspecError) as error:
            await send(writer, Failed("bad_request", f"expected an order: {error}"))
            return
        await send(writer, await self._carry_out(order, writer))

    async def _carry_out(self, order: Order, writer: asyncio.StreamWriter) -> Answer:
        if isinstance(order.task, Ping):
            return Done({"pid": os.getpid(), "version": version("reattach")})
        log.info("an operator's task", task=type(order.task).__name__, by=order.by)
        operator = Operator(self._registry, history_days=self._settings.history_days, by=order.by)

        def progress(done: int) -> None:
            writer.write(_frame(Step(done)))

        try:
            return Done(await operator.do(order.task, progress))
        except ReattachError as error:
            return Failed(error.code, error.message)
        except Exception:
            log.exception("an operator's task failed")
            return Failed("internal", "the server failed on this: see its log")


async def send(writer: asyncio.StreamWriter, message: msgspec.Struct) -> None:
    """Send one message."""
    writer.write(_frame(message))
    await writer.drain()


async def receive(reader: asyncio.StreamReader, most: int = _MOST) -> bytes:
    """Receive one message; raises `ValueError` for one above so many bytes."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > most:
        raise ValueError(f"expected at most {most} bytes, got {length}")
    return await reader.readexactly(length)


def _frame(message: msgspec.Struct) -> bytes:
    encoded = msgspec.msgpack.encode(message)
    return len(encoded).to_bytes(4, "big") + encoded
