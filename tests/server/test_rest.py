"""The HTTP routes, over the real application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from starlette.requests import HTTPConnection

from reattach.core.effects import Request as Proposed
from reattach.errors import Forbidden, NotAuthenticated, StoreUnavailable
from reattach.runtime.access import User
from reattach.server import models
from reattach.server.app import Reattach
from reattach.settings import Settings
from reattach.store.base import CommitRecord
from reattach.wire import HelloDevice
from tests.conftest import BehindFile
from tests.support.database import locked
from tests.support.full import first_node
from tests.support.waiting import until

Json = dict[str, Any]

HERE = "http://127.0.0.1:8000"
MERGE = {"Content-Type": "application/merge-patch+json"}
PATCH = {"Content-Type": "application/json-patch+json"}


def by_token(connection: HTTPConnection) -> User:
    token: str | None = connection.state.token
    if token is None or not token.startswith("token-"):
        raise NotAuthenticated("expected a token, such as token-ann")
    return User(token.removeprefix("token-"))


def client_of(reattach: Reattach, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=reattach)
    return httpx.AsyncClient(transport=transport, base_url=HERE, trust_env=False, **options)


def as_user(reattach: Reattach, name: str) -> httpx.AsyncClient:
    return client_of(reattach, headers={"Authorization": f"Bearer token-{name}"})


@pytest.fixture
async def reattach(tmp_path: Path) -> AsyncIterator[Reattach]:
    async with Reattach(database=f"sqlite:///{tmp_path / 'reattach.db'}") as served:
        yield served


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Reattach]:
    """A server with users: Bearer token-ann is ann."""
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    async with Reattach(database=database, authenticate=by_token) as served:
        yield served


@pytest.fixture
async def api(reattach: Reattach) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(reattach) as client:
        yield client


def session_url(name: str = "s", rest: str = "") -> str:
    return f"/api/v0/session/{name}{rest}"


async def create(api: httpx.AsyncClient, state: Json | None = None, name: str = "s") -> Json:
    answer = await api.post("/api/v0/session", json={"session_id": name, "state": state or {}})
    assert answer.status_code == 201, answer.text
    session: Json = answer.json()
    return session


async def merge(api: httpx.AsyncClient, patch: Any, **headers: str) -> httpx.Response:
    return await api.patch(session_url(), content=json.dumps(patch), headers=MERGE | headers)


def problem(answer: httpx.Response, status: int, code: str) -> Json:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: Json = answer.json()
    models.Problem.model_validate(found)
    assert found["status"] == status
    assert found["detail"]
    return found


# Creating, reading, listing


async def test_a_session_is_created_with_what_was_sent(api: httpx.AsyncClient) -> None:
    # Rules T4, T5 and ID2
    body = {
        "session_id": "s",
        "state": {"a": 1.5, "b": None},
        "schema": "gaps",
        "device_info": {"id": "d1", "name": "Ann's phone", "os": "x"},
    }
    answer = await api.post("/api/v0/session", json=body)
    assert answer.status_code == 201
    created = answer.json()
    models.SessionAnswer.model_validate(created)
    assert created["state"] == body["state"]
    assert created["schema"] == {"name": "gaps", "version": None}
    assert (created["version"], created["user_id"], created["is_active"]) == (0, "local", True)
    assert answer.headers["etag"] == f'"{created["epoch"]}.0"'
    found = await api.get(answer.url.join(answer.headers["location"]).path)
    assert found.json() == created
    devices = (await api.get(session_url(rest="/devices"))).json()
    models.DevicePage.model_validate(devices)
    assert [(one["id"], one["name"], one["is_primary"]) for one in devices["items"]] == [
        ("d1", "Ann's phone", True)
    ]


async def test_an_id_is_random_unless_it_is_given_and_taken_once(api: httpx.AsyncClient) -> None:
    one, other = [(await api.post("/api/v0/session", json={})).json() for _ in range(2)]
    assert len(one["session_id"]) == 36
    assert one["session_id"] != other["session_id"]
    again = await api.post("/api/v0/session", json={"session_id": one["session_id"]})
    problem(again, 409, "already_exists")


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 129, "a/b", "heartbeat", "import", "a\n"])
async def test_what_is_no_session_id_is_refused(api: httpx.AsyncClient, name: str) -> None:
    # Rule ID1
    found = problem(await api.post("/api/v0/session", json={"session_id": name}), 400, "bad_body")
    assert found["path"] == "/session_id"


@pytest.mark.parametrize("name", ["a%20b", "heartbeat", "import", "x" * 129])
async def test_what_is_no_session_id_is_refused_in_a_path(
    api: httpx.AsyncClient, name: str
) -> None:
    problem(await api.get(session_url(name)), 400, "bad_id")


async def test_sessions_are_listed_newest_activity_first_in_pages(api: httpx.AsyncClient) -> None:
    # Rules T2 and T6
    for number in range(103):
        await create(api, name=f"s{number}")
    await api.patch(session_url("s0"), content="{}", headers=MERGE)
    first = (await api.get("/api/v0/session")).json()
    models.SessionPage.model_validate(first)
    assert len(first["items"]) == 100
    assert first["items"][0]["session_id"] == "s0"
    rest = (await api.get("/api/v0/session", params={"next": first["next"]})).json()
    assert rest["next"] is None
    names = {item["session_id"] for item in first["items"] + rest["items"]}
    assert len(rest["items"]) == 3
    assert len(names) == 103
    problem(await api.get("/api/v0/session?next=nonsense"), 400, "bad_request")


async def test_a_known_version_is_not_sent_again(api: httpx.AsyncClient) -> None:
    await create(api)
    etag = (await api.get(session_url())).headers["etag"]
    same = await api.get(session_url(), headers={"If-None-Match": f'"x", W/{etag}'})
    assert (same.status_code, same.content) == (304, b"")
    await merge(api, {"a": 1})
    assert (await api.get(session_url(), headers={"If-None-Match": etag})).status_code == 200


async def test_the_past_can_be_read(api: httpx.AsyncClient) -> None:
    # Rule T7
    await create(api, {"n": 0, "gone": 1})
    for number in range(1, 4):
        await merge(api, {"n": number, "gone": None})
    for number in range(4):
        then = (await api.get(session_url(), params={"version": number})).json()
        models.SessionAnswer.model_validate(then)
        assert (then["version"], then["state"]["n"]) == (number, number)
        assert ("gone" in then["state"]) == (number == 0)
    problem(await api.get(session_url(), params={"version": 4}), 410, "version_gone")
    problem(await api.get(session_url(), params={"version": -1}), 400, "bad_query")


# PATCH


async def test_a_patch_answers_the_session(api: httpx.AsyncClient) -> None:
    await create(api, {"a": {"b": 1}})
    answer = await merge(api, {"a": {"c": 2}})
    assert answer.status_code == 200
    assert answer.json() == (await api.get(session_url())).json()
    assert answer.json()["state"] == {"a": {"b": 1, "c": 2}}
    operations = [{"op": "replace", "path": "/a/b", "value": [1]}]
    answer = await api.patch(session_url(), content=json.dumps(operations), headers=PATCH)
    assert (answer.json()["version"], answer.json()["state"]["a"]["b"]) == (2, [1])


async def test_if_match_holds_a_patch_to_its_version(api: httpx.AsyncClient) -> None:
    # Rule T8
    await create(api)
    etag = (await api.get(session_url())).headers["etag"]
    first = await merge(api, {"a": 1}, **{"If-Match": f'"x", {etag}'})
    assert first.status_code == 200
    stale = await merge(api, {"a": 2}, **{"If-Match": etag})
    problem(stale, 412, "precondition_failed")
    assert (await merge(api, {"a": 3}, **{"If-Match": "*"})).json()["version"] == 2
    weak = f"W/{(await api.get(session_url())).headers['etag']}"
    problem(await merge(api, {"a": 4}, **{"If-Match": weak}), 412, "precondition_failed")


async def test_of_two_patches_of_one_version_one_takes_effect(api: httpx.AsyncClient) -> None:
    await create(api)
    etag = (await api.get(session_url())).headers["etag"]
    answers = await asyncio.gather(*(merge(api, {"a": n}, **{"If-Match": etag}) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
    assert (await api.get(session_url())).json()["version"] == 1


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("merge", "[1]", 400, "bad_patch"),
        ("merge", "{", 400, "bad_json"),
        ("merge", "", 400, "bad_json"),
        ("merge", b'{"a": "\xff"}', 400, "bad_json"),
        ("merge", '{"a": NaN}', 400, "bad_json"),
        ("merge", '{"a": 9007199254740993}', 422, "bad_number"),
        ("merge", '{"a": 1e999}', 422, "bad_number"),
        ("merge", '{"a": 123456789012345678901234567890123}', 422, "bad_number"),
        ("merge", '{"a": "\\ud800"}', 422, "bad_string"),
        ("merge", '{"\\udfff": 1}', 422, "bad_string"),
        ("merge", '{"a":' * 70 + "1" + "}" * 70, 422, "too_deep"),
        ("merge", '{"a":' + "[" * 200_000 + "]" * 200_000 + "}", 400, "too_deep"),
        ("patch", '{"op": "add"}', 400, "bad_patch"),
        ("patch", "[7]", 400, "bad_patch"),
        ("patch", '[{"op": "spam", "path": "/a"}]', 400, "bad_op"),
        ("patch", '[{"op": "add", "path": "/a"}]', 400, "bad_patch"),
        ("patch", '[{"op": "add", "path": "a", "value": 1}]', 422, "bad_path"),
        ("patch", '[{"op": "add", "path": "/~2", "value": 1}]', 422, "bad_path"),
        ("patch", '[{"op": "add", "path": "/x/y", "value": 1}]', 422, "bad_path"),
        ("patch", '[{"op": "remove", "path": "/x"}]', 422, "bad_path"),
        ("patch", '[{"op": "remove", "path": ""}]', 422, "bad_path"),
        ("patch", '[{"op": "replace", "path": "", "value": []}]', 422, "bad_value"),
        ("patch", '[{"op": "add", "path": "/l/01", "value": 1}]', 422, "bad_path"),
        ("patch", '[{"op": "add", "path": "/l/9", "value": 1}]', 422, "bad_path"),
        ("patch", '[{"op": "add", "path": "/\\ud800", "value": 1}]', 422, "bad_string"),
        ("patch", '[{"op": "test", "path": "/n", "value": true}]', 409, "test_failed"),
        ("patch", json.dumps([{"op": "test", "path": "", "value": 0}] * 501), 413, None),
    ],
)
async def test_a_malformed_patch_is_a_problem_and_changes_nothing(
    api: httpx.AsyncClient, kind: str, body: str | bytes, status: int, code: str | None
) -> None:
    state = {"n": 1, "l": [1, 2]}
    await create(api, state)
    headers = MERGE if kind == "merge" else PATCH
    problem(
        await api.patch(session_url(), content=body, headers=headers),
        status,
        code or "too_many_operations",
    )
    found = (await api.get(session_url())).json()
    assert (found["version"], found["state"]) == (0, state)


async def test_copies_that_would_fill_the_memory_are_stopped(api: httpx.AsyncClient) -> None:
    await create(api, {"a": "x" * 100_000})
    bomb = [{"op": "copy", "from": "", "path": f"/{number}"} for number in range(60)]
    problem(
        await api.patch(session_url(), content=json.dumps(bomb), headers=PATCH),
        413,
        "state_too_large",
    )
    assert (await api.get(session_url())).json()["version"] == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v0/session"),
        ("PATCH", "/api/v0/session/s"),
        ("POST", "/api/v0/session/s/changes"),
        ("POST", "/api/v0/session/heartbeat"),
    ],
)
@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
async def test_writes_need_a_json_content_type(
    api: httpx.AsyncClient, method: str, path: str, kind: str
) -> None:
    # Rule T19
    await create(api)
    answer = await api.request(method, path, content="{}", headers={"Content-Type": kind})
    problem(answer, 415, "unsupported_media_type")
    assert "json" in answer.headers["accept-patch" if method == "PATCH" else "accept"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("[]", ""),
        ('{"state": []}', "/state"),
        ('{"state": 1}', "/state"),
        ('{"schema": 1}', "/schema"),
        ('{"session_id": 1}', "/session_id"),
        ('{"device_info": {"id": "a b"}}', "/device_info/id"),
    ],
)
async def test_a_body_that_is_not_as_expected_says_where(
    api: httpx.AsyncClient, body: str, path: str
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.post("/api/v0/session", content=body, headers=headers)
    assert problem(answer, 400, "bad_body")["path"] == path


async def test_bodies_and_states_are_bounded(tmp_path: Path) -> None:
    settings = Settings(max_frame_bytes=2000, max_state_bytes=3000)
    database = f"sqlite:///{tmp_path / 'small.db'}"
    async with Reattach(database=database, settings=settings) as small, client_of(small) as api:
        await create(api, {"a": "x" * 2900})
        large = {"state": {"a": "x" * 3000}}
        problem(await api.post("/api/v0/session", json=large), 413, "too_large")
        problem(await merge(api, {"b": "x" * 2000}), 413, "too_large")
        problem(await merge(api, {"b": "x" * 200}), 413, "state_too_large")

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b" " * 1000

        answer = await api.patch(session_url(), content=endless(), headers=MERGE)
        problem(answer, 413, "too_large")
        assert (await api.get(session_url())).json()["version"] == 0


# Once


async def test_a_repeated_patch_is_answered_as_the_first(api: httpx.AsyncClient) -> None:
    # Rule T3
    await create(api, {"l": []})
    add = json.dumps([{"op": "add", "path": "/l/-", "value": 1}])
    headers = PATCH | {"Idempotency-Key": "k1"}
    first = await api.patch(session_url(), content=add, headers=headers)
    assert "idempotency-replayed" not in first.headers
    await merge(api, {"later": True})
    again = await api.patch(session_url(), content=add, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["etag"] == first.headers["etag"]
    other = await api.patch(session_url(), content=f" {add}", headers=headers)
    problem(other, 422, "idempotency_key_reused")
    assert (await api.get(session_url())).json()["state"] == {"l": [1], "later": True}


async def test_a_repeated_creation_is_answered_as_the_first(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    body = {"state": {"a": 1}}
    answers = await asyncio.gather(
        *(api.post("/api/v0/session", json=body, headers=headers) for _ in range(5))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len((await api.get("/api/v0/session")).json()["items"]) == 1
    other = await api.post("/api/v0/session", json={}, headers=headers)
    problem(other, 422, "idempotency_key_reused")
    bad = await api.post("/api/v0/session", json={}, headers={"Idempotency-Key": "a b"})
    problem(bad, 400, "bad_header")


async def test_one_key_sent_many_times_at_once_takes_effect_once(api: httpx.AsyncClient) -> None:
    await create(api, {"l": []})
    add = json.dumps([{"op": "add", "path": "/l/-", "value": 1}])
    headers = PATCH | {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(
        *(api.patch(session_url(), content=add, headers=headers) for _ in range(10)),
        merge(api, {"other": 1}),
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers[:-1]}) == 1
    assert (await api.get(session_url())).json()["state"] == {"l": [1], "other": 1}


async def test_a_refused_patch_leaves_its_key_free(api: httpx.AsyncClient) -> None:
    await create(api)
    test = json.dumps([{"op": "test", "path": "/a", "value": 1}])
    headers = PATCH | {"Idempotency-Key": "k1"}
    assert (await api.patch(session_url(), content=test, headers=headers)).status_code == 422
    await merge(api, {"a": 1})
    assert (await api.patch(session_url(), content=test, headers=headers)).status_code == 200


async def test_a_key_is_one_users(shared: Reattach) -> None:
    headers = {"Idempotency-Key": "k1"}
    async with as_user(shared, "ann") as ann, as_user(shared, "bob") as bob:
        one = await ann.post("/api/v0/session", json={}, headers=headers)
        other = await bob.post("/api/v0/session", json={}, headers=headers)
        assert one.json()["session_id"] != other.json()["session_id"]


# The outbox over HTTP


class Outbox:
    """A client that sends its changes by POST."""

    def __init__(self, api: httpx.AsyncClient, epoch: str, client_id: str = "c") -> None:
        self.api = api
        self.epoch = epoch
        self.client_id = client_id
        self.device_id = f"device-of-{client_id}"

    def change(self, seq: int, *ops: Json, at: int | None = None, base: int = 0) -> Json:
        at = 1000 + seq if at is None else at
        return {"seq": seq, "epoch": self.epoch, "base": base, "at": at, "ops": list(ops)}

    async def send(self, *changes: Any, t: int = 2000) -> httpx.Response:
        body = {
            "client_id": self.client_id,
            "device": {"id": self.device_id, "name": "a worker"},
            "t": t,
            "changes": list(changes),
        }
        return await self.api.post(session_url(rest="/changes"), json=body)


def put(path: str, value: Any) -> Json:
    return {"op": "set", "path": path, "value": value}


@pytest.fixture
async def outbox(api: httpx.AsyncClient) -> Outbox:
    return Outbox(api, (await create(api, {"n": 0}))["epoch"])


async def test_changes_are_committed_as_their_devices(outbox: Outbox) -> None:
    inc = {"op": "inc", "path": "/n", "by": 1}
    answer = await outbox.send(outbox.change(1, inc), outbox.change(2, inc))
    assert answer.status_code == 200
    models.ChangesAnswer.model_validate(answer.json())
    assert answer.json() == {"seq": 2, "version": 2, "rejected": []}
    history = (await outbox.api.get(session_url(rest="/history"))).json()
    models.CommitPage.model_validate(history)
    assert [one["by"] for one in history["items"]] == [
        {
            "client_id": "c",
            "seq": seq,
            "device_id": "device-of-c",
            "user_id": "local",
            "source": "device",
        }
        for seq in (1, 2)
    ]
    devices = (await outbox.api.get(session_url(rest="/devices"))).json()["items"]
    assert [(one["id"], one["online"]) for one in devices] == [("device-of-c", False)]


async def test_decided_changes_take_no_effect_again(outbox: Outbox) -> None:
    inc = outbox.change(1, {"op": "inc", "path": "/n", "by": 1})
    bad = outbox.change(2, {"op": "set", "path": "/x/y", "value": 1})
    answers = [await outbox.send(inc, bad) for _ in range(3)]
    assert len({answer.content for answer in answers}) == 1
    found = answers[0].json()
    assert (found["seq"], found["version"]) == (2, 1)
    assert [(one["seq"], one["code"]) for one in found["rejected"]] == [(2, "bad_path")]
    assert (await outbox.api.get(session_url())).json()["state"] == {"n": 1}


async def test_changes_apply_up_to_a_gap(outbox: Outbox) -> None:
    # Rule T11
    changes = [outbox.change(seq, put(f"/k{seq}", seq)) for seq in (1, 2, 4, 3)]
    found = problem(await outbox.send(*changes), 409, "sequence_gap")
    assert found["expected"] == 3
    state = (await outbox.api.get(session_url())).json()["state"]
    assert state == {"n": 0, "k1": 1, "k2": 2}
    assert (await outbox.send(*changes[:2], changes[3], changes[2])).json()["seq"] == 4


async def test_a_number_with_another_time_is_another_change(outbox: Outbox) -> None:
    bad = put("/x/y", 1)
    await outbox.send(outbox.change(1, put("/a", 1)), outbox.change(2, bad), outbox.change(3))
    for seq in (1, 2, 3):
        answer = await outbox.send(outbox.change(seq, put("/a", 2), at=77))
        problem(answer, 409, "seq_reused")


async def test_a_clients_clock_is_corrected_and_never_ahead(outbox: Outbox) -> None:
    before = (await outbox.api.get(session_url())).json()["created_at"]
    await outbox.send(outbox.change(1, at=1000), outbox.change(2, at=9_000_000), t=2000)
    history = (await outbox.api.get(session_url(rest="/history"))).json()["items"]
    assert before - 1100 < history[0]["at"] < before
    assert before <= history[1]["at"] < before + 30_000
    # Rule B5: by the time as it was sent, a client knows its changes again.
    assert [one["client_at"] for one in history] == [1000, 9_000_000]


async def test_unsound_operations_use_up_their_number(outbox: Outbox) -> None:
    unsound: list[Any] = [[{"path": "/a"}], ["set"], None, {"op": "set"}, 5]
    changes = [outbox.change(seq) | {"ops": ops} for seq, ops in enumerate(unsound, 1)]
    last = outbox.change(6, put("/a", 1))
    found = (await outbox.send(*changes, last)).json()
    assert [one["code"] for one in found["rejected"]] == ["bad_op"] * 5
    assert (found["seq"], found["version"]) == (6, 1)


async def test_values_that_cannot_be_kept_are_refused_durably(outbox: Outbox) -> None:
    def raw(seq: int, value: str) -> str:
        return json.dumps(outbox.change(seq, put("/a", "@"))).replace('"@"', value)

    values = ['"\\ud800"', "9007199254740993", "1e999", "[" * 70 + "]" * 70, "1"]
    changes = ",".join(raw(seq, value) for seq, value in enumerate(values, 1))
    body = f'{{"client_id":"c","device":{{"id":"d"}},"t":1,"changes":[{changes}]}}'
    answer = await outbox.api.post(
        session_url(rest="/changes"), content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    codes = [one["code"] for one in answer.json()["rejected"]]
    assert codes == ["bad_string", "bad_number", "bad_number", "too_deep"]
    assert (await outbox.api.get(session_url())).json()["state"]["a"] == 1


async def test_changes_over_their_limits_are_refused(tmp_path: Path) -> None:
    # Rule L5
    settings = Settings(max_change_bytes=500, max_change_operations=3, max_in_flight_changes=2)
    database = f"sqlite:///{tmp_path / 'small.db'}"
    async with Reattach(database=database, settings=settings) as small, client_of(small) as api:
        outbox = Outbox(api, (await create(api))["epoch"])
        answer = await outbox.send(
            outbox.change(1, put("/a", "x" * 500)),
            outbox.change(2, *[put("/a", 1)] * 4),
            *(outbox.change(seq, put("/a", seq)) for seq in range(3, 12)),
        )
        found = answer.json()
        codes = [one["code"] for one in found["rejected"]]
        assert codes == ["change_too_large", "too_many_operations"]
        assert (found["seq"], found["version"]) == (11, 9)


@pytest.mark.parametrize(
    ("damage", "path"),
    [
        ({"client_id": "a b"}, "/client_id"),
        ({"device": "d"}, "/device"),
        ({"device": {"id": ""}}, "/device/id"),
        ({"t": "now"}, "/t"),
        ({"t": -1}, "/t"),
        ({"changes": {}}, "/changes"),
        ({"changes": [7]}, "/changes/0"),
        ({"changes": [{"ops": []}]}, "/changes/0"),
    ],
)
async def test_an_unsound_post_of_changes_says_where(
    outbox: Outbox, damage: Json, path: str
) -> None:
    body = {"client_id": "c", "device": {"id": "d"}, "t": 1, "changes": []} | damage
    answer = await outbox.api.post(session_url(rest="/changes"), json=body)
    assert problem(answer, 400, "bad_body")["path"] == path


async def test_a_client_and_a_device_belong_to_one_user(shared: Reattach) -> None:
    async with as_user(shared, "ann") as ann:
        session = await create(ann)
        outbox = Outbox(ann, session["epoch"])
        assert (await outbox.send(outbox.change(1))).status_code == 200
    # Nobody else may see a session yet: what is between users on one is held in the room.
    host = await (await shared.running()).open("s")
    with pytest.raises(Forbidden):
        host.room.introduce("bob", "c", HelloDevice("other"), record=None, now=1)
    with pytest.raises(Forbidden):
        host.room.introduce("bob", "new", HelloDevice("device-of-c"), record=None, now=1)


async def test_an_ended_session_takes_no_changes(outbox: Outbox) -> None:
    # Rule O8
    assert (await outbox.send(outbox.change(1, {"op": "end"}))).json()["version"] == 1
    problem(await outbox.send(outbox.change(2)), 410, "session_ended")
    problem(await merge(outbox.api, {"a": 1}), 410, "session_ended")
    problem(await outbox.api.get(session_url(rest="/events")), 410, "session_ended")
    found = (await outbox.api.get(session_url())).json()
    assert (found["is_active"], found["version"]) == (False, 1)


# Lists


async def test_history_has_bounds_clients_and_pages(outbox: Outbox) -> None:
    # Rule T14
    await merge(outbox.api, {"m": 1})
    for start in range(1, 151, 50):
        changes = (outbox.change(seq, put("/n", seq)) for seq in range(start, start + 50))
        await outbox.send(*changes)

    async def versions(**query: Any) -> tuple[list[int], str | None]:
        answer = (await outbox.api.get(session_url(rest="/history"), params=query)).json()
        return [one["version"] for one in answer["items"]], answer["next"]

    first, following = await versions()
    assert first == list(range(1, 101))
    assert await versions(next=following) == (list(range(101, 152)), None)
    assert await versions(**{"from": 3, "to": 5}) == ([3, 4, 5], None)
    assert await versions(**{"from": 150}) == ([150, 151], None)
    assert await versions(**{"from": 152}) == ([], None)
    mine, following = await versions(client_id="c")
    assert mine == list(range(2, 102))
    assert (await versions(client_id="c", next=following))[0] == list(range(102, 152))
    problem(await outbox.api.get(session_url(rest="/history?from=x")), 400, "bad_query")


def apply(state: Any, patch: list[Json]) -> Any:
    """RFC 6902 for what these tests commit: add, replace and remove of an object's keys."""
    for op in patch:
        *parents, last = op["path"].split("/")[1:]
        place = state
        for token in parents:
            place = place[token]
        if op["op"] == "remove":
            del place[last]
        else:
            place[last] = op["value"]
    return state


async def test_history_can_do_without_text_operations(outbox: Outbox) -> None:
    splice = {"op": "splice", "path": "/t", "index": 0, "delete": 0}
    await outbox.send(
        outbox.change(1, put("/t", "ä𝄞")),
        outbox.change(2, splice | {"index": 2, "insert": "!"}),
        outbox.change(3, put("/o", {"l": []}), put("/o/m", 1)),
        outbox.change(4, splice | {"delete": 1, "insert": "xyz"}),
    )
    texts = (await outbox.api.get(session_url(rest="/history"))).json()["items"]
    assert {op["op"] for one in texts for op in one["patch"]} >= {"str_ins", "str_del"}
    query = {"patches": "rfc6902"}
    plain = (await outbox.api.get(session_url(rest="/history"), params=query)).json()["items"]
    state: Json = {"n": 0}
    for one in plain:
        apply(state, one["patch"])
    assert state == {"n": 0, "t": "xyz𝄞!", "o": {"l": [], "m": 1}}
    later = query | {"from": "4", "client_id": "c"}
    assert (await outbox.api.get(session_url(rest="/history"), params=later)).json()["items"] == [
        plain[3]
    ]
    problem(await outbox.api.get(session_url(rest="/history?patches=x")), 400, "bad_query")


async def test_conflicts_are_listed(outbox: Outbox) -> None:
    # Rule T15
    other = Outbox(outbox.api, outbox.epoch, "c2")
    await outbox.send(outbox.change(1, put("/n", 1)))
    await other.send(other.change(1, put("/n", 2)))
    found = (await outbox.api.get(session_url(rest="/conflicts"))).json()
    models.ConflictPage.model_validate(found)
    assert [one["path"] for one in found["items"]] == ["/n"]
    assert {found["items"][0]["kept"]["value"], found["items"][0]["lost"]["value"]} == {1, 2}
    auto = (await outbox.api.get(session_url(rest="/conflicts?status=auto"))).json()
    assert auto == found
    assert (await outbox.api.get(session_url(rest="/conflicts?status=open"))).json()["items"] == []
    problem(await outbox.api.get(session_url(rest="/conflicts?status=x")), 400, "bad_query")


async def test_a_conflict_is_settled(outbox: Outbox) -> None:
    # Rule T22
    other = Outbox(outbox.api, outbox.epoch, "c2")
    await outbox.send(outbox.change(1, put("/n", 1)))
    await other.send(other.change(1, put("/n", 2)))
    (one,) = (await outbox.api.get(session_url(rest="/conflicts"))).json()["items"]
    url = session_url(rest=f"/conflicts/{one['id']}/resolve")
    problem(await outbox.api.post(url, json={"keep": "both"}), 400, "bad_body")
    problem(await outbox.api.post(url, json={}), 400, "bad_body")
    headers = {"Idempotency-Key": "k"}
    answer = await outbox.api.post(url, json={"keep": "lost"}, headers=headers)
    assert answer.status_code == 200
    models.Conflict.model_validate(answer.json())
    assert answer.json() == {**one, "status": "resolved"}
    again = await outbox.api.post(url, json={"keep": "lost"}, headers=headers)
    assert (again.status_code, again.json()) == (200, answer.json())
    state = (await outbox.api.get(session_url())).json()["state"]
    assert state["n"] == one["lost"]["value"]
    problem(await outbox.api.post(url, json={"keep": "kept"}), 409, "already_resolved")
    nowhere = session_url(rest="/conflicts/999.0/resolve")
    problem(await outbox.api.post(nowhere, json={"keep": "kept"}), 404, "no_such_conflict")


async def test_a_conflict_is_settled_by_another_value(outbox: Outbox) -> None:
    # Rule T22
    other = Outbox(outbox.api, outbox.epoch, "c2")
    await outbox.send(outbox.change(1, put("/n", 1)))
    await other.send(other.change(1, put("/n", 2)))
    url = session_url(rest="/conflicts/2.0/resolve")
    answer = await outbox.api.post(url, json={"keep": {"value": 7}})
    assert answer.json()["status"] == "resolved"
    assert (await outbox.api.get(session_url())).json()["state"]["n"] == 7


async def test_activity_is_listed(api: httpx.AsyncClient) -> None:
    # Rule T16
    await create(api)
    found = (await api.get(session_url(rest="/activity"))).json()
    models.ActivityPage.model_validate(found)
    assert [one["activity_type"] for one in found["items"]] == ["created"]


async def test_a_heartbeat_marks_its_device(reattach: Reattach, api: httpx.AsyncClient) -> None:
    # Rule T17
    await create(api)
    body = {"session_id": "s", "device": {"id": "d", "name": "a page"}}
    answer = await api.post("/api/v0/session/heartbeat", json=body)
    assert (answer.status_code, answer.content) == (204, b"")
    registry = await reattach.running()

    async def written() -> bool:
        devices = await registry.store.devices("s")
        return [(device.device_id, device.name) for device in devices] == [("d", "a page")]

    await until(written, within=5, what="the device in the database")
    unknown = await api.post("/api/v0/session/heartbeat", json=body | {"session_id": "x"})
    problem(unknown, 404, "session_not_found")


# Erasing, and strangers


async def test_an_erased_session_is_gone_for_its_owner_and_unknown_to_others(
    shared: Reattach,
) -> None:
    # Rule T9
    async with as_user(shared, "ann") as ann, as_user(shared, "bob") as bob:
        await create(ann, {"secret": 1})
        assert (await bob.delete(session_url())).status_code == 404
        assert (await ann.delete(session_url())).status_code == 204
        for path in (session_url(), session_url(rest="/history"), session_url(rest="/events")):
            problem(await ann.get(path), 410, "session_erased")
            problem(await bob.get(path), 404, "session_not_found")
        taken = await bob.post("/api/v0/session", json={"session_id": "s"})
        problem(taken, 409, "already_exists")
        assert (await ann.get("/api/v0/session")).json()["items"] == []


async def test_to_a_stranger_a_session_is_as_one_that_never_was(shared: Reattach) -> None:
    # Rule A3
    requests: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("PATCH", "", {}),
        ("DELETE", "", None),
        ("POST", "/changes", {"client_id": "c", "device": {"id": "d"}, "t": 1, "changes": []}),
        ("GET", "/events", None),
        ("GET", "/history", None),
        ("GET", "/conflicts", None),
        ("POST", "/conflicts/1.0/resolve", {"keep": "kept"}),
        ("GET", "/devices", None),
        ("GET", "/activity", None),
    ]
    async with as_user(shared, "ann") as ann, as_user(shared, "bob") as bob:
        await create(ann)
        for method, rest, body in requests:
            headers = MERGE if method == "PATCH" else {"Content-Type": "application/json"}
            content = None if body is None else json.dumps(body)
            there, nowhere = [
                await bob.request(method, session_url(name, rest), content=content, headers=headers)
                for name in ("s", "nowhere")
            ]
            assert (there.status_code, there.content) == (404, nowhere.content), (method, rest)
            assert sorted(there.headers) == sorted(nowhere.headers)
        assert (await bob.get("/api/v0/session")).json()["items"] == []


async def test_a_user_erases_all_that_is_theirs(shared: Reattach) -> None:
    # Rule T10
    async with as_user(shared, "ann/1") as ann, as_user(shared, "bob") as bob:
        for number in range(3):
            await create(ann, name=f"a{number}")
        await create(bob, name="b")
        problem(await bob.delete("/api/v0/users/ann/1"), 403, "forbidden")
        assert (await ann.delete("/api/v0/users/ann%2F1")).status_code == 204
        assert (await ann.get("/api/v0/session")).json()["items"] == []
        assert (await ann.get(session_url("a1"))).status_code == 410
        assert (await bob.get(session_url("b"))).status_code == 200


# Who is let in


async def test_without_a_token_nobody_is_let_in(shared: Reattach) -> None:
    # Rule A2
    async with client_of(shared) as api:
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eA=="}):
            answer = await api.get("/api/v0/session", headers=headers)
            problem(answer, 401, "not_authenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await api.get("/healthz")).status_code == 200
        assert (await api.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:9", True),
        ("127.0.0.1:8000", True),
        ("127.1.2.3", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("10.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_the_one_user_needs_a_loopback_host(
    api: httpx.AsyncClient, host: str, allowed: bool
) -> None:
    # Rule A1
    answer = await api.get("/api/v0/session", headers={"Host": host})
    if allowed:
        assert answer.status_code == 200
    else:
        problem(answer, 403, "forbidden_host")


@pytest.mark.parametrize(
    ("address", "allowed"), [("127.0.0.9", True), ("::1", True), ("192.168.1.2", False)]
)
async def test_the_one_user_sits_at_this_machine(
    reattach: Reattach, address: str, allowed: bool
) -> None:
    # Rule A1
    transport = httpx.ASGITransport(app=reattach, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as api:
        answer = await api.get("/api/v0/session")
    if allowed:
        assert answer.status_code == 200
    else:
        problem(answer, 403, "forbidden_client")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.0.0.1", False),
        ("http://localhost:8000", False),
        ("https://evil.example", False),
        ("null", False),
        ("file://", False),
    ],
)
async def test_a_page_has_to_be_of_the_same_origin(
    reattach: Reattach, shared: Reattach, origin: str, allowed: bool
) -> None:
    # Rule A4
    async with client_of(reattach) as local, as_user(shared, "ann") as ann:
        for api in (local, ann):
            answer = await api.get("/api/v0/session", headers={"Origin": origin})
            if allowed:
                assert answer.status_code == 200
            else:
                problem(answer, 403, "forbidden_origin")


# Errors


async def test_every_error_is_a_problem(api: httpx.AsyncClient) -> None:
    # Rule T1
    problem(await api.get("/nowhere"), 404, "not_found")
    answer = await api.put(session_url())
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, PATCH, DELETE"


@pytest.mark.one_node("one store is broken here")
async def test_what_nobody_expected_is_told_to_the_log_alone(
    api: httpx.AsyncClient,
    reattach: Reattach,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = await reattach.running()

    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(registry.store, "sessions", broken)
    with structlog.testing.capture_logs() as logged:
        answer = await api.get("/api/v0/session")
    problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert [(line["log_level"], line["path"]) for line in logged] == [("error", "/api/v0/session")]
    assert (await api.get("/healthz")).status_code == 200


@pytest.mark.one_node("one store is broken here")
async def test_a_database_that_is_away_is_told_with_when_to_come_back(
    api: httpx.AsyncClient, reattach: Reattach, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = await reattach.running()

    async def away(*_: Any) -> Any:
        raise StoreUnavailable("the database is away")

    monkeypatch.setattr(registry.store, "check", away)
    monkeypatch.setattr(registry.store, "standings", away)
    for path in ("/readyz", "/api/v0/session/check-connection", session_url("unknown")):
        answer = await api.get(path)
        found = problem(answer, 503, "unavailable")
        assert found["retry_after_ms"] > 0
        assert int(answer.headers["retry-after"]) >= 1
    assert (await api.get("/healthz")).status_code == 200


@pytest.mark.one_node("one store is broken here")
async def test_one_check_serves_all_who_ask_at_the_time(
    api: httpx.AsyncClient, reattach: Reattach, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rules T17 and T18
    registry = await reattach.running()
    checks, go = 0, asyncio.Event()

    async def check() -> None:
        nonlocal checks
        checks += 1
        await go.wait()

    monkeypatch.setattr(registry.store, "check", check)
    asking = [asyncio.create_task(api.get("/readyz")) for _ in range(5)]
    await until(lambda: checks > 0, within=5, what="the check")
    await asyncio.sleep(0.05)
    go.set()
    assert {(await task).status_code for task in asking} == {200}
    assert checks == 1


async def test_nothing_is_shown_before_it_is_durable(
    api: httpx.AsyncClient, reattach: Reattach, behind_file: BehindFile
) -> None:
    # Rules W5 and T21
    await create(api, {"a": 0})
    path = Path(reattach.settings.database.removeprefix("sqlite:///"))
    async with locked(behind_file(path)):
        patching = asyncio.create_task(merge(api, {"a": 1}))
        for _ in range(3):
            shown = (await api.get(session_url())).json()
            assert (shown["version"], shown["state"]) == (0, {"a": 0})
            history = (await api.get(session_url(rest="/history"))).json()
            assert history["items"] == []
        assert not patching.done()
    assert (await patching).json()["state"] == {"a": 1}
    assert (await api.get(session_url())).json()["version"] == 1


# A key that somebody else wrote meanwhile


async def test_a_key_that_was_answered_meanwhile_does_not_hold_up_the_session(
    api: httpx.AsyncClient, reattach: Reattach
) -> None:
    """The first of two requests gave up waiting, and took effect all the same."""
    await create(api, {"l": []})
    add = json.dumps([{"op": "add", "path": "/l/-", "value": 1}])
    headers = PATCH | {"Idempotency-Key": "k1"}
    registry = await reattach.running()
    host = await registry.open("s")
    seen: list[Proposed] = []
    submit = host.submit

    async def twice(request: Proposed) -> Any:
        host.submit = submit  # type: ignore[method-assign]
        second = await api.patch(session_url(), content=add, headers=headers)
        assert second.status_code == 200
        seen.append(request)
        return await submit(request)

    host.submit = twice  # type: ignore[method-assign]
    with first_node():
        first = await api.patch(session_url(), content=add, headers=headers)
    assert (first.status_code, first.headers["idempotency-replayed"]) == (200, "true")
    assert first.json()["state"] == {"l": [1]}
    assert (await merge(api, {"n": 1})).json()["state"] == {"l": [1], "n": 1}
    commits: list[CommitRecord] = list(await registry.store.log("s", first=1))
    assert [commit.version for commit in commits] == [1, 2]


# OpenAPI


async def test_openapi_describes_bodies_and_answers(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    assert "$defs" not in json.dumps(document)
    bodiless = {"DELETE", "GET"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert method.upper() in bodiless or operation["requestBody"]["content"], where
            good = [code for code in operation["responses"] if code.startswith("2")]
            assert len(good) == 1, where
            assert good == ["204"] or operation["responses"][good[0]]["content"], where
    patch = document["paths"]["/api/v0/session/{session_id}"]["patch"]
    assert set(patch["requestBody"]["content"]) == {
        "application/merge-patch+json",
        "application/json-patch+json",
    }
    problems = patch["responses"]["4XX"]["content"]["application/problem+json"]["schema"]
    assert "code" in problems["properties"]
