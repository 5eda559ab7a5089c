"""What a client asks of the server beside the line, by HTTP."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from reattach.client.socket import Address
from reattach.errors import (
    Forbidden,
    NotAuthenticated,
    ReattachError,
    SessionEnded,
    SessionNotFound,
    Unavailable,
)
from reattach.wire import Checkpoint, encode

__all__ = ["checkpoints", "claim", "history", "save_checkpoint"]

HTTP_S: Final = 15.0

_KINDS: Final[Mapping[int, type[ReattachError]]] = {
    401: NotAuthenticated,
    403: Forbidden,
    404: SessionNotFound,
    410: SessionEnded,
}


async def history(
    address: Address, token: str | None, client_id: str, first: int
) -> list[dict[str, Any]]:
    """Read a client's commits from version ``first`` on. Raises `OSError` where that fails."""
    items: list[dict[str, Any]] = []
    query: dict[str, Any] = {"client_id": client_id, "from": first}
    while True:
        page = await asyncio.to_thread(_get, address.history(**query), token)
        items += page["items"]
        if page.get("next") is None:
            return items
        query["next"] = page["next"]


def _get(url: str, token: str | None) -> dict[str, Any]:
    status, page = _request("GET", url, token)
    if status != 200:
        raise OSError(f"expected the history, got {status}")
    return page


async def claim(address: Address, token: str | None, claim_secret: str) -> str:
    """Make a session that nobody had signed in for the user's, and return that user's id.

    Raises what the server answers, `Unavailable` where it does not.
    """
    body = {"claim_secret": claim_secret}
    answer = await _ask("POST", f"{address.session}/claim", token, body)
    return str(answer["user_id"])


async def save_checkpoint(
    address: Address, token: str | None, key: str, mark: Mapping[str, Any]
) -> Checkpoint:
    """Save a checkpoint, once for a ``key``. Raises as `claim` does."""
    url = f"{address.session}/checkpoints"
    return msgspec.convert(await _ask("POST", url, token, mark, key), Checkpoint)


async def checkpoints(address: Address, token: str | None) -> list[Checkpoint]:
    """List the checkpoints, newest version first. Raises as `claim` does."""
    items: list[Checkpoint] = []
    query = ""
    while True:
        page = await _ask("GET", f"{address.session}/checkpoints{query}", token)
        items += msgspec.convert(page["items"], list[Checkpoint])
        if page.get("next") is None:
            return items
        query = f"?{urlencode({'after': page['next']})}"


async def _ask(
    method: str,
    url: str,
    token: str | None,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    try:
        status, answer = await asyncio.to_thread(_request, method, url, token, body, key)
    except OSError as error:
        raise Unavailable(f"the server does not answer ({error}): try again") from error
    if status >= 300:
        raise _error(status, answer)
    return answer


def _error(status: int, answer: Mapping[str, Any]) -> ReattachError:
    message = str(answer.get("detail") or f"expected an answer, got {status}")
    if status >= 500:
        return Unavailable(message)
    code = answer.get("code")
    kind = _KINDS.get(status, ReattachError)
    if kind is ReattachError or (code is not None and code != kind.code):
        return ReattachError(message, code=str(code or "error"))
    return kind(message)


def _request(
    method: str,
    url: str,
    token: str | None,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """Ask for JSON; return the status and the answer. Raises `OSError`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=HTTP_S)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if key is not None:
        headers["Idempotency-Key"] = key
    try:
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(method, path, None if body is None else encode(body), headers)
        answer = connection.getresponse()
        return answer.status, msgspec.json.decode(answer.read(), type=dict[str, Any])
    except (http.client.HTTPException, msgspec.MsgspecError) as error:
        raise OSError(f"expected JSON, got {error!r}") from error
    finally:
        connection.close()
