"""The snippets about access run as they stand, and do what is said around them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from reattach import Reattach
from reattach.errors import NotAuthenticated
from reattach.schema import ModelSchema
from tests.core.rig import Rig, insert, put
from tests.support.paths import ROOT
from tests.test_schema_docs import run

PAGE = (ROOT / "docs" / "access.md").read_text()
SOURCES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Accounts:
    async def by_session_cookie(self, cookie: str | None) -> Any:
        if cookie is None:
            return None
        until = time.time_ns() // 1_000_000 + 60_000
        return SimpleNamespace(id=cookie, signed_in_until_ms=until)


class Teams:
    async def share(self, one: str, other: str) -> bool:
        return {one, other} == {"ann", "bob"}


async def test_an_application_says_who_is_there_and_what_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules A2 and A20."""
    monkeypatch.chdir(tmp_path)
    assert len(SOURCES) == 3
    names: dict[str, Any] = {"__name__": "docs", "accounts": Accounts(), "teams": Teams()}
    names["support_desk"] = {"sue"}
    run(SOURCES[0], names)
    first = names["reattach"]
    assert isinstance(first, Reattach)
    with pytest.raises(NotAuthenticated):
        await names["authenticate"](SimpleNamespace(cookies={}))
    run(SOURCES[1], names)
    async with names["reattach"] as reattach:

        async def asked(user: str, method: str) -> int:
            transport = httpx.ASGITransport(app=reattach)
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://127.0.0.1:8000",
                cookies={"session": user},
                headers={
                    "Content-Type": "application/merge-patch+json",
                    "Origin": "http://127.0.0.1:8000",
                },
            ) as api:
                content = b'{"n": 1}' if method == "PATCH" else None
                answer = await api.request(method, "/api/v0/session/draft-7", content=content)
                return answer.status_code

        await reattach.sessions.create({}, user_id="ann", session_id="draft-7")
        assert [await asked(who, "GET") for who in ("ann", "bob", "sue", "eve")] == [
            200,
            200,
            200,
            404,
        ]
        assert [await asked(who, "PATCH") for who in ("ann", "bob", "sue", "eve")] == [
            200,
            200,
            403,
            404,
        ]


def test_a_schema_says_which_fields() -> None:
    """Rule A22."""
    names: dict[str, Any] = {"__name__": "docs"}
    run(SOURCES[2], names)
    schema = ModelSchema(names["Review"])
    rig = Rig(schema.begin({"comments": [{"id": "c1", "approved": True}]}), schema=schema)
    frame = rig.change("c", put("/comments/#c1/approved", False), role="editor")
    assert (frame["code"], frame["path"]) == ("forbidden", "/comments/#c1/approved")
    assert rig.refused("c", put("/score", 1), role="owner") == "forbidden"
    whole = {"id": "c1", "text": "t", "approved": True}
    for op in (put("/comments/#c1", whole), insert("/comments", {"id": "c2", "approved": False})):
        assert rig.change("c", op, role="editor")["type"] == "state_update"
