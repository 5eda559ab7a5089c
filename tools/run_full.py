"""`make run-full`: PostgreSQL, Valkey and two nodes with the example, on this machine, till Ctrl-C.

    python -m tools.run_full --host 127.0.0.1 --port 8000 --app package.module:attribute

The databases come from packages on PyPI, run as an ordinary user and need no container. They are
made anew each time, in a folder of their own, and are gone in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from tests.support.stack import Stack

NODES = 2


async def main() -> int:
    parser = argparse.ArgumentParser(prog="run_full", description="The full stack on this machine.")
    parser.add_argument("--host", default="127.0.0.1", help="the address that nodes listen on")
    parser.add_argument("--port", type=int, default=8000, help="the first node's; others follow")
    parser.add_argument("--app", help="package.module:attribute")
    said = parser.parse_args()
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    with tempfile.TemporaryDirectory(prefix="reattach-full-") as folder:
        ports = range(said.port, said.port + NODES)
        async with Stack(Path(folder), app=said.app, host=said.host, ports=ports) as stack:
            tell(stack, said.host)
            while not over.is_set():
                dead = [node for node in stack.nodes if not node.alive]
                if dead:
                    print(f"a node ended by itself:\n{dead[0].log_tail()}", file=sys.stderr)
                    return 1
                try:
                    await asyncio.wait_for(over.wait(), 1)
                except TimeoutError:
                    continue
            print("stopping …", flush=True)
            await asyncio.gather(*(node.stop() for node in stack.nodes))
    return 0


def tell(stack: Stack, host: str) -> None:
    for node in stack.nodes:
        print(f"node        http://{host}:{node.port}    (log: {node.log})")
    print(f"PostgreSQL  {stack.database}")
    print(f"Valkey      {stack.valkey.url}")
    print("What is written on one node is on the other at once. Ctrl-C ends it all.", flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
