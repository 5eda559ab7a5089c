"""HTTP PATCH against the public suites: JSON Patch's own, and the table of RFC 7396.

A session's state is an object, so cases whose document is something else do not apply. A case that
would make the state something else has to be refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reattach.core.values import equal
from reattach.server.app import Reattach
from reattach.store.memory import MemoryStore
from tests.support.paths import ROOT

SUITE = ROOT / "node_modules" / "json-patch-test-suite"
FILES = ("tests.json", "spec_tests.json")

Case = dict[str, Any]


def suite(name: str) -> list[Case]:
    cases: list[Case] = json.loads((SUITE / name).read_text())
    return [case for case in cases if "patch" in case]


def cases() -> list[Any]:
    """All that the suite has not disabled and whose document can be a state."""
    return [
        pytest.param(case, id=f"{Path(name).stem}-{number}")
        for name in FILES
        for number, case in enumerate(suite(name))
        if isinstance(case["doc"], dict) and not case.get("disabled")
    ]


# RFC 7396, appendix A: original, patch, result.
TABLE = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]


@pytest.fixture
async def api() -> AsyncIterator[httpx.AsyncClient]:
    async with (
        Reattach(store=MemoryStore()) as reattach,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=reattach), base_url="http://127.0.0.1"
        ) as client,
    ):
        yield client


async def patched(
    api: httpx.AsyncClient, kind: str, doc: Any, patch: str, expected: Any
) -> httpx.Response:
    """Patch a session that holds ``doc``; it then holds ``expected``, where that is an object."""
    body = {"session_id": "s", "state": doc}
    assert (await api.post("/api/v0/session", json=body)).status_code == 201
    answer = await api.patch(
        "/api/v0/session/s",
        content=patch,
        headers={"Content-Type": f"application/{kind}+json"},
    )
    possible = isinstance(expected, dict)
    after = (await api.get("/api/v0/session/s")).json()
    assert equal(after["state"], expected if possible else doc)
    if possible:
        assert answer.status_code == 200, answer.text
        assert answer.json() == after
    else:
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"]
        assert after["version"] == 0
    return answer


@pytest.mark.parametrize("case", cases())
async def test_json_patch_suite(api: httpx.AsyncClient, case: Case) -> None:
    # Rule T8
    expected = None if "error" in case else case.get("expected", case["doc"])
    await patched(api, "json-patch", case["doc"], json.dumps(case["patch"]), expected)


def test_the_suite_runs_but_for_what_is_no_state_or_disabled() -> None:
    every = [case for name in FILES for case in suite(name)]
    states = [case for case in every if isinstance(case["doc"], dict)]
    disabled = [case for case in states if case.get("disabled")]
    assert (len(every), len(states), len(disabled), len(cases())) == (95, 65, 3, 62)


@pytest.mark.parametrize(
    ("doc", "patch", "expected"), [row for row in TABLE if row[0].startswith("{")]
)
async def test_merge_patch_table(
    api: httpx.AsyncClient, doc: str, patch: str, expected: str
) -> None:
    # Rule T8
    await patched(api, "merge-patch", json.loads(doc), patch, json.loads(expected))
