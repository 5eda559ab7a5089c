"""Every route and every frame, asked by everybody: who is let in, and what they may do.

The rows are the application's own routes and the client's frames of `reattach.wire`: one that is
added without saying here what each may do with it fails.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr
from starlette.routing import Route, WebSocketRoute

from reattach import wire
from reattach.server.app import Reattach
from reattach.settings import Settings
from tests.server.hosts import uvicorn_of
from tests.server.peer import Peer, opened
from tests.server.tokens import AUDIENCE, ISSUER, bad_tokens, private_key, public_pem, signed

KEY = private_key("RS256")
BAD = bad_tokens(KEY, "RS256")

UNKNOWN = ("no token", "forged", "expired", "alg none", "another key's")
"""Who shows nothing, or nothing that is good."""
ROLES = ("viewer", "editor", "owner")
HOLDER, HOLDER_OF_IT = "holder of another session", "holder of it"
"""Whoever has the token of a session that nobody signed in for: another one, and this one."""
WHO = (*UNKNOWN, "stranger", *ROLES, HOLDER, HOLDER_OF_IT)


def row(
    unknown: str, *, stranger: str, viewer: str, editor: str, owner: str, **holders: str
) -> dict[str, str]:
    """What each is answered; holders are like strangers and owners where nothing else is said."""
    return {
        **dict.fromkeys(UNKNOWN, unknown),
        "stranger": stranger,
        "viewer": viewer,
        "editor": editor,
        "owner": owner,
        HOLDER: holders.get("holder", stranger),
        HOLDER_OF_IT: holders.get("holder_of_it", owner),
    }


NO_TOKEN, MISSING, FORBIDDEN = "401 not_authenticated", "404 session_not_found", "403 forbidden"

OPEN = dict.fromkeys(WHO, "200")
ANY_SIGNED_IN = row(NO_TOKEN, stranger="200", viewer="200", editor="200", owner="200") | {
    HOLDER: NO_TOKEN,
    HOLDER_OF_IT: NO_TOKEN,
}
READS = row(NO_TOKEN, stranger=MISSING, viewer="200", editor="200", owner="200")
BEATS = row(NO_TOKEN, stranger=MISSING, viewer="204", editor="204", owner="204")
LINKS = row(NO_TOKEN, stranger=MISSING, viewer="201", editor="201", owner="201")
WRITES = row(NO_TOKEN, stranger=MISSING, viewer=FORBIDDEN, editor="200!", owner="200!")
MARKS = row(NO_TOKEN, stranger=MISSING, viewer=FORBIDDEN, editor="201", owner="201")
SETTLES = row(
    NO_TOKEN,
    stranger=MISSING,
    viewer=FORBIDDEN,
    editor="404 no_such_conflict",
    owner="404 no_such_conflict",
)
NO_DEVICE = row(
    NO_TOKEN,
    stranger=MISSING,
    viewer=FORBIDDEN,
    editor=FORBIDDEN,
    owner="404 no_such_device",
)
MANAGES = row(NO_TOKEN, stranger=MISSING, viewer=FORBIDDEN, editor=FORBIDDEN, owner="200!")
ERASES = row(NO_TOKEN, stranger=MISSING, viewer=FORBIDDEN, editor=FORBIDDEN, owner="204!")

SESSION = "/api/v0/session/{session_id}"
MEMBER = f"{SESSION}/members/{{user_id:path}}"
MERGE, JSON = "application/merge-patch+json", "application/json"
DEVICE = {"id": "device"}

Body = tuple[str, Any]
ROUTES: dict[tuple[str, str], tuple[Body | None, dict[str, str]]] = {
    ("GET", "/healthz"): (None, OPEN),
    ("GET", "/readyz"): (None, OPEN),
    # From this machine; from others see tests/server/test_metrics.py.
    ("GET", "/metrics"): (None, OPEN),
    ("GET", "/openapi.json"): (None, OPEN),
    ("GET", "/api/v0/session/check-connection"): (
        None,
        row(NO_TOKEN, stranger="204", viewer="204", editor="204", owner="204"),
    ),
    ("POST", "/api/v0/session/heartbeat"): (
        (JSON, {"session_id": "{session_id}", "device": DEVICE}),
        BEATS,
    ),
    ("POST", "/api/v0/session"): (
        (JSON, {}),
        row(NO_TOKEN, stranger="201", viewer="201", editor="201", owner="201")
        | {"no token": "201", HOLDER: NO_TOKEN, HOLDER_OF_IT: NO_TOKEN},
    ),
    ("GET", "/api/v0/session"): (None, ANY_SIGNED_IN),
    ("GET", SESSION): (None, READS),
    ("PATCH", SESSION): ((MERGE, {"n": 1}), WRITES),
    ("DELETE", SESSION): (None, ERASES),
    ("DELETE", "/api/v0/users/{user_id:path}"): (
        None,
        # The user is the session's owner.
        row(NO_TOKEN, stranger=FORBIDDEN, viewer=FORBIDDEN, editor=FORBIDDEN, owner="204!")
        | {HOLDER: NO_TOKEN, HOLDER_OF_IT: NO_TOKEN},
    ),
    # Presence is everybody's.
    ("POST", f"{SESSION}/presence"): (
        (JSON, {"client_id": "c", "device": DEVICE, "data": 1}),
        BEATS,
    ),
    # An outbox is answered change by change: a viewer's are refused, one by one.
    ("POST", f"{SESSION}/changes"): (
        (
            JSON,
            {
                "client_id": "c",
                "device": DEVICE,
                "t": 1,
                "changes": [
                    {
                        "seq": 1,
                        "epoch": "e",
                        "base": 0,
                        "at": 1,
                        "ops": [{"op": "set", "path": "/n", "value": 1}],
                    }
                ],
            },
        ),
        row(NO_TOKEN, stranger=MISSING, viewer="200", editor="200!", owner="200!"),
    ),
    ("GET", f"{SESSION}/events"): (None, READS),
    ("GET", f"{SESSION}/history"): (None, READS),
    ("GET", f"{SESSION}/conflicts"): (None, READS),
    ("POST", f"{SESSION}/conflicts/{{conflict_id}}/resolve"): ((JSON, {"keep": "lost"}), SETTLES),
    ("GET", f"{SESSION}/checkpoints"): (None, READS),
    ("POST", f"{SESSION}/checkpoints"): ((JSON, {"name": "n"}), MARKS),
    ("GET", f"{SESSION}/diff"): (None, READS),
    ("POST", f"{SESSION}/restore"): ((JSON, {"version": 0}), WRITES),
    ("POST", f"{SESSION}/fork"): (
        (JSON, {"version": 0}),
        row(NO_TOKEN, stranger=MISSING, viewer="201", editor="201", owner="201")
        | {HOLDER: NO_TOKEN, HOLDER_OF_IT: NO_TOKEN},
    ),
    ("GET", f"{SESSION}/devices"): (None, READS),
    # One that is nobody's: of their own see the tests of devices.
    ("PATCH", f"{SESSION}/devices/{{device_id}}"): ((JSON, {"name": "Phone"}), NO_DEVICE),
    ("DELETE", f"{SESSION}/devices/{{device_id}}"): (None, NO_DEVICE),
    ("GET", f"{SESSION}/activity"): (None, READS),
    ("GET", f"{SESSION}/members"): (None, READS),
    ("PUT", MEMBER): ((JSON, {"role": "editor"}), MANAGES),
    ("DELETE", MEMBER): (
        None,
        row(NO_TOKEN, stranger=MISSING, viewer=FORBIDDEN, editor=FORBIDDEN, owner="204!"),
    ),
    ("GET", f"{SESSION}/export"): (
        None,
        row(NO_TOKEN, stranger=MISSING, viewer=FORBIDDEN, editor=FORBIDDEN, owner="200"),
    ),
    # No such file: it makes a session of the caller's own, as `POST /session` does.
    ("POST", "/api/v0/session/import"): (
        (JSON, {}),
        dict.fromkeys(WHO, "400 bad_export")
        | dict.fromkeys((*UNKNOWN, HOLDER, HOLDER_OF_IT), NO_TOKEN),
    ),
    # A wrong secret: with the right one see the tests of sessions that nobody signed in for.
    ("POST", f"{SESSION}/claim"): (
        (JSON, {"claim_secret": "reattach_claim_wrong"}),
        row(NO_TOKEN, stranger=MISSING, viewer=MISSING, editor=MISSING, owner=MISSING)
        | {HOLDER: NO_TOKEN, HOLDER_OF_IT: NO_TOKEN},
    ),
    ("POST", f"{SESSION}/handoff"): ((JSON, {}), LINKS),
    # Whoever has the secret of a link needs nothing else, and nothing else helps.
    ("POST", "/api/v0/handoff"): (
        (JSON, {"secret": "reattach_handoff_wrong", "device": DEVICE}),
        dict.fromkeys(WHO, "404 handoff_over"),
    ),
    ("WS", "/ws/session/{session_id}"): (None, {}),  # frame by frame, below
}

INSPECTED = "/inspector/api/sessions/{session_id}"
# There is none of them unless there is to be an inspector, whose rule knows no users:
# tests/server/test_inspector.py.
INSPECTOR: dict[tuple[str, str], Body | None] = {
    ("GET", "/inspector"): None,
    ("GET", "/inspector/"): None,
    ("GET", "/inspector/favicon.svg"): None,
    ("GET", "/inspector/assets/{name}"): None,
    ("GET", "/inspector/api/me"): None,
    ("GET", "/inspector/api/nodes"): None,
    ("GET", "/inspector/api/sessions"): None,
    ("GET", INSPECTED): None,
    ("GET", f"{INSPECTED}/state"): None,
    ("GET", f"{INSPECTED}/timeline"): None,
    ("GET", f"{INSPECTED}/commits"): None,
    ("GET", f"{INSPECTED}/commits/{{version}}"): None,
    ("GET", f"{INSPECTED}/checkpoints"): None,
    ("GET", f"{INSPECTED}/conflicts"): None,
    ("GET", f"{INSPECTED}/refusals"): None,
    ("GET", f"{INSPECTED}/activity"): None,
    ("GET", f"{INSPECTED}/stands"): None,
    ("GET", f"{INSPECTED}/export"): None,
    ("POST", f"{INSPECTED}/restore"): (JSON, {"version": 0}),
    ("POST", f"{INSPECTED}/fork"): (JSON, {"version": 0}),
    ("POST", f"{INSPECTED}/checkpoints"): (JSON, {"name": "n"}),
}

WELCOMED = row("4401", stranger="4404", viewer="", editor="", owner="")
"""How a connection is closed at its hello; nothing: it is welcomed."""


def frames(viewer: str, editor: str, owner: str | None = None) -> dict[str, str]:
    """What those who are welcomed are told of a frame."""
    return {"viewer": viewer, "editor": editor} | dict.fromkeys(
        ("owner", HOLDER_OF_IT), owner or editor
    )


FRAMES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "hello": ({}, frames("initial_state viewer", "initial_state editor", "initial_state owner")),
    "change": (
        {"seq": 1, "base": 0, "at": 1, "ops": [{"op": "set", "path": "/n", "value": 1}]},
        frames("rejected forbidden", "state_update"),
    ),
    "heartbeat": ({"t": 7}, frames("heartbeat", "heartbeat")),
    "request_sync": ({"version": 0}, frames("resumed viewer", "resumed editor", "resumed owner")),
    "save_checkpoint": ({"ref": "r"}, frames("error forbidden", "checkpoint_saved")),
    # Told to the others.
    "presence": ({"data": {"at": 1}}, frames("", "")),
}


# The rows are all there is


def routes_of(router: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every route, wherever it was included, in the documentation or not."""
    for one in router.routes:
        inner = getattr(one, "original_router", None)
        if inner is not None:
            yield from routes_of(inner, prefix + one.include_context.prefix)
        elif isinstance(one, WebSocketRoute):
            yield "WS", prefix + one.path
        else:
            assert isinstance(one, Route), f"what does {one!r} serve?"
            for method in (one.methods or set()) - {"HEAD"}:
                yield method, prefix + one.path


def test_every_route_has_a_row(tmp_path: Path) -> None:
    reattach = Reattach(database=f"sqlite:///{tmp_path / 'none.db'}")
    found = list(routes_of(reattach.app.router))
    assert len(found) == len(set(found))
    assert set(found) == {*ROUTES, *INSPECTOR}, "say in ROUTES what each may do with it"


def test_every_frame_has_a_row() -> None:
    found = {msgspec.inspect.type_info(one).tag for one in typing.get_args(wire.Frame)}  # type: ignore[attr-defined]  # all are structs
    assert found == set(FRAMES), "say in FRAMES what each may do with it"


def test_every_row_is_about_everybody() -> None:
    for (method, _), (_, answers) in ROUTES.items():
        assert set(answers) == (set() if method == "WS" else set(WHO))
    welcomed = {who for who, code in WELCOMED.items() if not code}
    assert set(WELCOMED) == set(WHO)
    assert all(set(answers) == welcomed for _, answers in FRAMES.values())


# Who asks


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table") / "reattach.db"


@pytest.fixture
async def reattach(database: Path) -> AsyncIterator[Reattach]:
    settings = Settings(
        auth="jwt",
        anonymous=True,
        jwt_public_key=public_pem(KEY),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
    )
    assert settings.jwt_secret in {None, SecretStr("")}
    async with Reattach(database=f"sqlite:///{database}", settings=settings) as served:
        yield served


_numbers = itertools.count(1)


class Case:
    """A session with a member of each role, and somebody who asks for it."""

    def __init__(self, reattach: Reattach, who: str) -> None:
        self.reattach = reattach
        self.who = who
        self.name = f"case-{next(_numbers)}"
        self.owner = f"owner of {self.name}"
        self.token: str | None = None

    async def prepare(self) -> Case:
        sessions = self.reattach.sessions
        if self.who == HOLDER_OF_IT:
            begun = await sessions.begin({"n": 0}, session_id=self.name)
            self.token = begun.token
            self.owner = begun.record.user_id
        else:
            await sessions.create({"n": 0}, session_id=self.name, user_id=self.owner)
        registry = await self.reattach.running()
        for role in ("viewer", "editor"):
            await registry.members.put(self.name, self.user(role), role, by=self.owner)
        await registry.members.put(self.name, self.user("guest"), "viewer", by=self.owner)
        if self.who == HOLDER:
            self.token = (await sessions.begin({}, session_id=f"other-{self.name}")).token
        elif self.who in UNKNOWN:
            self.token = None if self.who == "no token" else BAD[self.who]
        elif self.who != HOLDER_OF_IT:
            self.token = signed(KEY, "RS256", sub=self.user(self.who))
        return self

    def user(self, role: str) -> str:
        return f"{role} of {self.name}"

    async def stands(self) -> Any:
        """What must be the same after all that was refused."""
        registry = await self.reattach.running()
        found = await registry.store.session(self.name)
        members = await registry.store.members(self.name)
        version = getattr(found, "version", None)
        return version, getattr(found, "is_active", None), list(members)

    def fill(self, template: str) -> str:
        user = self.user("guest") if "/members/" in template else self.owner
        for name, value in {
            "{session_id}": self.name,
            "{user_id:path}": user.replace(" ", "%20"),
            "{conflict_id}": "1.0",
            "{device_id}": "no-such",
        }.items():
            template = template.replace(name, value)
        return template


async def ask(
    app: Callable[..., Any], method: str, path: str, token: str | None, body: Body | None
) -> str:
    """The status and code of an answer; of a stream, of its beginning."""
    headers = [(b"host", b"127.0.0.1:8000")]
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    if body is not None:
        headers.append((b"content-type", body[0].encode()))
    content = b"" if body is None else json.dumps(body[1]).encode()
    came, status = bytearray(), 0
    enough = asyncio.Event()
    sent: list[Any] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if sent:
            return sent.pop()
        await enough.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        came.extend(message.get("body", b""))
        if came:
            enough.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.replace("%20", " "),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    async with asyncio.timeout(10):
        await app(scope, receive, send)
    code = json.loads(came).get("code", "") if status >= 400 else ""
    return f"{status} {code}".rstrip()


# Every route


@pytest.mark.parametrize("route", [one for one in ROUTES if one[0] != "WS"], ids=" ".join)
async def test_routes(reattach: Reattach, route: tuple[str, str]) -> None:
    """Rules A3, A8, A16, A21 and A32."""
    method, template = route
    body, answers = ROUTES[route]
    found, wanted = {}, {}
    for who, answer in answers.items():
        case = await Case(reattach, who).prepare()
        before = await case.stands()
        filled = None if body is None else (body[0], json.loads(case.fill(json.dumps(body[1]))))
        told = await ask(reattach, method, case.fill(template), case.token, filled)
        changed = await case.stands() != before
        found[who] = told + ("!" if changed else "")
        wanted[who] = answer
    assert found == wanted


async def test_there_is_no_inspector_unless_there_is_to_be_one(reattach: Reattach) -> None:
    """Not for the owner of the session either."""
    case = await Case(reattach, "owner").prepare()
    before = await case.stands()
    for (method, template), body in INSPECTOR.items():
        found = await ask(reattach, method, case.fill(template), case.token, body)
        assert found == "404 not_found", template
    assert await case.stands() == before


# Every frame


async def told(peer: Peer, frame: dict[str, Any], kind: str) -> str:
    """What a frame is answered: the first frame of a type that could be its answer."""
    answers = {
        "change": ("state_update", "rejected", "error"),
        "heartbeat": ("heartbeat", "error"),
        "request_sync": ("resumed", "initial_state", "error"),
        "save_checkpoint": ("checkpoint_saved", "error"),
    }
    await peer.send(type=kind, **frame)
    if kind == "presence":
        return ""
    answer = await peer.expect(*answers[kind])
    return f"{answer['type']} {answer.get('code') or answer.get('role') or ''}".rstrip()


@pytest.mark.parametrize("kind", FRAMES)
async def test_frames(reattach: Reattach, kind: str) -> None:
    """Rules A3, A8, A14, A16, A17 and A32. Whoever sends it, the owner's line is undisturbed."""
    frame, answers = FRAMES[kind]
    found: dict[str, str] = {}
    wanted = {who: WELCOMED[who] or answers[who] for who in WHO}
    async with uvicorn_of(reattach.app) as address:
        for who in WHO:
            case = await Case(reattach, who).prepare()
            mine = case.token if who == HOLDER_OF_IT else signed(KEY, "RS256", sub=case.owner)
            before = await case.stands()
            async with opened(f"ws://{address}", case.name, "owners") as owner:
                await owner.hello(token=mine)
                async with opened(f"ws://{address}", case.name, "asks") as peer:
                    await peer.greet(token=case.token)
                    if WELCOMED[who]:
                        if kind != "hello":
                            more = {"epoch": owner.epoch} | frame
                            await peer.send(type=kind, **more)
                        found[who] = str((await peer.closed())[0])
                        assert await case.stands() == before
                    else:
                        welcome = await peer.expect("initial_state")
                        more = frame
                        if kind in {"change", "request_sync"}:
                            more = {"epoch": welcome["epoch"]} | frame
                        if kind == "hello":
                            found[who] = f"initial_state {welcome['role']}"
                        else:
                            found[who] = await told(peer, more, kind)
                    if kind == "presence" and not WELCOMED[who]:
                        assert (await owner.expect("presence"))["data"] == {"at": 1}
                await owner.send(type="heartbeat", t=who)
                assert (await owner.expect("heartbeat"))["t"] == who
    assert found == wanted


@pytest.mark.parametrize("kind", [one for one in FRAMES if one != "hello"])
async def test_frames_before_a_hello(reattach: Reattach, kind: str) -> None:
    """Rule W2: whoever it would be, nothing is done for whom nobody knows."""
    case = await Case(reattach, "owner").prepare()
    before = await case.stands()
    async with (
        uvicorn_of(reattach.app) as address,
        opened(f"ws://{address}", case.name) as peer,
    ):
        await peer.send(type=kind, **({"epoch": "e"} | FRAMES[kind][0]))
        assert (await peer.closed())[0] == 4400
        assert await case.stands() == before
