"""By which address other devices of the local network reach this server."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from starlette.datastructures import URL

__all__ = ["address_for_others"]

_ELSEWHERE: Final = ("192.0.2.1", 9)
"""An address that no machine has (RFC 5737): only the way there is asked for, nothing is sent."""
_PATIENCE_S: Final = 0.5


async def address_for_others(url: URL) -> tuple[str | None, bool]:
    """Return the address of this machine in its network, for the port of ``url``, and whether the
    server answers there: one that listens on loopback does not. None without a network.
    """
    host = _own_address()
    if host is None:
        return None, False
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:  # a timeout is one
        return f"{url.scheme}://{host}:{port}", False
    writer.close()
    return f"{url.scheme}://{host}:{port}", True


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return None
        host: str = probe.getsockname()[0]
    return None if host.startswith(("127.", "0.")) else host
