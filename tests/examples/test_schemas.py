"""Somebody's own schema: what is asked for by it, and what is refused before it is evaluated."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.gap_resolution import app, gaps, schemas
from examples.gap_resolution.session import GapResolution
from reattach.schema import ModelSchema

TRIP: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.org/trip",
    "title": "Field trip",
    "type": "object",
    "required": ["place", "when", "leader"],
    "properties": {
        "place": {"type": "string", "title": "Where to", "minLength": 2},
        "when": {"type": "string", "format": "date"},
        "days": {"type": "integer", "minimum": 1},
        "by_train": {"type": "boolean"},
        "leader": {"$ref": "#/$defs/person"},
        "people": {"type": "array", "items": {"$ref": "#/$defs/person"}},
        "code": {"type": ["string", "null"], "pattern": "^[A-Z]{3}$"},
        "luggage": {"anyOf": [{"type": "null"}, {"type": "number"}]},
        "a/b.c": {"enum": ["x", "y"]},
    },
    "$defs": {
        "person": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "email": {"type": "string", "format": "email"},
            },
        }
    },
}


def first_state(schema: Any = TRIP) -> dict[str, Any]:
    return gaps.first_state(schemas.kind_of(schemas.read_schema(json.dumps(schema))))


def answered(state: dict[str, Any], **answers: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    for response in state["user_responses"]:
        if response["gap"] in answers:
            response["answer"] = answers[response["gap"]]
    for op in gaps.reconcile(state):
        _apply(state, op)
    assert gaps.reconcile(state) == []
    return state


def _apply(state: dict[str, Any], op: dict[str, Any]) -> None:
    at: Any = state
    *parents, last = [
        one.replace("~1", "/").replace("~0", "~") for one in op["path"].split("/")[1:]
    ]
    for token in parents:
        at = next(x for x in at if f"#{x['id']}" == token) if token[:1] == "#" else at[token]
    if op["op"] == "insert":
        at[last] = [one for one in at[last] if one["id"] != op["value"]["id"]] + [op["value"]]
    elif op["op"] == "unset":
        at[:] = [one for one in at if f"#{one['id']}" != last]
    else:
        at[last] = op["value"]


def test_each_property_is_a_question_and_only_what_is_required_is_missing() -> None:
    state = first_state()
    found = {
        gap["id"]: (gap["title"], gap["kind"], gap["problem"]) for gap in state["gaps_detected"]
    }
    assert found == {
        "place": ("Where to", "text", "It is missing."),
        "when": ("When", "date", "It is missing."),
        "days": ("Days", "number", None),
        "by_train": ("By train", "choice", None),
        "leader": ("Leader", "form", "It is missing."),
        "people": ("People", "form", None),
        "code": ("Code", "text", None),
        "luggage": ("Luggage", "number", None),
        "a/b%2Ec": ("A/b.c", "choice", None),
    }
    drafts = {one["gap"]: one["draft"] for one in state["user_responses"]}
    assert (drafts["leader"], drafts["people"], drafts["place"]) == ({}, [{"id": "1"}], "")
    assert state["context"]["document_name"] == "field-trip.json"
    ModelSchema(GapResolution).begin(state)


def test_answers_make_a_document_of_the_schema() -> None:
    state = answered(first_state(), place="Lake", when="2026-07-01", leader={"name": "Sam"})
    assert state["context"]["valid"] is True
    wrong = answered(state, code="abc", leader={"name": "Sam", "email": "sam"}, days="0")
    problems = {gap["id"]: gap["problem"] for gap in wrong["gaps_detected"] if gap["problem"]}
    assert set(problems) == {"code", "leader", "days"}
    assert wrong["context"]["valid"] is False
    right = answered(wrong, code="ABC", leader={"name": "Sam"}, days="3", **{"a/b%2Ec": "x"})
    assert right["context"]["valid"] is True
    assert json.loads(right["context"]["document"]) == {
        "place": "Lake",
        "when": "2026-07-01",
        "days": 3,
        "leader": {"name": "Sam"},
        "code": "ABC",
        "a/b.c": "x",
    }


def test_a_schema_in_which_items_have_ids_of_their_own_leaves_them_to_people() -> None:
    item = {"type": "object", "properties": {"id": {"type": "string"}}}
    state = first_state({"properties": {"parts": {"type": "array", "items": item}}})
    assert state["user_responses"][0]["draft"] == []


# What has no bound takes for ever; a busy machine does not.
SOON_S = 10
DEEP = '{"properties":{"a":' * 26 + "{}" + "}}" * 26
# Each refers twice to the next: small, and endless for whoever follows.
DOUBLING = {
    "properties": {"a": {"$ref": "#/$defs/0"}},
    "$defs": {
        **{
            str(n): {"properties": {name: {"$ref": f"#/$defs/{n + 1}"} for name in "xy"}}
            for n in range(40)
        },
        "40": {"type": "string"},
    },
}


def of(field: Any, **more: Any) -> str:
    return json.dumps({"properties": {"a": field}, **more})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected JSON: Expecting value, at line 1, column 1"),
        ("{", "at line 1, column 2"),
        ("[" * 60_000, "nested less"),
        (" " * 64_001, "at most 64000 characters"),
        ("[]", "expected a JSON Schema (an object), got a list"),
        ("{}", 'expected "properties" at the top'),
        (of({}, type="array"), 'expected "object" at the top'),
        (of(5), "at properties/a: expected a schema, got a number"),
        (of({"type": "objekt"}), "at properties/a/type"),
        (of({"type": "object"}), "at properties/a: expected an object with"),
        (of({}, required=["b"]), "'b', which is not among the properties"),
        (of({}, anyOf=[]), '"anyOf" at the top'),
        (of({"$ref": "https://example.org/x"}), "expected a reference within this schema"),
        (of({"$ref": "other.json#/x"}), "expected a reference within this schema"),
        (of({"$ref": "#/$defs/none"}), "there is nothing at '#/$defs/none'"),
        (of({"$ref": "#"}), "refers to itself"),
        (of({"$ref": "#/$defs/b"}, **{"$defs": {"b": {"$ref": "#/$defs/b"}}}), "refers to itself"),
        (of({"$dynamicRef": "#a"}), '"$dynamicRef" is not known here'),
        (of({"$id": "https://example.org/"}), 'expected "$id" at the top alone'),
        (of({"pattern": "(?=a)b"}), "this pattern is not known here"),
        (of({"pattern": "(a+)+$" * 200}), "at most 500 characters"),
        (of({"properties": {"__proto__": {}}}), "names of properties"),
        (DEEP, "at most 24 levels"),
        (json.dumps(DOUBLING), "at most 5000 parts"),
        (json.dumps({"properties": {str(n): {} for n in range(61)}}), "at most 60 properties"),
    ],
)
def test_what_no_form_can_be_made_of_is_refused_with_a_reason(text: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(said)):
        schemas.read_schema(text)
    assert time.monotonic() - began < SOON_S


def test_a_pattern_takes_no_longer_than_its_text() -> None:
    state = first_state({"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}})
    began = time.monotonic()
    wrong = answered(state, a="a" * 50_000 + "!")
    assert (
        wrong["gaps_detected"][0]["problem"]
        == "This does not have the form of the pattern ^(a+)+$."
    )
    assert time.monotonic() - began < 2


def test_another_schema_put_into_the_session_breaks_nothing() -> None:
    state = first_state()
    state["context"]["own"] = {"properties": {"a": {"$ref": "#"}}}
    assert all(op["op"] in {"set", "insert", "unset"} for op in gaps.reconcile(state))


async def test_the_route_says_what_is_wrong_with_a_schema(tmp_path: Path) -> None:
    app.reattach.use_database(f"sqlite:///{tmp_path / 'reattach.db'}")
    transport = httpx.ASGITransport(app.reattach)
    async with (
        app.reattach,
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        bad = await client.post(
            "/documents", json={"kind": "own", "text": of({"$ref": "http://x"})}
        )
        assert (bad.status_code, bad.json()["code"]) == (400, "bad_schema")
        assert "a reference within this schema" in bad.json()["detail"]
        made = await client.post("/documents", json={"kind": "own", "text": json.dumps(TRIP)})
        assert made.status_code == 201
        token = {"Authorization": f"Bearer {made.json()['token']}"}
        session = await client.get(f"/api/v0/session/{made.json()['session_id']}", headers=token)
        assert session.json()["schema"] == {"name": "GapResolution", "version": 1}
        assert session.json()["state"]["context"]["own"]["title"] == "Field trip"
