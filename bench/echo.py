"""A WebSocket server that sends back what it gets: what the network costs by itself.

python -m bench.echo 8000           serves
python -m bench.echo 8000 --load    asks it, with 200 connections of 16 messages under way
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Final

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

_TEXT: Final = WSMsgType.TEXT
_MESSAGE: Final = b"x" * 200
_LINES: Final = 200
_UNDER_WAY: Final = 16
_WARM: Final = 0.3
_SECONDS: Final = 1.0


class _Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == _TEXT:
            transport.send(_TEXT, frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()


class _Asks(WSListener):
    count = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == _TEXT:
            _Asks.count += 1
            transport.send(_TEXT, _MESSAGE)


async def _serve(port: int) -> None:
    server = await ws_create_server(lambda _: _Echo(), "127.0.0.1", port)
    await server.serve_forever()


async def _load(port: int) -> None:
    url = f"ws://127.0.0.1:{port}/"
    while True:
        with contextlib.suppress(OSError):
            (await ws_connect(_Asks, url))[0].disconnect()
            break
        await asyncio.sleep(0.05)
    lines = [await ws_connect(_Asks, url) for _ in range(_LINES)]
    for transport, _ in lines:
        for _ in range(_UNDER_WAY):
            transport.send(_TEXT, _MESSAGE)
    await asyncio.sleep(_WARM)
    before = _Asks.count
    await asyncio.sleep(_SECONDS)
    print(json.dumps({"messages_s": (_Asks.count - before) / _SECONDS}), flush=True)


def main() -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(prog="bench.echo", description="A WebSocket echo.")
    parser.add_argument("port", type=int)
    parser.add_argument("--load", action="store_true", help="ask, instead of answering")
    said = parser.parse_args()
    uvloop.run(_load(said.port) if said.load else _serve(said.port))


if __name__ == "__main__":
    main()
