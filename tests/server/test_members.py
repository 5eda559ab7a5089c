"""Members over HTTP, and that strangers cannot tell what is not theirs from what is not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from pydantic import Field

from reattach import SessionModel
from reattach.client import connect
from reattach.errors import ChangeRefused, StoreUnavailable
from reattach.runtime.access import Action, SessionAccess, User
from reattach.schema import WritableBy
from reattach.server import models
from reattach.server.app import Reattach
from tests.server.hosts import uvicorn_of
from tests.server.peer import opened
from tests.server.test_rest import (
    MERGE,
    PATCH,
    as_user,
    by_token,
    create,
    merge,
    problem,
    session_url,
)
from tests.support.full import first_node
from tests.support.waiting import until

MEMBERS = session_url("s", "/members")
DEVICE = {"id": "d-eve"}


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Reattach]:
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    async with Reattach(database=database, authenticate=by_token) as served:
        yield served


@pytest.fixture
async def ann(shared: Reattach) -> AsyncIterator[httpx.AsyncClient]:
    """The owner of s, in which nobody else is yet."""
    async with as_user(shared, "ann") as client:
        await create(client, {"n": 0})
        yield client


async def grant(api: httpx.AsyncClient, user_id: str, role: str) -> httpx.Response:
    return await api.put(f"{MEMBERS}/{user_id}", json={"role": role})


async def test_members_are_listed_granted_and_revoked(
    shared: Reattach, ann: httpx.AsyncClient
) -> None:
    # Rules T23, T24, T25 and T6
    for user_id, role in [("zoe", "editor"), ("bob", "viewer"), ("bob", "editor")]:
        answer = await grant(ann, user_id, role)
        assert answer.status_code == 200
        assert answer.json() == {"user_id": user_id, "role": role}
    page = await ann.get(MEMBERS)
    models.MemberPage.model_validate(page.json())
    assert [(one["user_id"], one["role"]) for one in page.json()["items"]] == [
        ("ann", "owner"),
        ("bob", "editor"),
        ("zoe", "editor"),
    ]
    async with as_user(shared, "bob") as bob:
        assert (await bob.get(MEMBERS)).json() == page.json()
        mine = (await bob.get("/api/v0/session")).json()["items"]
        assert [one["session_id"] for one in mine] == ["s"]
        assert (await merge(bob, {"n": 1})).status_code == 200
        assert (await ann.delete(f"{MEMBERS}/bob")).status_code == 204
        assert (await ann.delete(f"{MEMBERS}/bob")).status_code == 204
        problem(await bob.get(session_url()), 404, "session_not_found")
        assert (await bob.get("/api/v0/session")).json()["items"] == []
    history = (await ann.get(session_url("s", "/history"))).json()["items"]
    assert history[0]["by"]["user_id"] == "bob"
    activity = (await ann.get(session_url("s", "/activity"))).json()["items"]
    told = [(one["activity_type"], one["user_id"], one["data"]) for one in activity]
    assert told[0] == ("member_removed", "ann", {"user_id": "bob"})
    assert ("member_set", "ann", {"user_id": "bob", "role": "editor"}) in told


async def test_members_come_in_pages(ann: httpx.AsyncClient, shared: Reattach) -> None:
    # Rule T23
    registry = await shared.running()
    for number in range(104):
        await registry.members.put("s", f"user/{number:03}", "viewer", by="ann")
    first = (await ann.get(MEMBERS)).json()
    assert len(first["items"]) == 100
    rest = (await ann.get(MEMBERS, params={"next": first["next"]})).json()
    assert [one["user_id"] for one in rest["items"]] == [f"user/{n:03}" for n in range(99, 104)]
    assert rest["next"] is None
    assert (await ann.delete(f"{MEMBERS}/user%2F003")).status_code == 204


async def test_only_owners_say_who_is_a_member_and_anybody_may_leave(
    shared: Reattach, ann: httpx.AsyncClient
) -> None:
    # Rules T25 and A16
    await grant(ann, "bob", "editor")
    await grant(ann, "eve", "viewer")
    for name in ("bob", "eve"):
        async with as_user(shared, name) as api:
            problem(await grant(api, "zoe", "viewer"), 403, "forbidden")
            problem(await grant(api, name, "owner"), 403, "forbidden")
            problem(await api.delete(f"{MEMBERS}/ann"), 403, "forbidden")
            problem(await api.delete(session_url()), 403, "forbidden")
            assert (await api.delete(f"{MEMBERS}/{name}")).status_code == 204
            problem(await api.get(session_url()), 404, "session_not_found")
    problem(await ann.delete(f"{MEMBERS}/ann"), 409, "last_owner")
    problem(await grant(ann, "ann", "viewer"), 409, "last_owner")


async def test_what_is_no_role_and_no_user(ann: httpx.AsyncClient) -> None:
    # Rule T24
    bodies: list[Any] = [{}, {"role": "boss"}, {"role": None}, []]
    for body in bodies:
        answer = await ann.put(f"{MEMBERS}/bob", json=body)
        assert answer.status_code in {400, 422}, answer.text
    problem(await ann.put(f"{MEMBERS}/bob", content=b"role"), 415, "unsupported_media_type")
    problem(await grant(ann, "x" * 256, "viewer"), 400, "bad_id")


async def test_a_viewer_is_answered_403_wherever_it_would_write(
    shared: Reattach, ann: httpx.AsyncClient
) -> None:
    # Rule A16
    await grant(ann, "eve", "viewer")
    async with as_user(shared, "eve") as eve:
        assert (await eve.get(session_url())).json()["state"] == {"n": 0}
        problem(await merge(eve, {"n": 1}), 403, "forbidden")
        add = [{"op": "add", "path": "/n", "value": 1}]
        problem(
            await eve.patch(session_url(), content=json.dumps(add), headers=PATCH),
            403,
            "forbidden",
        )
        resolve = session_url("s", "/conflicts/1.0/resolve")
        problem(await eve.post(resolve, json={"keep": "lost"}), 403, "forbidden")
        # An outbox is decided change by change, like that of a socket.
        change = {"seq": 1, "epoch": "e", "base": 0, "at": 1, "ops": [{"op": "end"}]}
        body = {"client_id": "e", "device": DEVICE, "t": 1, "changes": [change]}
        answer = (await eve.post(session_url("s", "/changes"), json=body)).json()
        assert [one["code"] for one in answer["rejected"]] == ["forbidden"]
        assert answer["seq"] == 1
    found = (await ann.get(session_url())).json()
    assert (found["state"], found["version"], found["is_active"]) == ({"n": 0}, 0, True)


async def test_erasing_a_user_takes_them_out_of_the_sessions_of_others(
    shared: Reattach, ann: httpx.AsyncClient
) -> None:
    # Rule T10
    await grant(ann, "bob", "owner")
    async with as_user(shared, "bob") as bob:
        await create(bob, name="of-bob")
        assert (await bob.delete("/api/v0/users/bob")).status_code == 204
        assert (await bob.get("/api/v0/session")).json()["items"] == []
    members = (await ann.get(MEMBERS)).json()["items"]
    assert [one["user_id"] for one in members] == ["ann"]


async def test_a_change_whose_outcome_nobody_knows_is_taken_from_the_database(
    shared: Reattach, ann: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = await shared.running()
    append = registry.store.append

    async def lost(batch: Any) -> Any:
        monkeypatch.undo()
        await append(batch)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(registry.store, "append", lost)
    with first_node():
        problem(await grant(ann, "bob", "viewer"), 503, "unavailable")
    assert (await grant(ann, "bob", "viewer")).status_code == 200
    assert [one.user_id for one in await registry.store.members("s")] == ["bob"]
    async with as_user(shared, "bob") as bob:
        assert (await bob.get(session_url())).status_code == 200


class Review(SessionModel):
    title: str = ""
    verdict: Annotated[str, WritableBy("owner")] = "open"
    score: Annotated[int, WritableBy()] = 0
    seed: Annotated[str, WritableBy()] = Field(default_factory=lambda: uuid.uuid4().hex)


async def test_protected_fields_by_every_way_in(tmp_path: Path) -> None:
    # Rule A22
    database = f"sqlite:///{tmp_path / 'reviews.db'}"
    reviews = Reattach(database=database, authenticate=by_token, schemas=[Review])
    async with reviews, as_user(reviews, "ann") as ann, as_user(reviews, "bob") as bob:
        for state, path in [({"score": 1}, "/score"), ({"seed": "mine"}, "/seed")]:
            body = {"session_id": "s", "schema": "Review", "state": state}
            refused = problem(await ann.post("/api/v0/session", json=body), 403, "forbidden")
            assert refused["path"] == path
        body = {"session_id": "s", "schema": "Review", "state": {"verdict": "new", "score": 0}}
        assert (await ann.post("/api/v0/session", json=body)).status_code == 201
        await grant(ann, "bob", "editor")
        assert problem(await merge(bob, {"verdict": "x"}), 403, "forbidden")["path"] == "/verdict"
        change = {"seq": 1, "epoch": "e", "base": 0, "at": 1}
        ops = [{"op": "unset", "path": "/verdict"}]
        body = {"client_id": "b", "device": DEVICE, "t": 1, "changes": [{**change, "ops": ops}]}
        answer = (await bob.post(session_url("s", "/changes"), json=body)).json()
        (rejected,) = answer["rejected"]
        assert (rejected["code"], rejected["path"]) == ("forbidden", "/verdict")
        assert (await merge(ann, {"verdict": "done"})).status_code == 200
        assert (await merge(bob, {"title": "t", "verdict": "done"})).status_code == 200
        problem(await merge(ann, {"score": 1}), 403, "forbidden")
        await reviews.sessions.update("s", [{"op": "inc", "path": "/score", "by": 4}])
        state = (await bob.get(session_url())).json()["state"]
        assert (state["verdict"], state["title"], state["score"]) == ("done", "t", 4)


class Scored(SessionModel):
    verdict: str = ""
    score: Annotated[int, WritableBy()] = 0


async def test_no_version_of_an_imported_history_has_what_its_owner_may_not_write(
    tmp_path: Path,
) -> None:
    # Rules A22, X11: an earlier version could be forked, or restored
    database = f"sqlite:///{tmp_path / 'scores.db'}"
    reviews = Reattach(database=database, authenticate=by_token, schemas=[Scored])
    async with reviews, as_user(reviews, "ann") as ann:
        body = {"session_id": "s", "schema": "Scored", "state": {"verdict": "new"}}
        assert (await ann.post("/api/v0/session", json=body)).status_code == 201
        for verdict in ("good", "bad"):
            assert (await merge(ann, {"verdict": verdict})).status_code == 200
        file = (await ann.get(session_url("s", "/export"))).json()
        file["session"]["session_id"] = "honest"
        answer = await ann.post("/api/v0/session/import", json=file)
        assert answer.status_code == 201
        file["session"]["session_id"] = "forged"
        (first,) = [one["body"] for one in file["commits"] if one["version"] == 1]
        (last,) = [one["body"] for one in file["commits"] if one["version"] == 2]
        before = file["state"]["state"]["score"]
        first["patch"].append({"op": "replace", "path": "/score", "value": 9})
        last["patch"].append({"op": "replace", "path": "/score", "value": before})
        answer = await ann.post("/api/v0/session/import", json=file)
        assert problem(answer, 403, "forbidden")["path"] == "/score"


async def test_a_hello_creates_with_defaults_of_what_it_may_not_write(tmp_path: Path) -> None:
    # Rule A22
    database = f"sqlite:///{tmp_path / 'reviews.db'}"
    reviews = Reattach(database=database, schemas=[Review])
    async with reviews, uvicorn_of(reviews.app) as address:
        async with opened(f"ws://{address}", "s") as peer:
            await peer.greet(create={"schema": "Review", "state": {"score": 1}})
            assert (await peer.expect("error"))["code"] == "forbidden"
        async with opened(f"ws://{address}", "s") as peer:
            welcome = await peer.hello(create={"schema": "Review", "state": {"verdict": "new"}})
            assert welcome["state"]["verdict"] == "new"


async def test_the_python_client_goes_on_with_another_role(
    shared: Reattach, ann: httpx.AsyncClient
) -> None:
    # Rules A14, A15 and A16
    await grant(ann, "bob", "viewer")
    async with uvicorn_of(shared.app) as address:
        url = f"http://{address}"
        async with connect(url, "s", token="token-bob") as session:
            with pytest.raises(ChangeRefused) as refused:
                await session.set("/n", 1)
            assert refused.value.code == "forbidden"
            assert [one.code for one in session.rejected] == ["forbidden"]
            assert session.state == {"n": 0}
            await grant(ann, "bob", "editor")
            await session.set("/n", 2)
            # Written while nobody has told the client yet that it may no more.
            change = session.set("/n", 3)
            await grant(ann, "bob", "viewer")
            with contextlib.suppress(ChangeRefused):
                await change
            with pytest.raises(ChangeRefused):
                await session.set("/n", 4)
            state = (await ann.get(session_url())).json()["state"]
            assert session.state == state
            await ann.delete(f"{MEMBERS}/bob")
            await until(
                lambda: (
                    session.status.error is not None
                    and session.status.error[0] == "session_not_found"
                ),
                within=10,
                what="the client to be told",
            )


# Strangers


async def asked_by_a_stranger(api: httpx.AsyncClient, name: str) -> list[tuple[int, Any, bytes]]:
    """What every route over a session answers."""
    change = {"client_id": "e", "device": DEVICE, "t": 1, "changes": []}
    sent: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "", {}),
        ("GET", "?version=0", {}),
        ("PATCH", "", {"content": b'{"n":1}', "headers": MERGE | {"If-Match": '"x"'}}),
        ("PATCH", "", {"content": b"[]", "headers": PATCH | {"Idempotency-Key": "k"}}),
        ("DELETE", "", {}),
        ("POST", "/changes", {"json": change}),
        ("GET", "/events", {}),
        ("GET", "/events", {"headers": {"Reattach-Client": "a", "Reattach-Device": "d"}}),
        ("GET", "/history", {}),
        ("GET", "/conflicts", {}),
        ("POST", "/conflicts/1.0/resolve", {"json": {"keep": "lost"}}),
        ("GET", "/devices", {}),
        ("GET", "/activity", {}),
        ("GET", "/members", {}),
        ("PUT", "/members/eve", {"json": {"role": "owner"}}),
        ("DELETE", "/members/eve", {}),
        ("DELETE", "/members/ann", {}),
    ]
    answers = []
    for method, rest, options in sent:
        answer = await api.request(method, session_url(name, rest), **options)
        answers.append((answer.status_code, sorted(answer.headers.items()), answer.content))
    beat = {"session_id": name, "device": DEVICE}
    answer = await api.post("/api/v0/session/heartbeat", json=beat)
    return [*answers, (answer.status_code, sorted(answer.headers.items()), answer.content)]


async def test_not_yours_and_not_there_are_answered_alike(
    shared: Reattach, ann: httpx.AsyncClient
) -> None:
    # Rules A3 and A21
    await create(ann, name="t")
    await create(ann, name="g")
    assert (await ann.delete(session_url("g"))).status_code == 204
    registry = await shared.running()
    registry.hosts.pop("t", None)
    async with as_user(shared, "eve") as eve:
        missing = await asked_by_a_stranger(eve, "x")
        assert {status for status, _, _ in missing} == {404}
        await registry.open("s")
        for name in ("s", "t", "g"):
            assert await asked_by_a_stranger(eve, name) == missing
    assert "t" not in registry.hosts


async def test_not_yours_and_not_there_are_closed_alike(shared: Reattach) -> None:
    # Rules A3 and A21, over WebSocket
    async with uvicorn_of(shared.app) as address:
        url = f"ws://{address}"
        async with opened(url, "s") as owner:
            await owner.hello(token="token-ann", create={})
            found = []
            for name in ("s", "missing"):
                async with opened(url, name) as stranger:
                    await stranger.greet(token="token-eve")
                    found.append(await stranger.closed())
            assert found == [(4404, "there is no such session")] * 2


def classified(one: Sequence[int], other: Sequence[int]) -> float:
    """The area under the curve of a threshold classifier: 0.5 says that it only guesses."""
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    wins = ties = below = 0
    at = 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        zeros = sum(1 for _, kind in ranked[at:end] if kind == 0)
        ones = end - at - zeros
        wins += ones * below
        ties += ones * zeros
        below += zeros
        at = end
    return (wins + ties / 2) / (len(one) * len(other))


def test_the_classifier_tells_what_can_be_told() -> None:
    assert classified([1, 2, 3], [4, 5, 6]) == 1
    assert classified([4, 5, 6], [1, 2, 3]) == 0
    assert classified([1, 2, 3, 3], [1, 2, 3, 3]) == 0.5
    rng = random.Random(7)
    noisy = [[rng.randrange(1_000) + late for _ in range(2_000)] for late in (0, 100)]
    assert classified(*noisy) > 0.55


async def timed(reattach: Reattach, name: str) -> int:
    """How long a stranger waits for a session, ns: the application alone, without a network."""
    body = bytearray()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": session_url(name),
        "raw_path": session_url(name).encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"authorization", b"Bearer token-eve")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        body.extend(message.get("body", b""))

    began = time.perf_counter_ns()
    await reattach(scope, receive, send)
    took = time.perf_counter_ns() - began
    assert b"session_not_found" in body
    return took


@pytest.mark.parametrize("is_open", [True, False], ids=["open-here", "on-disk"])
async def test_not_yours_and_not_there_take_the_same_time(
    shared: Reattach, ann: httpx.AsyncClient, is_open: bool
) -> None:
    # Rule A21. The session is a large one: loading it would show.
    registry = await shared.running()
    await create(ann, {"text": "x" * 1_000_000}, name="big0")
    await grant(ann, "bob", "editor")
    if is_open:
        await registry.open("big0")
    for name in ("big0", "none"):
        for _ in range(100):
            await timed(shared, name)

    async def measure() -> float:
        order = ["big0", "none"] * 2_000
        random.Random(time.time_ns()).shuffle(order)
        found: dict[str, list[int]] = {"big0": [], "none": []}
        for name in order:
            found[name].append(await timed(shared, name))
            await asyncio.sleep(0)
        return classified(found["none"], found["big0"])

    measured = [await measure()]
    if not 0.45 <= measured[0] <= 0.55:
        measured.append(await measure())  # one rerun: others use the machine, too
    assert 0.45 <= measured[-1] <= 0.55, measured
    assert ("big0" in registry.hosts) is is_open


async def test_an_editor_joins_by_socket(shared: Reattach, ann: httpx.AsyncClient) -> None:
    # Rules A14 and A15, over a real connection
    await grant(ann, "bob", "viewer")
    async with uvicorn_of(shared.app) as address, opened(f"ws://{address}", "s") as bob:
        await bob.hello(token="token-bob")
        assert (await grant(ann, "bob", "editor")).status_code == 200
        assert (await bob.expect("resumed"))["role"] == "editor"
        await ann.delete(f"{MEMBERS}/bob")
        assert (await bob.closed())[0] == 4404


# All of a user


async def test_whoever_authorize_lets_erases_all_of_a_user(tmp_path: Path) -> None:
    # Rules T10, A37
    asked: list[tuple[str, str, str]] = []

    def authorize(user: User, session: SessionAccess, action: Action) -> bool | None:
        if action is Action.ERASE and user.id in {"admin", "bob"}:
            asked.append((user.id, session.session_id, session.user_id))
            return user.id == "admin"
        return None

    database = f"sqlite:///{tmp_path / 'shared.db'}"
    async with (
        Reattach(database=database, authenticate=by_token, authorize=authorize) as shared,
        as_user(shared, "ann") as ann,
        as_user(shared, "bob") as bob,
        as_user(shared, "admin") as admin,
    ):
        await create(ann, {"n": 0})
        await create(bob, {"n": 1}, name="b")
        members = session_url("b", "/members")
        assert (await bob.put(f"{members}/ann", json={"role": "editor"})).status_code == 200
        device = {"id": "d-ann", "name": "Ann's phone", "info": {"kind": "phone"}}
        sign = {"session_id": "b", "device": device}
        assert (await ann.post(session_url("heartbeat"), json=sign)).status_code == 204

        async def known() -> bool:
            items = (await bob.get(session_url("b", "/devices"))).json()["items"]
            return any(one["name"] == "Ann's phone" for one in items)

        await until(known, within=10, what="her device to be known")
        problem(await bob.delete("/api/v0/users/ann"), 403, "forbidden")
        assert asked == [("bob", "", "ann")]
        assert (await ann.get(session_url())).status_code == 200
        for _ in range(2):
            assert (await admin.delete("/api/v0/users/ann")).status_code == 204
        assert (await ann.get(session_url())).status_code == 410
        assert (await ann.get(session_url("b"))).status_code == 404
        assert (await bob.get(session_url("b"))).json()["state"] == {"n": 1}
        items = (await bob.get(session_url("b", "/devices"))).json()["items"]
        (left,) = [one for one in items if one["id"] == "d-ann"]
        assert (left["name"], left["info"]) == (None, {})
        (line,) = [
            one
            for one in (await bob.get(session_url("b", "/activity"))).json()["items"]
            if one["activity_type"] == "member_removed"
        ]
        assert (line["user_id"], line["data"]) == ("admin", {"user_id": "ann"})
