"""Workers that answer every connection with their process id: `python -m tests.server.crew N HOW`.

HOW is what becomes of them: `well`, `broken` (the second one cannot start) or `stubborn` (they do
not end when they are asked to).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import current_process

from reattach import logs
from reattach.server.workers import Workers


async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(str(os.getpid()).encode())
    writer.close()


async def serve(listening: socket.socket, how: str, ready: Callable[[], None]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if how == "stubborn" else ended.set)
    async with await asyncio.start_server(answer, sock=listening):
        ready()
        await ended.wait()


def work(how: str, number: int, sockets: Sequence[socket.socket], ready: Callable[[], None]) -> int:
    assert current_process().name == f"worker {number}"
    if how == "broken" and number == 2:
        return 7
    asyncio.run(serve(sockets[0], how, ready))
    return 0


def main(count: str, how: str) -> int:
    logs.configure()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))

    def ready() -> None:
        sys.stdout.write(f"{listening.getsockname()[1]}\n")
        sys.stdout.flush()

    return Workers(int(count), partial(work, how), [listening], ready=ready, grace=1.0).run()


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
