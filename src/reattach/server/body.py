"""Reading a request's body: bounded, as JSON that is ours to judge, held against its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from reattach.core.paths import join
from reattach.errors import BadRequest, ReattachError, TooLarge
from reattach.wire import Unreadable, decode_json

__all__ = ["JSON_TYPE", "BadBody", "hold_against", "media_type", "read", "read_json"]

JSON_TYPE: Final = "application/json"

_Model = TypeVar("_Model", bound=BaseModel)


class BadBody(BadRequest):
    """A body that is JSON and not what was expected; ``path`` points to the place."""

    code = "bad_body"

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class UnsupportedMediaType(ReattachError):
    """The body is of a type that the route does not take."""

    code = "unsupported_media_type"
    status = 415

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


def media_type(request: Request, accepted: Sequence[str]) -> str:
    """Return the body's type, one of ``accepted``; raises `UnsupportedMediaType`."""
    came = request.headers.get("content-type", "")
    kind = came.partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").lower()
    header = "Accept-Patch" if request.method == "PATCH" else "Accept"
    headers = {header: ", ".join(accepted)}
    if kind not in accepted:
        raise UnsupportedMediaType(
            f"expected a Content-Type of {' or '.join(accepted)}, got {came[:80]!r}", headers
        )
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"expected a body without Content-Encoding, got {encoding[:80]!r}", headers
        )
    return kind


async def read(request: Request, most: int) -> bytes:
    """Read a body of at most so many bytes; raises `TooLarge`, before all of it came."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise TooLarge(f"expected a body of at most {most} bytes, got {announced[:20]}")
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise TooLarge(f"expected a body of at most {most} bytes")
            parts.append(part)
    except ClientDisconnect:
        raise BadRequest("expected the whole body", code="bad_body") from None
    return b"".join(parts)


def decode(raw: bytes) -> Any:
    """Read JSON; raises `BadRequest`. What its values may be is judged where they are used."""
    try:
        return decode_json(raw)
    except Unreadable as error:
        code = "bad_json" if error.code == "bad_frame" else error.code
        raise BadRequest(error.message, code=code) from None


async def read_json(request: Request, most: int) -> tuple[bytes, Any]:
    """Read a JSON body; return it as it came, and decoded."""
    media_type(request, (JSON_TYPE,))
    raw = await read(request, most)
    return raw, decode(raw)


def hold_against(model: type[_Model], value: Any) -> _Model:
    """Make a decoded body to its model; raises `BadBody` with the first place that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = join([str(token) for token in first["loc"]])
        raise BadBody(f"{path or 'the body'}: {first['msg']}", path) from None
