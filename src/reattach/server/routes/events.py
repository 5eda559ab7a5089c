"""The stream of a session's frames as Server-Sent Events."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Header
from starlette.requests import Request
from starlette.responses import Response

from reattach.errors import BadRequest, VersionGone
from reattach.runtime.registry import Registry
from reattach.server.auth import came_from
from reattach.server.past import PlainPatches, document_at
from reattach.server.routes.base import ID, Patches, Routes, SessionPath, user_of
from reattach.server.routes.openapi import Add
from reattach.server.sse import EventStream, parse_event_id, parse_hello

__all__ = ["EventRoutes"]

_EVENTS: Final = {
    "description": "The frames of the WebSocket: `event` is the type, `data` the frame, `id` is"
    " `<epoch>.<version>` on commits. `event: close` with {code, reason} goes before the end.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


class EventRoutes(Routes):
    """What a client hears over HTTP."""

    def add_to(self, add: Add) -> None:
        """Add it."""
        add.router.add_api_route(
            "/session/{session_id}/events",
            self.events,
            methods=["GET"],
            summary="Stream a session's frames as Server-Sent Events",
            responses={200: _EVENTS},
            response_class=Response,
        )

    async def events(
        self,
        request: Request,
        session_id: SessionPath,
        *,
        patches: Patches = "reattach",
        last_event_id: Annotated[
            str | None, Header(description="`<epoch>.<version>`: resumes right after it.")
        ] = None,
        reattach_client: Annotated[
            str | None, Header(description="With the device: this client's down-link.")
        ] = None,
        reattach_device: Annotated[str | None, Header()] = None,
        reattach_seq: Annotated[
            int, Header(ge=0, description="The client's last number whose decision it knows.")
        ] = 0,
        reattach_hello: Annotated[
            str | None,
            Header(
                description="With the client: the rest of its `hello` (`device` {`name`?, `info`?},"
                " `t`?, `user_id`?, `schema_version`?) as JSON in ASCII. The stream then begins"
                " with a welcome."
            ),
        ] = None,
    ) -> Response:
        """Stream a session's frames as Server-Sent Events."""
        registry, _, _ = await self.open(request, session_id)
        client = _down_link(reattach_client, reattach_device)
        rest = None if reattach_hello is None else parse_hello(reattach_hello)
        after = parse_event_id(last_event_id)
        if rest is not None and patches == "rfc6902":
            raise BadRequest(
                "expected either Reattach-Hello or ?patches=rfc6902: a client's line has frames as"
                " they are, leave one of the two out",
                code="bad_header",
            )
        plain = None
        if patches == "rfc6902":
            plain, after = await _plain_after(registry, session_id, after)
        stream = EventStream(registry, self.settings, plain, came_from(self.settings, request))
        if client is None:
            await stream.observe(session_id, user_of(request), after)
        else:
            await stream.join(
                session_id,
                user_of(request),
                client_id=client[0],
                device_id=client[1],
                seq=reattach_seq,
                after=after,
                rest=rest,
            )
        return stream


def _down_link(client: str | None, device: str | None) -> tuple[str, str] | None:
    if client is None and device is None:
        return None
    for name, value in (("Reattach-Client", client), ("Reattach-Device", device)):
        if value is None or not ID.fullmatch(value):
            raise BadRequest(
                f"expected {name} with an id of 1 to 128 characters: a client's down-link needs"
                " its client id and its device's",
                code="bad_header",
            )
    assert client is not None
    assert device is not None
    return client, device


async def _plain_after(
    registry: Registry, session_id: str, after: tuple[str, int] | None
) -> tuple[PlainPatches, tuple[str, int] | None]:
    """Return what rewrites the commits after an event; where that is gone, from the beginning."""
    if after is not None:
        try:
            document = await document_at(registry.store, session_id, after[1])
            return PlainPatches(document), after
        except VersionGone:
            pass
    return PlainPatches(None), None
